"""Constraints on keywords and letters.

The reference takes keywords as regular expressions, so that a data set could hang it; here they are literal. It also
finds them inside other words ("cat" in "category"): so does eval mode, while reward mode asks for whole words.
"""

import re
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import RELATION, Relation, character, count, holds, keyword, keywords
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.vocabulary import WORDS
from rlsys.verifiers.ifeval.words import find_literal, find_word, visible


def existence(response: str, *, keywords: tuple[str, ...]) -> bool:
    return all(find_literal(word, response) for word in keywords)


def existence_as_words(response: str, *, keywords: tuple[str, ...]) -> bool:
    text = visible(response)
    return all(find_word(visible(word), text) for word in keywords)


def frequency(response: str, *, keyword: str, relation: Relation, frequency: int) -> bool:
    return holds(find_literal(keyword, response), relation, frequency)


def frequency_as_words(response: str, *, keyword: str, relation: Relation, frequency: int) -> bool:
    return holds(find_word(visible(keyword), visible(response)), relation, frequency)


def forbidden_words(response: str, *, forbidden_words: tuple[str, ...]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", response, re.IGNORECASE) for word in forbidden_words)


def forbidden_words_visible(response: str, *, forbidden_words: tuple[str, ...]) -> bool:
    text = visible(response)
    return not any(find_word(visible(word), text) for word in forbidden_words)


def letter_frequency(response: str, *, letter: str, let_relation: Relation, let_frequency: int) -> bool:
    return holds(response.lower().count(letter), let_relation, let_frequency)


def _sample_keywords(rng: Random, prompt: str) -> dict[str, Any]:
    return {"keywords": sorted(rng.sample(WORDS, 2))}


def _sample_forbidden(rng: Random, prompt: str) -> dict[str, Any]:
    return {"forbidden_words": sorted(rng.sample(WORDS, 2))}


def _sample_frequency(rng: Random, prompt: str) -> dict[str, Any]:
    relation = rng.choice(("at least", "less than"))
    return {"keyword": rng.choice(WORDS), "relation": relation, "frequency": rng.randint(2, 4)}


def _sample_letter(rng: Random, prompt: str) -> dict[str, Any]:
    relation = rng.choice(("at least", "less than"))
    frequency = rng.randint(2, 10)
    return {"letter": rng.choice("abcdefghijklmnopqrstuvwxyz"), "let_relation": relation, "let_frequency": frequency}


CONSTRAINTS = (
    Constraint(
        "keywords:existence",
        "Include the following keywords in your response: {keywords}.",
        existence,
        demand=existence_as_words,
        arguments={"keywords": keywords()},
        sample=_sample_keywords,
    ),
    Constraint(
        "keywords:frequency",
        "The word {keyword} should appear {relation} {frequency} times in your response.",
        frequency,
        demand=frequency_as_words,
        arguments={"keyword": keyword(), "relation": RELATION, "frequency": count()},
        sample=_sample_frequency,
    ),
    Constraint(
        "keywords:forbidden_words",
        "Do not use any of the following words in your response: {forbidden_words}.",
        forbidden_words,
        demand=forbidden_words_visible,
        arguments={"forbidden_words": keywords()},
        sample=_sample_forbidden,
    ),
    Constraint(
        "keywords:letter_frequency",
        "The letter {letter} should appear {let_relation} {let_frequency} times in your response.",
        letter_frequency,
        arguments={"letter": character(), "let_relation": RELATION, "let_frequency": count()},
        sample=_sample_letter,
    ),
)
