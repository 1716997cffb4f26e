"""Sentences as the references split them: IFEval and IFBench by Punkt, IFEvalG by rules on periods.

Punkt's English parameters are those that NLTK distributes; they come with a package, so nothing is downloaded. Kiss and
Strunk, "Unsupervised Multilingual Sentence Boundary Detection", Computational Linguistics 32(4), 2006.
"""

import re
from functools import cache

from punkt import PunktSentenceTokenizer, load_model

from rlsys.verifiers.ifeval.words import says_something

# Stand-ins, from the private use area, for a period that ends nothing and for the end of a sentence.
_PERIOD, _STOP = "\ue000", "\ue001"
_OPENERS = r"(?:Mr|Mrs|Ms|Dr|Prof|Capt|Cpt|Lt|(?:He|She|It|They|Their|Our|We|But|However|That|This)\s|Wherever)"
_PERIOD_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(Mr|St|Mrs|Ms|Dr)\.", rf"\1{_PERIOD}"),
        (r"\.(com|net|org|io|gov|edu|me)", rf"{_PERIOD}\1"),
        (r"([0-9])\.([0-9])", rf"\1{_PERIOD}\2"),
        (r"\.{2,}", lambda match: _PERIOD * len(match.group()) + _STOP),
        (r"Ph\.D\.", f"Ph{_PERIOD}D{_PERIOD}"),
        (r"\s([A-Za-z])\. ", rf" \1{_PERIOD} "),
        (rf"((?:[A-Z]\.){{2,3}}) (?={_OPENERS})", rf"\1{_STOP} "),
        (r"([A-Za-z])\.([A-Za-z])\.([A-Za-z])\.", rf"\1{_PERIOD}\2{_PERIOD}\3{_PERIOD}"),
        (r"([A-Za-z])\.([A-Za-z])\.", rf"\1{_PERIOD}\2{_PERIOD}"),
        (rf" (Inc|Ltd|Jr|Sr|Co)\. (?={_OPENERS})", rf" \1{_STOP} "),
        (r" (Inc|Ltd|Jr|Sr|Co|[A-Za-z])\.", rf" \1{_PERIOD}"),
    )
)


@cache
def _tokenizer() -> PunktSentenceTokenizer:
    return PunktSentenceTokenizer(load_model("english"))


def split_sentences(text: str) -> list[str]:
    """The sentences of a text by Punkt, in linear time.

    >>> split_sentences("Dr. Smith went home. He was tired.")
    ['Dr. Smith went home.', 'He was tired.']
    """
    return _tokenizer().tokenize(text)


def split_by_rules(text: str) -> list[str]:
    """The sentences of a text by IFEvalG's rules: each `.`, `?` or `!` ends one, but for known abbreviations.

    Some may be empty. In linear time.

    >>> split_by_rules("Dr. Smith pays 3.50. Why?! ")
    ['Dr. Smith pays 3.50.', 'Why?', '!']
    """
    text = f" {text}  ".replace("\n", " ")
    for pattern, replacement in _PERIOD_RULES:
        text = pattern.sub(replacement, text)
    for mark, quote in ((".", "”"), (".", '"'), ("!", '"'), ("?", '"')):
        text = text.replace(mark + quote, quote + mark)
    text = re.sub(r"[.?!]", rf"\g<0>{_STOP}", text).replace(_PERIOD, ".")
    sentences = [sentence.strip() for sentence in text.split(_STOP)]
    return sentences if sentences[-1] else sentences[:-1]


def count_sentences(text: str) -> int:
    """The number of sentences of a text, by Punkt."""
    return len(split_sentences(text))


def count_spoken_sentences(text: str) -> int:
    """The number of sentences that hold a letter or a digit, by Punkt."""
    return sum(says_something(sentence) for sentence in split_sentences(text))
