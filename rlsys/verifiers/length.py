"""A cap on how long an answer may be."""

from collections.abc import Mapping
from typing import Any

from rlsys.errors import VerifierError
from rlsys.verifiers.judgement import Judgement, VerifyMode
from rlsys.verifiers.thinking import answer_part

_UNITS = {"max_words": lambda text: len(text.split()), "max_chars": len}


def check_max_length_ground_truth(ground_truth: Any) -> None:
    """Raises VerifierError unless the ground truth is `{"max_words": n}` or `{"max_chars": n}` with n of 1 or more."""
    if (
        not isinstance(ground_truth, Mapping)
        or len(ground_truth) != 1
        or not set(ground_truth) <= set(_UNITS)
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in ground_truth.values())
    ):
        raise VerifierError(
            "the ground truth of max_length must be one limit",
            value=ground_truth,
            fix='write {"max_words": 100} or {"max_chars": 500}',
        )


def verify_max_length(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    """Correct if the text after thinking is within the limit; an empty one never is."""
    check_max_length_ground_truth(ground_truth)
    text = answer_part(response)
    if text is None or not text.strip():
        return Judgement("unparsable", 0.0, {"reason": "no answer"})
    [(unit, limit)] = ground_truth.items()
    length = _UNITS[unit](text.strip())
    return Judgement("correct" if length <= limit else "wrong", float(length <= limit), {"length": length})
