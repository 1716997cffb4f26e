"""Words: counting them, finding keywords among them, and telling text from what says nothing."""

import re
import unicodedata

_WORD = re.compile(r"\w+")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff]"
)


def count_words(text: str) -> int:
    """Runs of letters, digits and underscores: the reference's words, in which "don't" is two.

    >>> count_words("Don't stop _ now")
    5
    """
    return len(_WORD.findall(text))


def count_spelled_words(text: str) -> int:
    """As `count_words`, of those that hold a letter or a digit."""
    return sum(1 for word in _WORD.finditer(text) if word.group().strip("_"))


def says_something(text: str) -> bool:
    """Whether a text holds a letter or a digit of any script."""
    return _LETTER_OR_DIGIT.search(text) is not None


def visible(text: str) -> str:
    """The text as a reader sees it: compatibility forms unified, characters that do not show removed.

    >>> visible("ro\\u200bck") == "rock"
    True
    """
    return text if text.isascii() else _INVISIBLE.sub("", unicodedata.normalize("NFKC", text))


def find_literal(needle: str, text: str) -> int:
    """How often `needle` occurs in `text`, also inside words, ignoring case; occurrences do not overlap."""
    return len(re.findall(re.escape(needle), text, flags=re.IGNORECASE))


def find_word(needle: str, text: str) -> int:
    """How often `needle` occurs in `text` as a whole word or phrase, ignoring case.

    >>> find_word("cat", "A category of Cat")
    1
    """
    return len(re.findall(rf"(?<!\w){re.escape(needle)}(?!\w)", text, flags=re.IGNORECASE))
