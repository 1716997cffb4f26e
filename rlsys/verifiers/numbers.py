"""Plain numbers as people write them, read exactly: 18.00, +5, 1,000, $18, 3/4, 1 1/2, 1e6, 25%."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 1000
"""Longer numbers are not read: Python itself refuses 4,300 digits, and no answer needs as many."""

MAX_EXPONENT = 300
_CURRENCY = "[$€£¥₹]"
_MINUS = "−–-"
_NUMBER = re.compile(
    rf"(?:(?P<sign>[+{_MINUS}])\s?)?(?:{_CURRENCY}\s?(?P<inner_sign>[+{_MINUS}]?))?"
    r"(?P<first>(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)"
    r"(?:[eE](?P<exponent>[+-]?[0-9]+))?"
    r"(?:\s?/\s?(?P<denominator>[0-9]+)|[ ](?P<numerator>[0-9]+)/(?P<part>[0-9]+))?"
)
_INTEGER_GROUPS = (("exponent", 0), ("denominator", 1), ("part", 1))
_BLANK = r"[^\S\n]"
_OPERATOR_BEFORE = re.compile(rf"[0-9)%](?:{_BLANK}*[+*/×÷^x{_MINUS}]{_BLANK}*|:|{_BLANK}+:{_BLANK}*)$")
"""On the same line: the next one begins with a bullet. The colon of "week 4: 18" is none."""

_SIGN_FOLLOWS = re.compile(rf"[=(]\s*{_CURRENCY}?\s*$")
_LONGEST_LOOK_BACK = 12


@dataclass(frozen=True, slots=True)
class NumberInText:
    """A number found in a text, and where."""

    start: int
    end: int
    value: Fraction | None
    """None for a zero denominator or too many digits."""
    operand: bool
    """Whether it is joined to a number before it, as the 8 in 50-8, 2 x 8 or 10:8: part of an expression."""


def find_numbers(text: str) -> Iterator[NumberInText]:
    """The numbers of a text in order, without those inside words (H2O, v1.2).

    >>> [number.value for number in find_numbers("18 apples in 2 days cost $1,234.50")]
    [Fraction(18, 1), Fraction(2, 1), Fraction(2469, 2)]
    """
    for match in _NUMBER.finditer(text):
        before = text[match.start() - 1] if match.start() else " "
        if (before.isalnum() or before in "_.\\") and not match["sign"]:
            continue
        if before == "," and text[match.start() - 2 : match.start() - 1].isdigit() and not match["sign"]:
            yield NumberInText(*match.span(), None, operand=True)
            continue
        joint = match.end("sign") if match["sign"] else match.start()
        look_back = text[max(0, joint - _LONGEST_LOOK_BACK) : joint]
        operand = _OPERATOR_BEFORE.search(look_back) is not None
        # A sign apart from its number is a bullet or a dash, but for "= - 18".
        before_sign = text[max(0, match.start() - _LONGEST_LOOK_BACK) : match.start()]
        apart = text[joint].isspace() and not _SIGN_FOLLOWS.search(before_sign)
        value = _value(match, signed=not operand and not apart)
        yield NumberInText(joint if apart else match.start(), match.end(), value, operand)


def read_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else, save spaces, a final stop and a percent sign.

    >>> read_number(" $1,000.50 ")
    Fraction(2001, 2)
    >>> read_number("1,00") is None
    True
    """
    stripped = text.strip() if len(text) <= MAX_DIGITS + 10 else ""
    match = _NUMBER.fullmatch(stripped.rstrip(".%\\ "))
    return _value(match, signed=True) if match else None


def _value(match: re.Match[str], *, signed: bool) -> Fraction | None:
    if len(match.group()) > MAX_DIGITS:
        return None
    value = Fraction(match["first"].replace(",", ""))
    exponent, denominator, part = (int(match[name] or default) for name, default in _INTEGER_GROUPS)
    if denominator == 0 or part == 0 or abs(exponent) > MAX_EXPONENT:
        return None
    value = value * Fraction(10) ** exponent / denominator + Fraction(int(match["numerator"] or 0), part)
    signs = ((signed and match["sign"]) or "") + (match["inner_sign"] or "")
    return -value if any(minus in signs for minus in _MINUS) else value
