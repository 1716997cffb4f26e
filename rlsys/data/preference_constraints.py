"""Instruction-following pairs: prompts with added constraints, kept where verified, and with one of them relaxed."""

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

from rlsys.data.preference_pairs import seeded_random
from rlsys.data.preference_records import AddedConstraint, PreferencePair, PreferencePrompt, Response
from rlsys.types import MASKED_OUTCOMES, Check, Outcome
from rlsys.verifiers.ifeval import conflicts, describe, sample_kwargs
from rlsys.verifiers.ifeval.table import IFEVAL

VerifyAll: TypeAlias = Callable[[Sequence[tuple[Check, str]]], list[Outcome]]
"""What the verifiers say of (check, response) pairs, in order: `VerifierPool` behind a function, for model text."""


def add_constraints(
    prompt: PreferencePrompt, *, max_constraints: int, seed: int, among: Sequence[str] = ()
) -> PreferencePrompt:
    """The prompt with 1 to `max_constraints` constraints that do not conflict, under the id `<id>+constraints`.

    Which ones depends on (seed, prompt id) alone. Fewer are added where everything else conflicts.

    Args:
        prompt: without constraints.
        max_constraints: at least 1.
        seed: of the draw.
        among: ids of `rlsys.verifiers.ifeval.instruction_ids()`; IFEval's own 25 unless given.

    Raises:
        VerifierError: an id is unknown.
    """
    rng = seeded_random(seed, "constraints", prompt.id)
    wanted = rng.randint(1, max_constraints)
    ids = list(among) or [constraint.id for constraint in IFEVAL]
    rng.shuffle(ids)
    request = prompt.request[-1]["content"]
    added: list[AddedConstraint] = []
    for id in ids:
        if len(added) == wanted:
            break
        if conflicts(id).isdisjoint(constraint.instruction_id for constraint in added):
            arguments = sample_kwargs(id, rng, prompt=request)
            added.append(AddedConstraint(id, arguments, describe(id, arguments)))
    return replace(prompt, id=f"{prompt.id}+constraints", kind="constrained", constraints=tuple(added))


def relax(prompt: PreferencePrompt, *, seed: int) -> PreferencePrompt:
    """The prompt without one of its constraints, drawn by (seed, prompt id), under the id `<id>+relaxed`.

    Raises:
        ValueError: the prompt has no constraint.
    """
    if not prompt.constraints:
        raise ValueError(f"prompt {prompt.id!r} has no constraint that could be relaxed")
    dropped = seeded_random(seed, "relax", prompt.id).randrange(len(prompt.constraints))
    kept = prompt.constraints[:dropped] + prompt.constraints[dropped + 1 :]
    return replace(prompt, id=f"{prompt.id}+relaxed", constraints=kept)


def keep_verified(pairs: Sequence[PreferencePair], verify: VerifyAll) -> tuple[list[PreferencePair], Counter[str]]:
    """IF-augmented pairs: of the pairs on constrained prompts, those whose chosen response keeps every constraint.

    Returns:
        The pairs, those on prompts without constraints unchanged, and counts: `unconstrained`, `verified`, and dropped
        as `broken` or because the verifier failed (`masked`).
    """
    counts: Counter[str] = Counter(unconstrained=0, verified=0, broken=0, masked=0)
    checks = [pair.prompt.constraint_check for pair in pairs]
    verdicts = _verdicts(
        [(check, pair.chosen.text) for check, pair in zip(checks, pairs, strict=True) if check is not None], verify
    )
    kept = []
    for check, pair in zip(checks, pairs, strict=True):
        verdict = "unconstrained" if check is None else verdicts[_key(check, pair.chosen.text)]
        counts[verdict] += 1
        if verdict in ("unconstrained", "verified"):
            kept.append(pair)
    return kept, counts


def relaxed_pairs(
    prompts: Sequence[PreferencePrompt],
    responses: Mapping[str, Sequence[Response]],
    relaxed_responses: Mapping[str, Sequence[Response]],
    verify: VerifyAll,
    *,
    seed: int,
) -> tuple[list[PreferencePair], Counter[str]]:
    """Persona-IF pairs: an answer to the prompt is preferred to an answer to the prompt with one constraint relaxed.

    The chosen one must keep all constraints of the prompt, the rejected one must break one of them: an answer to the
    relaxed prompt that keeps them all by chance is no worse. Where nothing can tell (a prompt in free text without a
    check), every answer counts as what it was asked to be. Where there are several, (seed, prompt id) decides.

    Args:
        prompts: with constraints, as records or in their own words.
        responses: to the prompts, by their ids.
        relaxed_responses: to the relaxed prompts, by the ids of the original ones.
        verify: checks and responses to outcomes.
        seed: of the draws.

    Returns:
        The pairs, and counts: `pairs`, prompts that are `unchecked`, with `no_right` answer, with `no_wrong` relaxed
        answer, and responses that are `masked` because the verifier failed.
    """
    counts: Counter[str] = Counter(pairs=0, unchecked=0, no_right=0, no_wrong=0, masked=0)
    checks = {prompt.id: _constraints_of(prompt) for prompt in prompts}
    verdicts = _verdicts(
        [
            (check, response.text)
            for id, check in checks.items()
            if check is not None
            for response in (*responses.get(id, ()), *relaxed_responses.get(id, ()))
        ],
        verify,
    )
    pairs = []
    for prompt in prompts:
        check, answers = checks[prompt.id], responses.get(prompt.id, ())
        relaxed = relaxed_responses.get(prompt.id, ())
        if check is None:
            counts["unchecked"] += 1
            right = list(answers)
            wrong = [one for one in relaxed if one.text not in {answer.text for answer in answers}]
        else:
            right = [one for one in answers if verdicts[_key(check, one.text)] == "verified"]
            wrong = [one for one in relaxed if verdicts[_key(check, one.text)] == "broken"]
            counts["masked"] += sum(verdicts[_key(check, one.text)] == "masked" for one in (*answers, *relaxed))
        if not right or not wrong:
            counts["no_right" if not right else "no_wrong"] += 1
            continue
        draw = seeded_random(seed, "relaxed pair", prompt.id)
        counts["pairs"] += 1
        pairs.append(PreferencePair(prompt, draw.choice(right), draw.choice(wrong), 1.0, 0.0, "relaxed"))
    return pairs, counts


def _constraints_of(prompt: PreferencePrompt) -> Check | None:
    """What verifies the prompt's constraints: those that were added, or those that its source says it holds."""
    of_source = next((check for check in prompt.own_checks if check.verifier == "ifeval"), None)
    return prompt.constraint_check or of_source


def _verdicts(asked: Sequence[tuple[Check, str]], verify: VerifyAll) -> dict[tuple[str, str], str]:
    outcomes = verify(asked) if asked else []
    return {_key(check, text): _verdict(outcome) for (check, text), outcome in zip(asked, outcomes, strict=True)}


def _key(check: Check, text: str) -> tuple[str, str]:
    return json.dumps([check.verifier, check.ground_truth], sort_keys=True), text


def _verdict(outcome: Outcome) -> str:
    if outcome in MASKED_OUTCOMES:
        return "masked"
    return "verified" if outcome == "correct" else "broken"
