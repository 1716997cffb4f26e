r"""Reading an answer from LaTeX.

    answer  = item { ("," | ";" | "and" | "or") item }
    item    = side { relation side }
    side    = operand { ("\cup" | "\setminus") operand } [unit]
    operand = "\{" [answer] "\}" | ("(" | "[") answer (")" | "]") | [product] matrix | sum { ":" sum }

It reads what people write as a final answer. What it does not know it refuses (`NotReadError`), it never guesses.
"""

import re

from rlsys.verifiers.math.answer import (
    Answer,
    Based,
    Brackets,
    Collection,
    Matrix,
    Ratio,
    Relation,
    RelationSign,
    SetOperation,
    Text,
    Value,
)
from rlsys.verifiers.math.cleaning import MAX_ANSWER_CHARS, clean, text_key
from rlsys.verifiers.math.expression import Call, Const, Expr, Mul, Num, Sym, exact_value, negative, signs_resolved
from rlsys.verifiers.math.expression_reader import FUNCTION_NAMES, ExpressionReader, is_word
from rlsys.verifiers.math.scanner import NotReadError

MAX_ITEMS = 100
_SIGNS: dict[str, RelationSign] = {
    **{"=": "=", "\\approx": "approx", "\\le": "<=", "<": "<", "\\ge": ">=", ">": ">", "\\ne": "!=", "\\in": "in"},
}
_SEPARATOR = re.compile(r",? ?(?:\\text\s*\{\s*,?\s*(?:and|or)\s*,?\s*\}|(?:and|or)(?![A-Za-z]))|[,;]")
_BASED = re.compile(r"(?:\\text\s*)?\{?(-?[0-9A-F]+(?:\.[0-9A-F]+)?)\}?_\s*(?:\{\s*([0-9]{1,2})\s*\}|([0-9]))")
_PROSE = re.compile(r"[A-Za-z .,'\"()!?:;-]+")
_WORDS_IN_BRACES = re.compile(r"\{[A-Za-z ]{2,}\}")
_WORD_AND_NUMBER = re.compile(r"\{?([A-Za-z]{3,}) ?[0-9]{1,4}(?:, ?[0-9]{4})?\}?")
_TEXT_ONLY = re.compile(r"(?:\\text\s*\{[^{}]*\}|[\s.,()'-])+")
_BRACKETED_MATRIX = re.compile(r"[(\[] ?\\begin ?\{(?:array|b?matrix|pmatrix)\}")
_UNIT_PART = re.compile(r"\\text\s*\{([^{}]*)\}|\^ ?\{? ?([0-9]) ?\}?|([A-Za-z]+\.?|/|\.)")
_UNIT = re.compile(r"[A-Za-z0-9 .,'/^²³°-]{0,60}")
_NO_UNIT = frozenset(["or", "and", "not", "maybe", "either", "if", "else", "but", "than", "is", "are", "possibly"])
_PERCENT_UNITS = frozenset(("percent", "percentage", "pct", "percents"))
_DEGREE_UNITS = frozenset(("degree", "degrees", "deg"))


def read_answer(latex: str) -> Answer:
    r"""Reads a final answer.

    Raises:
        NotReadError: it is too long, too deep, or not mathematics that the reader knows.
    """
    if len(latex) > MAX_ANSWER_CHARS:
        raise NotReadError(f"longer than {MAX_ANSWER_CHARS} characters")
    text = clean(latex)
    if not text:
        raise NotReadError("empty")
    based = _BASED.fullmatch(text)
    if based:
        return Based(based[1], int(based[2] or based[3]))
    if _is_prose(text):
        if not text_key(text):
            raise NotReadError("empty")
        return Text(text)
    return _AnswerReader(text).whole()


def _is_prose(text: str) -> bool:
    if _TEXT_ONLY.fullmatch(text) or _WORDS_IN_BRACES.fullmatch(text):
        return True
    dated = _WORD_AND_NUMBER.fullmatch(text)
    if dated:
        return is_word(dated[1]) and dated[1] not in {*FUNCTION_NAMES, "sqrt"}
    return bool(_PROSE.fullmatch(text)) and any(is_word(word) for word in re.findall("[A-Za-z]+", text))


