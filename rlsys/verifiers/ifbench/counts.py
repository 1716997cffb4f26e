"""IFBench's constraints under `count:`: how many words, names, numbers, marks there are."""

import re
from random import Random
from typing import Any

from rlsys.verifiers.ifbench.bare import bare, trim
from rlsys.verifiers.ifeval.arguments import count, keyword
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.treebank import tokens
from rlsys.verifiers.ifeval.vocabulary import WORDS
from rlsys.verifiers.ifeval.words import count_spelled_words, count_words, find_word, says_something, visible

CONJUNCTIONS = frozenset(("and", "but", "for", "nor", "or", "so", "yet"))

NAMES = (
    "Emma", "Liam", "Sophia", "Jackson", "Olivia", "Noah", "Ava", "Lucas", "Isabella", "Mason", "Mia", "Ethan",
    "Charlotte", "Alexander", "Amelia", "Benjamin", "Harper", "Leo", "Zoe", "Daniel", "Chloe", "Samuel", "Lily",
    "Matthew", "Grace", "Owen", "Abigail", "Gabriel", "Ella", "Jacob", "Scarlett", "Nathan", "Victoria", "Elijah",
    "Layla", "Nicholas", "Audrey", "David", "Hannah", "Christopher", "Penelope", "Thomas", "Nora", "Andrew", "Aria",
    "Joseph", "Claire", "Ryan", "Stella", "Jonathan",
)  # fmt: skip
"""The names that IFBench's prompts list."""

PRONOUNS = frozenset((
    "i", "me", "we", "us", "you", "he", "him", "she", "her", "it", "they", "them", "my", "mine", "our", "ours",
    "your", "yours", "his", "hers", "its", "their", "theirs", "myself", "ourselves", "yourself", "yourselves",
    "himself", "herself", "itself", "themselves", "this", "that", "these", "those", "who", "whom", "whose",
    "which", "what", "whoever", "whomever", "whatever", "whichever", "anybody", "anyone", "anything",
    "everybody", "everyone", "everything", "nobody", "nothing", "somebody", "someone", "something", "each",
    "either", "neither", "both", "all", "some", "any", "none",
))  # fmt: skip

MARKS = frozenset(".,!?;:")
KEYWORD_COUNTS = {"keyword1": 1, "keyword2": 2, "keyword3": 3, "keyword4": 5, "keyword5": 7}

_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d+")
_JAPANESE = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")


def word_count_range(response: str, *, min_words: int, max_words: int) -> bool:
    return min_words <= count_words(response) <= max_words


def spelled_word_count(response: str, *, min_words: int, max_words: int) -> bool:
    return count_spelled_words(response) >= min_words


def unique_word_count(response: str, *, N: int) -> bool:
    return len({trim(word) for word in response.lower().split()}) >= N


def unique_spelled_word_count(response: str, *, N: int) -> bool:
    return sum(map(says_something, {trim(word) for word in response.lower().split()})) >= N


def conjunctions(response: str, *, small_n: int) -> bool:
    # The reference takes "and", "And" and "and," for three.
    return len({word for word in response.split() if trim(word).lower() in CONJUNCTIONS}) >= small_n


def different_conjunctions(response: str, *, small_n: int) -> bool:
    return len(CONJUNCTIONS.intersection(trim(word).lower() for word in response.split())) >= small_n


def person_names(response: str, *, N: int) -> bool:
    return len(set(NAMES).intersection(_WORD.findall(response))) >= N


def numbers(response: str, *, N: int) -> bool:
    return len(_NUMBER.findall(bare(response))) == N


def punctuation(response: str) -> bool:
    # The interrobang's own two marks do not count for the rest.
    if not any(mark in response for mark in ("!?", "?!", "‽")):
        return False
    rest = response.replace("?!", "", 1) if "?!" in response else response.replace("!?", "", 1)
    return MARKS.issubset(rest)


def words_japanese(response: str, *, N: int) -> bool:
    nth = (trim(word) for word in response.split()[N - 1 :: N])
    return all(_JAPANESE.search(word) is not None for word in nth if word and not word.isdigit())


def some_words_japanese(response: str, *, N: int) -> bool:
    # A response that ends before its Nth word, or has digits there, says nothing in Japanese.
    nth = [trim(word) for word in response.split()[N - 1 :: N]]
    return bool(nth) and all(_JAPANESE.search(word) is not None for word in nth)


def pronouns(response: str, *, N: int) -> bool:
    return sum(word in PRONOUNS for word in tokens(response.replace("/", " ").lower())) >= N


