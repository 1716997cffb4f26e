"""A verifier that never ends, for measuring what a hang costs."""

from rlsys.verifiers.registry import verifier


@verifier("spin")
def spin(response, ground_truth, mode):
    while True:
        pass
