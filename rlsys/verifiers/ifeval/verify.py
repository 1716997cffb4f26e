"""Verdicts on instruction following: strict, on the response as it is, and loose, on the reference's variants of it."""

from typing import Any

from rlsys.verifiers.ifeval.ground_truth import parse_ground_truth
from rlsys.verifiers.judgement import Judgement, VerifyMode
from rlsys.verifiers.thinking import answer_part


def verify_ifeval(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    """Judge whether a response follows its instructions.

    Only what stands after the last `</think>` counts; an unclosed `<think>` follows nothing.

    Args:
        response: a model's text.
        ground_truth: as in `parse_ground_truth`.
        mode: `eval`, equal to the published reference, or `reward`, stricter wherever that pays for nothing.

    Returns:
        `correct` when every instruction is followed strictly, else `wrong`; the score is 1 or 0, or the share of
        instructions followed strictly where the ground truth's scoring is `fractional`. The detail lists, in the order
        of `instruction_id_list`, `strict` and `loose`: booleans.

    Raises:
        VerifierError: for the ground truth only.

    >>> truth = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    >>> verify_ifeval("No commas here.", truth, "reward").outcome
    'correct'
    """
    truth = parse_ground_truth(ground_truth)
    answer = answer_part(response) or ""
    variants = (answer, *_loose_variants(answer))
    strict, loose = [], []
    for instruction in truth.instructions:
        verdicts = (instruction.constraint.holds(text, instruction.arguments, mode=mode) for text in variants)
        strict.append(next(verdicts))
        loose.append(strict[-1] or any(verdicts))
    share = sum(strict) / len(strict)
    score = share if truth.scoring == "fractional" else float(share == 1)
    ids = [instruction.constraint.id for instruction in truth.instructions]
    detail = {"instruction_id_list": ids, "strict": strict, "loose": loose}
    return Judgement("correct" if share == 1 else "wrong", score, detail)


def _loose_variants(response: str) -> list[str]:
    """The reference's loose variants other than the response: without its first line, its last, both, and asterisks."""
    lines = response.split("\n")
    cut = ["\n".join(lines[1:]).strip(), "\n".join(lines[:-1]).strip(), "\n".join(lines[1:-1]).strip()]
    variants = dict.fromkeys([response.replace("*", ""), *cut, *(text.replace("*", "") for text in cut)])
    variants.pop(response, None)
    return list(variants)
