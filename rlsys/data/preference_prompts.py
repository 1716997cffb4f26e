"""Which prompts are answered for preference data: reused from SFT, not used in it, and with added constraints."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlsys.data.decontamination_text import exact_key
from rlsys.data.preference_constraints import add_constraints
from rlsys.data.preference_pairs import seeded_random
from rlsys.data.preference_records import PreferencePrompt, PromptKind
from rlsys.data.row import Row
from rlsys.recipe.preferences import PromptSelectionSettings


@dataclass(frozen=True, slots=True)
class PromptSelection:
    """The prompts to answer, and what was left out."""

    prompts: tuple[PreferencePrompt, ...]
    """Reused, then unused, then constrained ones; each in the order of its draw."""
    counts: Counter[str]
    """Taken by kind; `short_of/<kind>`: wanted but not there; dropped as `no_user_turn`, `repeated` or `in_sft`."""


def select_prompts(
    sft_rows: Iterable[Row],
    other_rows: Iterable[Row],
    settings: PromptSelectionSettings,
) -> PromptSelection:
    """Draws prompts without repetition; two prompts are the same if their texts are, layout and case aside.

    Which prompts are drawn depends on (seed, row ids) alone, not on the order of the rows. Constrained ones build on
    SFT prompts that are not among the reused ones.

    Args:
        sft_rows: what the SFT model was trained on.
        other_rows: where unused prompts come from; those in `sft_rows` are left out.
        settings: how many of each kind.

    Raises:
        VerifierError: the settings name an unknown constraint.
    """
    counts: Counter[str] = Counter()
    sft = _prompts(sft_rows, "reused", taken=set(), counts=counts, reason="repeated")
    others = _prompts(other_rows, "unused", taken={key for key, _ in sft}, counts=counts, reason="in_sft")
    drawn_sft = _shuffled([prompt for _, prompt in sft], settings.seed)
    reused = drawn_sft[: settings.reused]
    bases = drawn_sft[settings.reused : settings.reused + settings.constrained]
    unused = _shuffled([prompt for _, prompt in others], settings.seed)[: settings.unused]
    constrained = [
        add_constraints(
            prompt, max_constraints=settings.max_constraints, seed=settings.seed, among=settings.constraint_ids
        )
        for prompt in bases
    ]
    wanted = {"reused": settings.reused, "unused": settings.unused, "constrained": settings.constrained}
    for kind, prompts in (("reused", reused), ("unused", unused), ("constrained", constrained)):
        counts[kind] = len(prompts)
        counts[f"short_of/{kind}"] = wanted[kind] - len(prompts)
    return PromptSelection((*reused, *unused, *constrained), counts)


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
        key = exact_key("\n".join(message["content"] for message in messages))
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
