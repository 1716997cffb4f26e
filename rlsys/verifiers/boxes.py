r"""Finding `\boxed{…}` and `\fbox{…}` in linear time, whatever the text."""

import re
from dataclasses import dataclass

_TOKEN = re.compile(r"\\{1,2}(?:boxed|fbox)\s{0,20}\{|\\.|[{}]", re.DOTALL)
_BARE = re.compile(r"\\(?:boxed|fbox)[ \t]+([^\s{}$\\][^${}\n]{0,100})")


@dataclass(frozen=True, slots=True)
class Box:
    r"""One complete box: `text[start:end]` is the whole of it, `content` what is in its braces."""

    start: int
    end: int
    content: str


def find_boxes(text: str) -> list[Box]:
    r"""The complete boxes that lie in no other box, in order.

    An unclosed box is none. A box whose backslashes came doubled out of a JSON round trip counts, its content with
    single ones. Only where there is no box with braces, a bare `\boxed 4` counts, up to the end of its formula.

    >>> [box.content for box in find_boxes(r"first \boxed{1}, then \boxed{\frac{1}{2}}, cut at \boxed{3")]
    ['1', '\\frac{1}{2}']
    """
    boxes: list[Box] = []
    opened: list[tuple[int, int] | None] = []
    for token in _TOKEN.finditer(text):
        mark = token.group()
        if mark == "}":
            opening = opened.pop() if opened else None
            if opening is not None:
                _add(boxes, text, opening, token.end())
        elif mark == "{":
            opened.append(None)
        elif mark.endswith("{") and len(mark) > 2:
            opened.append(token.span())
    return boxes or [Box(*bare.span(), bare[1].rstrip(" .,;")) for bare in _BARE.finditer(text)]


def _add(boxes: list[Box], text: str, opening: tuple[int, int], end: int) -> None:
    start, content_start = opening
    while boxes and boxes[-1].start > start:
        boxes.pop()
    content = text[content_start : end - 1]
    backslashes = len(text[start:content_start]) - len(text[start:content_start].lstrip("\\"))
    boxes.append(Box(start, end, content.replace("\\\\", "\\") if backslashes == 2 else content))
