"""Constraints on upper and lower case."""

import re
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import RELATION, Relation, count, holds
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.language import detect_language
from rlsys.verifiers.ifeval.treebank import tokens

MIN_ENGLISH_SHARE = 0.9
"""Reward mode takes a text for English when so many of its letters are ASCII: no language detection in a hot path."""

_CAPITAL_WORD = re.compile(r"(?<![\w'’-])[^\W\d_](?:['’&.-]?[^\W_])+(?![\w'’-])")


def count_capital_words(text: str) -> int:
    """Words in capitals as the reference counts them, by Treebank tokens: "IT'S" and "CANNOT" are two, "U.S." one."""
    return sum(map(str.isupper, tokens(text)))


def count_whole_capital_words(text: str) -> int:
    """Words of two characters or more that are all in capitals; "IT'S" is one, "I" and "A" are none."""
    return sum(1 for match in _CAPITAL_WORD.finditer(text) if match.group().isupper())


def mostly_ascii_letters(text: str) -> bool:
    """Whether at least nine letters in ten are ASCII; False without letters."""
    if text.isascii():
        return any(map(str.isalpha, text))
    num_letters = sum(map(str.isalpha, text))
    num_ascii = sum(1 for letter in text if letter.isascii() and letter.isalpha())
    return num_letters > 0 and num_ascii >= MIN_ENGLISH_SHARE * num_letters


def english_capital(response: str) -> bool:
    return response.isupper() and detect_language(response) in ("en", None)


def english_capital_by_letters(response: str) -> bool:
    return response.isupper() and mostly_ascii_letters(response)


def english_lowercase(response: str) -> bool:
    return response.islower() and detect_language(response) in ("en", None)


def english_lowercase_by_letters(response: str) -> bool:
    return response.islower() and mostly_ascii_letters(response)


def capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    return holds(count_capital_words(response), capital_relation, capital_frequency)


def whole_capital_word_frequency(response: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    return capital_relation != "at least" or count_whole_capital_words(response) >= capital_frequency


def _sample_capital_words(rng: Random, prompt: str) -> dict[str, Any]:
    return {"capital_frequency": rng.randint(2, 10), "capital_relation": rng.choice(("at least", "less than"))}


CONSTRAINTS = (
    Constraint(
        "change_case:english_capital",
        "Write your entire response in English and in capital letters only.",
        english_capital,
        instead=english_capital_by_letters,
    ),
    Constraint(
        "change_case:english_lowercase",
        "Write your entire response in English and in lowercase letters only, with no capital letters.",
        english_lowercase,
        instead=english_lowercase_by_letters,
    ),
    Constraint(
        "change_case:capital_word_frequency",
        "Words in all capital letters should appear {capital_relation} {capital_frequency} times in your response.",
        capital_word_frequency,
        demand=whole_capital_word_frequency,
        arguments={"capital_frequency": count(), "capital_relation": RELATION},
        sample=_sample_capital_words,
    ),
)
