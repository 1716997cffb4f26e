"""IFEvalG's training constraints on how words and sentences are joined, wrapped and chosen."""

import re
from itertools import pairwise
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import keyword
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.sentences import split_by_rules
from rlsys.verifiers.ifeval.vocabulary import WORDS
from rlsys.verifiers.ifeval.words import find_word, says_something, visible

_BRACKETED = re.compile(r"\[[^\[\]]*[^\W_][^\[\]]*\]")
_DOTS = re.compile("[.\u06d4\u0964\u3002\u2cf9]")
_EXCLAMATIONS = re.compile("[!\u00a1\u055c\u07f9\u1944]")


def sentence_hyphens(response: str) -> bool:
    # The reference stops at the shorter list, so that a single sentence always passes.
    sentences = split_by_rules(response.replace("-", " "))
    pairs = zip(response.split("-"), sentences, strict=False)
    return all(part.strip() == part == sentence for part, sentence in pairs)


def joined_sentences(response: str) -> bool:
    parts = response.split("-")
    return len(parts) >= 2 and parts == split_by_rules(response.replace("-", " ")) and all(map(says_something, parts))


def no_adjacent_consecutive(response: str) -> bool:
    return _no_successors([word[0].lower() for word in response.split()])


def no_adjacent_consecutive_letters(response: str) -> bool:
    words = re.findall(r"[^\W_]+(?:['’][^\W_]+)*", response)
    return len(words) >= 2 and _no_successors([word[0].lower() for word in words])


def _no_successors(letters: list[str]) -> bool:
    if len(letters) > 1 and any(len(letter) != 1 for letter in letters):
        return False
    return all(ord(after) - ord(before) != 1 for before, after in pairwise(letters))


def square_brackets(response: str) -> bool:
    return all(word.startswith("[") and word.endswith("]") for word in response.split())


def bracketed_words(response: str) -> bool:
    return all(map(_BRACKETED.fullmatch, response.split()))


def bigram_wrapping(response: str) -> bool:
    words = response.split()
    pairs = zip(words[::2], words[1::2], strict=False)
    return all(first.startswith("<<") and second.endswith(">>") for first, second in pairs)


def wrapped_bigrams(response: str) -> bool:
    # Two words a wrapping; a last word without a partner is wrapped alone.
    words = response.split()
    insides = [word.removeprefix("<<") for word in words[::2]]
    if len(words) < 2 or any("<<" in inside for inside in insides):
        return False
    if len(words) % 2:
        insides[-1] = insides[-1].removesuffix(">>") if words[-1].endswith(">>") and words[-1].startswith("<<") else ""
    insides += [word.removesuffix(">>") for word in words[1::2]]
    return all(says_something(inside) and ">>" not in inside and "<<" not in inside for inside in insides)


def exclude_word(response: str, *, keyword: str) -> bool:
    return f" {keyword} " not in response


def exclude_visible_word(response: str, *, keyword: str) -> bool:
    return find_word(visible(keyword), visible(response)) == 0


def palindrome(response: str) -> bool:
    return any(word == word[::-1] for word in response.split())


def palindrome_of_letters(response: str) -> bool:
    # Not "a", not "mmm", not "--": three letters or more, two of them different.
    return any(word.isalpha() and len(word) >= 3 and len(set(word)) >= 2 for word in _palindromes(response))


def _palindromes(response: str) -> list[str]:
    return [word for word in response.split() if word == word[::-1]]


def no_dot(response: str) -> bool:
    return "." not in response


def no_dot_of_any_script(response: str) -> bool:
    return _DOTS.search(visible(response)) is None


def no_exclamation(response: str) -> bool:
    return "!" not in response


def no_exclamation_of_any_script(response: str) -> bool:
    return _EXCLAMATIONS.search(visible(response)) is None


def _sample_excluded(rng: Random, prompt: str) -> dict[str, Any]:
    # A word of the request is the hard case; without one, any word.
    words = sorted({word for word in re.findall(r"[a-z]{4,}", prompt)})
    return {"keyword": rng.choice(words or WORDS)}


CONSTRAINTS = (
    Constraint(
        "detectable_format:sentence_hyphens",
        "Connect all your sentences with hyphens, with no spaces between them.",
        sentence_hyphens,
        demand=joined_sentences,
    ),
    Constraint(
        "keywords:no_adjacent_consecutive",
        "No two adjacent words may start with consecutive letters of the alphabet.",
        no_adjacent_consecutive,
        demand=no_adjacent_consecutive_letters,
    ),
    Constraint(
        "detectable_format:square_brackets",
        "Put every word of your response in square brackets.",
        square_brackets,
        demand=bracketed_words,
    ),
    Constraint(
        "detectable_format:bigram_wrapping",
        "Wrap every two words in double angular brackets, such as <<I am>> <<at home>>.",
        bigram_wrapping,
        demand=wrapped_bigrams,
    ),
    Constraint(
        "keywords:exclude_word_harder",
        "Do not use the word {keyword} in your response.",
        exclude_word,
        demand=exclude_visible_word,
        arguments={"keyword": keyword()},
        sample=_sample_excluded,
    ),
    Constraint(
        "keywords:palindrome",
        "Include a palindrome in your response.",
        palindrome,
        demand=palindrome_of_letters,
    ),
    Constraint(
        "punctuation:punctuation_dot",
        "Do not use any dots (.) in your entire response, as punctuation or otherwise.",
        no_dot,
        demand=no_dot_of_any_script,
    ),
    Constraint(
        "punctuation:punctuation_exclamation",
        "Do not use any exclamation marks (!) in your entire response.",
        no_exclamation,
        demand=no_exclamation_of_any_script,
    ),
)
