"""Whether two expressions are equal: exactly if they are rational, else to 38 digits, else at sample points.

Tolerance is relative, and only for what was written with a decimal point: an integer is never paid for a neighbour, nor
0 for something tiny.
"""

from fractions import Fraction
from typing import Any

from rlsys.verifiers.judgement import VerifyMode
from rlsys.verifiers.math.expression import (
    Add,
    Call,
    Div,
    Expr,
    Mul,
    NoValueError,
    Num,
    Pow,
    exact_value,
    numeric_value,
    sample_points,
    symbols,
    walk,
)

DECIMAL_TOLERANCE = Fraction(1, 10**6)
EXACT_DIGITS = 38
"""Values that agree to so many digits are equal; values are computed to 60."""
LEAST_ROUNDED_DIGITS = 5
"""In `eval` mode a decimal that is the exact gold rounded to so many significant digits or more is right."""
MIN_POINTS = 2
_EXACT_RELATIVE = Fraction(1, 10**EXACT_DIGITS)


def same_expression(gold: Expr, answer: Expr, mode: VerifyMode) -> bool:
    """Whether an answer equals the gold answer, without or with variables.

    In `reward` mode a gold number is matched only by a number that is worked out: 74 + 46 is no answer where 120 is.

    Raises:
        NoValueError: one of them is undefined, or costs too much to compute.
    """
    names = symbols(gold) | symbols(answer)
    if names or gold == answer:
        return equal(gold, answer)
    if mode == "reward" and _is_literal(gold) and not _is_worked_out(answer, exact_value(gold)):
        return False
    return equal(gold, answer) or _about_the_same_number(gold, answer, mode)


def equal(first: Expr, second: Expr) -> bool:
    """Whether two expressions are equal, without any tolerance.

    Raises:
        NoValueError: one of them is undefined, or costs too much to compute.
    """
    if first == second:
        return True
    names = symbols(first) | symbols(second)
    if names:
        return _same_function(first, second, names)
    exact = exact_value(first), exact_value(second)
    if None not in exact:
        return exact[0] == exact[1]
    return close(numeric_value(first), numeric_value(second), _EXACT_RELATIVE)


def _same_function(gold: Expr, answer: Expr, names: set[str]) -> bool:
    num_points = 0
    for point in sample_points(names):
        try:
            values = numeric_value(gold, point), numeric_value(answer, point)
        except NoValueError:
            continue
        both_positive = all(value > 0 for value in point.values())
        if not both_positive and any(value.imag for value in values):
            continue  # outside the domain of one of them: the other may be its continuation
        if not close(*values, _EXACT_RELATIVE):
            return False
        num_points += 1
    return num_points >= MIN_POINTS


def _about_the_same_number(gold: Expr, answer: Expr, mode: VerifyMode) -> bool:
    exact_gold = exact_value(gold)
    gold_decimal, answer_decimal = has_decimal(gold), has_decimal(answer)
    if not (gold_decimal or answer_decimal) or (exact_gold is not None and exact_gold.denominator == 1):
        return False
    values = numeric_value(gold), numeric_value(answer)
    if close(*values, DECIMAL_TOLERANCE):
        return True
    if mode == "eval" and gold_decimal != answer_decimal:
        return _is_rounding(gold, values[1]) if gold_decimal else _is_rounding(answer, values[0])
    return False


def close(first: Any, second: Any, tolerance: Fraction) -> bool:
    """Whether two values (Fractions, or mpmath numbers, perhaps complex or infinite) agree, relative to the larger."""
    if first == second:
        return True
    if not (isinstance(first, Fraction) and isinstance(second, Fraction)):
        largest = max(abs(first), abs(second))
        difference = abs(first - second)
        return bool(largest - largest == 0 and difference * tolerance.denominator <= largest * tolerance.numerator)
    return abs(first - second) <= max(abs(first), abs(second)) * tolerance


def has_decimal(expression: Expr) -> bool:
    """Whether a number in it is written with a decimal point."""
    return any(isinstance(part, Num) and part.decimals is not None for part in walk(expression))


def _is_rounding(decimal: Expr, exact: Any) -> bool:
    """Whether a decimal with enough digits is the exact value rounded to its last digit."""
    if not isinstance(decimal, Num) or decimal.decimals is None:
        return False
    digits = int(decimal.value * 10**decimal.decimals)
    if len(str(abs(digits))) < LEAST_ROUNDED_DIGITS or exact.imag:
        return False
    return bool(2 * abs(exact * 10**decimal.decimals - digits) <= 1)


def _is_literal(expression: Expr) -> bool:
    """Whether it is a number as it is written, perhaps a fraction, a percentage or in degrees."""
    match expression:
        case Num():
            return True
        case Div(numerator, denominator):
            return isinstance(numerator, Num) and isinstance(denominator, Num)
        case Call("percent" | "degrees", (operand,)) | Mul((Num(Fraction(numerator=-1, denominator=1)), operand)):
            return _is_literal(operand)
    return False


def _is_worked_out(answer: Expr, gold: Fraction | None) -> bool:
    """Whether no arithmetic is left undone: no sum, product, factorial, or quotient that comes out even."""
    undone_division = gold is not None and gold.denominator == 1
    for part in walk(answer):
        match part:
            case Call("factorial" | "binomial"):
                return False
            case Div(Num(), Num()) if undone_division:
                return False
            case Add() if exact_value(part) is not None:
                return False
            case Mul(factors) if not _is_sign_or_scientific(factors) and exact_value(part) is not None:
                return False
    return True


def _is_sign_or_scientific(factors: tuple[Expr, ...]) -> bool:
    """-x, or 3 * 10^8."""
    match factors:
        case (Num(Fraction(numerator=-1, denominator=1)), _) | (Num(), Pow(Num(Fraction(numerator=10)), _)):
            return True
    return False
