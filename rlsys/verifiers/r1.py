"""Rewards in the manner of DeepSeek-R1 (arXiv 2501.12948): `<think>…</think><answer>…</answer>`.

`r1` pays for a right answer in that format, `format` for the format alone; a recipe may use both, each with its weight.
"""

from collections.abc import Mapping
from typing import Any

from rlsys.errors import VerifierError
from rlsys.verifiers.judgement import Judgement, VerifyMode
from rlsys.verifiers.registry import get_verifier
from rlsys.verifiers.thinking import THINK_CLOSE, THINK_OPEN

ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
_TAGS = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)


def check_r1_ground_truth(ground_truth: Any) -> None:
    """Raises VerifierError unless the ground truth is one for math, or names its verifier and fits it."""
    name, inner = _inner_check(ground_truth)
    get_verifier(name).check_ground_truth(inner)


def verify_r1(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    r"""Judges what is between the answer tags; a response in another format scores 0.

    Args:
        ground_truth: a string for the verifier math, or `{"verifier": name, "ground_truth": …}`. For math the whole
            of the tag's content is the answer, with or without a `\boxed`.
    """
    name, inner_truth = _inner_check(ground_truth)
    answer = tagged_answer(response, think_opened=False)
    if answer is None:
        return Judgement("unparsable", 0.0, {"format": False})
    if name == "math" and "boxed" not in answer:
        answer = f"\\boxed{{{answer.strip().strip('$')}}}"
    judgement = get_verifier(name).judge(answer, inner_truth, mode)
    return Judgement(judgement.outcome, judgement.score, {**judgement.detail, "format": True})


def _inner_check(ground_truth: Any) -> tuple[str, Any]:
    if not isinstance(ground_truth, Mapping):
        return "math", ground_truth
    if set(ground_truth) != {"verifier", "ground_truth"} or ground_truth["verifier"] in ("r1", "format"):
        raise VerifierError(
            "the ground truth of r1 names the verifier of its answer",
            value=ground_truth,
            fix='write {"verifier": "gsm8k", "ground_truth": "18"}, or a string for math',
        )
    return ground_truth["verifier"], ground_truth["ground_truth"]


def check_format_ground_truth(ground_truth: Any) -> None:
    """Raises VerifierError unless the ground truth is null or `{"think_opened": true or false}`."""
    if ground_truth is None or (
        isinstance(ground_truth, Mapping)
        and set(ground_truth) == {"think_opened"}
        and isinstance(ground_truth["think_opened"], bool)
    ):
        return
    raise VerifierError(
        "the ground truth of format must be null or say whether the prompt opens the think block",
        value=ground_truth,
        fix='write null, or {"think_opened": true} where the chat template ends with <think>',
    )


def verify_format(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    """Correct if the response is exactly one think block and one answer block, neither of them empty."""
    check_format_ground_truth(ground_truth)
    think_opened = bool(ground_truth and ground_truth["think_opened"])
    return (
        Judgement("wrong", 0.0)
        if tagged_answer(response, think_opened=think_opened) is None
        else Judgement("correct", 1.0)
    )


def tagged_answer(response: str, *, think_opened: bool) -> str | None:
    """What is between the answer tags, None unless the format is kept to the letter.

    Args:
        think_opened: whether the prompt ended with `<think>`, so that the response starts inside the block.
    """
    text = (THINK_OPEN if think_opened else "") + response.strip()
    if any(text.count(tag) != 1 for tag in _TAGS) or not text.startswith(THINK_OPEN) or not text.endswith(ANSWER_CLOSE):
        return None
    thought, closed, rest = text.removeprefix(THINK_OPEN).partition(THINK_CLOSE)
    before, opened, answer = rest.removesuffix(ANSWER_CLOSE).partition(ANSWER_OPEN)
    if not closed or not opened or before.strip() or not thought.strip() or not answer.strip():
        return None
    return answer
