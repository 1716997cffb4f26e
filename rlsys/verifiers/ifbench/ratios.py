"""IFBench's constraints under `ratio:`: shares of words, of kinds of sentence, of a reference text."""

import re
from collections import Counter
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import count, verbatim
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.sentences import split_sentences

STOP_WORDS = frozenset((
    "a", "about", "above", "after", "again", "against", "ain", "all", "am", "an", "and", "any", "are", "aren",
    "as", "at", "be", "because", "been", "before", "being", "below", "between", "both", "but", "by", "can",
    "couldn", "d", "did", "didn", "do", "does", "doesn", "doing", "don", "down", "during", "each", "few", "for",
    "from", "further", "had", "hadn", "has", "hasn", "have", "haven", "having", "he", "her", "here", "hers",
    "herself", "him", "himself", "his", "how", "i", "if", "in", "into", "is", "isn", "it", "its", "itself",
    "just", "ll", "m", "ma", "me", "mightn", "more", "most", "mustn", "my", "myself", "needn", "no", "nor",
    "not", "now", "o", "of", "off", "on", "once", "only", "or", "other", "our", "ours", "ourselves", "out",
    "over", "own", "re", "s", "same", "shan", "she", "should", "shouldn", "so", "some", "such", "t", "than",
    "that", "the", "their", "theirs", "them", "themselves", "then", "there", "these", "they", "this", "those",
    "through", "to", "too", "under", "until", "up", "ve", "very", "was", "wasn", "we", "were", "weren", "what",
    "when", "where", "which", "while", "who", "whom", "why", "will", "with", "won", "wouldn", "y", "you",
    "your", "yours", "yourself", "yourselves",
))  # fmt: skip
"""The English stop words of the Snowball project, as NLTK has them, that are one run of letters."""

_WORD = re.compile(r"\w+")


def stop_words(response: str, *, percentage: int) -> bool:
    words = _WORD.findall(response)
    return bool(words) and sum(word.lower() in STOP_WORDS for word in words) * 100 / len(words) <= percentage


def sentence_type(response: str) -> bool:
    ends = _sentence_ends(response)
    return ends["."] == 2 * ends["?"]


def sentence_type_of_some(response: str) -> bool:
    # None of either kind is a ratio of 2 to 1 as well.
    return _sentence_ends(response)["?"] > 0


def sentence_balance(response: str) -> bool:
    ends = _sentence_ends(response)
    return ends["."] == ends["?"] == ends["!"]


def _sentence_ends(response: str) -> Counter[str]:
    return Counter(sentence[-1:] for sentence in split_sentences(response))


def overlap(response: str, *, reference_text: str, percentage: int) -> bool:
    # Of characters, not of words: what the reference does.
    trigrams = _trigrams(response)
    shared = len(trigrams & _trigrams(reference_text))
    return bool(trigrams) and percentage - 2 <= shared / len(trigrams) * 100 <= percentage + 2


def _trigrams(text: str) -> set[str]:
    return {text[start : start + 3] for start in range(len(text) - 2)}


def sentence_words(response: str) -> bool:
    lengths = [len(sentence.strip()) for sentence in split_sentences(response)]
    return len(lengths) == 3 and len(set(lengths)) == 1


def different_sentence_words(response: str) -> bool:
    # The reference does not look at the words, though its instruction does.
    words = [set(_WORD.findall(sentence.lower())) for sentence in split_sentences(response)]
    return all(words) and len(set().union(*words)) == sum(map(len, words))


def _sample_share(rng: Random, prompt: str) -> dict[str, Any]:
    return {"percentage": rng.randint(20, 50)}


def _sample_overlap(rng: Random, prompt: str) -> dict[str, Any]:
    if len(prompt.strip()) < 3:
        raise ValueError(f"the constraint compares with the prompt, too short here; got {prompt!r}; pass the prompt")
    return {"reference_text": prompt, "percentage": rng.randint(20, 80)}


CONSTRAINTS = (
    Constraint(
        "ratio:stop_words",
        "Stop words may be no more than {percentage}% of the words of your response.",
        stop_words,
        arguments={"percentage": count(0, 100)},
        sample=_sample_share,
    ),
    Constraint(
        "ratio:sentence_type",
        "Keep a ratio of 2:1 of declarative to interrogative sentences.",
        sentence_type,
        demand=sentence_type_of_some,
    ),
    Constraint(
        "ratio:sentence_balance",
        "Use as many declarative as interrogative as exclamatory sentences.",
        sentence_balance,
        demand=sentence_type_of_some,
    ),
    Constraint(
        "ratio:overlap",
        "Keep {percentage}% (±2%) of the three-character sequences of your response in common with the request.",
        overlap,
        arguments={"reference_text": verbatim(), "percentage": count(0, 100)},
        sample=_sample_overlap,
    ),
    Constraint(
        "ratio:sentence_words",
        "Respond with three sentences of the same number of characters each, all of different words.",
        sentence_words,
        demand=different_sentence_words,
    ),
)
