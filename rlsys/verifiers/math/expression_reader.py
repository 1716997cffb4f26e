r"""Reading expressions from cleaned LaTeX, by recursive descent over the characters.

    sum     = ["+" | "-" | "\pm"] product { ("+" | "-" | "\pm") product }
    product = power { ["*" | "/"] power }            what stands side by side is multiplied
    power   = primary { "!" | "%" | "\degree" } ["^" argument]
    primary = number | letter | function | "\frac" … | "(" sum ")" | "|" sum "|" | determinant

What is not known is refused, never guessed.
"""

import re
from fractions import Fraction
from itertools import permutations
from math import prod

from rlsys.verifiers.math.cleaning import ROW_BREAK
from rlsys.verifiers.math.expression import FUNCTIONS, Add, Call, Const, Div, Expr, Mul, Num, Pow, Sym, negative
from rlsys.verifiers.math.number_reader import NumberReader
from rlsys.verifiers.math.scanner import NotReadError

MAX_DEPTH = 40
MAX_OPERATIONS = 200
"""Powers, quotients and functions of one answer; sums and products, which do not nest, are not counted."""


_COMMAND = re.compile(r"\\([A-Za-z]+)")
_LETTERS = re.compile(r"[A-Za-z]+")
_NAME = re.compile(r"\\?([A-Za-z]+)")
_GROUP_OR_LETTER = re.compile(r"\{([^{}]*)\}|([A-Za-z])")
_SCRIPT = re.compile(r"_\s*(?:\{([^{}]*)\}|\\text\s*\{([^{}]*)\}|([A-Za-z0-9]))")
_TEXT = re.compile(r"\\text\s*\{([^{}]*)\}")
_MATRIX_BEGIN = re.compile(r"\\begin\s*\{([pbvBV]?matrix|array)\}(?:\s*\{[^{}]*\})?")
_MATRIX_END = re.compile(r"\\end\s*\{([pbvBV]?matrix|array)\}")

