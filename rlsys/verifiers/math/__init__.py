r"""Mathematical answers in LaTeX.

    response -> answer_part -> extract_answer -> read_answer -> same_answer
                (thinking)     (one candidate)   (LaTeX)        (equality)

Nothing of a response is ever executed, and nothing is evaluated without a cap on its cost. Golds that the reader does
not know are left to math-verify and sympy (`second_reader`).
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

from rlsys.errors import VerifierError
from rlsys.verifiers.judgement import Judgement, VerifyMode
from rlsys.verifiers.math.answer import Answer, Collection, Value, expressions_in
from rlsys.verifiers.math.comparison import same_answer
from rlsys.verifiers.math.expression import NoValueError, exact_value, numeric_value, symbols
from rlsys.verifiers.math.extraction import Extracted, extract_answer, is_formula
from rlsys.verifiers.math.reader import read_answer
from rlsys.verifiers.math.scanner import NotReadError
from rlsys.verifiers.thinking import answer_part

if TYPE_CHECKING:
    from rlsys.verifiers.math.second_reader import SecondGold

MAX_RESPONSE_CHARS = 1_000_000
_KEPT_GOLDS = 4096
_THOUSANDS = re.compile(r"\s*[1-9][0-9]{0,2}(?:,[0-9]{3})+\s*")
_DECIMAL_COMMA = re.compile(r"\s*\$?\s*(-?[0-9]+),([0-9]+)\s*\$?\s*")

Gold: TypeAlias = "tuple[str, Answer | SecondGold]"
"""The LaTeX of a gold answer and what was read."""


def check_math_ground_truth(ground_truth: Any) -> None:
    """Raises VerifierError unless the ground truth is an answer in LaTeX that can be read and equals itself."""
    latex, gold = _gold(ground_truth)
    try:
        if isinstance(gold, Answer):
            for expression in expressions_in(gold):
                if not symbols(expression) and exact_value(expression) is None:
                    numeric_value(expression)
        right = _is_right((latex, gold), latex, "reward")
    except (NotReadError, NoValueError) as error:
        raise _refusal(ground_truth, str(error)) from error
    if not right:
        raise _refusal(ground_truth, "it does not equal itself")


def verify_math(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    r"""Judges the answer that a response marks.

    Args:
        ground_truth: LaTeX, with or without dollar signs; or a worked solution whose last `\boxed` counts.
    """
    gold = _gold(ground_truth)
    if len(response) > MAX_RESPONSE_CHARS:
        return _unparsable(f"the response is longer than {MAX_RESPONSE_CHARS} characters")
    text = answer_part(response)
    if text is None:
        return _unparsable("a <think> block stays open")
    extracted = extract_answer(text, mode, _readable)
    if extracted.latex is None:
        return _unparsable(extracted.source)
    detail = {"answer": extracted.latex[:500], "source": extracted.source}
    try:
        if _disagrees_with_itself(extracted):
            return Judgement("wrong", 0.0, {**detail, "reason": "marked answers disagree"})
        right = _is_right(gold, extracted.latex, mode)
    except (NotReadError, NoValueError, RecursionError) as error:
        return _unparsable(str(error) or type(error).__name__, detail)
    return Judgement("correct" if right else "wrong", float(right), detail)


def _is_right(gold: Gold, latex: str, mode: VerifyMode) -> bool:
    gold_latex, gold_answer = gold
    if not isinstance(gold_answer, Answer):
        return gold_answer.matches(latex)
    answer = read_answer(latex)
    if {type(gold_answer), type(answer)} == {Value, Collection}:
        gold_answer, answer = _with_commas_between(gold_latex, gold_answer), _with_commas_between(latex, answer)
        if mode == "eval":
            gold_answer, answer = _with_decimal_comma(gold_latex, gold_answer), _with_decimal_comma(latex, answer)
    return same_answer(gold_answer, answer, mode)


def _with_commas_between(latex: str, answer: Answer) -> Answer:
    """60,120 read as two numbers, where the other side is several: of itself it is sixty thousand."""
    several = _THOUSANDS.fullmatch(latex)
    return read_answer(latex.replace(",", ", ")) if several and isinstance(answer, Value) else answer


def _with_decimal_comma(latex: str, answer: Answer) -> Answer:
    """2,74 read as one number with decimals, where the other side is one: of itself it is two numbers."""
    comma = _DECIMAL_COMMA.fullmatch(latex)
    return read_answer(f"{comma[1]}.{comma[2]}") if comma and isinstance(answer, Collection) else answer


def _disagrees_with_itself(extracted: Extracted) -> bool:
    if extracted.latex is None or not extracted.also:
        return False
    answer = read_answer(extracted.latex)
    return not all(same_answer(answer, read_answer(other), "eval") for other in extracted.also)


def _unparsable(reason: str, detail: dict[str, Any] | None = None) -> Judgement:
    return Judgement("unparsable", 0.0, {**(detail or {}), "reason": reason})


def _gold(ground_truth: Any) -> Gold:
    if not isinstance(ground_truth, str) or not ground_truth.strip():
        raise _refusal(ground_truth, "it is empty" if isinstance(ground_truth, str) else "it is not a string")
    return _read_gold(ground_truth)


@lru_cache(maxsize=_KEPT_GOLDS)
def _read_gold(ground_truth: str) -> Gold:
    """The last box if there is one, the whole text if it is a formula or can be read, else its last mathematics."""
    latex = ground_truth
    if "box" in ground_truth or not (is_formula(ground_truth) or _readable(ground_truth)):
        latex = extract_answer(ground_truth, "eval", _readable).latex or ground_truth
    try:
        return latex, read_answer(latex)
    except NotReadError as error:
        return latex, _second_reading(ground_truth, latex, error)


def _second_reading(ground_truth: str, latex: str, first_error: NotReadError) -> "SecondGold":
    from rlsys.verifiers.math.second_reader import second_reading  # sympy takes a second to import

    try:
        return second_reading(latex)
    except NotReadError as error:
        raise _refusal(ground_truth, f"{first_error}; {error}") from error


def _refusal(ground_truth: Any, reason: str) -> VerifierError:
    shown = ground_truth[:200] if isinstance(ground_truth, str) else ground_truth
    return VerifierError(
        f"the ground truth of math cannot be judged by ({reason})",
        value=shown,
        fix="give the final answer as LaTeX, such as \\frac{1}{2}",
    )


def _readable(latex: str) -> bool:
    try:
        read_answer(latex)
    except (NotReadError, RecursionError):
        return False
    return True
