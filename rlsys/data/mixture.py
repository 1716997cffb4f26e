"""Mixes sources into one data set: the same rows in the same order for the same seed, however many readers there are.

sources --read, filter--> units on disk --deduplicate, draw, shuffle--> rows in order, and a data card
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rlsys.data.card import CARD_FILE, SourceCard, data_card, write_card
from rlsys.data.duplicates import DuplicateIndex
from rlsys.data.formats import rows_of
from rlsys.data.publication import publishing, require_replaceable
from rlsys.data.row import Origin, Row
from rlsys.data.sampling import draw, shuffled
from rlsys.data.spool import SourceTally, SpooledRow, SpoolTask, spool, spool_key, spooled_rows
from rlsys.errors import DataError
from rlsys.recipe.data import DataSettings, FilterSettings, SourceSettings

Map: TypeAlias = Callable[[Callable[[SpoolTask], None], Iterable[SpoolTask]], Iterable[None]]
"""The built-in `map`, or that of a process pool."""

MIXTURE_FILE = "mixture.jsonl"


@dataclass(frozen=True, slots=True)
class Mixture:
    """A mixture whose rows lie on disk. N counts them, repetitions included."""

    rows: tuple[tuple[SpooledRow, int], ...]
    """`[N]` (row, repetition) in the order of the mixture."""
    card: dict[str, Any]
    """What went in, what was left out and why: see `rlsys.data.card`."""

    def __len__(self) -> int:
        return len(self.rows)

    def lines(self) -> Iterator[bytes]:
        """The rows as JSON lines, in order; the n-th repetition of a row has `#n` behind its id."""
        opened: dict[Path, Any] = {}
        try:
            for row, repetition in self.rows:
                if row.file not in opened:
                    opened[row.file] = row.file.open("rb")
                opened[row.file].seek(row.offset)
                line = opened[row.file].read(row.length)
                yield line if not repetition else _renamed(line, f"{row.id}#{repetition}")
        finally:
            for file in opened.values():
                file.close()

    def read(self) -> Iterator[Row]:
        """The rows, in order."""
        for ordinal, line in enumerate(self.lines()):
            yield from rows_of(
                json.loads(line), source="mixture", ordinal=ordinal, origin=Origin(MIXTURE_FILE, ordinal + 1)
            )


def mix(settings: DataSettings, folder: Path, *, num_readers: int = 1, run: Map = map) -> Mixture:
    """Reads, filters, deduplicates, draws and shuffles the sources of a recipe.

    Args:
        settings: sources with their counts or fractions, filters, seed.
        folder: for the units read; what is there already, from a run that was killed, is not read again.
        num_readers: into how many tasks each source is split; no row depends on it.
        run: runs the tasks: `map`, or the `map` of a process pool.

    Raises:
        DataError: no source, one that cannot be read, or one that is to give rows and has none left.
    """
    if not settings.source:
        raise DataError("a mixture needs at least one source", fix="add [[data.source]] with a path")
    folders = {source.label: folder / spool_key(source, _filters(settings, source)) for source in settings.source}
    tasks = [
        SpoolTask(
            source,
            _filters(settings, source),
            folders[source.label],
            reader,
            num_readers,
            settings.wrong_rows == "refuse",
        )
        for source in settings.source
        for reader in range(num_readers)
    ]
    for _ in run(spool, tasks):
        pass
    taken: list[tuple[SpooledRow, int]] = []
    cards: list[SourceCard] = []
    seen: dict[str, DuplicateIndex] = {}
    for source in settings.source:
        chosen, card = _take(source, settings, folders[source.label], seen)
        taken += chosen
        cards.append(card)
    order = shuffled([f"{row.id}#{repetition}" for row, repetition in taken], seed=settings.seed)
    rows = tuple(taken[index] for index in order)
    return Mixture(rows, data_card(settings, cards, rows))


def write_mixture(settings: DataSettings, folder: Path, *, num_readers: int = 1, run: Map = map) -> dict[str, Any]:
    """Writes a mixture as `mixture.jsonl` with its data card into a folder of its own, which appears whole.

    Beside it, `<folder>.work` holds what was read until then, so that a run that was killed goes on.

    Returns: the data card, with the SHA-256 of the file as `sha256`.

    Raises:
        DataError: as `mix`; or the folder holds something else.
    """
    require_replaceable(folder, marker=CARD_FILE)
    work = folder.with_name(f"{folder.name}.work")
    mixture = mix(settings, work, num_readers=num_readers, run=run)
    digest = hashlib.sha256()
    with publishing(folder, marker=CARD_FILE) as draft:
        with (draft / MIXTURE_FILE).open("wb") as file:
            for line in mixture.lines():
                digest.update(line)
                file.write(line)
        card = {**mixture.card, "sha256": digest.hexdigest()}
        write_card(draft, card)
    shutil.rmtree(work)
    return card


def _take(
    source: SourceSettings, settings: DataSettings, folder: Path, seen: dict[str, DuplicateIndex]
) -> tuple[list[tuple[SpooledRow, int]], SourceCard]:
    filters = _filters(settings, source)
    # Sources with the same rules for duplicates are compared with each other; others only with themselves.
    rules = json.dumps([filters.exact_duplicates, filters.near_duplicates and filters.near_duplicates.model_dump()])
    index = seen.setdefault(rules, DuplicateIndex(filters.near_duplicates))
    tally, duplicates = SourceTally(), Counter[str]()
    eligible = []
    for row in spooled_rows(folder, tally):
        reason = index.reason_to_remove(row.exact, row.near)
        if reason is None:
            eligible.append(row._replace(exact=None, near=None))
        else:
            duplicates[reason] += 1
    if not eligible:
        raise DataError(
            f"no row of {source.label} is left",
            value={"wrong": dict(tally.drops.by_reason), "filtered": dict(tally.filtered + duplicates)},
            fix="correct the path or its filters",
        )
    taken = draw([row.id for row in eligible], source.take, seed=settings.seed)
    card = SourceCard(source, tally, duplicates, len(eligible), len(taken), len({place for place, _ in taken}))
    return [(eligible[place], repetition) for place, repetition in taken], card


def _filters(settings: DataSettings, source: SourceSettings) -> FilterSettings:
    return settings.filters if source.filters is None else source.filters


def _renamed(line: bytes, name: str) -> bytes:
    return json.dumps({**json.loads(line), "id": name}, ensure_ascii=False).encode() + b"\n"