def keywords_multiple(response: str, **keywords: str) -> bool:
    text = response.lower()
    return all(text.count(keywords[name].lower()) == times for name, times in KEYWORD_COUNTS.items())


def keywords_multiple_as_words(response: str, **keywords: str) -> bool:
    text = visible(response)
    return all(find_word(visible(keywords[name]), text) == times for name, times in KEYWORD_COUNTS.items())


def _empty_range(*, min_words: int, max_words: int) -> str | None:
    return f"min_words {min_words} is over max_words {max_words}" if min_words > max_words else None


def _contained(**keywords: str) -> str | None:
    # A keyword inside another is counted with it.
    names = list(KEYWORD_COUNTS)
    for inner in names:
        for outer in names:
            if inner != outer and keywords[inner].lower() in keywords[outer].lower():
                return f"{inner} {keywords[inner]!r} is part of {outer} {keywords[outer]!r}"
    return None


def _sample_range(rng: Random, prompt: str) -> dict[str, Any]:
    min_words = rng.randint(20, 300)
    return {"min_words": min_words, "max_words": min_words + rng.randint(2, 3 + min_words // 10)}


def _sample_unique(rng: Random, prompt: str) -> dict[str, Any]:
    return {"N": rng.randint(30, 150)}


def _sample_conjunctions(rng: Random, prompt: str) -> dict[str, Any]:
    return {"small_n": rng.randint(2, 5)}


def _sample_names(rng: Random, prompt: str) -> dict[str, Any]:
    return {"N": rng.randint(2, 20)}


def _sample_numbers(rng: Random, prompt: str) -> dict[str, Any]:
    return {"N": rng.randint(1, 10)}


def _sample_pronouns(rng: Random, prompt: str) -> dict[str, Any]:
    return {"N": rng.randint(3, 25)}


def _sample_japanese(rng: Random, prompt: str) -> dict[str, Any]:
    return {"N": rng.randint(3, 20)}


def _sample_keywords(rng: Random, prompt: str) -> dict[str, Any]:
    return dict(zip(KEYWORD_COUNTS, rng.sample(WORDS, len(KEYWORD_COUNTS)), strict=True))


CONSTRAINTS = (
    Constraint(
        "count:word_count_range",
        "The response must contain between {min_words} and {max_words} words.",
        word_count_range,
        demand=spelled_word_count,
        arguments={"min_words": count(0), "max_words": count()},
        sample=_sample_range,
        impossible=_empty_range,
    ),
    Constraint(
        "count:unique_word_count",
        "Use at least {N} different words in the response.",
        unique_word_count,
        demand=unique_spelled_word_count,
        arguments={"N": count()},
        sample=_sample_unique,
    ),
    Constraint(
        "count:conjunctions",
        "Use at least {small_n} different coordinating conjunctions in the response.",
        conjunctions,
        demand=different_conjunctions,
        arguments={"small_n": count(1, len(CONJUNCTIONS))},
        sample=_sample_conjunctions,
    ),
    Constraint(
        "count:person_names",
        f"Mention at least {{N}} different names in the response, from this list: {', '.join(NAMES)}.",
        person_names,
        arguments={"N": count(1, len(NAMES))},
        sample=_sample_names,
    ),
    Constraint(
        "count:numbers",
        "Include exactly {N} numbers in the response.",
        numbers,
        arguments={"N": count(0)},
        sample=_sample_numbers,
    ),
    Constraint(
        "count:punctuation",
        "Use every standard punctuation mark at least once: comma, period, colon, semicolon, question mark, "
        "exclamation mark, and besides them an interrobang (?!).",
        punctuation,
    ),
    Constraint(
        "count:words_japanese",
        "Of every {N} words of your response, the last must be in Japanese.",
        words_japanese,
        demand=some_words_japanese,
        arguments={"N": count()},
        sample=_sample_japanese,
    ),
    Constraint(
        "count:pronouns",
        "The response should include at least {N} pronouns.",
        pronouns,
        arguments={"N": count()},
        sample=_sample_pronouns,
    ),
    Constraint(
        "count:keywords_multiple",
        "Include the keyword {keyword1} once in your response, {keyword2} twice, {keyword3} three times, {keyword4} "
        "five times and {keyword5} seven times.",
        keywords_multiple,
        demand=keywords_multiple_as_words,
        arguments={name: keyword() for name in KEYWORD_COUNTS},
        sample=_sample_keywords,
        impossible=_contained,
    ),
)
