"""Text without punctuation marks, in the ways that IFBench's reference drops them."""

from string import punctuation

_NO_MARKS = str.maketrans("", "", punctuation)
_EDGES = punctuation + " "


def bare(text: str) -> str:
    """The text without any ASCII punctuation mark.

    >>> bare("Don't, stop.")
    'Dont stop'
    """
    return text.translate(_NO_MARKS)


def trim(text: str) -> str:
    """The text without ASCII punctuation marks and spaces at its ends."""
    return text.strip(_EDGES)


def trim_left(text: str) -> str:
    """As `trim`, at the start only."""
    return text.lstrip(_EDGES)


def trim_right(text: str) -> str:
    """As `trim`, at the end only."""
    return text.rstrip(_EDGES)
