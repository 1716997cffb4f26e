"""IFBench's constraints under `words:`: the letters, lengths, syllables and places of words."""

import re
from collections import Counter
from itertools import pairwise
from random import Random
from string import ascii_lowercase, punctuation
from typing import Any

import syllapy

from rlsys.verifiers.ifbench.bare import bare, trim, trim_left, trim_right
from rlsys.verifiers.ifeval.arguments import count, keyword
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.sentences import split_sentences
from rlsys.verifiers.ifeval.treebank import tokens, word_tokens
from rlsys.verifiers.ifeval.vocabulary import WORDS
from rlsys.verifiers.ifeval.words import says_something

PRIMES = frozenset((2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97))

_CLUSTER = re.compile("[bcdfghjklmnpqrstvwxyz]{2}")


def has_two_words(response: str, **arguments: Any) -> bool:
    """Whether there are two words at least: fewer follow any constraint on neighbours."""
    return sum(map(says_something, response.split())) >= 2


def alphabet(response: str) -> bool:
    letters = [word[0].lower() for word in bare(response).split()]
    if not letters or letters[0] not in ascii_lowercase:
        return False
    start = ascii_lowercase.index(letters[0])
    return all(letter == ascii_lowercase[(start + place) % 26] for place, letter in enumerate(letters))


def vowel(response: str) -> bool:
    text = response.strip().lower()
    return "\n" not in text and len(set("aeiou").intersection(text)) <= 3


def vowel_of_some_words(response: str) -> bool:
    return has_two_words(response) and not set("aeiou").isdisjoint(response.lower())


def consonants(response: str) -> bool:
    return all(map(_CLUSTER.search, response.lower().split()))


def palindrome(response: str) -> bool:
    return len(_palindromes(response)) >= 10


def different_palindromes(response: str) -> bool:
    # Ten different ones, of more than one letter.
    return sum(1 for word in set(_palindromes(response)) if word.isalpha() and len(set(word)) > 1) >= 10


def _palindromes(response: str) -> list[str]:
    return [word for word in bare(response).lower().split() if len(word) >= 5 and word == word[::-1]]


def prime_lengths(response: str) -> bool:
    return all(len(word) in PRIMES for word in bare(response).split())


def repeats(response: str, *, small_n: int) -> bool:
    return all(times <= small_n for times in Counter(bare(response.lower()).split()).values())


def odd_even_syllables(response: str) -> bool:
    parities = [syllapy.count(word) % 2 for word in bare(response).lower().split()]
    return all(before != after for before, after in pairwise(parities))


def last_first(response: str) -> bool:
    for before, after in pairwise(split_sentences(response)):
        last, first = trim_right(before).split(), trim_left(after).split()
        if not last or not first or last[-1].lower() != first[0].lower():
            return False
    return True


def has_two_sentences(response: str, **arguments: Any) -> bool:
    """Whether there are two sentences at least: one follows any constraint on neighbours."""
    return sum(map(says_something, split_sentences(response))) >= 2


def paragraph_last_first(response: str) -> bool:
    paragraphs = (trim(line.strip().lower()).split() for line in response.split("\n"))
    return all(words[0] == words[-1] for words in paragraphs if words)


def paragraph_of_two_words(response: str) -> bool:
    # A paragraph of one word ends with the word it started with.
    return all(has_two_words(line) for line in response.split("\n") if says_something(line))


def no_consecutive(response: str) -> bool:
    letters = [word[0] for word in bare(response.lower()).split()]
    return all(before != after for before, after in pairwise(letters))


def keywords_specific_position(response: str, *, keyword: str, n: int, m: int) -> bool:
    sentences = split_sentences(response)
    words = word_tokens(sentences[n - 1]) if n <= len(sentences) else []
    return m <= len(words) and words[m - 1].lower() == keyword.lower()


def words_position(response: str, *, keyword: str) -> bool:
    words = [word.lower() for word in tokens(response)]
    if len(words) < 2:
        return False
    # Substring, so that "''" and "..." are no closing mark: what the reference does.
    end = 3 if words[-1] in punctuation else 2
    return len(words) >= end and words[1] == words[-end] == keyword.lower()


def _sample_repeats(rng: Random, prompt: str) -> dict[str, Any]:
    return {"small_n": rng.randint(1, 5)}


def _sample_place(rng: Random, prompt: str) -> dict[str, Any]:
    return {"keyword": rng.choice(WORDS), "n": rng.randint(2, 10), "m": rng.randint(2, 12)}


def _sample_keyword(rng: Random, prompt: str) -> dict[str, Any]:
    return {"keyword": rng.choice(WORDS)}


CONSTRAINTS = (
    Constraint(
        "words:alphabet",
        "Each word must start with the next letter of the alphabet, going back to A after Z.",
        alphabet,
        demand=has_two_words,
    ),
    Constraint(
        "words:vowel",
        "Write one paragraph, of words that contain only three of the five vowels.",
        vowel,
        demand=vowel_of_some_words,
    ),
    Constraint(
        "words:consonants",
        "Each word of your response must have two or more consonants in a row.",
        consonants,
    ),
    Constraint(
        "words:palindrome",
        "Include at least 10 different palindromes of one word, each of 5 letters or more.",
        palindrome,
        demand=different_palindromes,
    ),
    Constraint(
        "words:prime_lengths",
        "Use only words whose number of letters is a prime number.",
        prime_lengths,
    ),
    Constraint(
        "words:repeats",
        "Do not use any word more than {small_n} times in your response.",
        repeats,
        arguments={"small_n": count()},
        sample=_sample_repeats,
    ),
    Constraint(
        "words:odd_even_syllables",
        "Alternate between words with odd and even numbers of syllables.",
        odd_even_syllables,
        demand=has_two_words,
    ),
    Constraint(
        "words:last_first",
        "The last word of each sentence must be the first word of the next sentence.",
        last_first,
        demand=has_two_sentences,
    ),
    Constraint(
        "words:paragraph_last_first",
        "Each paragraph must end with the word it started with; separate paragraphs with a line break.",
        paragraph_last_first,
        demand=paragraph_of_two_words,
    ),
    Constraint(
        "words:no_consecutive",
        "No two neighbouring words may start with the same letter.",
        no_consecutive,
        demand=has_two_words,
    ),
    Constraint(
        "words:keywords_specific_position",
        "Include the keyword {keyword} in sentence {n}, as word {m} of that sentence.",
        keywords_specific_position,
        arguments={"keyword": keyword(), "n": count(), "m": count()},
        sample=_sample_place,
    ),
    Constraint(
        "words:words_position",
        "The second word of your response and the second to last must be the word {keyword}.",
        words_position,
        arguments={"keyword": keyword()},
        sample=_sample_keyword,
    ),
)
