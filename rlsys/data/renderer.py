"""Renders conversations by the tokenizer's chat template and knows what of the text is content, and what is learned."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
from transformers import PreTrainedTokenizerBase

from rlsys.data.drops import RowRefused
from rlsys.data.template import Layout, Shape, Span, find_layout
from rlsys.errors import DataError
from rlsys.types import Message

_PROBES: tuple[Shape, ...] = (
    (("user", False), ("assistant", False)),
    (("system", False), ("user", False), ("assistant", False), ("user", False)),
    (("user", False), ("assistant", True), ("tool", False)),
)
"""Shapes that between them show all that a template writes; it may refuse some."""


class Learned(NamedTuple):
    """Characters that the assistant is to learn to write: contents and the end token behind them."""

    message: int
    span: Span


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    contents: Sequence[Span]
    """What came from the messages."""
    learned: Sequence[Learned]


class Renderer:
    """Renders conversations, remembering the layout of each shape.

    Args:
        tokenizer: with a chat template.
        end_markers: texts of the tokens that may end a turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_markers: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._end_markers = tuple(end_markers)
        self._layouts: dict[tuple[Shape, bool], _LearnedLayout | RowRefused] = {}

    @property
    def markers(self) -> set[str]:
        """Marker-like text that the template writes into conversations, whoever speaks in them."""
        found = (self._find(shape, generation=True) for shape in _PROBES)
        return {marker for layout in found if not isinstance(layout, RowRefused) for marker in layout.layout.markers}

    def render(self, conversations: Sequence[Sequence[Message]], *, generation: bool) -> list[Rendered | RowRefused]:
        """Each conversation as text, or why it cannot be rendered.

        Args:
            conversations: the messages of each.
            generation: whether a generation prompt follows.
        """
        messages = [[_fields(message) for message in conversation] for conversation in conversations]
        results: list[Rendered | RowRefused] = []
        for conversation, text in zip(messages, self._texts(messages, generation), strict=True):
            try:
                if isinstance(text, RowRefused):
                    raise text
                results.append(self._rendered(conversation, text, generation))
            except RowRefused as refused:
                results.append(refused)
        return results

    def _texts(self, conversations: list[list[dict[str, Any]]], generation: bool) -> list[str | RowRefused]:
        if not all(conversations):
            return [self._text(conversation, generation) for conversation in conversations]
        try:
            return self._apply(conversations, generation)
        except (jinja2.TemplateError, TypeError, ValueError):
            return [self._text(conversation, generation) for conversation in conversations]

    def _text(self, conversation: list[dict[str, Any]], generation: bool) -> str | RowRefused:
        if not conversation:
            return RowRefused("empty_row", "a conversation without messages")
        try:
            return self._apply([conversation], generation)[0]
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            return RowRefused("template_error", f"the chat template refuses the conversation: {error}")

    def _apply(self, conversations: list[list[dict[str, Any]]], generation: bool) -> list[Any]:
        if not conversations:
            return []
        return self._tokenizer.apply_chat_template(  # pyright: ignore[reportReturnType]
            conversations, tokenize=False, add_generation_prompt=generation
        )

    def _rendered(self, conversation: list[dict[str, Any]], text: str, generation: bool) -> Rendered:
        shape = tuple((message["role"], "reasoning_content" in message) for message in conversation)
        if (shape, generation) not in self._layouts:
            self._layouts[shape, generation] = self._find(shape, generation)
        found = self._layouts[shape, generation]
        if isinstance(found, RowRefused):
            raise found
        spans = found.layout.align(conversation, text)
        learned = [
            Learned(message, Span(spans[first].start, spans[last].end + tail))
            for message, first, last, tail in found.turns
        ]
        return Rendered(text, spans, learned)

    def _find(self, shape: Shape, generation: bool) -> "_LearnedLayout | RowRefused":
        def render(messages: list[dict[str, Any]]) -> str:
            text = self._text(messages, generation)
            if isinstance(text, RowRefused):
                raise text
            return text

        try:
            layout = find_layout(render, shape)
        except RowRefused as refused:
            return refused
        return _LearnedLayout(layout, _turns(layout, shape, self._end_markers))


class _Turn(NamedTuple):
    """An assistant turn: its message, its first and last slot, and how far behind them its end token ends."""

    message: int
    first: int
    last: int
    tail: int


class _LearnedLayout(NamedTuple):
    layout: Layout
    turns: list[_Turn]


def _turns(layout: Layout, shape: Shape, end_markers: Sequence[str]) -> list[_Turn]:
    turns = []
    for message, (role, _) in enumerate(shape):
        if role != "assistant":
            continue
        places = [place for place, slot in enumerate(layout.slots) if slot.message == message]
        turns.append(_Turn(message, places[0], places[-1], _tail(layout.pieces[places[-1] + 1], end_markers)))
    return turns


def _tail(piece: str, end_markers: Sequence[str]) -> int:
    """Characters from a content's end to the end of the first end token behind it; 0 where there is none."""
    ends = [(place, place + len(marker)) for marker in end_markers if (place := piece.find(marker)) >= 0]
    return min(ends)[1] if ends else 0


_KNOWN_FIELDS = frozenset({"role", "content", "reasoning_content", "weight"})


def _fields(message: Message) -> dict[str, Any]:
    if type(message) is dict and message.keys() <= _KNOWN_FIELDS:
        return message
    fields = {"role": message["role"], "content": message["content"]}
    if "reasoning_content" in message:
        fields["reasoning_content"] = message["reasoning_content"]
    return fields


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token with which the chat template ends an assistant turn.

    Raises:
        DataError: the template ends it with no token of this tokenizer.
    """
    layout = Renderer(tokenizer, ())._find((("user", False), ("assistant", False)), generation=False)
    if isinstance(layout, RowRefused):
        raise DataError("the chat template refuses a user's and an assistant's turn", value=layout.problem)
    piece = layout.layout.pieces[-1]
    ends = tokenizer.encode(piece, add_special_tokens=False)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    for token_id in ends:
        if token_id in special:
            return token_id
    raise DataError(
        "the chat template ends an assistant turn with no token of this tokenizer",
        value=piece,
        fix="add its end marker with tokenizer.add_special_tokens and resize the model, or choose the tulu template",
    )
