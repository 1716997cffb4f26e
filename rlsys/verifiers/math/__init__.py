r"""Mathematical answers in LaTeX."""

from typing import Any

import math_verify

from rlsys.errors import VerifierError
from rlsys.verifiers.boxes import find_boxes
from rlsys.verifiers.judgement import Judgement, VerifyMode
from rlsys.verifiers.thinking import answer_part


def check_math_ground_truth(ground_truth: Any) -> None:
    """Raises VerifierError unless the ground truth is an answer that can be read."""
    if not isinstance(ground_truth, str) or not _parse(ground_truth):
        raise VerifierError(
            "the ground truth of math cannot be read", value=ground_truth, fix="give the answer as LaTeX"
        )


def verify_math(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    """Judges the last box of a response."""
    text = answer_part(response)
    boxes = find_boxes(text) if text is not None else []
    if not boxes:
        return Judgement("unparsable", 0.0, {"reason": "no answer"})
    answer = _parse(boxes[-1].content)
    if not answer:
        return Judgement("unparsable", 0.0, {"reason": "not mathematics"})
    right = math_verify.verify(_parse(ground_truth), answer, timeout_seconds=None)
    return Judgement("correct" if right else "wrong", float(right), {"answer": boxes[-1].content})


def _parse(text: str) -> list[Any]:
    return math_verify.parse(f"\\boxed{{{text}}}", parsing_timeout=None)  # pyright: ignore[reportArgumentType]
