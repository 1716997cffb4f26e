"""Token ids with the weight of each in the loss, and how rows that are too long are cut."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, slots=True)
class TokenizedRow:
    """One training row. L counts its tokens.

    >>> TokenizedRow(np.array([5, 6, 2], np.int32), np.array([0, 1, 1], np.float32)).num_targets
    2
    """

    token_ids: np.ndarray
    """`[L]` int32."""
    loss_weights: np.ndarray
    """`[L]` float32: the weight of token t in the loss, not of its prediction of t + 1. 0 where nothing is learned."""

    @property
    def num_targets(self) -> int:
        """Tokens with a weight above 0 that have a token before them, from which they can be predicted."""
        return int(np.count_nonzero(self.loss_weights[1:]))


class TokenizedPair(NamedTuple):
    """A preference pair; both rows start with the same prompt, which has no weight."""

    chosen: TokenizedRow
    rejected: TokenizedRow
    margin: float = float("nan")
    """Score of the chosen response minus score of the rejected one; NaN where unknown."""


def cut_right(row: TokenizedRow, max_length: int) -> TokenizedRow:
    """The first `max_length` tokens: the response loses its end."""
    return TokenizedRow(row.token_ids[:max_length], row.loss_weights[:max_length])


def cut_prompt(row: TokenizedRow, max_prompt_length: int) -> TokenizedRow:
    """Drops tokens on the left until at most `max_prompt_length` stand before the first one that is learned."""
    targets = np.flatnonzero(row.loss_weights)
    surplus = (int(targets[0]) if len(targets) else len(row.token_ids)) - max_prompt_length
    if surplus <= 0:
        return row
    return TokenizedRow(row.token_ids[surplus:], row.loss_weights[surplus:])
