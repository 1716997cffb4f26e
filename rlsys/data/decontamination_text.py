"""The tokens that decontamination compares, and the key under which two whole texts are the same."""

import re
import unicodedata
from collections.abc import Sequence
from typing import TypeAlias

Instance: TypeAlias = str | Sequence[str]
"""A training or evaluation instance: its user turns in order; a plain string is one turn."""

# Scripts written without spaces: Thai, Lao, Myanmar, Khmer, kana, Han. Each of their characters is a token of its own.
_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_KEY_PART = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+|[-+*/^%<=>~!|×÷±√∓∙·−≤≥≠]")


def normalise(text: str) -> str:
    """Unicode NFKC, then case folding: full-width, superscript and ligature forms equal their plain ones.

    >>> normalise("ＡＢ ﬁ x²")
    'ab fi x2'
    """
    return unicodedata.normalize("NFKC", text).casefold()


def tokens(text: str) -> list[str]:
    r"""Maximal runs of letters and digits of the normalised text; punctuation, symbols and underscores only separate.

    A character of a script without spaces is a token by itself.

    >>> tokens("Don't solve $x_1^{2}+3$, or 解く!")
    ['don', 't', 'solve', 'x', '1', '2', '3', 'or', '解', 'く']
    """
    return _TOKEN.findall(normalise(text))


def exact_key(text: str) -> str:
    """What two texts share when they are the same as a whole: their tokens and their mathematical operators, in order.

    Layout, case, quotes and final stops do not count; the sign of a sum does. A text with neither token nor operator is
    its own characters without white space.

    >>> exact_key("What is 2+2?") == exact_key("what is  2 + 2 ?"), exact_key("2 + 2?") == exact_key("2 - 2?")
    (True, False)
    """
    text = normalise(text)
    return " ".join(_KEY_PART.findall(text)) or "".join(text.split())


def turns(instance: Instance) -> tuple[str, ...]:
    """The user turns of an instance."""
    return (instance,) if isinstance(instance, str) else tuple(instance)
