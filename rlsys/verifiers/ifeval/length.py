"""Constraints on how many words, sentences and paragraphs a response has."""

import re
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import RELATION, Relation, count, holds, keyword
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.sentences import count_sentences, count_spoken_sentences
from rlsys.verifiers.ifeval.vocabulary import WORDS
from rlsys.verifiers.ifeval.words import count_spelled_words, count_words, says_something

_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_WORD_END = re.compile(r"""[.,?!'"]""")


def number_sentences(response: str, *, relation: Relation, num_sentences: int) -> bool:
    return holds(count_sentences(response), relation, num_sentences)


def number_spoken_sentences(response: str, *, relation: Relation, num_sentences: int) -> bool:
    return relation != "at least" or count_spoken_sentences(response) >= num_sentences


def number_words(response: str, *, relation: Relation, num_words: int) -> bool:
    return holds(count_words(response), relation, num_words)


def number_spelled_words(response: str, *, relation: Relation, num_words: int) -> bool:
    return relation != "at least" or count_spelled_words(response) >= num_words


def number_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    # A divider may open or close the response, but blank paragraphs within are not allowed.
    parts = _DIVIDER.split(response)
    return all(map(str.strip, parts[1:-1])) and sum(map(_is_filled, parts)) == num_paragraphs


def number_spoken_paragraphs(response: str, *, num_paragraphs: int) -> bool:
    return sum(map(says_something, _DIVIDER.split(response))) == num_paragraphs


def nth_paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    # The reference counts paragraphs without the blank ones, but takes the nth with them.
    paragraphs = response.split("\n\n")
    if sum(map(_is_filled, paragraphs)) != num_paragraphs or nth_paragraph > num_paragraphs:
        return False
    return _first_word(paragraphs[nth_paragraph - 1]) == first_word.lower()


def nth_spoken_paragraph_first_word(response: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    spoken = [paragraph for paragraph in response.split("\n\n") if says_something(paragraph)]
    return len(spoken) == num_paragraphs and _first_word(spoken[nth_paragraph - 1]) == first_word.lower()


def _is_filled(text: str) -> bool:
    return bool(text.strip())


def _first_word(paragraph: str) -> str:
    """The first word in lower case, up to its first punctuation mark; empty for a blank paragraph."""
    words = paragraph.split(maxsplit=1)
    return _WORD_END.split(words[0].lstrip("'").lstrip('"'), maxsplit=1)[0].lower() if words else ""


def _beyond_the_last(*, num_paragraphs: int, nth_paragraph: int, first_word: str) -> str | None:
    if nth_paragraph > num_paragraphs:
        return f"nth_paragraph {nth_paragraph} lies beyond num_paragraphs {num_paragraphs}"
    return None


def _sample_sentences(rng: Random, prompt: str) -> dict[str, Any]:
    return {"relation": rng.choice(("at least", "less than")), "num_sentences": rng.randint(3, 12)}


def _sample_words(rng: Random, prompt: str) -> dict[str, Any]:
    return {"relation": rng.choice(("at least", "less than")), "num_words": rng.randrange(50, 401, 10)}


def _sample_paragraphs(rng: Random, prompt: str) -> dict[str, Any]:
    return {"num_paragraphs": rng.randint(2, 6)}


def _sample_first_word(rng: Random, prompt: str) -> dict[str, Any]:
    num_paragraphs = rng.randint(2, 6)
    nth_paragraph = rng.randint(1, num_paragraphs)
    return {"num_paragraphs": num_paragraphs, "nth_paragraph": nth_paragraph, "first_word": rng.choice(WORDS)}


CONSTRAINTS = (
    Constraint(
        "length_constraints:number_sentences",
        "Your response should contain {relation} {num_sentences} sentences.",
        number_sentences,
        demand=number_spoken_sentences,
        arguments={"relation": RELATION, "num_sentences": count()},
        sample=_sample_sentences,
    ),
    Constraint(
        "length_constraints:number_words",
        "Your response should contain {relation} {num_words} words.",
        number_words,
        demand=number_spelled_words,
        arguments={"relation": RELATION, "num_words": count()},
        sample=_sample_words,
    ),
    Constraint(
        "length_constraints:number_paragraphs",
        "Write exactly {num_paragraphs} paragraphs, separated by the markdown divider ***.",
        number_paragraphs,
        demand=number_spoken_paragraphs,
        arguments={"num_paragraphs": count()},
        sample=_sample_paragraphs,
    ),
    Constraint(
        "length_constraints:nth_paragraph_first_word",
        "Write exactly {num_paragraphs} paragraphs, separated by two line breaks and nothing else. "
        "Paragraph {nth_paragraph} must start with the word {first_word}.",
        nth_paragraph_first_word,
        demand=nth_spoken_paragraph_first_word,
        arguments={"num_paragraphs": count(), "nth_paragraph": count(), "first_word": keyword()},
        sample=_sample_first_word,
        impossible=_beyond_the_last,
    ),
)
