"""What prompts with added constraints are made of: instruction texts and drawn arguments."""

from collections.abc import Mapping
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.ground_truth import parse_ground_truth
from rlsys.verifiers.ifeval.table import constraints, find_constraint


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
