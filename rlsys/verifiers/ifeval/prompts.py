"""Prompts with added constraints: instruction texts, drawn arguments, and the ground truth that verifies them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from rlsys.errors import VerifierError
from rlsys.verifiers.ifeval.conflicts import conflicts
from rlsys.verifiers.ifeval.ground_truth import check_ifeval_ground_truth, parse_ground_truth
from rlsys.verifiers.ifeval.table import IFEVAL, TRAINING, constraints, find_constraint


@dataclass(frozen=True, slots=True)
class ConstrainedPrompt:
    """A request with the texts of its constraints after it, and the ground truth for `verify_ifeval`."""

    prompt: str
    ground_truth: Mapping[str, Any]


def instruction_ids() -> tuple[str, ...]:
    """Every id that can be verified: IFEval's, then IFEvalG's, then IFBench's."""
    return tuple(constraints())


def describe(id: str, kwargs: Mapping[str, Any]) -> str:
    """The instruction text of a constraint.

    Args:
        id: one of `instruction_ids()`.
        kwargs: the constraint's arguments, as in a ground truth.

    Raises:
        VerifierError: the id is unknown or the arguments are invalid.

    >>> describe("length_constraints:number_words", {"relation": "at least", "num_words": 20})
    'Your response should contain at least 20 words.'
    """
    (instruction,) = parse_ground_truth({"instruction_id_list": [id], "kwargs": [kwargs]}).instructions
    return instruction.constraint.describe(instruction.arguments)


def sample_kwargs(id: str, rng: Random, *, prompt: str = "") -> dict[str, Any]:
    """Draw valid arguments for a constraint: JSON values, the same for the same state of `rng`.

    Args:
        id: one of `instruction_ids()`.
        rng: advanced by a number of draws that depends on the constraint.
        prompt: the request, for constraints that repeat it or compare with it.

    Raises:
        VerifierError: the id is unknown.
        ValueError: the constraint needs a prompt and got none.

    >>> sample_kwargs("punctuation:no_comma", Random(0))
    {}
    """
    return find_constraint(id).sample(rng, prompt)


def add_constraints(prompt: str, rng: Random, *, count: int, among: Sequence[str] | None = None) -> ConstrainedPrompt:
    """Add constraints that do not conflict to a request, with drawn arguments.

    Args:
        prompt: the request.
        rng: decides which constraints and with which arguments.
        count: how many, at least 1.
        among: the ids to draw from; by default IFEval's and IFEvalG's, since IFBench's are a test of what generalises.

    Returns:
        The request, a blank line, and one sentence or more for each constraint; and its checked ground truth.

    Raises:
        VerifierError: an id is unknown, or so many that do not conflict were not found.
    """
    ids = [constraint.id for constraint in (*IFEVAL, *TRAINING)] if among is None else list(among)
    shuffled = rng.sample(ids, len(ids))
    # One that prescribes the whole response leaves no room: then the next comes first.
    attempts = (_compatible(shuffled[start:] + shuffled[:start], count) for start in range(len(shuffled)))
    chosen = next((attempt for attempt in attempts if len(attempt) == count), [])
    if not chosen:
        raise VerifierError(
            f"{count} constraints without conflict were not found among these {len(ids)}",
            value=ids,
            fix="ask for fewer, at least 1, or allow more ids",
        )
    kwargs = [sample_kwargs(id, rng, prompt=prompt) for id in chosen]
    truth = {"instruction_id_list": chosen, "kwargs": kwargs}
    check_ifeval_ground_truth(truth)
    texts = [describe(id, arguments) for id, arguments in zip(chosen, kwargs, strict=True)]
    return ConstrainedPrompt("\n\n".join((prompt, " ".join(texts))), truth)


def _compatible(ids: Sequence[str], count: int) -> list[str]:
    """The first `count` of the ids that do not conflict with one before, or as many as there are."""
    chosen: list[str] = []
    for id in ids:
        if len(chosen) < count and conflicts(id).isdisjoint(chosen):
            chosen.append(id)
    return chosen
