"""Answers that are text: an exact string, or one of several choices."""

import re
from collections.abc import Mapping
from typing import Any

from rlsys.errors import VerifierError
from rlsys.verifiers.boxes import find_boxes
from rlsys.verifiers.judgement import Judgement, VerifyMode
from rlsys.verifiers.thinking import answer_part

_TAGGED = re.compile(r"<answer>([^<]{0,10000})</answer>")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")
_CHOICE = re.compile(r"\(?([A-Za-z])\)?[.:]?")
_CHOICE_PHRASE = re.compile(r"\b(?:answer|choice|option)\s*(?:is)?\s*:?\s*\(?([A-Z])\b\)?", re.IGNORECASE)
_MORE_CHOICES = re.compile(r"[\s,.)]*(?:or|and|/|,|&)\s*\(?[A-Z]\b", re.IGNORECASE)


def check_string_ground_truth(ground_truth: Any) -> None:
    """Raises VerifierError unless the ground truth is a string or `{"any_of": [strings], "case_sensitive": bool}`."""
    _accepted_strings(ground_truth)


def verify_string(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    r"""Correct if the answer equals the ground truth, case and surrounding space and punctuation aside.

    The answer is what the last `<answer>` tag or `\boxed` holds, else the whole text after thinking.

    Args:
        ground_truth: a string, or `{"any_of": [strings], "case_sensitive": false}`.
    """
    accepted, case_sensitive = _accepted_strings(ground_truth)
    answer = _stated_answer(response)
    if not answer:
        return Judgement("unparsable", 0.0, {"reason": "no answer"})
    found = _normalized(answer, case_sensitive=case_sensitive)
    right = any(found == _normalized(text, case_sensitive=case_sensitive) for text in accepted)
    return Judgement("correct" if right else "wrong", float(right), {"answer": found[:200]})


def _accepted_strings(ground_truth: Any) -> tuple[list[str], bool]:
    accepted, case_sensitive = [ground_truth], False
    if isinstance(ground_truth, Mapping) and set(ground_truth) <= {"any_of", "case_sensitive"}:
        accepted = ground_truth.get("any_of", [])
        case_sensitive = ground_truth.get("case_sensitive", False)
    if (
        not isinstance(accepted, list)
        or not accepted
        or not all(isinstance(text, str) and _normalized(text, case_sensitive=True) for text in accepted)
        or not isinstance(case_sensitive, bool)
    ):
        raise VerifierError(
            "the ground truth of string must be a string that is not empty",
            value=ground_truth,
            fix='give the string, or {"any_of": ["yes", "y"], "case_sensitive": false}',
        )
    return accepted, case_sensitive


def _normalized(text: str, *, case_sensitive: bool) -> str:
    plain = " ".join(text.split()).strip(" .,;:!*_`\"'“”")
    return plain if case_sensitive else plain.casefold()


def _stated_answer(response: str) -> str:
    """The answer as the response states it, "" if a think block stays open."""
    text = answer_part(response)
    if text is None:
        return ""
    tagged = _TAGGED.findall(text)
    if tagged:
        text = tagged[-1]
    boxes = find_boxes(text) if "box" in text else []
    return _TEXT_COMMAND.sub(r"\1", boxes[-1].content).strip(" $") if boxes else text.strip()


def check_multiple_choice_ground_truth(ground_truth: Any) -> None:
    """Raises VerifierError unless the ground truth is one letter, such as "B" or "(B)"."""
    _choice_of(ground_truth)


def verify_multiple_choice(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    r"""Correct if the response chooses the right letter and no other.

    The choice is what the last `<answer>` tag or `\boxed` holds, a response that is only a letter, or the last "the
    answer is (B)"; in `eval` mode also the last letter in parentheses.

    Args:
        ground_truth: one letter, such as "B" or "(B)".
    """
    gold = _choice_of(ground_truth)
    stated = _stated_answer(response)
    choice = _CHOICE.fullmatch(stated.strip(" .*$"))
    phrases = list(_CHOICE_PHRASE.finditer(stated))
    in_parentheses = re.findall(r"\(([A-Z])\)", stated) if mode == "eval" else []
    if choice:
        letter = choice[1]
    elif phrases and not _MORE_CHOICES.match(stated, phrases[-1].end()):
        letter = phrases[-1][1]
    elif in_parentheses and not phrases:
        letter = in_parentheses[-1]
    else:
        return Judgement("unparsable", 0.0, {"reason": "not one choice"})
    right = letter.upper() == gold
    return Judgement("correct" if right else "wrong", float(right), {"answer": letter.upper()})


def _choice_of(ground_truth: Any) -> str:
    choice = _CHOICE.fullmatch(ground_truth.strip()) if isinstance(ground_truth, str) else None
    if choice is None:
        raise VerifierError(
            "the ground truth of multiple_choice must be one letter", value=ground_truth, fix='write "B" or "(B)"'
        )
    return choice[1].upper()
