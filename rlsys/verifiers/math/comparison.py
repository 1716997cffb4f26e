"""Whether an answer says the same as the gold answer.

The gold answer decides how an ambiguous answer is read: (1, 2) is an interval if the gold answer is a set, a pair if it
is a pair. There is one such reading, never a choice of several.
"""

import re
from collections.abc import Sequence
from fractions import Fraction

from rlsys.verifiers.judgement import VerifyMode
from rlsys.verifiers.math.answer import Answer, Based, Collection, Matrix, Ratio, Relation, SetOperation, Text, Value
from rlsys.verifiers.math.chains import FalseEquationError, is_name, settle_equations
from rlsys.verifiers.math.cleaning import text_key
from rlsys.verifiers.math.equality import close, same_expression
from rlsys.verifiers.math.expression import (
    Add,
    Call,
    Const,
    Div,
    Expr,
    NoValueError,
    Num,
    Sym,
    negative,
    numeric_value,
    sample_points,
    symbols,
)
from rlsys.verifiers.math.real_sets import same_spans, says_set, spans_of
from rlsys.verifiers.math.units import units_conflict

_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "!=": "!="}
_PROPORTIONAL = Fraction(1, 10**30)
_MAX_REPEATS = 10
_WORD_SEPARATOR = re.compile(r"\s*(?:[,;&]|\band\b)\s*")


def same_answer(gold: Answer, answer: Answer, mode: VerifyMode) -> bool:
    """Whether the answer is right.

    Raises:
        NoValueError: something in it is undefined, or costs too much to compute.
    """
    try:
        return _same(settle_equations(gold, trusted=True), settle_equations(answer, trusted=False), mode)
    except FalseEquationError:
        return False


def _same(gold: Answer, answer: Answer, mode: VerifyMode) -> bool:
    if not (isinstance(gold, Relation) and isinstance(answer, Relation)):
        gold, answer = _unnamed(gold), _unnamed(answer)
    if isinstance(gold, Text) or isinstance(answer, Text):
        return _words(gold) is not None and _words(gold) == _words(answer)
    if says_set(gold) or says_set(answer):
        return _same_set(gold, answer, mode)
    match gold, answer:
        case Value(), Value():
            return _same_value(gold, answer, mode)
        case (Based(), Based()) | (Based(), Value()) | (Value(), Based()):
            return _same_digits(gold, answer)
        case Ratio(), Ratio():
            return _same_ratio(gold, answer, mode)
        case (Ratio((first, second), ""), Value(_, "")):
            return _same_value(Value(Div(first, second)), answer, mode)
        case (Value(_, ""), Ratio((first, second), "")):
            return _same_value(gold, Value(Div(first, second)), mode)
        case Matrix(), Matrix():
            return len(gold.rows) == len(answer.rows) and all(
                _same_items([Value(entry) for entry in one], [Value(entry) for entry in other], mode)
                for one, other in zip(gold.rows, answer.rows, strict=True)
            )
        case Relation(), Relation():
            return _same_equation(gold, answer, mode)
        case Collection(), Collection():
            return _same_collection(gold, answer, mode)
        case (Collection("set", (item,)), _):
            return _same(item, answer, mode)
        case (_, Collection("set", (item,))):
            return _same(gold, item, mode)
        case (Collection("()", items), Matrix(rows)) if len(rows[0]) == 1:
            return _same_items(items, [Value(row[0]) for row in rows], mode)
        case (Matrix(rows), Collection("()", items)) if len(rows[0]) == 1:
            return _same_items([Value(row[0]) for row in rows], items, mode)
    return False


def _unnamed(answer: Answer) -> Answer:
    match answer:
        case Relation((name, value), ("=",) | ("in",)) if is_name(name):
            return value
    return answer


def _words(answer: Answer) -> list[str] | None:
    """The words of an answer in words, sorted where it lists several."""
    match answer:
        case Text(words):
            return sorted(text_key(part) for part in _WORD_SEPARATOR.split(words))
        case Value(Sym(name), unit):
            return [text_key(f"{name} {unit}")]
        case Value(Const("e" | "i" as letter), ""):
            return [letter]
        case Collection("list", items):
            found = [words for item in items if (words := _words(item)) is not None]
            return sorted(word for words in found for word in words) if len(found) == len(items) else None
    return None


def _same_set(gold: Answer, answer: Answer, mode: VerifyMode) -> bool:
    gold_set, answer_set = spans_of(gold), spans_of(answer)
    if gold_set is not None and answer_set is not None:
        (gold_name, gold_spans), (name, answer_spans) = gold_set, answer_set
        if gold_name and name and gold_name != name:
            return False
        return same_spans(gold_spans, answer_spans, lambda one, other: same_expression(one, other, mode))
    match gold, answer:
        case Relation(), Relation():
            return _same_inequality(gold, answer, mode)
        case SetOperation(operator, parts), SetOperation(other, others) if operator == other:
            return _same_in_any_order(parts, others, mode)
        case Collection(kind, items), Collection(other, others) if kind == other:
            return _same_items(items, others, mode)
    return False


