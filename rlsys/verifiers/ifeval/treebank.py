"""Tokens as the reference has them: sentence by sentence, by the Penn Treebank's conventions.

Punctuation stands alone, double quotes become `` and '', and contractions are cut ("do n't", "it 's", "can not"). The
conventions are those of Robert MacIntyre's tokenizer for the Treebank, with the later additions that NLTK made.
"""

import re

from rlsys.verifiers.ifeval.sentences import split_sentences

_OPENING = re.compile(r"[«“‘„]|`+")
_FIRST_QUOTE = re.compile(r'^"')
_OPENING_QUOTE = re.compile(r"""(?<=[ (\[{<])(?:"|'')""")
_OPENING_APOSTROPHE = re.compile(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE)
_FINAL_PERIOD = re.compile(r"""(?<=[^.])\.(?=[\])}>"'»”’ ]*+\s*$)""")
_COMMA_OR_COLON = re.compile(r"([:,])(\D)")
_LAST_COMMA_OR_COLON = re.compile(r"[:,]$")
_ALONE = re.compile(r"\.{2,}|[;@#$%&?!\u2012-\u2015]")
_CLOSING_APOSTROPHE = re.compile(r"(?<=[^'])' ")
_BRACKET = re.compile(r"[*\[\](){}<>]")
_CLOSING = re.compile(r"[»”’]|''")
_SHORT_CLITIC = re.compile(r"(?<=[^' ])('[sSmMdD]?)(?= )")
_LONG_CLITIC = re.compile(r"(?<=[^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T)(?= )")
_CONTRACTION = re.compile(
    r"\b(can)(not)\b|\b(d)('ye)\b|\b(gim|lem)(me)\b|\b(gon)(na)\b|\b(got)(ta)\b|\b(more)('n)\b|\b(wan)(na)(?=\s)",
    re.IGNORECASE,
)
_IT_CONTRACTION = re.compile(r"(?<= )('t)(is|was)\b", re.IGNORECASE)


def tokens(text: str) -> list[str]:
    """The tokens of a text, in linear time.

    >>> tokens('He said "no." It\\'s 3,000 U.S. dollars.')[2:7]
    ['``', 'no', '.', "''", 'It']
    """
    return [token for sentence in split_sentences(text) for token in _sentence_tokens(sentence)]


def word_tokens(text: str) -> list[str]:
    """The tokens that hold a letter or a digit."""
    return [token for token in tokens(text) if any(map(str.isalnum, token))]


def _sentence_tokens(sentence: str) -> list[str]:
    text = _OPENING.sub(r" \g<0> ", sentence)
    text = _FIRST_QUOTE.sub("``", text).replace("``", " `` ")
    text = _OPENING_QUOTE.sub(" `` ", text)
    text = _OPENING_APOSTROPHE.sub("' ", text)
    text = _FINAL_PERIOD.sub(" . ", text)
    text = _COMMA_OR_COLON.sub(r" \1 \2", text)
    text = _LAST_COMMA_OR_COLON.sub(r" \g<0> ", text)
    text = _ALONE.sub(r" \g<0> ", text)
    text = _CLOSING_APOSTROPHE.sub(" ' ", text)
    text = _BRACKET.sub(r" \g<0> ", text).replace("--", " -- ")
    text = _CLOSING.sub(r" \g<0> ", f" {text} ").replace('"', " '' ")
    text = _SHORT_CLITIC.sub(r" \1", " ".join(["", *text.split(), ""]))
    text = _LONG_CLITIC.sub(r" \1", text)
    text = _CONTRACTION.sub(_apart, text)
    return _IT_CONTRACTION.sub(r" \1 \2", text).split()


def _apart(match: re.Match[str]) -> str:
    return " ".join(part for part in match.groups() if part)
