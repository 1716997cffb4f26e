"""The endless prompt stream: which prompt stands at an ordinal is a pure function of (seed, ordinal).

Nothing is remembered and nothing is shuffled in memory: position within an epoch goes through a keyed permutation of
`range(n)` that is computed for one value at a time, so a resume needs the ordinal only and any worker can answer for
any ordinal. Epoch e visits every prompt exactly once, in an order of its own.
"""

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, TypeAlias

import numpy as np

from rlsys.types import Check, Message, Prompt

FEISTEL_ROUNDS = 12

_MASK_64 = (1 << 64) - 1


PromptRow: TypeAlias = tuple[str, Sequence[Message], np.ndarray, Sequence[Check], str]
"""A prompt without its place in the stream: id, messages, token ids `[P]` int32, checks, source."""


class Prompts(Protocol):
    """The prompts of a recipe: any sequence of `PromptRow`; rows may be tokenized when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> PromptRow: ...


def hash_integers(*values: int, bits: int = 64) -> int:
    """A uniform integer in [0, 2**bits), the same on every machine and Python. Values are of 64 bits, signed."""
    packed = struct.pack(f"<{len(values)}q", *values)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little") >> (64 - bits)


def sample_seed(seed: int, ordinal: int, sample_index: int) -> int:
    """The sampling seed of one response, in [0, 2**63): a new attempt at a prompt draws the same random numbers.

    >>> sample_seed(0, 17, 3) == sample_seed(0, 17, 3) != sample_seed(0, 17, 4)
    True
    """
    return hash_integers(seed, ordinal, sample_index, bits=63)


def permute(position: int, *, size: int, key: tuple[int, ...]) -> int:
    """The image of `position` under the permutation of `range(size)` that `key` names, in constant memory.

    A Feistel network over the smallest power of 4 that holds `size`, walked along its cycles until it lands inside
    (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002): on average fewer than 4 walks.

    >>> sorted(permute(i, size=5, key=(1,)) for i in range(5))
    [0, 1, 2, 3, 4]
    """
    assert 0 <= position < size
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    half_mask = (1 << half_bits) - 1
    round_keys = _round_keys(key)
    while True:
        left, right = position >> half_bits, position & half_mask
        for round_key in round_keys:
            left, right = right, left ^ (_mix(round_key + right) & half_mask)
        position = (left << half_bits) | right
        if position < size:
            return position


@lru_cache(maxsize=256)
def _round_keys(key: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(hash_integers(round_index, *key) for round_index in range(FEISTEL_ROUNDS))


def _mix(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK_64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK_64
    return value ^ (value >> 31)


class PromptStream:
    """One set of prompts, epoch after epoch, each in an order of its own.

    Args:
        prompts: not empty, and the same at every resume.
        seed: of 64 bits, signed.

    >>> row = ("a", (), np.array([1], np.int32), (), "doc")
    >>> PromptStream([row], seed=0)[10**15].ordinal
    1000000000000000
    """

    def __init__(self, prompts: Prompts, seed: int) -> None:
        if len(prompts) == 0:
            raise ValueError("the prompt stream needs at least one prompt; got 0; check the prompt set and its filters")
        self.prompts, self.seed = prompts, seed

    def locate(self, ordinal: int) -> tuple[int, int]:
        """(epoch, index into the prompts) of an ordinal."""
        if ordinal < 0:
            raise IndexError(f"ordinals are 0 or more; got {ordinal}")
        epoch, position = divmod(ordinal, len(self.prompts))
        return epoch, permute(position, size=len(self.prompts), key=(self.seed, epoch))

    def __getitem__(self, ordinal: int) -> Prompt:
        return prompt_at(ordinal, self.prompts[self.locate(ordinal)[1]])


def prompt_at(ordinal: int, row: PromptRow) -> Prompt:
    """The row as the prompt of an ordinal."""
    prompt_id, messages, token_ids, checks, source = row
    return Prompt(ordinal, prompt_id, tuple(messages), np.asarray(token_ids, np.int32), tuple(checks), source)
