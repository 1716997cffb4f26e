"""Expressions: what the reader makes of LaTeX, and their value, exactly or to many digits.

Nothing here is evaluated while it is read. Every operation that could explode (powers, factorials, sums that lose their
small terms) is capped, so that the cost of a value is bounded by the length of the text it came from.
"""

import math
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from mpmath import MPContext

MAX_EXACT_BITS = 100_000
MAX_MAGNITUDE = 20_000
"""Decimal exponent that no intermediate result may exceed."""
MAX_FACTORIAL = 6_000
MAX_ANGLE = 10**50
CHECK_DIGITS = 60
"""Decimal digits of numeric evaluation."""
_LOST_DIGITS = 20
"""A sum in which a term vanishes below the last so many digits says nothing about that term."""


class NoValueError(Exception):
    """An expression has no value: division by zero, an operation over a cap, digits lost in a sum."""


@dataclass(frozen=True, slots=True)
class Num:
    """A number as written."""

    value: Fraction
    decimals: int | None = None
    """Digits after the decimal point; None if it has no point."""


@dataclass(frozen=True, slots=True)
class Sym:
    """A variable, or a word that stands for a quantity."""

    name: str


@dataclass(frozen=True, slots=True)
class Const:
    """A constant of mathematics."""

    name: Literal["pi", "e", "i", "inf"]


@dataclass(frozen=True, slots=True)
class Add:
    """A sum."""

    terms: tuple["Expr", ...]


@dataclass(frozen=True, slots=True)
class Mul:
    """A product."""

    factors: tuple["Expr", ...]


@dataclass(frozen=True, slots=True)
class Div:
    """A quotient."""

    numerator: "Expr"
    denominator: "Expr"


@dataclass(frozen=True, slots=True)
class Pow:
    """A power; a root is one with a fraction for its exponent."""

    base: "Expr"
    exponent: "Expr"


@dataclass(frozen=True, slots=True)
class Call:
    """A function of `FUNCTIONS`, or `plusminus`, `minusplus`, `percent`, `degrees` applied to one expression."""

    function: str
    arguments: tuple["Expr", ...]


Expr: TypeAlias = Num | Sym | Const | Add | Mul | Div | Pow | Call

MINUS_ONE = Num(Fraction(-1))


def negative(operand: Expr) -> Expr:
    """The expression with the other sign."""
    return Num(-operand.value, operand.decimals) if isinstance(operand, Num) else Mul((MINUS_ONE, operand))


def children(expression: Expr) -> tuple[Expr, ...]:
    """The operands of an expression."""
    match expression:
        case Add(terms):
            return terms
        case Mul(factors):
            return factors
        case Div(numerator, denominator):
            return numerator, denominator
        case Pow(base, exponent):
            return base, exponent
        case Call(_, arguments):
            return arguments
    return ()


def walk(expression: Expr) -> Iterator[Expr]:
    """The expression and everything in it."""
    yield expression
    for child in children(expression):
        yield from walk(child)


def symbols(expression: Expr) -> set[str]:
    """The names of its variables."""
    return {part.name for part in walk(expression) if isinstance(part, Sym)}


def rebuild(expression: Expr, change: Callable[[Expr], Expr]) -> Expr:
    """The expression with `change` applied to its operands."""
    match expression:
        case Add(terms):
            return Add(tuple(map(change, terms)))
        case Mul(factors):
            return Mul(tuple(map(change, factors)))
        case Div(numerator, denominator):
            return Div(change(numerator), change(denominator))
        case Pow(base, exponent):
            return Pow(change(base), change(exponent))
        case Call(function, arguments):
            return Call(function, tuple(map(change, arguments)))
    return expression


def signs_resolved(expression: Expr) -> list[Expr]:
    """Both readings of an expression with a plus-minus, the upper signs first; otherwise the expression alone."""
    if not any(isinstance(part, Call) and part.function in ("plusminus", "minusplus") for part in walk(expression)):
        return [expression]

    def resolve(part: Expr, upper: bool) -> Expr:
        if isinstance(part, Call) and part.function in ("plusminus", "minusplus"):
            operand = resolve(part.arguments[0], upper)
            return operand if (part.function == "plusminus") == upper else negative(operand)
        return rebuild(part, lambda operand: resolve(operand, upper))

    return [resolve(expression, True), resolve(expression, False)]


