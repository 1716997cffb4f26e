r"""Golds that our own reader does not know (sums, integrals, products of matrices …), left to math-verify and sympy.

math-verify stops itself with SIGALRM, which works in the main thread alone; here that is off, and the pool is the
limit. Its tolerance is absolute, so that 1/2004! equals 1/2006!; what it calls equal must also be close relative to its
size. It needs a second to import, so only a data set with such golds pays for it.
"""

import logging
import re
from dataclasses import dataclass
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, N

from rlsys.verifiers.math.scanner import NotReadError

MAX_CHARS = 500
_COSTLY = re.compile(r"[0-9]{30}|\^\s*\{?\s*-?[0-9]{4}|[0-9]{4}\s*!|!\s*\)?\s*!|(?:\^[^^]{0,10}){4}")
_RELATIVE_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class SecondGold:
    """A gold answer as math-verify reads it."""

    parsed: tuple[Any, ...]

    def matches(self, latex: str) -> bool:
        """Whether an answer equals it.

        Raises:
            NotReadError: math-verify cannot read it, or it might cost too much to.
        """
        answer = _parse(latex)
        if not verify(list(self.parsed), answer, timeout_seconds=None):
            return False
        return _is_close(self.parsed[0], answer[0])


def second_reading(latex: str) -> SecondGold:
    """Reads a gold answer with math-verify.

    Raises:
        NotReadError: it cannot.
    """
    return SecondGold(tuple(_parse(latex)))


def _parse(latex: str) -> list[Any]:
    if len(latex) > MAX_CHARS or _COSTLY.search(latex):
        raise NotReadError("too long or too costly for math-verify")
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    parsed = parse(
        f"$\\boxed{{{latex}}}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,  # pyright: ignore[reportArgumentType]  # None is its documented "off"
    )
    if not parsed:
        raise NotReadError("not mathematics to math-verify either")
    return parsed


def _is_close(gold: Any, answer: Any) -> bool:
    """Whether two numbers are close relative to their size; anything else was compared by its structure."""
    if not (isinstance(gold, Expr) and isinstance(answer, Expr) and gold.is_number and answer.is_number):
        return True
    one, other = N(gold, 30), N(answer, 30)
    return bool(abs(one - other) <= _RELATIVE_TOLERANCE * max(abs(one), abs(other)))
