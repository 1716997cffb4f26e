r"""The one text in a response that is its answer.

From the first of these that is there: the last box, or boxes side by side; the phrase "Final Answer: The final answer
is $X$. I hope it is correct." (Minerva, arXiv 2206.14858); in `eval` mode the last mathematics. A box and a phrase that
disagree, boxes joined by "or", and a wall of boxes are hedges, and no answer.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from rlsys.verifiers.boxes import Box, find_boxes
from rlsys.verifiers.judgement import VerifyMode
from rlsys.verifiers.numbers import find_numbers

MAX_DIFFERENT_BOXES = 20
"""A response with more is a wall of boxes."""
_MAX_GAP_CHARS = 40
_PHRASE_CHARS = 600
_LAST_CHARS = 2_000
_WHOLE_CHARS = 200
_MARKUP = re.compile(r"\\(?:text|textbf|quad|qquad|[()\[\],;! ])|[${}\s.,;:&*]|\\\\")
_FINAL_ANSWER = re.compile(r"final answer(?:\s+is)?\s*:?\**", re.IGNORECASE)
_ANSWER_IS = re.compile(r"\banswer\b[^\n.=:]{0,60}?(?:\bis\b|:|=)", re.IGNORECASE)
_FINAL_ANSWER_IS = re.compile("final answer is", re.IGNORECASE)
_I_HOPE = re.compile("I hope it is correct", re.IGNORECASE)
_TURN_END = re.compile(r"[\s.]*(?:I hope it is correct|<\|)", re.IGNORECASE)
_SEGMENT = re.compile(r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$])\$([^$\n]+?)(?<!\\)\$", re.DOTALL)
_JOINT = re.compile(r"\s*(?:,?\s*(?:and|or)|,|;)\s*", re.IGNORECASE)
_PERCENT_AFTER = re.compile(r"\s*(?:\\?%|percent|pct)")
_IN_BRACKETS = re.compile(r"(?<![A-Za-z0-9\\{}_^)])\[([^\[\],\n]{1,60})\]")
_WORD = re.compile(r"[A-Za-z]{2,}")
_COMMAND_OR_TEXT = re.compile(r"\\(?:text|mbox)\s*\{[^{}]*\}|\\[A-Za-z]+")
_FEW_WORDS = 3
_DECIMAL_COMMA = re.compile(r"(?:,[0-9]+)+")


@dataclass(frozen=True, slots=True)
class Extracted:
    """A candidate and where it comes from, or why there is none."""

    latex: str | None
    source: str
    """box, phrase or last; for none the reason."""
    also: tuple[str, ...] = ()
    """Further statements of the answer, which must all agree with it."""


def extract_answer(text: str, mode: VerifyMode, readable: Callable[[str], bool]) -> Extracted:
    """Finds the candidate in the text after thinking.

    Args:
        readable: whether a text can be read as an answer.
    """
    phrase = _final_answer_phrase(text)
    if "\\boxed" in text or "\\fbox" in text:
        boxes = find_boxes(text)
        return _from_boxes(text, boxes, phrase) if boxes else Extracted(None, "a box that does not close")
    if phrase is not None:
        return Extracted(phrase, "phrase")
    if mode == "eval":
        last = _last_mathematics(text, readable)
        if last is not None:
            return Extracted(last, "last")
    return Extracted(None, "no answer is marked" if mode == "reward" else "no mathematics")


def _from_boxes(text: str, boxes: list[Box], phrase: str | None) -> Extracted:
    if len({box.content for box in boxes}) > MAX_DIFFERENT_BOXES:
        return Extracted(None, "a wall of boxes")
    group, alternatives = [boxes[-1]], False
    for box in reversed(boxes[:-1]):
        gap = text[box.end : group[0].start]
        if not _joins(gap):
            break
        alternatives = alternatives or re.search(r"\bor\b", gap) is not None
        group.insert(0, box)
    contents = list(dict.fromkeys(box.content.strip() for box in group))
    also = () if phrase is None or not _I_HOPE.search(text) or "box" in phrase else (phrase,)
    if alternatives:
        return Extracted(contents[-1], "box", (*contents[:-1], *also))
    return Extracted(", ".join(contents), "box", also)


def _joins(gap: str) -> bool:
    """Whether what is between two boxes makes them one answer: nothing, punctuation, or a few words up to "and"."""
    if len(gap) > _MAX_GAP_CHARS:
        return False
    words = " ".join(_MARKUP.sub(" ", gap).split())
    return not words or words == "or" or words.endswith("and")


def _final_answer_phrase(text: str) -> str | None:
    """What follows the last "final answer is", up to "I hope it is correct" or the end of the line."""
    end = max((found.end() for found in _FINAL_ANSWER_IS.finditer(text)), default=None)
    return None if end is None else _statement(text[end : end + _PHRASE_CHARS].lstrip(" :*\n"))


def _statement(rest: str) -> str | None:
    """The answer at the beginning of a text: its formulas joined by commas and "and", or its first line."""
    end = _TURN_END.search(rest)
    rest = (rest[: end.start()] if end else rest).replace('\\"', '"')
    formulas = _leading_formulas(rest.lstrip(' "*'))
    if formulas:
        return formulas
    return rest.partition("\n")[0].strip(' ."*') or None


def _leading_formulas(text: str) -> str | None:
    first = _SEGMENT.match(text)
    if first is None:
        return None
    joined, position = _content(first), first.end()
    while joint := _JOINT.match(text, position):
        following = _SEGMENT.match(text, joint.end())
        if following is None:
            break
        joined, position = f"{joined}{joint[0]}{_content(following)}", following.end()
    percent = _PERCENT_AFTER.match(text, position)
    return f"{joined}\\%" if percent else joined


def _content(segment: re.Match[str]) -> str:
    return next(group for group in segment.groups() if group is not None)


def _last_mathematics(text: str, readable: Callable[[str], bool]) -> str | None:
    """The answer of a response that marks none: a text that is one, "the answer is X", the last formula or number."""
    stripped = text.strip()
    short = len(stripped) <= _WHOLE_CHARS
    if short and "[" not in stripped[1:] and is_formula(stripped, max_words=_FEW_WORDS) and readable(stripped):
        return stripped
    text = stripped[-_LAST_CHARS:]
    for pattern in (_FINAL_ANSWER, _ANSWER_IS):
        marks = list(pattern.finditer(text))
        if marks:
            statement = _statement(text[marks[-1].end() :].lstrip(" :*\n"))
            if statement and readable(statement):
                return statement
            number = _last_number(text[marks[-1].end() :])
            if number is not None:
                return number
    return _last_formula(text) or _last_in_brackets(text, readable) or _last_number(text)


def is_formula(text: str, *, max_words: int = 0) -> bool:
    """Whether a text is mathematics as a whole, with no more words around it than these."""
    if _SEGMENT.fullmatch(text.strip()):
        return True
    words = _WORD.findall(_COMMAND_OR_TEXT.sub(" ", text))
    return not _SEGMENT.search(text) and text.count("$") != 1 and len(words) <= max_words


def _last_formula(text: str) -> str | None:
    segments = list(_SEGMENT.finditer(text))
    if not segments:
        return None
    start = len(segments) - 1
    while start and _JOINT.fullmatch(text[segments[start - 1].end() : segments[start].start()]):
        start -= 1
    return _leading_formulas(text[segments[start].start() :])


def _last_in_brackets(text: str, readable: Callable[[str], bool]) -> str | None:
    found = [content for content in _IN_BRACKETS.findall(text) if readable(content)]
    return found[-1] if found else None


def _last_number(text: str) -> str | None:
    numbers = [number for number in find_numbers(text) if not number.operand and number.value is not None]
    if not numbers:
        return None
    start, end = numbers[-1].start, numbers[-1].end
    comma = _DECIMAL_COMMA.match(text, end)
    end = comma.end() if comma else end
    percent = _PERCENT_AFTER.match(text, end)
    return text[start:end].strip() + ("\\%" if percent else "")