_GREEK = frozenset(
    {
        *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "iota"),
        *(
            "kappa",
            "lambda",
            "mu",
            "nu",
            "xi",
            "rho",
            "sigma",
            "tau",
            "upsilon",
            "phi",
            "varphi",
            "chi",
            "psi",
            "omega",
        ),
        *("Gamma", "Delta", "Theta", "Lambda", "Xi", "Pi", "Sigma", "Phi", "Psi", "Omega", "ell", "hbar"),
    }
)
_NAME_COMMANDS = frozenset(("vec", "hat", "bar", "overline", "overrightarrow", "widehat", "tilde"))
_CONSTANTS = {"pi": Const("pi"), "infty": Const("inf"), "i": Const("i"), "imath": Const("i"), "e": Const("e")}
FUNCTION_NAMES = frozenset(FUNCTIONS) - {"percent", "degrees", "factorial", "binomial"}
_TEXT_FACTORS = {"i", *FUNCTION_NAMES} - {"min", "max", "sec"}
_INVERSE = {name: f"arc{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
_BRACKETS = {"(": ")", "[": "]", "{": "}"}
UNIT_WORDS = frozenset(
    {
        *("cm", "mm", "km", "ft", "in", "yd", "mi", "kg", "mg", "ml", "lb", "lbs", "oz", "hr", "hrs", "min", "mins"),
        *("mph", "kph", "am", "pm", "AM", "PM", "cent", "cents", "USD", "unit", "units", "sq", "pct", "deg"),
    }
)
"""Short words that are units rather than products of variables; longer ones are words anyway."""


def is_word(letters: str) -> bool:
    """Whether letters side by side are a word rather than a product of variables."""
    return (
        len(letters) >= 4
        or (len(letters) >= 2 and "o" in letters)
        or (len(letters) == 3 and bool(set("eiu") & set(letters)))
    )


class ExpressionReader(NumberReader):
    """A position in a cleaned text, and the rules that read expressions from there.

    Args:
        text: cleaned by `clean`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._in_bars = 0
        self._num_operations = 0

    def sum(self) -> Expr:
        """Reads a sum."""
        self._depth += 1
        self._count()
        if self._depth > MAX_DEPTH:
            raise NotReadError("nested too deeply")
        terms = [self._signed_product(self.take("+", "-", "\\pm", "\\mp"))]
        while sign := self.take("+", "-", "\\pm", "\\mp"):
            terms.append(self._signed_product(sign))
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Add(tuple(terms))

    def _signed_product(self, sign: str | None) -> Expr:
        term = self._product_after_signs()
        if sign == "-":
            return negative(term)
        if sign in ("\\pm", "\\mp"):
            return Call("plusminus" if sign == "\\pm" else "minusplus", (term,))
        return term

    def _product_after_signs(self) -> Expr:
        """A product that may carry a sign of its own, as in 3 + -2."""
        return negative(self.product()) if self.take("-") else self.product()

    def product(self) -> Expr:
        """Reads a product."""
        result = self._power()
        while True:
            if self.take("*"):
                result = _times(result, negative(self._power()) if self.take("-") else self._power())
            elif self.take("/"):
                self._count()
                result = Div(result, negative(self._power()) if self.take("-") else self._power())
            elif self.factor_follows():
                result = _times(result, self._power())
            else:
                return result

    def factor_follows(self) -> bool:
        """Whether what comes next is multiplied without a sign between."""
        self.skip_space()
        rest = self.text[self.position : self.position + 1]
        if rest in ("(", "[", "{"):
            return True
        if rest == "|":
            return self._in_bars == 0
        if rest == "\\":
            command = _COMMAND.match(self.text, self.position)
            if command and command[1] == "text":
                word = _TEXT.match(self.text, self.position)
                return word is not None and word[1].strip() in _TEXT_FACTORS
            return command is not None and self._is_operand(command[1])
        letters = _LETTERS.match(self.text, self.position)
        if letters is None:
            if rest.isdigit():
                raise NotReadError("two numbers side by side")
            return False
        run = letters[0]
        return run in FUNCTION_NAMES or run in ("pi", "sqrt") or not (is_word(run) or run in UNIT_WORDS or run == "and")

    def _is_operand(self, command: str) -> bool:
        return (
            command in _GREEK
            or command in _CONSTANTS
            or command in FUNCTION_NAMES
            or command in _NAME_COMMANDS
            or command in ("frac", "sqrt", "binom", "lfloor", "lceil", "angle", "triangle")
        )

    def _count(self) -> None:
        self._num_operations += 1
        if self._num_operations > MAX_OPERATIONS:
            raise NotReadError("too many operations")

    def _power(self) -> Expr:
        base = self._postfix(self.primary())
        if self.take("^"):
            self._count()
            exponent = self._argument(single_digit=False)
            base = self._postfix(Pow(base, exponent))
        return base

    def _postfix(self, operand: Expr) -> Expr:
        while mark := self.take("!", "%", "\\degree"):
            self._count()
            operand = Call({"!": "factorial", "%": "percent", "\\degree": "degrees"}[mark], (operand,))
        return operand

    def _argument(self, *, single_digit: bool = True) -> Expr:
        r"""What a command takes: a group in braces, or one token; as in TeX, of a number only its first digit."""
        if self.take("{"):
            inner = self.sum()
            self.expect("}")
            return inner
        if single_digit and self.text[self.position : self.position + 1].isdigit():
            self.position += 1
            return Num(Fraction(int(self.text[self.position - 1])))
        if not single_digit and self.take("-"):
            return negative(self.primary())
        return self.primary()

    def primary(self) -> Expr:
        """Reads one operand."""
        self.skip_space()
        rest = self.text[self.position : self.position + 1]
        if rest.isdigit() or rest == ".":
            return self.number()
        if rest in _BRACKETS:
            self.position += 1
            inner = self.sum()
            self.expect(_BRACKETS[rest])
            return inner
        if rest == "|":
            return self._bars()
        if rest == "\\":
            return self._command()
        letters = _LETTERS.match(self.text, self.position)
        if letters is None:
            raise NotReadError(f"no operand at {self.position}")
        return self._letters(letters[0])

    def _bars(self) -> Expr:
        self.position += 1
        self._in_bars += 1
        inner = self.sum()
        self._in_bars -= 1
        self.expect("|")
        return Call("abs", (inner,))

    def _letters(self, run: str) -> Expr:
        if run == "sqrt":
            self.position += 4
            return Pow(self._argument(), Num(Fraction(1, 2)))
        if run in FUNCTION_NAMES:
            self.position += len(run)
            return self._function(run)
        if run in ("pi", "infinity", "inf"):
            self.position += len(run)
            return Const("pi" if run == "pi" else "inf")
        length = len(run) if is_word(run) else 1
        self.position += length
        if length == 1 and run[0] in _CONSTANTS and not self.at("_"):
            return _CONSTANTS[run[0]]
        return self._named(run[:length])

    def _named(self, name: str) -> Expr:
        """A variable with its primes and subscript."""
        while self.take("'"):
            name += "'"
        script = self.match(_SCRIPT)
        if script:
            name += "_" + next(part for part in script.groups() if part is not None).replace(" ", "")
        return Sym(name)

    def _command(self) -> Expr:
        text = self.match(_TEXT)
        if text:
            return self._text(text[1].strip())
        matrix = self.look(_MATRIX_BEGIN)
        if matrix and matrix[1] == "vmatrix":
            return _determinant(self.matrix_rows())
        command = self.match(_COMMAND)
        name = command[1] if command else ""
        if name == "frac":
            return Div(self._argument(), self._argument())
        if name == "sqrt":
            return self._root()
        if name == "binom":
            return Call("binomial", (self._argument(), self._argument()))
        if name in ("lfloor", "lceil"):
            inner = self.sum()
            self.expect("\\rfloor" if name == "lfloor" else "\\rceil")
            return Call("floor" if name == "lfloor" else "ceil", (inner,))
        if name in _CONSTANTS:
            return _CONSTANTS[name]
        if name in FUNCTION_NAMES:
            return self._function(name)
        if name in _NAME_COMMANDS:
            group = self.match(_GROUP_OR_LETTER)
            if group:
                return self._named(f"{name} {(group[1] or group[2]).strip()}")
        if name in _GREEK:
            return self._named(name)
        if name in ("angle", "triangle"):
            letters = self.match(_LETTERS)
            return Sym(f"{name} {letters[0] if letters else ''}")
        raise NotReadError(f"unknown command {name!r}")

    def _text(self, word: str) -> Expr:
        if word in FUNCTION_NAMES:
            return self._function(word)
        if word in _CONSTANTS and len(word) == 1:
            return _CONSTANTS[word]
        if not re.fullmatch(r"[A-Za-z][A-Za-z .'-]*", word):
            raise NotReadError("words where an operand should be")
        return self._named(word)

    def _root(self) -> Expr:
        degree: Expr = Num(Fraction(2))
        if self.take("["):
            degree = self.sum()
            self.expect("]")
        radicand = self._argument()
        match degree:
            case Num(value) if value:
                return Pow(radicand, Num(1 / value))
        return Pow(radicand, Div(Num(Fraction(1)), degree))

    def _function(self, name: str) -> Expr:
        base: Expr = Num(Fraction(10))
        exponent: Expr | None = None
        while mark := self.take("_", "^"):
            if mark == "_" and name == "log":
                base = self._argument()
            elif mark == "^":
                exponent = self._argument(single_digit=False)
            else:
                raise NotReadError(f"a subscript of {name}")
        if exponent == Num(Fraction(-1)) and name in _INVERSE:
            name, exponent = _INVERSE[name], None
        arguments = self._function_arguments(name)
        if name == "log":
            arguments = (*arguments, base)
        result = Call(name, arguments)
        return result if exponent is None else Pow(result, exponent)

    def _function_arguments(self, name: str) -> tuple[Expr, ...]:
        r"""In brackets, or what follows up to a sign or the next function: \sin 2x \cos x is two factors."""
        bracket = self.take("(", "[", "{")
        if bracket:
            outer, self.comma_separates = self.comma_separates, name in ("gcd", "lcm", "max", "min")
            arguments = [self.sum()]
            while self.comma_separates and self.take(","):
                arguments.append(self.sum())
            self.comma_separates = outer
            self.expect(_BRACKETS[bracket])
            return tuple(arguments)
        argument = self._power()
        while self.factor_follows() and not self._function_is_next():
            argument = _times(argument, self._power())
        return (argument,)

    def _function_is_next(self) -> bool:
        name = self.look(_NAME)
        return name is not None and name[1] in FUNCTION_NAMES

    def matrix_rows(self) -> tuple[tuple[Expr, ...], ...]:
        """Reads a matrix, from its `\\begin` to its `\\end`."""
        if not self.match(_MATRIX_BEGIN):
            raise NotReadError("not a matrix")
        rows, row = [], []
        while True:
            row.append(self.sum())
            if self.take("&"):
                continue
            rows.append(tuple(row))
            row = []
            skipped = self.take(ROW_BREAK)
            if self.match(_MATRIX_END):
                break
            if not skipped:
                raise NotReadError("a matrix that does not end")
        if len({len(one) for one in rows}) != 1:
            raise NotReadError("rows of different lengths")
        return tuple(rows)

    def at_matrix(self) -> bool:
        """Whether a matrix, not a determinant, comes next."""
        begin = self.look(_MATRIX_BEGIN)
        return begin is not None and begin[1] != "vmatrix"


def _times(first: Expr, second: Expr) -> Expr:
    return Mul((*first.factors, second)) if isinstance(first, Mul) else Mul((first, second))


def _determinant(rows: tuple[tuple[Expr, ...], ...]) -> Expr:
    size = len(rows)
    if size > 4 or any(len(row) != size for row in rows):
        raise NotReadError("a determinant that is not square, or too large")
    terms: list[Expr] = []
    for order in permutations(range(size)):
        inversions = prod(-1 for i in range(size) for j in range(i) if order[j] > order[i])
        product = Mul(tuple(rows[i][order[i]] for i in range(size)))
        terms.append(product if inversions == 1 else negative(product))
    return Add(tuple(terms))
