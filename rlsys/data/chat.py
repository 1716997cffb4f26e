"""From messages to token ids and loss weights, through the tokenizer's own chat template.

A conversation is rendered once, by the template itself, and encoded once, so that the ids are those of
`apply_chat_template`. Its contents are then found in the text: the assistant's carry the loss, and no special or
added token may come out of any.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from rlsys.data.drops import RowRefused
from rlsys.data.markers import MarkerGuard, escape
from rlsys.data.renderer import Rendered, Renderer, turn_end
from rlsys.data.template import Span, shipped_template
from rlsys.data.tokenized import TokenizedPair, TokenizedRow, cut_prompt, cut_right
from rlsys.errors import DataError
from rlsys.recipe.data import TemplatingSettings
from rlsys.types import Message

T = TypeVar("T")

Render: TypeAlias = Callable[[Sequence[Sequence[Message]]], list[Rendered | RowRefused]]

_DEFAULT = TemplatingSettings()
_MAX_ESCAPES = 8
"""Rounds of escaping before a row is refused after all."""


def end_token_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Ids at which a response ends: the one with which the chat template ends a turn, then end-of-sequence.

    Raises:
        DataError: the template ends a turn with no token of this tokenizer.
    """
    return tuple(dict.fromkeys((turn_end(tokenizer), _eos_id(tokenizer))))


def choose_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> None:
    """Sets the tokenizer's chat template: `own` keeps it, None keeps it or sets tulu where there is none.

    Raises:
        DataError: `own`, and the tokenizer has none; or a name that is not shipped.
    """
    if name == "own" and not tokenizer.chat_template:
        raise DataError("the tokenizer has no chat template", value=name, fix="choose tulu, chatml or llama3")
    if name is None and not tokenizer.chat_template:
        name = "tulu"
    if name not in (None, "own"):
        tokenizer.chat_template = shipped_template(name)


class _Encoded(NamedTuple):
    rendered: Rendered
    token_ids: np.ndarray
    encoding: Encoding
    markers: list[str]
    """Found in the contents."""