def exact_value(expression: Expr) -> Fraction | None:
    """The value of a rational expression without variables; None if it is not one, or too large to be worth it.

    Raises:
        NoValueError: division by zero.
    """
    match expression:
        case Num(value):
            return value
        case Add(terms):
            return _fold(terms, lambda total, term: total + term, Fraction(0))
        case Mul(factors):
            return _fold(factors, lambda total, factor: total * factor, Fraction(1))
        case Div(numerator, denominator):
            above, below = exact_value(numerator), exact_value(denominator)
            if below == 0:
                raise NoValueError("division by zero")
            return None if above is None or below is None else above / below
        case Pow(base, exponent):
            return _exact_power(exact_value(base), exact_value(exponent))
        case Call("percent", (operand,)):
            value = exact_value(operand)
            return None if value is None else value / 100
        case Call("factorial", (operand,)):
            value = exact_value(operand)
            small = value is not None and value.denominator == 1 and 0 <= value <= 1000
            return Fraction(math.factorial(int(value))) if value is not None and small else None
    return None


def _fold(
    parts: tuple[Expr, ...], combine: Callable[[Fraction, Fraction], Fraction], start: Fraction
) -> Fraction | None:
    total = start
    for part in parts:
        value = exact_value(part)
        if value is None:
            return None
        total = combine(total, value)
        if max(total.numerator.bit_length(), total.denominator.bit_length()) > MAX_EXACT_BITS:
            return None
    return total


def _exact_power(base: Fraction | None, exponent: Fraction | None) -> Fraction | None:
    if base is None or exponent is None or exponent.denominator != 1:
        return None
    if base == 0 and exponent <= 0:
        raise NoValueError("zero to the power of zero or less")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    return base**exponent.numerator if abs(exponent) * bits <= MAX_EXACT_BITS else None


class _Contexts(threading.local):
    """mpmath's precision is state of its context: each thread has a context of its own."""

    def __init__(self) -> None:
        self.mp = MPContext()
        self.mp.dps = CHECK_DIGITS


_contexts = _Contexts()


def numeric_value(expression: Expr, point: Mapping[str, Fraction] = MappingProxyType({})) -> Any:
    """The value to `CHECK_DIGITS` digits, as an mpmath number, perhaps complex or infinite.

    Args:
        point: values of the variables.

    Raises:
        NoValueError: it has none, or one that cannot be computed with certainty.
    """
    try:
        return _numeric(expression, point, _contexts.mp)
    except (ZeroDivisionError, ValueError, OverflowError, TypeError) as error:
        raise NoValueError(str(error)) from error


def sample_points(names: set[str]) -> list[dict[str, Fraction]]:
    """Places at which expressions in these variables are compared: three positive, two of mixed signs.

    They are a pure function of the names: the same in every process.
    """
    points = []
    for number in range(5):
        point = {}
        for name in names:
            drawn = zlib.crc32(f"{number} {name}".encode("utf-8", "surrogatepass"))
            value = Fraction(1, 2) + Fraction(drawn % 1_000_003, 400_009)
            point[name] = -value if number >= 3 and (number == 3 or drawn & 1024) else value
        points.append(point)
    return points


def _numeric(expression: Expr, point: Mapping[str, Fraction], mp: Any) -> Any:
    value: Any
    match expression:
        case Num(number):
            value = _from_fraction(number, mp)
        case Sym(name):
            value = _from_fraction(point[name], mp)
        case Const(name):
            value = {"pi": +mp.pi, "e": +mp.e, "i": mp.mpc(0, 1), "inf": mp.inf}[name]
        case Add(terms):
            value = _sum([_numeric(term, point, mp) for term in terms], mp)
        case Mul(factors):
            value = mp.fprod(_numeric(factor, point, mp) for factor in factors)
        case Div(numerator, denominator):
            value = _numeric(numerator, point, mp) / _numeric(denominator, point, mp)
        case Pow(base, exponent):
            value = _power(_numeric(base, point, mp), _numeric(exponent, point, mp), mp)
        case Call(function, arguments):
            value = FUNCTIONS[function](mp, *(_numeric(argument, point, mp) for argument in arguments))
    if mp.isnan(value):
        raise NoValueError("undefined")
    if mp.isfinite(value) and value and abs(mp.mag(value)) > MAX_MAGNITUDE * 3.33:
        raise NoValueError("too large or too small")
    return value


