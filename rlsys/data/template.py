"""Where a chat template puts contents: found by rendering marks in their place, then followed through the real text."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias

from rlsys.data.drops import RowRefused
from rlsys.errors import DataError

TEMPLATES = ("tulu", "chatml", "llama3")

Render: TypeAlias = Callable[[list[dict[str, Any]]], str]
"""Renders one conversation; raises RowRefused where the template refuses it."""

Shape: TypeAlias = tuple[tuple[str, bool], ...]
"""(role, whether it has reasoning_content) of each message."""

_MARK_DIGITS = str.maketrans("0123456789", "".join(map(chr, range(0xE100, 0xE10A))))
"""Marks are numbers in private-use characters, which no template trims, splits or searches for."""
_MARK_PATTERN = re.compile("(\ue0f0[\ue100-\ue109]+)")

_MARKER = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?[A-Za-z][\w-]{0,40}>|\[/?[A-Z][A-Z_]{1,30}\]")
"""What counts as a marker in the plain text of a template: `<|user|>`, `<start_of_turn>`, `[INST]`."""


def shipped_template(name: str) -> str:
    """The Jinja source of a template that comes with this package.

    Raises:
        DataError: there is none of that name.
    """
    if name not in TEMPLATES:
        raise DataError("no such chat template is shipped", value=name, fix=f"choose one of {', '.join(TEMPLATES)}")
    return files("rlsys.data").joinpath("templates", f"{name}.jinja").read_text().strip()


class Span(NamedTuple):
    """Characters [start, end) of a rendered conversation."""

    start: int
    end: int


class Slot(NamedTuple):
    """A place in the rendered text that a message fills."""

    message: int
    field: str
    """`content` or `reasoning_content`."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A template's rendering of conversations of one shape: `pieces[0] slots[0] pieces[1] … slots[n-1] pieces[n]`."""

    pieces: tuple[str, ...]
    slots: tuple[Slot, ...]

    @property
    def markers(self) -> set[str]:
        """Marker-like text that the template itself writes."""
        return {marker for piece in self.pieces for marker in _MARKER.findall(piece)}

    def align(self, messages: Sequence[Mapping[str, Any]], text: str) -> list[Span]:
        """Where each slot's value lies in `text`, the rendering of these messages.

        Raises:
            RowRefused: `template_rewrites_content`: the template did more to a content than strip its ends.
        """
        spans = []
        end = 0
        for slot, before, after in zip((*self.slots, None), self.pieces, (*self.pieces[1:], ""), strict=True):
            start = end + len(before)
            if not text.startswith(before, end):
                raise _rewritten()
            if slot is None:
                end = start
                break
            value = messages[slot.message][slot.field]
            lengths = (len(variant) for variant in _variants(value) if text.startswith(variant + after[:40], start))
            length = next(lengths, None)
            if length is None:
                raise _rewritten()
            end = start + length
            spans.append(Span(start, end))
        if end != len(text):
            raise _rewritten()
        return spans


def find_layout(render: Render, shape: Shape) -> Layout:
    """The layout of conversations of this shape.

    Raises:
        RowRefused: the template refuses the shape, leaves a message out or repeats one.
    """
    messages: list[dict[str, Any]] = []
    slots: dict[str, Slot] = {}
    for index, (role, has_reasoning) in enumerate(shape):
        message = {"role": role}
        for field in ("content", "reasoning_content") if has_reasoning else ("content",):
            message[field] = "\ue0f0" + f"{len(slots):06d}".translate(_MARK_DIGITS)
            slots[message[field]] = Slot(index, field)
        messages.append(message)
    parts = _MARK_PATTERN.split(render(messages))
    pieces, found = parts[0::2], parts[1::2]
    missing = [slot for mark, slot in slots.items() if mark not in found]
    if missing:
        raise RowRefused("template_omits_content", f"the chat template leaves out {missing[0].field} of {shape}")
    if len(found) != len(slots):
        raise RowRefused("template_rewrites_content", f"the chat template repeats a content of {shape}")
    return Layout(tuple(pieces), tuple(slots[mark] for mark in found))


def _variants(value: str) -> tuple[str, ...]:
    return value, value.strip(), value.lstrip("\n"), value.rstrip(), value.strip("\n"), value.lstrip()


def _rewritten() -> RowRefused:
    return RowRefused(
        "template_rewrites_content", "the chat template changes a content by more than stripping its ends"
    )
