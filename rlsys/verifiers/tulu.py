"""The constraint functions of Tülu 3's RLVR-IFeval that no instruction of IFEval says: exact counts, and other words.

`{"func_name": "verify_keyword_frequency", "word": "tea", "N": 2}`. Eval mode is equal to open-instruct's
`if_functions.py`; reward mode asks for more, so that nothing is paid that says nothing.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlsys.errors import VerifierError
from rlsys.verifiers.ifeval.arguments import Argument, choice, count, verbatim
from rlsys.verifiers.ifeval.words import says_something, visible
from rlsys.verifiers.judgement import Judgement, VerifyMode
from rlsys.verifiers.thinking import answer_part

_WORD = re.compile(r"\b\w+\b")
_CAPITALS = re.compile(r"\b[A-Z]+\b")


def _holds(number: int, quantifier: str, N: int, tolerance: int) -> bool:
    if quantifier == "around":
        return abs(number - N) <= tolerance
    return number >= N if quantifier == "at least" else number <= N


def keyword_frequency(response: str, *, word: str, N: int) -> bool:
    return _WORD.findall(response.lower()).count(word.lower()) == N


def letter_frequency(response: str, *, letter: str, N: int) -> bool:
    return response.count(letter) == N


def word_constraint(response: str, *, N: int, quantifier: str) -> bool:
    return _holds(len(response.split()), quantifier, N, max(round(N * 0.1), 1))


def spelled_word_constraint(response: str, *, N: int, quantifier: str) -> bool:
    return word_constraint(" ".join(filter(says_something, response.split())), N=N, quantifier=quantifier)


def capital_words(response: str, *, N: int, quantifier: str) -> bool:
    return _holds(len(_CAPITALS.findall(response)), quantifier, N, 0)


def _sections(response: str, splitter: str) -> list[str]:
    sections = response.split(splitter)
    return sections if sections[0] else sections[1:]


def sections(response: str, *, section_splitter: str, N: int) -> bool:
    return len(_sections(response, section_splitter)) == N


def spelled_sections(response: str, *, section_splitter: str, N: int) -> bool:
    return all(map(says_something, _sections(response, section_splitter)))


def paragraph_count(response: str, *, N: int) -> bool:
    paragraphs = "\n".join(line.strip() for line in response.splitlines()).strip().split("* * *")
    return len(paragraphs) == N and all(paragraph.strip() for paragraph in paragraphs)


def spelled_paragraphs(response: str, *, N: int) -> bool:
    return all(map(says_something, response.split("* * *")))


def visible_keyword_frequency(response: str, *, word: str, N: int) -> bool:
    return keyword_frequency(visible(response), word=visible(word), N=N)


def visible_letter_frequency(response: str, *, letter: str, N: int) -> bool:
    return letter_frequency(visible(response), letter=letter, N=N)


def _one_word() -> Argument:
    expected = "one word of letters, digits and underscores"

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not _WORD.fullmatch(value.strip()):
            raise ValueError(expected)
        return value.strip()

    return Argument(expected, parse)


def _letter() -> Argument:
    expected = "a single character"

    def parse(value: Any) -> str:
        if not isinstance(value, str) or len(value) != 1:
            raise ValueError(expected)
        return value

    return Argument(expected, parse)


@dataclass(frozen=True, slots=True)
class Function:
    """One of Tülu's functions."""

    check: Callable[..., bool]
    demand: Callable[..., bool]
    """What reward mode asks for too."""
    arguments: Mapping[str, Argument]


_N = count(0)
_QUANTIFIER = choice({quantifier: quantifier for quantifier in ("at least", "around", "at most")})
FUNCTIONS: Mapping[str, Function] = {
    "verify_keyword_frequency": Function(keyword_frequency, visible_keyword_frequency, {"word": _one_word(), "N": _N}),
    "verify_letter_frequency": Function(letter_frequency, visible_letter_frequency, {"letter": _letter(), "N": _N}),
    "validate_word_constraint": Function(
        word_constraint, spelled_word_constraint, {"N": _N, "quantifier": _QUANTIFIER}
    ),
    "validate_frequency_capital_words": Function(capital_words, capital_words, {"N": _N, "quantifier": _QUANTIFIER}),
    "validate_sections": Function(sections, spelled_sections, {"section_splitter": verbatim(), "N": count()}),
    "verify_paragraph_count": Function(paragraph_count, spelled_paragraphs, {"N": count()}),
}


def verify_tulu(response: str, ground_truth: Any, mode: VerifyMode) -> Judgement:
    """Judges whether a response follows one constraint.

    Only what stands after the last `</think>` counts.

    Raises:
        VerifierError: for the ground truth only.

    >>> truth = {"func_name": "verify_keyword_frequency", "word": "art", "N": 2}
    >>> verify_tulu("Art is long: we start with art.", truth, "reward").outcome
    'correct'
    """
    function, arguments = _parse(ground_truth)
    answer = answer_part(response) or ""
    right = bool(answer.strip()) and function.check(answer, **arguments)
    if mode == "reward":
        right = right and says_something(answer) and function.demand(answer, **arguments)
    return Judgement("correct" if right else "wrong", float(right))


def check_tulu_ground_truth(ground_truth: Any) -> None:
    """Raises VerifierError unless a function is named with its arguments."""
    _parse(ground_truth)


def _parse(ground_truth: Any) -> tuple[Function, dict[str, Any]]:
    truth = ground_truth if isinstance(ground_truth, Mapping) else {}
    function = FUNCTIONS.get(str(truth.get("func_name")))
    if function is None:
        raise VerifierError(
            "the ground truth of tulu names no function that is known",
            value=ground_truth,
            fix=f'give {{"func_name": …}} with one of {", ".join(FUNCTIONS)}',
        )
    arguments = {}
    for name, argument in function.arguments.items():
        try:
            arguments[name] = argument.parse(truth.get(name))
        except ValueError as error:
            raise VerifierError(
                f"the ground truth of tulu, {truth['func_name']}: {name} must be {error}", value=truth.get(name)
            ) from None
    return function, arguments