def _from_fraction(value: Fraction, mp: Any) -> Any:
    return mp.mpf(value.numerator) / value.denominator


def _sum(terms: list[Any], mp: Any) -> Any:
    total = mp.fsum(terms)
    largest = max(abs(term) for term in terms)
    if mp.isfinite(largest):
        least = largest * mp.mpf(10) ** (_LOST_DIGITS - CHECK_DIGITS)
        if any(0 < abs(term) < least for term in terms):
            raise NoValueError("a term too small beside the others")
        if abs(total) < least:
            return mp.mpf(0)
    return total


def _power(base: Any, exponent: Any, mp: Any) -> Any:
    if not base:
        if mp.re(exponent) <= 0:
            raise NoValueError("zero to the power of zero or less")
        return mp.mpf(0)
    finite = mp.isfinite(base) and mp.isfinite(exponent)
    if finite and abs(exponent) * max(1, abs(mp.mag(base))) > MAX_MAGNITUDE * 3.33:
        raise NoValueError("a power too large or too small")
    return mp.power(base, exponent)


def _factorial(mp: Any, operand: Any) -> Any:
    if abs(operand) > MAX_FACTORIAL or (mp.re(operand) < 0 and mp.isint(operand)):
        raise NoValueError("a factorial too large")
    return mp.factorial(operand)


def _angle(name: str) -> Callable[[Any, Any], Any]:
    def function(mp: Any, operand: Any) -> Any:
        if abs(operand) > MAX_ANGLE:
            raise NoValueError("an angle too large")
        value = getattr(mp, name)(operand)
        return mp.mpf(0) if abs(value) < mp.mpf(10) ** (_LOST_DIGITS - CHECK_DIGITS) else value

    return function


def _whole(mp: Any, operand: Any) -> int:
    if not mp.isint(operand) or abs(operand) > 10**50:
        raise NoValueError("not a whole number")
    return int(mp.re(operand))


def _rounded(name: str) -> Callable[[Any, Any], Any]:
    """Floor or ceiling, where a value of 3 - 1e-59 is 3."""

    def function(mp: Any, operand: Any) -> Any:
        nearest = mp.nint(operand)
        close = abs(operand - nearest) < mp.mpf(10) ** (_LOST_DIGITS - CHECK_DIGITS)
        return nearest if close else getattr(mp, name)(operand)

    return function


_MPMATH_NAMES: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")},
        **{f"arc{name}": f"a{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")},
    }
)

FUNCTIONS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        **{name: _angle(of_mpmath) for name, of_mpmath in _MPMATH_NAMES.items()},
        "floor": _rounded("floor"),
        "ceil": _rounded("ceil"),
        "ln": lambda mp, operand: mp.log(operand),
        "log": lambda mp, operand, base: mp.log(operand) / mp.log(base),
        "exp": lambda mp, operand: _power(+mp.e, operand, mp),
        "abs": lambda mp, operand: abs(operand),
        "factorial": _factorial,
        "binomial": lambda mp, n, k: _factorial(mp, n) / _factorial(mp, k) / _factorial(mp, n - k),
        "gcd": lambda mp, *operands: mp.mpf(math.gcd(*(_whole(mp, operand) for operand in operands))),
        "lcm": lambda mp, *operands: mp.mpf(math.lcm(*(_whole(mp, operand) for operand in operands))),
        "max": lambda mp, *operands: max(operands),
        "min": lambda mp, *operands: min(operands),
        "percent": lambda mp, operand: operand / 100,
        "degrees": lambda mp, operand: operand * mp.pi / 180,
    }
)
"""Name -> function of an mpmath context and the arguments' values."""
