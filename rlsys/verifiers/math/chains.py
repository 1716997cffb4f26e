"""Chains of equations: x = 5 + 5 + 1 = 11. What they say, and whether they are true.

A model's chain must hold: of 4 = 5, or 1 = 2 = 3 = 4, no part is its answer. The gold answer is trusted.
"""

from fractions import Fraction
from itertools import takewhile

from rlsys.verifiers.math.answer import Answer, Collection, Ratio, Relation, Text, Value
from rlsys.verifiers.math.equality import close, has_decimal, same_expression
from rlsys.verifiers.math.expression import Call, Const, Div, Expr, Mul, Sym, numeric_value, symbols

ROUNDED_TOLERANCE = Fraction(1, 1000)
"""What an equation may be off by where one side is a decimal, as in sqrt 2 = 1.414."""
APPROXIMATION_TOLERANCE = Fraction(1, 20)


class FalseEquationError(Exception):
    """An answer claims that two different things are equal."""


def settle_equations(answer: Answer, *, trusted: bool) -> Answer:
    """Brings each chain of equations to `name = value`, to a value, or to one equation.

    Of several values the first is taken, which is the exact one where a decimal follows; of a trusted chain the last
    before an approximation.

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
    if not trusted:
        for left, right, sign in zip(values, values[1:], signs[num_names:], strict=False):
            if not _holds(left, right, sign):
                raise FalseEquationError
    num_exact = 1 + sum(1 for _ in takewhile(lambda sign: sign == "=", signs[num_names:]))
    value = values[num_exact - 1] if trusted else values[0]
    return Relation((sides[0], value), ("=",)) if num_names else value


def _holds(left: Answer, right: Answer, sign: str) -> bool:
    if not (isinstance(left, Value) and isinstance(right, Value)):
        return left == right
    one, other = left.expression, right.expression
    if same_expression(one, other, "eval"):
        return True
    if symbols(one) | symbols(other):
        return False
    tolerance = APPROXIMATION_TOLERANCE if sign == "approx" else ROUNDED_TOLERANCE
    rounded = sign == "approx" or has_decimal(one) or has_decimal(other)
    return rounded and close(numeric_value(one), numeric_value(other), tolerance)


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
