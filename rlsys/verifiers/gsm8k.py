r"""GSM8K: the answer as a number, compared exactly, never as a string.

A marked answer beats the last number of the text. From the strongest mark to the weakest: `#### 18`, `\boxed{18}`, then
"A: 18" or "the answer is 18", whichever comes last. There is one candidate: what follows the last mark of the
strongest kind, right or wrong. In `reward` mode a `####` and a box that disagree are a hedge and score 0.
"""

import re
from fractions import Fraction
from typing import Any

from rlsys.errors import VerifierError
from rlsys.verifiers.boxes import find_boxes
from rlsys.verifiers.judgement import Judgement, VerifyMode
from rlsys.verifiers.numbers import MAX_DIGITS, find_numbers, read_number
from rlsys.verifiers.thinking import answer_part

MAX_RESPONSE_CHARS = 1_000_000
_MARKED_CHARS = 200
_MOST_PHRASES = 50
_PHRASE = re.compile(r"(?m:^A: )|\banswer\b(?:[^\n.0-9=:]{0,80}?)(?:\bis\b|\bare\b|\bto be\b|=|:)", re.IGNORECASE)
_HEDGE = re.compile(r"\s*(?:\bor\b|\band\b|\bto\b|[,;/&|+*×÷^x:–−-])\s*[$€£¥₹]?[0-9]", re.IGNORECASE)
_SIGN_APART = re.compile(r"^\s*([+–−-])\s+")
_MARKDOWN_AND_LATEX = re.compile(r"\\text\s*|\\(?:,|!|;| |\(|\)|\[|\])|\\left|\\right|[*_`{}()\[\]]")
_FRACTION = re.compile(r"\\[dt]?frac\s*\{([0-9]{1,100})\}\s*\{([0-9]{1,100})\}")


def check_gsm8k_ground_truth(ground_truth: Any) -> None:
    """Raises VerifierError unless the ground truth is a number, or a worked solution that ends in `#### number`."""
    _gold(ground_truth)


def verify_gsm8k(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    """Judges a response by its number.

    Args:
        ground_truth: a number, as a string ("1,000") or as JSON, or a worked solution ending in `#### number`.
    """
    gold = _gold(ground_truth)
    if len(response) > MAX_RESPONSE_CHARS:
        return _unparsable(f"the response is longer than {MAX_RESPONSE_CHARS} characters")
    text = answer_part(response)
    if text is None:
        return _unparsable("a <think> block stays open")
    candidates = _candidates(text)
    if not candidates:
        return _unparsable("no number")
    mark, answer = candidates[0]
    if answer is None:
        return Judgement("unparsable", 0.0, {"mark": mark, "reason": "not one number"})
    detail = {"mark": mark, "answer": str(answer)}
    if mode == "reward" and any(other != answer for _, other in candidates[1:]):
        return Judgement("wrong", 0.0, {**detail, "reason": "marked answers disagree"})
    return Judgement("correct", 1.0, detail) if answer == gold else Judgement("wrong", 0.0, detail)


def _gold(ground_truth: Any) -> Fraction:
    text = str(ground_truth).rpartition("####")[2]
    value = None if isinstance(ground_truth, bool) else read_number(text)
    if value is None:
        raise VerifierError(
            "the ground truth of gsm8k must be a number",
            value=text[:100],
            fix="give the number, or the worked solution that ends in '#### number'",
        )
    return value


def _unparsable(reason: str) -> Judgement:
    return Judgement("unparsable", 0.0, {"reason": reason})


def _candidates(text: str) -> list[tuple[str, Fraction | None]]:
    """The mark and value of the answer of the strongest kind, then those that must not disagree with it."""
    found: list[tuple[str, Fraction | None]] = []
    if "####" in text:
        found.append(("####", _marked_number(text.rpartition("####")[2])))
    if "boxed" in text or "fbox" in text:
        boxes = find_boxes(text)
        if boxes:
            found.append(("box", _marked_number(boxes[-1].content)))
    return found or _phrase(text) or _last_number(text)


def _phrase(text: str) -> list[tuple[str, Fraction | None]]:
    """The last phrase such as "the answer is" that a number follows."""
    for phrase in list(_PHRASE.finditer(text))[-_MOST_PHRASES:][::-1]:
        rest = text[phrase.end() : phrase.end() + _MARKED_CHARS]
        line = rest.lstrip("\n* ")
        begins_line = "\n" in rest[: len(rest) - len(line)]
        line = line.partition("\n")[0]
        if any(True for _ in find_numbers(_plain(line))):
            return [("phrase", _marked_number(line, begins_line=begins_line))]
    return []


def _marked_number(marked: str, *, begins_line: bool = False) -> Fraction | None:
    """The first number after a mark, behind the last `=` if there is one.

    None if another number is joined to it ("18 or 20", "50-8", "3,50"): that is a hedge or an expression, not a number.
    """
    line = _plain(marked.strip().partition("\n")[0][: MAX_DIGITS + _MARKED_CHARS]).rpartition("=")[2]
    if not begins_line:  # else it is a bullet
        line = _SIGN_APART.sub(r"\1", line)
    first = next(find_numbers(line), None)
    if first is None or first.operand or _HEDGE.match(line, first.end):
        return None
    return first.value


def _last_number(text: str) -> list[tuple[str, Fraction | None]]:
    """The last number of the text; an operand such as the 8 in 50-8 is no answer."""
    numbers = list(find_numbers(_plain(text[-MAX_DIGITS - _MARKED_CHARS :])))
    return [("last number", None if numbers[-1].operand else numbers[-1].value)] if numbers else []


def _plain(text: str) -> str:
    r"""Without LaTeX and Markdown around the number: `**\$1{,}000**` becomes ` $1,000`."""
    text = _FRACTION.sub(r"\1/\2", text.replace("{,}", ",").replace("\\$", "$").replace("\\%", "%"))
    return _MARKDOWN_AND_LATEX.sub("", text)
