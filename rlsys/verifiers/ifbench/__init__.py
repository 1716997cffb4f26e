"""IFBench's test constraints, with their own names for the functions that check any instruction list.

A list may mix ids of IFBench, IFEval and IFEvalG: both packages look in one table.
"""

from rlsys.verifiers.ifeval.ground_truth import check_ifeval_ground_truth as check_ifbench_ground_truth
from rlsys.verifiers.ifeval.verify import verify_ifeval as verify_ifbench

__all__ = ["check_ifbench_ground_truth", "verify_ifbench"]
