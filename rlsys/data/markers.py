"""Keeps the tokens that structure a conversation out of its contents."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from rlsys.data.renderer import Rendered


class MarkerGuard:
    """Finds markers in contents: text that became a special or added token, or that the template itself writes.

    Args:
        tokenizer: whose special and added tokens are markers. Added tokens of white space alone are not: some
            tokenizers hold runs of spaces that way, and they structure nothing.
        template_markers: marker-like text that the chat template writes, whether or not it is one token.
        allowed: markers that content may hold.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template_markers: Collection[str], *, allowed: Collection[str] = ()
    ) -> None:
        self._template_markers = frozenset(template_markers).difference(allowed)
        added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
        special = {token_id: str(tokenizer.convert_ids_to_tokens(token_id)) for token_id in tokenizer.all_special_ids}
        marker_ids = [
            token_id
            for token_id, text in {**special, **added}.items()
            if text not in allowed and (token_id in special or text.strip())
        ]
        self._is_marker = np.zeros(max(tokenizer.get_vocab().values()) + 1, bool)
        self._is_marker[marker_ids] = True

    def find(self, rendered: Rendered, token_ids: np.ndarray, encoding: Encoding) -> list[str]:
        """The distinct markers in the contents, as they are written there.

        Args:
            rendered: the text and where its contents are.
            token_ids: `[L]` int32, of the whole text.
            encoding: the same, with its offsets.
        """
        found = [
            marker
            for marker in self._template_markers
            if any(rendered.text.find(marker, start, end) >= 0 for start, end in rendered.contents)
        ]
        for index in self._is_marker[token_ids].nonzero()[0].tolist():
            place = encoding.token_to_chars(index)
            if place is not None and any(place[0] < end and start < place[1] for start, end in rendered.contents):
                found.append(rendered.text[place[0] : place[1]].strip())
        return sorted(set(found))


def escape(messages: Sequence[Any], markers: Sequence[str]) -> list[dict[str, Any]]:
    """The messages with a space after the first character of every marker: `<|user|>` becomes `< |user|>`."""
    escaped = [dict(message) for message in messages]
    for message in escaped:
        for field in ("content", "reasoning_content"):
            if field in message:
                for marker in sorted(markers, key=len, reverse=True):
                    message[field] = message[field].replace(marker, f"{marker[:1]} {marker[1:]}")
    return escaped
