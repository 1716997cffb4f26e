"""Reads a rating from what a judge wrote. What is not plainly one rating is malformed, never a guess."""

import re
import unicodedata
from typing import Literal, NamedTuple, TypeAlias

ParsedStatus: TypeAlias = Literal["rated", "not_applicable", "malformed"]

_VALUE = r"(?P<value>n\s?/\s?a\b|not\s+applicable\b|\d+(?:\.\d+)?)(?P<tail>[^\n]{0,16})"
_SCALE = r"(?:\s*[(\[]\s*1\s*(?:-|–|to)\s*5\s*[)\]])?"
_MARKED = re.compile(
    rf"\b(?:rating|score)\b[\"'*_`]*{_SCALE}[\"'*_`\s]*(?::|=|\bis\b|[-–](?=\s))?[\"'*_`\s\[(<]*{_VALUE}", re.IGNORECASE
)
_BARE = re.compile(rf"[\"'*_`\s\[(<]*{_VALUE}[\s]*", re.IGNORECASE)
_TAIL_DENOMINATOR = re.compile(r"[\"'*_`\])>]*\s*(?:/|out\s+of)\s*(\d+)", re.IGNORECASE)
_TAIL_SECOND_NUMBER = re.compile(r"[\"'*_`\])>]*\s*(?:(?:-|–|,|/|to\b|or\b|and\b)\s*)?\d", re.IGNORECASE)
_CLOSING = re.compile(r"[\s\"'*_`\])>}.!]*")


class ParsedRating(NamedTuple):
    """What a judge's text says."""

    status: ParsedStatus
    value: int | None = None
    """1 to 5 where rated."""


MALFORMED = ParsedRating("malformed")


def parse_rating(text: str, *, allow_not_applicable: bool) -> ParsedRating:
    """The rating that a text gives as `Rating: 4` in any usual dress, or as a bare `4`.

    Malformed are: no rating, one outside 1 to 5, a fraction, a range, another scale than 5, N/A where it is not
    allowed, different ratings of which none stands on the last line. Text up to `</think>` is not read; an
    unclosed `<think>` hides everything.

    >>> parse_rating("Clear, but one step is missing.\\n**Rating:** 4/5", allow_not_applicable=False).value
    4
    """
    text = unicodedata.normalize("NFKC", text).rpartition("</think>")[2].strip()
    if "<think>" in text:
        return MALFORMED
    marked = list(_MARKED.finditer(text))
    if not marked:
        bare = _BARE.fullmatch(text)
        rating = _value_of(bare, allow_not_applicable=allow_not_applicable) if bare else MALFORMED
        return rating if bare and _CLOSING.fullmatch(_rest(bare["tail"])) else MALFORMED
    last_line = text.rfind("\n") + 1
    ratings = {_value_of(match, allow_not_applicable=allow_not_applicable) for match in marked}
    if len(ratings) > 1 and marked[-1].start("value") < last_line:
        return MALFORMED
    return _value_of(marked[-1], allow_not_applicable=allow_not_applicable)


def _rest(tail: str) -> str:
    denominator = _TAIL_DENOMINATOR.match(tail)
    return tail[denominator.end() :] if denominator else tail


def _value_of(match: re.Match[str], *, allow_not_applicable: bool) -> ParsedRating:
    if not match["value"][0].isdigit():
        return ParsedRating("not_applicable") if allow_not_applicable else MALFORMED
    number, tail = float(match["value"]), match["tail"]
    denominator = _TAIL_DENOMINATOR.match(tail)
    if denominator:
        if denominator[1] != "5":
            return MALFORMED
    elif _TAIL_SECOND_NUMBER.match(tail):
        return MALFORMED
    if number != int(number) or not 1 <= number <= 5:
        return MALFORMED
    return ParsedRating("rated", int(number))
