"""Which prompts are answered for preference data: reused from SFT, not used in it, and with added constraints."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from rlsys.checkpoint.durable_file import write_durably
from rlsys.data.decontamination_text import exact_key
from rlsys.data.preference_constraints import add_constraints
from rlsys.data.preference_pairs import seeded_random
from rlsys.data.preference_records import PreferencePrompt, PromptKind
from rlsys.data.row import Row
from rlsys.recipe.preferences import PromptSelectionSettings
from rlsys.types import Message


@dataclass(frozen=True, slots=True)
class PromptSelection:
    """The prompts to answer, and what was left out."""

    prompts: tuple[PreferencePrompt, ...]
    """Reused, then unused, constrained, relaxed and persona ones; each in the order of its draw."""
    counts: Counter[str]
    """Taken by kind; `short_of/<kind>`: wanted but not there; dropped as `no_user_turn`, `repeated`, `in_sft` or
    `answered` (of persona prompts: selected already)."""


def select_prompts(
    sft_rows: Iterable[Row],
    other_rows: Iterable[Row],
    settings: PromptSelectionSettings,
    *,
    persona_rows: Iterable[Row] = (),
) -> PromptSelection:
    """Draws prompts without repetition; two prompts are the same if their texts are, layout and case aside.

    Which prompts are drawn depends on (seed, row ids) alone, not on the order of the rows. Constrained and relaxed ones
    build on SFT prompts that no other kind takes.

    Args:
        sft_rows: what the SFT model was trained on.
        other_rows: where unused prompts come from; those in `sft_rows` are left out.
        settings: how many of each kind.
        persona_rows: prompts with constraints in their own words.

    Raises:
        VerifierError: the settings name an unknown constraint.
    """
    counts: Counter[str] = Counter()
    sft = _prompts(sft_rows, "reused", taken=set(), counts=counts, reason="repeated")
    sft_keys = {key for key, _ in sft}
    others = _prompts(other_rows, "unused", taken=sft_keys, counts=counts, reason="in_sft")
    remaining = iter(_shuffled([prompt for _, prompt in sft], settings.seed))
    reused = list(islice(remaining, settings.reused))
    constrained = [_constrained(prompt, "constrained", settings) for prompt in islice(remaining, settings.constrained)]
    relaxed = [_constrained(prompt, "relaxed", settings) for prompt in islice(remaining, settings.relaxed)]
    unused = _shuffled([prompt for _, prompt in others], settings.seed)[: settings.unused]
    selected = {_key(prompt.request) for prompt in (*reused, *unused)}
    personas = _prompts(persona_rows, "persona", taken=selected, counts=counts, reason="answered")
    persona = _shuffled([prompt for _, prompt in personas], settings.seed)[: settings.persona]
    for kind, wanted, prompts in (
        ("reused", settings.reused, reused),
        ("unused", settings.unused, unused),
        ("constrained", settings.constrained, constrained),
        ("relaxed", settings.relaxed, relaxed),
        ("persona", settings.persona, persona),
    ):
        if wanted:
            counts[kind] = len(prompts)
            counts[f"short_of/{kind}"] = wanted - len(prompts)
    return PromptSelection((*reused, *unused, *constrained, *relaxed, *persona), counts)


def write_prompts(file: Path, prompts: Sequence[PreferencePrompt]) -> None:
    """Writes what is asked as JSON lines, by the ids under which responses and ratings are kept."""
    lines = (
        json.dumps({"id": one.id, "source": one.source, "kind": one.kind, "messages": one.messages}) + "\n"
        for one in prompts
    )
    write_durably(file, "".join(lines).encode())


def _constrained(prompt: PreferencePrompt, kind: PromptKind, settings: PromptSelectionSettings) -> PreferencePrompt:
    constrained = add_constraints(
        prompt, max_constraints=settings.max_constraints, seed=settings.seed, among=settings.constraint_ids
    )
    return replace(constrained, kind=kind)


def _key(messages: Sequence[Message]) -> str:
    return exact_key("\n".join(message["content"] for message in messages))


def _prompts(
    rows: Iterable[Row], kind: PromptKind, *, taken: set[str], counts: Counter[str], reason: str
) -> list[tuple[str, PreferencePrompt]]:
    """(key, prompt) of each row whose prompt is new; the first of several alike in order of id stays."""
    found: dict[str, PreferencePrompt] = {}
    for row in rows:
        messages = row.prompt
        if not messages or messages[-1]["role"] != "user":
            counts["no_user_turn"] += 1
            continue
        key = _key(messages)
        if key in taken:
            counts[reason] += 1
            continue
        prompt = PreferencePrompt(row.id, messages, row.source, kind, own_checks=row.checks)
        if key in found:
            counts["repeated"] += 1
            prompt = min(prompt, found[key], key=lambda one: one.id)
        found[key] = prompt
    return list(found.items())


def _shuffled(prompts: Sequence[PreferencePrompt], seed: int) -> list[PreferencePrompt]:
    """In the order of a number drawn for each prompt from (seed, id)."""
    return sorted(prompts, key=lambda prompt: (seeded_random(seed, "select", prompt.id).random(), prompt.id))
