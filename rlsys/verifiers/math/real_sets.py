"""Sets of real numbers: intervals, unions, inequalities and x != 3, in one form that can be compared."""

from collections.abc import Callable
from dataclasses import dataclass

from rlsys.verifiers.math.answer import Answer, Collection, Relation, SetOperation, Value
from rlsys.verifiers.math.expression import Call, Const, Expr, Sym, negative, numeric_value, symbols

_INFINITY = Const("inf")
_MINUS_INFINITY = negative(_INFINITY)


@dataclass(frozen=True, slots=True)
class Span:
    """An interval; a point is one that is closed at both ends, which are the same."""

    low: Expr
    low_closed: bool
    high: Expr
    high_closed: bool


_REALS = Span(_MINUS_INFINITY, False, _INFINITY, False)


def says_set(answer: Answer) -> bool:
    """Whether it can only mean a set of numbers: a half-open interval, a union, an inequality."""
    match answer:
        case SetOperation() | Collection("(]" | "[)"):
            return True
        case Collection("()" | "[]", (Value(low), Value(high))):
            return any(_is_infinite(end) for end in (low, high))
        case Relation(_, signs):
            return not set(signs) <= {"=", "approx"}
        case Collection("list", items):
            return bool(items) and all(isinstance(item, Relation) and says_set(item) for item in items)
    return False


def spans_of(answer: Answer) -> tuple[str, list[Span]] | None:
    """The variable, if it is named, and the spans in ascending order, none of which touch; None if it is no such set.

    Raises:
        NoValueError: an end has no value.
    """
    found = _variable_and_spans(answer)
    return None if found is None else (found[0], _merged(found[1]))


def same_spans(gold: list[Span], answer: list[Span], same: Callable[[Expr, Expr], bool]) -> bool:
    """Whether two lists of spans are the same set, by an equality of their ends."""
    return len(gold) == len(answer) and all(
        (one.low_closed, one.high_closed) == (other.low_closed, other.high_closed)
        and same(one.low, other.low)
        and same(one.high, other.high)
        for one, other in zip(gold, answer, strict=True)
    )


def _variable_and_spans(answer: Answer) -> tuple[str, list[Span]] | None:
    match answer:
        case Collection("()" | "[]" | "(]" | "[)" as brackets, (Value(low, ""), Value(high, ""))):
            return _interval(low, brackets[0] == "[", high, brackets[1] == "]")
        case Collection("set", items) if all(isinstance(item, Value) and _is_constant(item) for item in items):
            return "", [Span(item.expression, True, item.expression, True) for item in items if isinstance(item, Value)]
        case SetOperation(operator, (first, *others)):
            return _operation(operator, first, others)
        case Relation((Value(Sym(name)), members), ("in",)):
            found = _variable_and_spans(members)
            return None if found is None else (name, found[1])
        case Relation():
            return _inequality(answer)
        case Collection("list", items) if all(isinstance(item, Relation) for item in items):
            return _operation("union", items[0], list(items[1:]))
    return None


def _operation(operator: str, first: Answer, others: list[Answer]) -> tuple[str, list[Span]] | None:
    parts = [_variable_and_spans(part) for part in (first, *others)]
    if any(part is None for part in parts):
        return None
    known = [part for part in parts if part is not None]
    names = {name for name, _ in known if name}
    if len(names) > 1:
        return None
    name = names.pop() if names else ""
    if operator == "union":
        return name, [span for _, spans in known for span in spans]
    spans = known[0][1]
    for _, removed in known[1:]:
        for point in removed:
            if point.low != point.high:
                return None
            spans = [piece for span in spans for piece in _without(span, point.low)]
    return name, spans


def _without(span: Span, point: Expr) -> list[Span]:
    low, middle, high = (numeric_value(end) for end in (span.low, point, span.high))
    if not low <= middle <= high:
        return [span]
    pieces = []
    if low < middle:
        pieces.append(Span(span.low, span.low_closed, point, False))
    if middle < high:
        pieces.append(Span(point, False, span.high, span.high_closed))
    return pieces


def _interval(low: Expr, low_closed: bool, high: Expr, high_closed: bool) -> tuple[str, list[Span]] | None:
    if symbols(low) | symbols(high):
        return None
    ends = numeric_value(low), numeric_value(high)
    if any(end.imag for end in ends) or ends[0] > ends[1]:
        return None
    return "", [Span(low, low_closed and not _is_infinite(low), high, high_closed and not _is_infinite(high))]


def _inequality(relation: Relation) -> tuple[str, list[Span]] | None:
    """x < 3, 3 > x, 1 < x <= 2, x != 3, and the same of |x|."""
    sides, signs = relation.sides, relation.signs
    if all(sign in (">", ">=") for sign in signs):
        sides, signs = sides[::-1], tuple({">": "<", ">=": "<="}[sign] for sign in signs[::-1])
    variables = [side for side in sides if isinstance(side, Value) and symbols(side.expression)]
    if len(variables) != 1 or not all(isinstance(side, Value) for side in sides) or len(sides) > 3:
        return None
    constants = [side.expression for side in sides if isinstance(side, Value)]
    place = sides.index(variables[0])
    if signs == ("!=",):
        spans = _without(_REALS, constants[1 - place])
    elif set(signs) <= {"<", "<="} and (len(sides) == 2 or place == 1):
        low, low_closed = (constants[place - 1], signs[place - 1] == "<=") if place else (_MINUS_INFINITY, False)
        high, high_closed = (
            (constants[place + 1], signs[place] == "<=") if place + 1 < len(sides) else (_INFINITY, False)
        )
        interval = _interval(low, low_closed, high, high_closed)
        if interval is None:
            return None
        spans = interval[1]
    else:
        return None
    match variables[0]:
        case Value(Sym(name), ""):
            return name, spans
        case Value(Call("abs", (Sym(name),)), ""):
            return name, _of_absolute_value(spans)
    return None


def _of_absolute_value(spans: list[Span]) -> list[Span]:
    """The x for which |x| is in the spans."""
    both = []
    for span in spans:
        if numeric_value(span.high) < 0:
            continue
        if numeric_value(span.low) < 0:
            both.append(Span(negative(span.high), span.high_closed, span.high, span.high_closed))
        else:
            both.append(span)
            both.append(Span(negative(span.high), span.high_closed, negative(span.low), span.low_closed))
    return both


def _merged(spans: list[Span]) -> list[Span]:
    ordered = sorted(spans, key=lambda span: (numeric_value(span.low), not span.low_closed))
    merged: list[Span] = []
    for span in ordered:
        if merged and _touch(merged[-1], span):
            merged[-1] = _joined(merged[-1], span)
        else:
            merged.append(span)
    return merged


def _touch(first: Span, second: Span) -> bool:
    end, start = numeric_value(first.high), numeric_value(second.low)
    return end > start or (end == start and (first.high_closed or second.low_closed))


def _joined(first: Span, second: Span) -> Span:
    one, other = numeric_value(first.high), numeric_value(second.high)
    if one > other:
        return first
    closed = second.high_closed or (one == other and first.high_closed)
    return Span(first.low, first.low_closed, second.high, closed)


def _is_infinite(expression: Expr) -> bool:
    return expression in (_INFINITY, _MINUS_INFINITY)


def _is_constant(value: Value) -> bool:
    return not symbols(value.expression)
