"""Chains of equations: x = 5 + 5 + 1 = 11. What they say, and whether they are true.

A model's chain must hold: of 4 = 5, or 1 = 2 = 3 = 4, no part is its answer. The gold answer is trusted.
"""

from fractions import Fraction

from rlsys.verifiers.math.answer import Answer, Collection, Ratio, Relation, Text, Value
from rlsys.verifiers.math.equality import close, equal, has_decimal
from rlsys.verifiers.math.expression import Call, Const, Div, Expr, Mul, Sym, numeric_value, symbols

ROUNDED_TOLERANCE = Fraction(1, 1000)
"""What an equation may be off by where one side is a decimal, as in sqrt 2 = 1.414."""
APPROXIMATION_TOLERANCE = Fraction(1, 20)


class FalseEquationError(Exception):
    """An answer claims that two different things are equal."""


def settle_equations(answer: Answer, *, trusted: bool) -> Answer:
    """Brings each chain of equations to `name = value`, to a value, or to one equation.

    Of several values the last exact one is taken: of 2 + 2 = 4 it is 4, of 1/3 = 0.333 it is 1/3.

    Raises:
        FalseEquationError: a chain that is not trusted does not hold.
    """
    match answer:
        case Collection(brackets, items):
            return Collection(brackets, tuple(settle_equations(item, trusted=trusted) for item in items))
        case Relation(sides, signs) if set(signs) <= {"=", "approx"}:
            return _settle_chain(sides, signs, trusted=trusted)
    return answer


def _settle_chain(sides: tuple[Answer, ...], signs: tuple[str, ...], *, trusted: bool) -> Answer:
    num_names = 0
    while num_names < len(sides) - 1 and is_name(sides[num_names]):
        num_names += 1
    values = sides[num_names:]
    is_equation = num_names == 0 and len(sides) == 2 and any(map(_has_symbols, sides))
    if is_equation:
        return Relation(sides, ("=",))
    value, still_exact = values[0], True
    for left, right, sign in zip(values[:-1], values[1:], signs[num_names:], strict=True):
        exact = sign == "=" and (trusted or _equal(left, right))
        if not (exact or trusted or _about_equal(left, right, sign)):
            raise FalseEquationError
        still_exact = still_exact and exact
        value = right if still_exact else value
    return Relation((sides[0], value), ("=",)) if num_names else value


def _equal(left: Answer, right: Answer) -> bool:
    if not (isinstance(left, Value) and isinstance(right, Value)):
        return left == right
    return equal(left.expression, right.expression)


def _about_equal(left: Answer, right: Answer, sign: str) -> bool:
    """Whether one side is the other rounded, or an approximation that says so."""
    if not (isinstance(left, Value) and isinstance(right, Value)):
        return False
    one, other = left.expression, right.expression
    if symbols(one) | symbols(other) or not (sign == "approx" or has_decimal(one) or has_decimal(other)):
        return False
    tolerance = APPROXIMATION_TOLERANCE if sign == "approx" else ROUNDED_TOLERANCE
    return close(numeric_value(one), numeric_value(other), tolerance)


def _has_symbols(answer: Answer) -> bool:
    return isinstance(answer, Value) and bool(symbols(answer.expression))


def is_name(answer: Answer) -> bool:
    """Whether it names a quantity without numbers: x, f(x), AB, (p, q), NO/BO."""
    match answer:
        case Value(expression, ""):
            return _only_symbols(expression)
        case Text():
            return True
        case Collection(_, items):
            return bool(items) and all(map(is_name, items))
        case Ratio(parts, ""):
            return all(map(_only_symbols, parts))
    return False


def _only_symbols(expression: Expr) -> bool:
    match expression:
        case Sym() | Const("e" | "i"):
            return True
        case Mul(factors):
            return all(map(_only_symbols, factors))
        case Div(numerator, denominator):
            return _only_symbols(numerator) and _only_symbols(denominator)
        case Call("abs", (operand,)):
            return _only_symbols(operand)
    return False
