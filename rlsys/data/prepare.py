"""From a recipe's data section to what a stage reads: a store of tokenized rows or pairs, or a set of prompts."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rlsys.data import tokenizer
from rlsys.data.card import write_card
from rlsys.data.chat import ChatTokenizer
from rlsys.data.decontamination_gate import decontaminated_rows, gate_hashes
from rlsys.data.drops import DropLog, RowRefused
from rlsys.data.mixture import mix
from rlsys.data.prompts import PromptSet
from rlsys.data.row import Row
from rlsys.data.spool import file_sha256, spool_key
from rlsys.data.token_store import Layout, read_manifest, write_pair_store, write_token_store
from rlsys.data.tokenized import TokenizedPair, TokenizedRow
from rlsys.errors import DataError
from rlsys.recipe.data import DataSettings
from rlsys.recipe.decontamination import Decontamination

_BATCH = 512


def prepare_store(
    data: DataSettings,
    tokenizer: str,
    folder: Path,
    *,
    layout: Layout = "rows",
    gate: Decontamination | None = None,
) -> dict[str, Any]:
    """Mixes and tokenizes the sources into a store, with the data card beside it; a store made from the same is reused.

    Args:
        data: sources, filters and templating.
        tokenizer: a folder with the tokenizer.
        folder: of the store. Beside it, `<folder>.work` holds what was read until the store is whole.
        layout: `rows` of conversations and texts, or `pairs`.
        gate: evaluation sets that the rows must not hold; its report lies beside the store.

    Returns: the store's manifest; `about` has the data card, the rows dropped while tokenizing by reason, and counts
        of markers and cuts.

    Raises:
        DataError: a source cannot be used, or nothing is left to learn from.
    """
    full_key = _key(data, tokenizer, layout, gate)
    manifest = read_manifest(folder)
    if manifest is not None and manifest["key"] == full_key and manifest["layout"] == layout:
        _write_store_card(folder, manifest)
        return manifest
    work = folder.with_name(f"{folder.name}.work")
    chat = ChatTokenizer(load_tokenizer(tokenizer), data.templating)
    mixture = mix(data, work)
    read = mixture.read if gate is None else _gated(mixture.read, gate, folder.parent)
    drops = DropLog()
    about: dict[str, Any] = {"card": mixture.card}
    if layout == "rows":
        rows = _told(_checked(data, tokenized_rows(read(), chat, drops), drops), about, drops, chat)
        manifest = write_token_store(folder, rows, key=full_key, about=about)
    else:
        pairs = _told(_checked(data, tokenized_pairs(read(), chat, drops), drops), about, drops, chat)
        manifest = write_pair_store(folder, pairs, key=full_key, about=about)
    _write_store_card(folder, manifest)
    shutil.rmtree(work)
    return manifest


def prepare_prompts(
    data: DataSettings,
    tokenizer: str,
    *,
    limit: int | None = None,
    folder: Path | None = None,
    gate: Decontamination | None = None,
    with_checks: bool = True,
) -> PromptSet:
    """Mixes the sources into a set of prompts, each ground truth checked by its verifier.

    Args:
        data: sources, filters and templating; without filters and counts, the prompts keep the order of the mixture.
        tokenizer: a folder with the tokenizer.
        limit: the most prompts, from the front of the mixture.
        folder: where the data card is written, if anywhere.
        gate: evaluation sets that the prompts must not hold; its report goes into the folder.
        with_checks: see `PromptSet.build`.

    Raises:
        DataError: a source cannot be used, or no prompt is left.
    """
    chat = ChatTokenizer(load_tokenizer(tokenizer), data.templating)
    drops = DropLog()
    with tempfile.TemporaryDirectory() as work:
        mixture = mix(data, Path(work))
        read = mixture.read if gate is None else _gated(mixture.read, gate, folder)
        prompts = PromptSet.build(read(), chat, drops=drops, with_checks=with_checks, limit=limit)
        _refuse_wrong(data, drops)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_card(folder, mixture.card, prompts=len(prompts), dropped=drops.as_manifest())
    return prompts


def _gated(
    read: Callable[[], Iterator[Row]], gate: Decontamination, folder: Path | None
) -> Callable[[], Iterator[Row]]:
    """The rows that the gate lets through; the report says which it did not, and why."""
    gated = decontaminated_rows(read, gate)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "decontamination.json").write_text(json.dumps(gated.json, indent=1))
    return gated.read


def load_tokenizer(folder: str) -> Any:
    """The fast tokenizer in a folder.

    Raises:
        DataError: there is none.
    """
    try:
        return tokenizer.load_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise DataError(
            f"no tokenizer can be loaded: {error}", value=folder, fix="give a folder with tokenizer.json"
        ) from error


def tokenized_rows(rows: Iterable[Row], chat: ChatTokenizer, drops: DropLog) -> Iterator[TokenizedRow]:
    """Conversations and plain texts as token ids and weights, in order; what cannot be used is counted in `drops`."""
    remaining = iter(rows)
    while batch := list(islice(remaining, _BATCH)):
        conversations = iter(chat.encode_conversations([row.messages for row in batch if row.kind == "conversation"]))
        for row in batch:
            try:
                if row.kind == "conversation":
                    yield _accepted(next(conversations))
                elif row.text is not None:
                    yield chat.encode_text(row.text)
                else:
                    raise RowRefused("no_response", f"a {row.kind} has no conversation to learn")
            except RowRefused as refused:
                drops.add(refused.reason, str(row.origin), refused.problem)


def tokenized_pairs(rows: Iterable[Row], chat: ChatTokenizer, drops: DropLog) -> Iterator[TokenizedPair]:
    """Preference pairs as token ids and weights, in order; what cannot be used is counted in `drops`."""
    for row in rows:
        try:
            if row.kind != "pair":
                raise RowRefused("no_pair", f"a {row.kind} is no preference pair")
            yield chat.encode_pair(row.messages, row.chosen, row.rejected, margin=row.margin)
        except RowRefused as refused:
            drops.add(refused.reason, str(row.origin), refused.problem)


def _write_store_card(folder: Path, manifest: dict[str, Any]) -> None:
    about = manifest["about"]
    counts = {name: manifest[name] for name in ("tokens", "targets", "longest")}
    write_card(folder, about["card"], **counts, dropped=about["dropped"], counts=about["counts"])


def _accepted(result: TokenizedRow | RowRefused) -> TokenizedRow:
    if isinstance(result, RowRefused):
        raise result
    return result


def _told(rows: Iterator[Any], about: dict[str, Any], drops: DropLog, chat: ChatTokenizer) -> Iterator[Any]:
    """The rows; when the last one was read, `about` is told what was dropped and cut."""
    yield from rows
    about["dropped"] = drops.as_manifest()
    about["counts"] = dict(chat.counts)


def _checked(data: DataSettings, rows: Iterator[Any], drops: DropLog) -> Iterator[Any]:
    """The rows; refuses after the last one, while the store is still a draft, so that a refused one never appears."""
    yield from rows
    _refuse_wrong(data, drops)


def _refuse_wrong(data: DataSettings, drops: DropLog) -> None:
    if data.wrong_rows == "refuse" and drops.total:
        reason, examples = next(iter(drops.examples.items()))
        raise DataError(
            f"{examples[0]['where']}: {examples[0]['problem']} ({reason})",
            value=dict(drops.by_reason),
            fix="mend or remove the rows, or set wrong_rows = 'drop'",
        )


def _key(data: DataSettings, tokenizer: str, layout: Layout, gate: Decontamination | None) -> str:
    """What a store's content depends on: settings, the bytes of the sources and evaluation sets, the tokenizer."""
    sources = [spool_key(source, source.filters or data.filters) for source in data.source]
    files = [path for path in sorted(Path(tokenizer).glob("*")) if path.suffix in (".json", ".jinja")]
    hashes = [[path.name, file_sha256(path)] for path in files if "token" in path.name or path.suffix == ".jinja"]
    gated = None if gate is None else [gate.model_dump(mode="json"), gate_hashes(gate)]
    description = [layout, gated, data.model_dump(mode="json"), sources, hashes]
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()
