"""One constraint's verdict on one response, by its id and arguments as a data set has them."""

from typing import Any

from rlsys.verifiers.ifeval.ground_truth import parse_ground_truth
from rlsys.verifiers.judgement import VerifyMode


def follows(id: str, arguments: dict[str, Any], response: str, *, mode: VerifyMode) -> bool:
    """Whether the response follows the constraint, without the loose variants."""
    (instruction,) = parse_ground_truth({"instruction_id_list": [id], "kwargs": [arguments]}).instructions
    return instruction.constraint.holds(response, instruction.arguments, mode=mode)
