"""Instruction following: the 25 constraints of IFEval, IFEvalG's training constraints and IFBench's.

Two modes: `eval` is equal to the published reference, `reward` is what a policy is paid for. The same constraints
describe themselves and draw their arguments, so that prompts with added constraints are made of what can be verified.
"""

from rlsys.verifiers.ifeval.conflicts import conflicts
from rlsys.verifiers.ifeval.ground_truth import check_ifeval_ground_truth
from rlsys.verifiers.ifeval.prompts import describe, instruction_ids, sample_kwargs
from rlsys.verifiers.ifeval.verify import verify_ifeval

__all__ = [
    "check_ifeval_ground_truth",
    "conflicts",
    "describe",
    "instruction_ids",
    "sample_kwargs",
    "verify_ifeval",
]
