"""The kinds of argument a constraint takes: what is accepted when a data set loads, and what is refused."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Relation: TypeAlias = str
"""One of RELATIONS. Upstream knows the first two; Tülu 3's data also says `at most`."""

RELATIONS = ("at least", "less than", "at most")

MAX_TEXT_LENGTH = 20_000
MAX_KEYWORD_LENGTH = 200


def holds(count: int, relation: Relation, threshold: int) -> bool:
    """Whether `count` stands in `relation` to `threshold`.

    >>> holds(3, "at least", 3), holds(3, "less than", 3), holds(3, "at most", 3)
    (True, False, True)
    """
    if relation == "at least":
        return count >= threshold
    return count < threshold if relation == "less than" else count <= threshold


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True)
class Argument:
    """A kind of argument."""

    expected: str
    """What a valid value is, in words."""
    parse: Callable[[Any], Any]
    """Returns the value in its one form; raises ValueError for an invalid one."""
    show: Callable[[Any], str] = _shown
    """A parsed value as an instruction's text has it."""


def count(minimum: int = 1, maximum: int = 100_000) -> Argument:
    """An integer; an integral float is one too, since some published data sets write all numbers as floats."""
    expected = f"an integer from {minimum} to {maximum}"

    def parse(value: Any) -> int:
        integral = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not integral or not minimum <= value <= maximum:
            raise ValueError(expected)
        return int(value)

    return Argument(expected, parse)


def choice(options: Mapping[str, str]) -> Argument:
    """One of a few strings, each with the words it is shown in."""
    expected = "one of " + ", ".join(repr(option) for option in options)

    def parse(value: Any) -> str:
        if not isinstance(value, str) or value not in options:
            raise ValueError(expected)
        return value

    return Argument(expected, parse, options.__getitem__)


def text(maximum: int = MAX_TEXT_LENGTH) -> Argument:
    """A string that is not blank, stripped."""
    expected = f"a string of 1 to {maximum} characters that is not blank"

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > maximum:
            raise ValueError(expected)
        return value.strip()

    return Argument(expected, parse)


def verbatim() -> Argument:
    """A text to be repeated: not blank, and kept as it is, since places are counted in it."""
    stripped = text()

    def parse(value: Any) -> str:
        stripped.parse(value)
        return value

    return Argument(stripped.expected, parse)


def keyword() -> Argument:
    """A keyword: matched literally, never as a pattern. Published training sets also have it in a list of one."""
    stripped = text(MAX_KEYWORD_LENGTH)

    def parse(value: Any) -> str:
        return stripped.parse(value[0] if isinstance(value, list | tuple) and len(value) == 1 else value)

    return Argument(stripped.expected, parse)


def keywords() -> Argument:
    """A list of keywords, not empty."""
    expected = f"a non-empty list of keywords, each of 1 to {MAX_KEYWORD_LENGTH} characters"
    one = keyword()

    def parse(value: Any) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not value:
            raise ValueError(expected)
        try:
            return tuple(one.parse(item) for item in value)
        except ValueError as error:
            raise ValueError(expected) from error

    return Argument(expected, parse)


def character() -> Argument:
    """One character that is not white space."""
    expected = "a single character"

    def parse(value: Any) -> str:
        if not isinstance(value, str) or len(value.strip()) != 1:
            raise ValueError(expected)
        return value.strip().lower()

    return Argument(expected, parse)


RELATION = choice({relation: relation for relation in RELATIONS})