def _same_value(gold: Value, answer: Value, mode: VerifyMode) -> bool:
    if units_conflict(_unit(gold), _unit(answer)):
        return False
    match gold.expression, answer.expression:
        case Call("percent", (one,)), Call("percent", (other,)):
            return same_expression(one, other, mode)
        case Call("percent", (one,)), other:
            return same_expression(one, other, mode) or same_expression(gold.expression, other, mode)
        case one, Call("percent", (other,)):
            asked_in_percent = not symbols(one) and abs(numeric_value(one)) > 1
            return same_expression(one, other if asked_in_percent else answer.expression, mode)
    return same_expression(_without_degrees(gold.expression), _without_degrees(answer.expression), mode)


def _unit(value: Value) -> str:
    match value.expression:
        case Call("percent" | "degrees" as unit):
            return unit
    return value.unit


def _without_degrees(expression: Expr) -> Expr:
    """30 instead of 30 degrees; degrees within an expression are radians times pi / 180."""
    match expression:
        case Call("degrees", (operand,)):
            return operand
    return expression


def _same_digits(gold: Answer, answer: Answer) -> bool:
    """Numbers in another base are their digits: 54 in base ten is no answer where 204 in base five is asked for."""
    match gold, answer:
        case Based(), Based():
            return gold == answer
        case (Based(digits), Value(Num(value, None))) | (Value(Num(value, None)), Based(digits)):
            return digits == str(value)
    return False


def _same_ratio(gold: Ratio, answer: Ratio, mode: VerifyMode) -> bool:
    if units_conflict(gold.unit, answer.unit) or len(gold.parts) != len(answer.parts):
        return False
    if all(same_expression(one, other, mode) for one, other in zip(gold.parts, answer.parts, strict=True)):
        return True
    a_time = any(part == Num(Fraction(0)) for part in (*gold.parts, *answer.parts))
    if a_time or len(gold.parts) != 2:
        return False
    return same_expression(Div(*gold.parts), Div(*answer.parts), "eval")


def _same_collection(gold: Collection, answer: Collection, mode: VerifyMode) -> bool:
    unordered = ("list", "set")
    if gold.brackets in unordered and answer.brackets in unordered:
        return _same_in_any_order(gold.items, answer.items, mode)
    if gold.brackets in unordered or answer.brackets in unordered:
        return False
    return (gold.brackets == answer.brackets or len(gold.items) > 2) and _same_items(gold.items, answer.items, mode)


def _same_items(gold: Sequence[Answer], answer: Sequence[Answer], mode: VerifyMode) -> bool:
    return len(gold) == len(answer) and all(_same(one, other, mode) for one, other in zip(gold, answer, strict=True))


def _same_in_any_order(gold: Sequence[Answer], answer: Sequence[Answer], mode: VerifyMode) -> bool:
    """Each item of one is matched by one of the other; an answer may repeat itself, a gold answer means it."""
    open_items = list(answer)
    if len(gold) < len(answer) <= len(gold) + _MAX_REPEATS:
        open_items = [
            item
            for place, item in enumerate(answer)
            if not any(_same(item, earlier, "eval") for earlier in answer[:place])
        ]
    if len(gold) != len(open_items):
        return False
    for item in gold:
        match = next((place for place, other in enumerate(open_items) if _same(item, other, mode)), None)
        if match is None:
            return False
        del open_items[match]
    return True


def _same_equation(gold: Relation, answer: Relation, mode: VerifyMode) -> bool:
    """The same name with the same value, or two equations of which one is a multiple of the other."""
    (gold_left, gold_right), (left, right) = gold.sides, answer.sides
    if is_name(gold_left) and is_name(left):
        if gold_left == left:
            return _same(gold_right, right, mode)
        if not (is_name(gold_right) and is_name(right)):
            return False
    sides = gold_left, gold_right, left, right
    if not all(isinstance(side, Value) for side in sides):
        return gold == answer
    expressions = [side.expression for side in sides if isinstance(side, Value)]
    ratio = _constant_ratio(_difference(*expressions[:2]), _difference(*expressions[2:]))
    return ratio != 0


def _same_inequality(gold: Relation, answer: Relation, mode: VerifyMode) -> bool:
    """The same chain, from either end; or one inequality that is a positive multiple of the other."""
    sides, signs = answer.sides, answer.signs
    if gold.signs != signs:
        sides, signs = sides[::-1], tuple(_TURNED.get(sign, sign) for sign in signs[::-1])
    if gold.signs != signs:
        return False
    if _same_items(gold.sides, sides, mode):
        return True
    match (*gold.sides, *sides):
        case Value(a), Value(b), Value(c), Value(d):
            ratio = _constant_ratio(_difference(a, b), _difference(c, d))
            return ratio > 0 or (ratio != 0 and signs == ("!=",))
    return False


def _difference(left: Expr, right: Expr) -> Expr:
    return Add((left, negative(right)))


def _constant_ratio(first: Expr, second: Expr) -> float:
    """The factor from one expression to the other if it is the same everywhere and real, else 0."""
    ratios = []
    for point in sample_points(symbols(first) | symbols(second)):
        try:
            one, other = numeric_value(first, point), numeric_value(second, point)
        except NoValueError:
            continue
        if not one or not other:
            return 0.0
        ratios.append(one / other)
    if len(ratios) < 2 or any(ratio.imag or not close(ratio, ratios[0], _PROPORTIONAL) for ratio in ratios):
        return 0.0
    return float(ratios[0].real)
