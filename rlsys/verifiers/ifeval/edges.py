"""IFEvalG's training constraints on first and last words, words at a place, and pairs of paragraphs."""

import re
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import count, keyword
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.length import number_paragraphs, number_spoken_paragraphs
from rlsys.verifiers.ifeval.sentences import split_by_rules
from rlsys.verifiers.ifeval.treebank import tokens
from rlsys.verifiers.ifeval.vocabulary import WORDS
from rlsys.verifiers.ifeval.words import says_something

_MARK = re.compile(r"[^\w\s]")


def two_divided_paragraphs(response: str) -> bool:
    return number_paragraphs(response, num_paragraphs=2)


def two_spoken_divided_paragraphs(response: str) -> bool:
    return number_spoken_paragraphs(response, num_paragraphs=2)


def two_spaced_paragraphs(response: str) -> bool:
    # Blank first and last parts are allowed, blank ones between are not.
    parts = [part.strip() for part in response.split("\n\n")]
    return all(parts[1:-1]) and sum(map(bool, parts)) == 2


def two_spoken_spaced_paragraphs(response: str) -> bool:
    return sum(map(says_something, response.split("\n\n"))) == 2


def first_word_of_sentences(response: str, *, first_word: str) -> bool:
    return all(sentence.lower().split()[:1] == [first_word.lower()] for sentence in split_by_rules(response))


def first_word_of_response(response: str, *, first_word: str) -> bool:
    return response.split(maxsplit=1)[0].lower() == first_word.lower()


def last_word_of_sentences(response: str, *, last_word: str) -> bool:
    return all(_bare_last_word(sentence) == last_word.lower() for sentence in split_by_rules(response))


def last_word_of_response(response: str, *, last_word: str) -> bool:
    return _bare_last_word(response) == last_word.lower()


def _bare_last_word(text: str) -> str:
    """The last word of a text without punctuation; empty for a blank text."""
    return _MARK.sub("", "".join(text.rsplit(maxsplit=1)[-1:])).lower()


def longer_sentences(response: str, **arguments: str) -> bool:
    # A sentence of the asked word alone says nothing.
    return all(_has_two_words(sentence) for sentence in split_by_rules(response))


def longer_response(response: str, **arguments: str) -> bool:
    return _has_two_words(response)


def _has_two_words(text: str) -> bool:
    return sum(map(says_something, text.split())) >= 2


def keyword_at_place(response: str, *, keyword: str, n: int, m: int) -> bool:
    sentences = split_by_rules(response)
    words = tokens(sentences[n - 1]) if n <= len(sentences) else []
    return m <= len(words) and words[m - 1] == keyword


def same_start_and_end(response: str) -> bool:
    words = tokens(response)
    return len(words) >= 2 and words[0].lower() == words[-1].lower()


def words_between(response: str) -> bool:
    words = tokens(response)
    return says_something(words[0]) and any(map(says_something, words[1:-1]))


def _sample_first_word(rng: Random, prompt: str) -> dict[str, Any]:
    return {"first_word": rng.choice(WORDS)}


def _sample_last_word(rng: Random, prompt: str) -> dict[str, Any]:
    return {"last_word": rng.choice(WORDS)}


def _sample_place(rng: Random, prompt: str) -> dict[str, Any]:
    return {"keyword": rng.choice(WORDS), "n": rng.randint(1, 6), "m": rng.randint(1, 10)}


CONSTRAINTS = (
    Constraint(
        "paragraphs:paragraphs",
        "Write exactly 2 paragraphs, separated by the markdown divider ***.",
        two_divided_paragraphs,
        demand=two_spoken_divided_paragraphs,
    ),
    Constraint(
        "paragraphs:paragraphs2",
        "Write exactly 2 paragraphs, separated by two line breaks and nothing else.",
        two_spaced_paragraphs,
        demand=two_spoken_spaced_paragraphs,
    ),
    Constraint(
        "first_word:first_word_sent",
        "The first word of each sentence should be the word {first_word}.",
        first_word_of_sentences,
        demand=longer_sentences,
        arguments={"first_word": keyword()},
        sample=_sample_first_word,
    ),
    Constraint(
        "first_word:first_word_answer",
        "The first word of your response should be the word {first_word}.",
        first_word_of_response,
        demand=longer_response,
        arguments={"first_word": keyword()},
        sample=_sample_first_word,
    ),
    Constraint(
        "last_word:last_word_sent",
        "The last word of each sentence, before its punctuation, should be the word {last_word}.",
        last_word_of_sentences,
        demand=longer_sentences,
        arguments={"last_word": keyword()},
        sample=_sample_last_word,
    ),
    Constraint(
        "last_word:last_word_answer",
        "The last word of your response should be the word {last_word}.",
        last_word_of_response,
        demand=longer_response,
        arguments={"last_word": keyword()},
        sample=_sample_last_word,
    ),
    Constraint(
        "keywords:keyword_specific_position",
        "Include the keyword {keyword} in sentence {n}, as its word {m}; punctuation marks count as words.",
        keyword_at_place,
        arguments={"keyword": keyword(), "n": count(), "m": count()},
        sample=_sample_place,
    ),
    Constraint(
        "keywords:start_end",
        "Start and end your response with the same word; write nothing after it, not even punctuation.",
        same_start_and_end,
        demand=words_between,
    ),
)