class ChatTokenizer:
    """Encodes conversations, prompts, preference pairs and plain text. Not for several threads at once.

    Args:
        tokenizer: a fast Hugging Face tokenizer with an end-of-sequence token. Its chat template becomes the one that
            the settings choose, so that it is saved with the model.
        settings: template, rule for markers in content, longest rows and prompts.

    Raises:
        DataError: the tokenizer is no fast one, or has no token for the end of a sequence or of the template's turn.

    >>> chat = ChatTokenizer(tokenizer)  # doctest: +SKIP
    >>> chat.encode_conversation([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}])
    ... # doctest: +SKIP
    TokenizedRow(token_ids=array([..., 18, 2], dtype=int32), loss_weights=array([0., ..., 1., 1.], dtype=float32))
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: TemplatingSettings = _DEFAULT) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """`markers_found`, `markers_escaped`, `prompts_cut` and `responses_cut` so far."""
        self._eos_id = _eos_id(tokenizer)
        choose_template(tokenizer, settings.template)
        self.end_ids = end_token_ids(tokenizer)
        """See `end_token_ids`."""
        self._renderer = Renderer(tokenizer, [str(tokenizer.convert_ids_to_tokens(end)) for end in self.end_ids])
        self._guard = MarkerGuard(tokenizer, self._renderer.markers, allowed=settings.allowed_markers)
        self._encoder = _bare_encoder(tokenizer)

    def encode_conversation(self, messages: Sequence[Message]) -> TokenizedRow:
        """All turns of a conversation; loss on the assistant's contents and the end token of each, times its `weight`.

        Raises:
            RowRefused: markers in content, nothing to learn from, messages that the template refuses or rewrites, or
                over the longest length where the rule is `drop`.
        """
        return _accepted(self.encode_conversations([messages])[0])

    def encode_conversations(self, conversations: Sequence[Sequence[Message]]) -> list[TokenizedRow | RowRefused]:
        """As `encode_conversation` for many at once, with a refusal in the place of each refused row."""
        encoded = self._encode(conversations, self._render_whole)
        return [
            _or_refused(self._weighted, one, messages) for one, messages in zip(encoded, conversations, strict=True)
        ]

    def encode_prompt(self, messages: Sequence[Message]) -> np.ndarray:
        """A conversation that the assistant is to continue, with the generation prompt behind it.

        A prompt over the recipe's `max_prompt_length` loses tokens on the left and is counted, or is refused where the
        rule is `drop`.

        Returns: `[P]` int32.

        Raises:
            RowRefused: as `encode_conversation`.
        """
        return _accepted(self.encode_prompts([messages])[0])

    def encode_prompts(self, prompts: Sequence[Sequence[Message]]) -> list[np.ndarray | RowRefused]:
        """As `encode_prompt` for many at once, with a refusal in the place of each refused prompt."""
        encoded = self._encode(prompts, self._render_prompt)
        return [_or_refused(self._prompt, one) for one in encoded]

    def encode_pair(
        self,
        prompt: Sequence[Message],
        chosen: Sequence[Message],
        rejected: Sequence[Message],
        *,
        margin: float | None = None,
    ) -> TokenizedPair:
        """A preference pair: the prompt carries no loss and is cut on the left, the responses are cut on the right.

        Raises:
            RowRefused: as `encode_conversation`, for either side.
        """
        context = [{**message, "weight": 0.0} for message in prompt]
        sides = self.encode_conversations([[*context, *chosen], [*context, *rejected]])
        chosen_row, rejected_row = (_accepted(side) for side in sides)
        return TokenizedPair(chosen_row, rejected_row, float("nan") if margin is None else margin)

    def encode_text(self, text: str) -> TokenizedRow:
        """Plain text and an end-of-sequence token, all of it learned.

        Raises:
            RowRefused: markers in the text, or over the longest length where the rule is `drop`.
        """
        encoded = _accepted(self._encode([[{"role": "", "content": text}]], _render_text)[0])
        token_ids = np.append(encoded.token_ids, np.int32(self._eos_id))
        return self._cut(TokenizedRow(token_ids, np.ones(len(token_ids), np.float32)))

    def _render_whole(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered | RowRefused]:
        return self._renderer.render(conversations, generation=False)

    def _render_prompt(self, conversations: Sequence[Sequence[Message]]) -> list[Rendered | RowRefused]:
        return self._renderer.render(conversations, generation=True)

    def _encode(self, conversations: Sequence[Sequence[Message]], render: Render) -> list[_Encoded | RowRefused]:
        encoded = self._encode_once(conversations, render)
        return [
            self._without_markers(messages, one, render) if isinstance(one, _Encoded) and one.markers else one
            for messages, one in zip(conversations, encoded, strict=True)
        ]

    def _encode_once(self, conversations: Sequence[Sequence[Message]], render: Render) -> list[_Encoded | RowRefused]:
        rendered = render(conversations)
        texts = [one.text for one in rendered if isinstance(one, Rendered)]
        encodings = iter(self._encoder.encode_batch(texts, add_special_tokens=False))
        results: list[_Encoded | RowRefused] = []
        for one in rendered:
            if isinstance(one, RowRefused):
                results.append(one)
                continue
            encoding = next(encodings)
            token_ids = np.array(encoding.ids, np.int32)
            results.append(_Encoded(one, token_ids, encoding, self._guard.find(one, token_ids, encoding)))
        return results

    def _without_markers(self, messages: Sequence[Message], encoded: _Encoded, render: Render) -> _Encoded | RowRefused:
        found = encoded.markers
        self.counts["markers_found"] += len(found)
        refusal = RowRefused("marker_in_content", f"content holds markers of the template or tokenizer: {found[:5]}")
        if self.settings.markers == "refuse":
            return refusal
        for _ in range(_MAX_ESCAPES):
            messages = escape(messages, encoded.markers)
            again = self._encode_once([messages], render)[0]
            if isinstance(again, RowRefused):
                return again
            if not again.markers:
                self.counts["markers_escaped"] += len(found)
                return again
            encoded = again
        return refusal

    def _prompt(self, encoded: _Encoded) -> np.ndarray:
        longest = self.settings.max_prompt_length
        surplus = 0 if longest is None else len(encoded.token_ids) - longest
        if surplus <= 0:
            return encoded.token_ids
        if self.settings.overlong == "drop":
            raise RowRefused("prompt_too_long", f"a prompt of {len(encoded.token_ids)} tokens, {longest} are allowed")
        self.counts["prompts_cut"] += 1
        return encoded.token_ids[surplus:]

    def _weighted(self, encoded: _Encoded, messages: Sequence[Message]) -> TokenizedRow:
        weights = np.zeros(len(encoded.token_ids), np.float32)
        for message, span in encoded.rendered.learned:
            weight = messages[message].get("weight", 1.0)
            if weight:
                length = len(encoded.rendered.text)
                first, last = (_token_from(encoded.encoding, place, length) for place in span)
                weights[first:last] = weight
        return self._cut(TokenizedRow(encoded.token_ids, weights))

    def _cut(self, row: TokenizedRow) -> TokenizedRow:
        shorter, settings = row, self.settings
        if settings.max_prompt_length is not None:
            shorter = cut_prompt(shorter, settings.max_prompt_length)
            self.counts["prompts_cut"] += shorter is not row
        if settings.max_length is not None and len(shorter.token_ids) > settings.max_length:
            shorter = cut_right(shorter, settings.max_length)
            self.counts["responses_cut"] += 1
        if shorter is not row and settings.overlong == "drop":
            raise RowRefused("too_long", f"a row of {len(row.token_ids)} tokens")
        if not shorter.num_targets:
            raise RowRefused("nothing_to_learn", "no token of the row carries loss")
        return shorter


def _render_text(texts: Sequence[Sequence[Message]]) -> list[Rendered | RowRefused]:
    contents = [messages[0]["content"] for messages in texts]
    return [Rendered(text, [Span(0, len(text))], []) for text in contents]


def _token_from(encoding: Encoding, place: int, text_length: int) -> int:
    """Index of the first token that begins at character `place` or later; one that began before it is left out."""
    while place < text_length:
        token = encoding.char_to_token(place)
        if token is not None:
            chars = encoding.token_to_chars(token)
            return token if chars is not None and chars[0] >= place else token + 1
        place += 1  # a character that the tokenizer drops
    return len(encoding.ids)


def _bare_encoder(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """A copy of the fast tokenizer that reports offsets as they are and adds, cuts and pads nothing."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise DataError(
            "only fast tokenizers are supported", value=type(tokenizer).__name__, fix="save a tokenizer.json"
        )
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    encoder = Tokenizer.from_str(
        json.dumps(description | {"post_processor": None, "truncation": None, "padding": None})
    )
    encoder.encode_special_tokens = tokenizer.split_special_tokens
    return encoder


def _eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    eos = tokenizer.eos_token_id
    if not isinstance(eos, int):
        raise DataError("the tokenizer has no end-of-sequence token", fix="set tokenizer.eos_token")
    return eos


def _accepted(result: T | RowRefused) -> T:
    if isinstance(result, RowRefused):
        raise result
    return result


def _or_refused(function: Callable[..., T], encoded: _Encoded | RowRefused, *arguments: Any) -> T | RowRefused:
    try:
        return function(_accepted(encoded), *arguments)
    except RowRefused as refused:
        return refused
