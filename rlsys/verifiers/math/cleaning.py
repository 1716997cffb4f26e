r"""Bringing the many spellings of LaTeX and Unicode mathematics to one, before it is read.

Nothing is deleted blindly: a command is replaced only as a whole command, so that `\left` never loses its `ft`.
"""

import re
from types import MappingProxyType

MAX_ANSWER_CHARS = 4_000
"""The longest answer that is read; the longest of MATH has 159 characters."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_UNICODE = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑﹣－", "-"),
        **dict.fromkeys("×·⋅∙∗✕", "*"),
        **dict.fromkeys("÷∕⁄", "/"),
        **dict.fromkeys("\u00a0\u2007\u2008\u2009\u200a\u202f\u3000", "\\,"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\ue000\ue001", None),
        **dict.fromkeys("’‘′", "'"),
        **dict.fromkeys("≈≃≅", "\\approx "),
        **{"“": '"', "”": '"', "π": "\\pi ", "θ": "\\theta ", "∞": "\\infty ", "√": "\\sqrt ", "∅": "\\emptyset "},
        **{"≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "∈": "\\in ", "∪": "\\cup ", "∩": "\\cap ", "ℝ": "\\mathbb{R}"},
        **{"±": "\\pm ", "∓": "\\mp ", "°": "\\degree ", "∖": "\\setminus ", "½": "\\frac12", "¼": "\\frac14"},
        **{"¾": "\\frac34", "⅓": "\\frac13", "⅔": "\\frac23", "…": "\\dots "},
        **{chr(0xFF01 + offset): chr(0x21 + offset) for offset in range(94) if chr(0xFF01 + offset) != "－"},
    }
)
_UNICODE_RUNS = (
    (re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), lambda run: "^{" + run[0].translate(_SUPERSCRIPTS) + "}"),
    (re.compile("[₀₁₂₃₄₅₆₇₈₉]+"), lambda run: "_{" + run[0].translate(_SUBSCRIPTS) + "}"),
)

_SAME_COMMAND = MappingProxyType(
    {
        **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "\\frac"),
        **dict.fromkeys(("dbinom", "tbinom"), "\\binom"),
        **dict.fromkeys(("cdot", "times", "ast", "bullet"), "*"),
        **dict.fromkeys(("leq", "leqslant"), "\\le"),
        **dict.fromkeys(("geq", "geqslant"), "\\ge"),
        **dict.fromkeys(("neq",), "\\ne"),
        **dict.fromkeys(("simeq", "cong", "doteq"), "\\approx"),
        **dict.fromkeys(("ldots", "cdots", "dotsc", "dotsb"), "\\dots"),
        **dict.fromkeys(("lvert", "rvert", "vert", "mid"), "|"),
        **dict.fromkeys(("lbrace",), "\\{"),
        **dict.fromkeys(("rbrace",), "\\}"),
        **dict.fromkeys(("langle",), "("),
        **dict.fromkeys(("rangle",), ")"),
        **dict.fromkeys(("smallsetminus", "backslash"), "\\setminus"),
        **dict.fromkeys(("displaystyle", "textstyle", "limits", "nolimits", "rm", "bf", "it", "large", "Large"), " "),
        **dict.fromkeys(("left", "right", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "big", "Big"), ""),
        **{"div": "/", "colon": ":", "varnothing": "\\emptyset", "lt": "<", "gt": ">", "lbrack": "[", "rbrack": "]"},
        **{"infin": "\\infty", "percnt": "%", "quad": " ", "qquad": " ", "thinspace": "\\,", "dots": "\\dots"},
        **{"boxed": "", "fbox": "", "degrees": "\\degree", "asin": "\\arcsin", "acos": "\\arccos", "atan": "\\arctan"},
    }
)
_COMMAND = re.compile(r"\\([A-Za-z]+)(\s*\.)?")
_TEXT_STYLES = "text|textbf|textrm|textit|textnormal|textsf|texttt|mbox|hbox|emph|operatorname\\*?"
_TEXT_STYLE = re.compile(rf"\\(?:{_TEXT_STYLES})\s*\{{")
_NUMBER_AS_TEXT = re.compile(r"\\text\{([^{}A-Za-z]*[0-9][^{}A-Za-z]*)\}")
_LETTER_STYLE = re.compile(r"\\(?:mathrm|mathbf|mathit|mathsf|boldsymbol|bm|mathcal)\s*(?:\{([^{}]*)\}|([A-Za-z]))")
_PHANTOM = re.compile(r"\\[hv]?phantom\s*(?:\{[^{}]*\}|\S)|\\[hv]space\*?\s*\{[^{}]*\}")
_DEGREE = re.compile(r"\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\}|\\degree(?![A-Za-z]))|\\degree(?![A-Za-z])")
_ROW_BREAK = re.compile(r"\\\\(?:\[[^\]]{0,20}\])?|\\(?=[-+.0-9])")
"""Some data sets lost one of the two backslashes; nothing else in LaTeX is a backslash before a number."""
_MATH_DELIMITER = re.compile(r"\\[()\[\]]")
_AROUND = ' \t\n,;:"`*_'
_QUAD_GLUED = re.compile(r"\\(q?quad)(?=[A-Za-z])")
_THOUSANDS_MARK = re.compile(r"(?<=[0-9])(?:\s?,\\!\s?|\{,\}(?:\\!)?|\\[,;: ]\s?)(?=[0-9]{3}(?![0-9]))")
_SPACE = re.compile(r"\\[,;:! ]|~|\s+")
_RELATION = MappingProxyType({"!=": "\\ne ", "<=": "\\le ", ">=": "\\ge ", "==": "=", "**": "^"})
_RELATION_PATTERN = re.compile("|".join(map(re.escape, _RELATION)))

ROW_BREAK = "\ue000"
"""Stands for the end of a matrix row."""
THOUSANDS = "\ue001"
"""Stands for a comma that separates thousands for certain, as LaTeX writes it: `{,}`, `,\\!`, `\\,`."""


def clean(text: str) -> str:
    r"""One spelling for everything: `\dfrac` is `\frac`, `≤` is `\le`, `\operatorname{sin}` is `\text{sin}`.

    >>> clean(r"$\left( \dfrac12, 10{,}000 \right).$") == r"( \frac 12, 10" + THOUSANDS + "000 )"
    True
    """
    for pattern, replacement in _UNICODE_RUNS:
        text = pattern.sub(replacement, text)
    text = text.translate(_UNICODE)
    text = _ROW_BREAK.sub(ROW_BREAK, text) if "\\begin" in text else text.replace("\\\\", "\\")
    text = text.replace("\\$", "").replace("$", " ").replace("\\%", "%").replace("\\#", "#")
    text = _QUAD_GLUED.sub(" ", _PHANTOM.sub("", _MATH_DELIMITER.sub(" ", text)))
    text = _NUMBER_AS_TEXT.sub(r" \1 ", _TEXT_STYLE.sub(r"\\text{", text))
    text = _LETTER_STYLE.sub(_letters_or_text, text)
    text = _COMMAND.sub(_same_command, text)
    text = _THOUSANDS_MARK.sub(THOUSANDS, _DEGREE.sub(r"\\degree ", text))
    for lost, meant in (("{,}", ","), ("{}", " "), ("{or}", " or "), ("{and}", " and ")):
        text = text.replace(lost, meant)
    text = _RELATION_PATTERN.sub(lambda found: _RELATION[found[0]], _SPACE.sub(" ", text))
    return text.lstrip(_AROUND).rstrip(_AROUND + ".")


def _letters_or_text(styled: re.Match[str]) -> str:
    content = styled[1] if styled[1] is not None else styled[2]
    is_text = len(content.strip()) > 1 and content.replace(" ", "").isalpha()
    return f"\\text{{{content}}}" if is_text else content


def _same_command(command: re.Match[str]) -> str:
    name, stop = command[1], command[2] or ""
    if name in ("left", "right"):
        return ""
    same = _SAME_COMMAND.get(name)
    return command[0] if same is None else f"{same}{' ' if same.startswith(chr(92)) else ''}{stop}"


def text_key(text: str) -> str:
    r"""What is left of an answer in words when case, spaces, and punctuation around it do not matter.

    >>> text_key(r"\text{(B)}") == text_key("B.") and text_key("Evelyn") == text_key(r"\text{evelyn}")
    True
    """
    plain = re.sub(r"\\text\s*|[{}$~\s]|\\[,;:! ]", "", text)
    return plain.strip(".,;:()'\"").casefold()
