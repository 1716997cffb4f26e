"""Sentences as the reference counts them: Punkt with the English parameters that NLTK distributes.

The parameters come with a package, so nothing is downloaded. Kiss and Strunk, "Unsupervised Multilingual Sentence
Boundary Detection", Computational Linguistics 32(4), 2006.
"""

from functools import cache

from punkt import PunktSentenceTokenizer, load_model

from rlsys.verifiers.ifeval.words import says_something


@cache
def _tokenizer() -> PunktSentenceTokenizer:
    return PunktSentenceTokenizer(load_model("english"))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, in linear time.

    >>> split_sentences("Dr. Smith went home. He was tired.")
    ['Dr. Smith went home.', 'He was tired.']
    """
    return _tokenizer().tokenize(text)


def count_sentences(text: str) -> int:
    """The number of sentences of a text."""
    return len(split_sentences(text))


def count_spoken_sentences(text: str) -> int:
    """The number of sentences that hold a letter or a digit."""
    return sum(says_something(sentence) for sentence in split_sentences(text))