class _AnswerReader(ExpressionReader):
    def whole(self) -> Answer:
        items = self._items()
        if not self.at_end():
            raise NotReadError(f"more than an answer at {self.position}")
        return items[0] if len(items) == 1 else Collection("list", tuple(items))

    def _items(self) -> list[Answer]:
        items = self._item()
        while self.match(_SEPARATOR):
            items += self._item()
            if len(items) > MAX_ITEMS:
                raise NotReadError("too many items")
        return items

    def _item(self) -> list[Answer]:
        """One item; two where it has a plus-minus."""
        self.take("=", "\\approx")
        sides, signs = [self._side()], []
        while sign := self.take(*_SIGNS):
            signs.append(_SIGNS[sign])
            sides.append(self._side())
        if signs:
            resolved = [_resolved(side) for side in sides]
            if max(map(len, resolved)) == 1:
                return [Relation(tuple(sides), tuple(signs))]
            upper, lower = ([one[index % len(one)] for one in resolved] for index in (0, 1))
            return [Relation(tuple(upper), tuple(signs)), Relation(tuple(lower), tuple(signs))]
        return _resolved(sides[0])

    def _side(self) -> Answer:
        operands, operator = [self._operand()], None
        while sign := self.take("\\cup", "\\setminus"):
            if operator not in (None, sign):
                raise NotReadError("unions and differences mixed")
            operator = sign
            operands.append(self._operand())
        if operator:
            return SetOperation("union" if operator == "\\cup" else "minus", tuple(operands))
        return operands[0]

    def _operand(self) -> Answer:
        if self.take("\\emptyset"):
            return Collection("set", ())
        if self.take("\\mathbb{R}", "\\mathbb R"):
            infinity = Const("inf")
            return Collection("()", (Value(negative(infinity)), Value(infinity)))
        if self.take("\\{"):
            return self._braces()
        if self.at("(", "[", "{") and self._comma_in_brackets():
            return self._brackets()
        if self.at_matrix():
            return Matrix(self.matrix_rows())
        if self.look(_BRACKETED_MATRIX):
            closing = {"(": ")", "[": "]"}[self.take("(", "[") or ""]
            matrix = Matrix(self.matrix_rows())
            self.expect(closing)
            return matrix
        expression = self.sum()
        if self.at_matrix():
            return Matrix(tuple(tuple(_scaled(expression, entry) for entry in row) for row in self.matrix_rows()))
        parts = [expression]
        while self.take(":"):
            parts.append(self.sum())
        unit = self._unit()
        if len(parts) > 1:
            return Ratio(tuple(parts), unit)
        return _value_with_unit(expression, unit)

    def _braces(self) -> Answer:
        outer, self.comma_separates = self.comma_separates, True
        items = [] if self.at("\\}") else self._items()
        self.comma_separates = outer
        self.expect("\\}")
        return Collection("set", tuple(items))

    def _brackets(self) -> Answer:
        opening = self.text[self.position]
        self.position += 1
        outer, self.comma_separates = self.comma_separates, True
        items = self._items()
        self.comma_separates = outer
        if opening == "{":
            self.expect("}")
            return Collection("list", tuple(items))
        closing = self.take(")", "]")
        if closing is None:
            raise NotReadError("brackets that do not close")
        brackets: Brackets = f"{opening}{closing}"  # pyright: ignore[reportAssignmentType]
        return Collection(brackets, tuple(items))

    def _comma_in_brackets(self) -> bool:
        """Whether the brackets here hold several items: a comma that is in no inner brackets."""
        depth = 0
        for position in range(self.position, len(self.text)):
            character = self.text[position]
            if character in "([{":
                depth += 1
            elif character in ")]}":
                depth -= 1
                if depth == 0:
                    return False
            elif character in ",;" and depth == 1:
                return True
        return False

    def _unit(self) -> str:
        r"""The unit after a value: `\text{ cm}^2`, `mph`, `\text{ dollars}`. No unit says "or"."""
        start = self.position
        parts = []
        while not self.look(_SEPARATOR) and (part := self.look(_UNIT_PART)):
            word = part[1] if part[1] is not None else part[0]
            parts.append(word.strip())
            self.position = part.end()
        unit = " ".join(filter(None, parts))
        words = re.findall("[a-z]+", unit.casefold())
        if not _UNIT.fullmatch(unit) or _NO_UNIT & set(words):
            raise NotReadError(f"words after a value at {start}")
        return unit.casefold()


def _value_with_unit(expression: Expr, unit: str) -> Answer:
    if unit.rstrip(".") in _PERCENT_UNITS:
        return Value(Call("percent", (expression,)))
    if unit.rstrip(".") in _DEGREE_UNITS:
        return Value(Call("degrees", (expression,)))
    if isinstance(expression, Sym) and is_word(expression.name) and (unit or len(expression.name.split()) > 1):
        return Text(f"{expression.name} {unit}")
    return Value(expression, unit)


def _scaled(factor: Expr, entry: Expr) -> Expr:
    values = exact_value(factor), exact_value(entry)
    return Mul((factor, entry)) if values[0] is None or values[1] is None else Num(values[0] * values[1])


def _resolved(answer: Answer) -> list[Answer]:
    """The one or two answers that a plus-minus stands for."""
    if isinstance(answer, Value):
        return [Value(one, answer.unit) for one in signs_resolved(answer.expression)]
    return [answer]
