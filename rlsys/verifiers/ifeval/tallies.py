"""IFEvalG's training constraints that count keywords, letters and words."""

import re
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import RELATION, Relation, character, count, holds, keyword
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.keywords import frequency, frequency_as_words, letter_frequency
from rlsys.verifiers.ifeval.sentences import split_by_rules
from rlsys.verifiers.ifeval.treebank import tokens, word_tokens
from rlsys.verifiers.ifeval.vocabulary import WORDS
from rlsys.verifiers.ifeval.words import find_literal, find_word, says_something, visible

_LOWERCASE = re.compile(r"\b[a-z]+\b")
_LETTER = re.compile(r"[a-zA-Z]")
_WORD = re.compile(r"\w+")
_DIVIDER = re.compile(r"\s?\*\*\*\s?")


def once(response: str, *, keyword: str) -> bool:
    return find_literal(keyword, response) == 1


def once_as_word(response: str, *, keyword: str) -> bool:
    return find_word(visible(keyword), visible(response)) == 1


def once_and_twice(response: str, *, keyword1: str, keyword2: str) -> bool:
    return find_literal(keyword1, response) == 1 and find_literal(keyword2, response) == 2


def once_and_twice_as_words(response: str, *, keyword1: str, keyword2: str) -> bool:
    text = visible(response)
    return find_word(visible(keyword1), text) == 1 and find_word(visible(keyword2), text) == 2


def lowercase_counting(response: str, *, N: int) -> bool:
    return len(_LOWERCASE.findall(response)) <= N


def lowercase_of_any_script(response: str, *, N: int) -> bool:
    return sum(map(str.islower, _WORD.findall(visible(response)))) <= N


def letter_counting(response: str, *, N: int, relation: Relation) -> bool:
    return holds(len(_LETTER.findall(response)), relation, N)


def counting_composition(response: str, *, n_sent: int, n_words: int) -> bool:
    # The reference counts punctuation marks as words, and so does the instruction text here.
    paragraphs = _DIVIDER.split(response)
    sentences = [split_by_rules(paragraph) for paragraph in paragraphs]
    if len(paragraphs) != 3 or any(len(of_paragraph) != n_sent for of_paragraph in sentences):
        return False
    return all(len(tokens(sentence)) == n_words for of_paragraph in sentences for sentence in of_paragraph)


def worded_composition(response: str, *, n_sent: int, n_words: int) -> bool:
    return all(says_something(sentence) for part in _DIVIDER.split(response) for sentence in split_by_rules(part))


def count_unique(response: str) -> bool:
    words = tokens(response)
    return len(words) == len(set(words))


def count_unique_in_any_case(response: str) -> bool:
    words = [word.lower() for word in word_tokens(response)]
    return len(words) == len(set(words)) >= 2


def _equal_or_contained(*, keyword1: str, keyword2: str) -> str | None:
    if keyword2.lower() in keyword1.lower():
        return f"keyword2 {keyword2!r} is part of keyword1 {keyword1!r}"
    if keyword1.lower() in keyword2.lower():
        return f"keyword1 {keyword1!r} is part of keyword2 {keyword2!r}, which appears twice"
    return None


def _sample_keyword(rng: Random, prompt: str) -> dict[str, Any]:
    return {"keyword": rng.choice(WORDS)}


def _sample_two_keywords(rng: Random, prompt: str) -> dict[str, Any]:
    keyword1, keyword2 = rng.sample(WORDS, 2)
    return {"keyword1": keyword1, "keyword2": keyword2}


def _sample_frequency(rng: Random, prompt: str) -> dict[str, Any]:
    relation = rng.choice(("at least", "less than"))
    return {"keyword": rng.choice(WORDS), "relation": relation, "frequency": rng.randint(2, 6)}


def _sample_lowercase(rng: Random, prompt: str) -> dict[str, Any]:
    return {"N": rng.randint(2, 40)}


def _sample_letters(rng: Random, prompt: str) -> dict[str, Any]:
    return {"N": rng.randrange(50, 1001, 10), "relation": rng.choice(("at least", "less than"))}


def _sample_letter(rng: Random, prompt: str) -> dict[str, Any]:
    relation = rng.choice(("at least", "less than"))
    frequency = rng.randint(2, 10)
    return {"letter": rng.choice("abcdefghijklmnopqrstuvwxyz"), "let_relation": relation, "let_frequency": frequency}


def _sample_composition(rng: Random, prompt: str) -> dict[str, Any]:
    return {"n_sent": rng.randint(1, 3), "n_words": rng.randint(4, 9)}


CONSTRAINTS = (
    Constraint(
        "keywords:word_once",
        "Include the keyword {keyword} exactly once in your response.",
        once,
        demand=once_as_word,
        arguments={"keyword": keyword()},
        sample=_sample_keyword,
    ),
    Constraint(
        "keywords:word_count_different_numbers",
        "In your response, the word {keyword} should appear {relation} {frequency} times.",
        frequency,
        demand=frequency_as_words,
        arguments={"keyword": keyword(), "relation": RELATION, "frequency": count()},
        sample=_sample_frequency,
    ),
    Constraint(
        "count:count_increment_word",
        "Include the keyword {keyword1} once and the keyword {keyword2} twice in your response.",
        once_and_twice,
        demand=once_and_twice_as_words,
        arguments={"keyword1": keyword(), "keyword2": keyword()},
        sample=_sample_two_keywords,
        impossible=_equal_or_contained,
    ),
    Constraint(
        "count:lowercase_counting",
        "Use at most {N} words in all lowercase letters in your response.",
        lowercase_counting,
        demand=lowercase_of_any_script,
        arguments={"N": count(0)},
        sample=_sample_lowercase,
    ),
    Constraint(
        "letters:letter_counting",
        "Answer with {relation} {N} letters.",
        letter_counting,
        arguments={"N": count(), "relation": RELATION},
        sample=_sample_letters,
    ),
    Constraint(
        "letters:letter_counting2",
        "In your response, the letter {letter} should appear {let_relation} {let_frequency} times.",
        letter_frequency,
        arguments={"letter": character(), "let_relation": RELATION, "let_frequency": count()},
        sample=_sample_letter,
    ),
    Constraint(
        "count:counting_composition",
        "Write 3 paragraphs, separated by the markdown divider ***, of exactly {n_sent} sentences each, with exactly "
        "{n_words} words in each sentence; punctuation marks count as words.",
        counting_composition,
        demand=worded_composition,
        arguments={"n_sent": count(), "n_words": count()},
        sample=_sample_composition,
    ),
    Constraint(
        "count:count_unique",
        "Use every word at most once in your response; punctuation marks count as words.",
        count_unique,
        demand=count_unique_in_any_case,
    ),
)
