"""Prints a row as the model sees it: what is learned, what is a special token, and the ids where asked for."""

from itertools import groupby

import numpy as np

from rlsys.data.chat import ChatTokenizer
from rlsys.data.row import Row
from rlsys.data.tokenized import TokenizedRow

_COLOURS: dict[str, tuple[str, str]] = {
    "plain": ("\x1b[2m", "\x1b[0m"),
    "learned": ("\x1b[32m", "\x1b[0m"),
    "special": ("\x1b[31m", "\x1b[0m"),
    "learned special": ("\x1b[1;32m", "\x1b[0m"),
}
_BRACKETS: dict[str, tuple[str, str]] = {
    "plain": ("", ""),
    "learned": ("[[", "]]"),
    "special": ("", ""),
    "learned special": ("[[", "]]"),
}


def shown_row(row: Row, chat: ChatTokenizer, *, colour: bool, with_ids: bool = False) -> str:
    """A row through the chat template: a conversation, a prompt with its checks, both sides of a pair, or plain text.

    Args:
        row: to be shown.
        chat: encodes it, under its rules.
        colour: learned tokens green and special ones red; otherwise learned tokens stand between [[ and ]].
        with_ids: add a line for every token: place, id, weight, text.

    Raises:
        RowRefused: the row cannot be encoded.
    """
    lines = [f"--- {row.id}  {row.kind} from {row.origin}"]
    for name, tokens in _sides(row, chat):
        counted = f"{len(tokens.token_ids)} tokens, {np.count_nonzero(tokens.loss_weights)} learned"
        lines.append(f"{name} ({counted})" if name else f"({counted})")
        lines.append(marked_text(tokens, chat, colour=colour))
        if with_ids:
            lines += _token_lines(tokens, chat)
    lines += [f"check {check.verifier}: {check.ground_truth!r} (weight {check.weight:g})" for check in row.checks]
    return "\n".join(lines)


def marked_text(tokens: TokenizedRow, chat: ChatTokenizer, *, colour: bool) -> str:
    """The text of the tokens, with what is learned marked."""
    marks = _COLOURS if colour else _BRACKETS
    learned = tokens.loss_weights > 0
    special = np.isin(tokens.token_ids, list({*chat.tokenizer.all_special_ids, *chat.tokenizer.added_tokens_decoder}))
    styles = [
        _style(is_learned, is_special and colour) for is_learned, is_special in zip(learned, special, strict=True)
    ]
    text: list[str] = []
    for style, run in groupby(range(len(styles)), key=lambda place: styles[place]):
        start, end = marks[style]
        text.append(f"{start}{chat.tokenizer.decode(tokens.token_ids[list(run)].tolist())}{end}")
    return "".join(text)


def _style(learned: bool, special: bool) -> str:
    if learned:
        return "learned special" if special else "learned"
    return "special" if special else "plain"


def _sides(row: Row, chat: ChatTokenizer) -> list[tuple[str, TokenizedRow]]:
    if row.text is not None:
        return [("", chat.encode_text(row.text))]
    if row.kind == "pair":
        pair = chat.encode_pair(row.messages, row.chosen, row.rejected, margin=row.margin)
        return [("chosen", pair.chosen), ("rejected", pair.rejected)]
    if row.kind == "conversation":
        return [("", chat.encode_conversation(row.messages))]
    token_ids = chat.encode_prompt(row.messages)
    return [("", TokenizedRow(token_ids, np.zeros(len(token_ids), np.float32)))]


def _token_lines(tokens: TokenizedRow, chat: ChatTokenizer) -> list[str]:
    return [
        f"{place:6d} {token_id:7d} {weight:5.2f} {chat.tokenizer.decode([int(token_id)])!r}"
        for place, (token_id, weight) in enumerate(zip(tokens.token_ids, tokens.loss_weights, strict=True))
    ]
