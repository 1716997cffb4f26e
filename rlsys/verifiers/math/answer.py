"""The kinds of answer there are, as the reader finds them and the comparison compares them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

from rlsys.verifiers.math.expression import Expr

RelationSign: TypeAlias = Literal["=", "approx", "<", "<=", ">", ">=", "!=", "in"]
Brackets: TypeAlias = Literal["list", "set", "()", "[]", "(]", "[)"]
"""`list` has no brackets and no order, `set` braces; the others are a tuple or an interval."""


@dataclass(frozen=True, slots=True)
class Value:
    """One expression, with the unit it was given in."""

    expression: Expr
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """Words."""

    words: str


@dataclass(frozen=True, slots=True)
class Based:
    """A number in another base, as digits: 204_5."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """5:6, or a time of day."""

    parts: tuple[Expr, ...]
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Collection:
    """Several answers in one. Two in round or square brackets are a pair or an interval: the other side decides."""

    brackets: Brackets
    items: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class SetOperation:
    """`operands[0]` united with, or without, the others."""

    operator: Literal["union", "minus"]
    operands: tuple["Answer", ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Rows of expressions, all of one length."""

    rows: tuple[tuple[Expr, ...], ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """A chain: `sides[0] signs[0] sides[1] signs[1] …`."""

    sides: tuple["Answer", ...]
    signs: tuple[RelationSign, ...]


Answer: TypeAlias = Value | Text | Based | Ratio | Collection | SetOperation | Matrix | Relation


def expressions_in(answer: Answer) -> Iterator[Expr]:
    """Every expression of an answer."""
    match answer:
        case Value(expression):
            yield expression
        case Ratio(parts):
            yield from parts
        case Matrix(rows):
            for row in rows:
                yield from row
        case Collection(_, inner) | SetOperation(_, inner) | Relation(inner, _):
            for one in inner:
                yield from expressions_in(one)
