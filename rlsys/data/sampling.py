"""Which rows of a source are taken, how often, and in which order: by keyed hashes, so that nothing but the seed, the
rows' ids and the counts matters; neither readers, nor numpy's version, nor the process."""

import hashlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


def num_taken(num_rows: int, take: int | float) -> int:
    """How many rows of `num_rows` are taken: `take` itself, or for a float that multiple, halves rounded up.

    >>> num_taken(7473, 0.5), num_taken(7473, 2.0), num_taken(7473, 100)
    (3737, 14946, 100)
    """
    if isinstance(take, int):
        return take if num_rows else 0
    return int(num_rows * Fraction(str(take)) + Fraction(1, 2))


def draw(ids: Sequence[str], take: int | float, *, seed: int) -> list[tuple[int, int]]:
    """(index, repetition) of every row taken, in order of index: whole repetitions first, the rest drawn once more.

    Args:
        ids: of the rows of one source.
        take: a number of rows, or a multiple of them.
        seed: of the draw.

    >>> draw(["a", "b", "c"], 2.0, seed=0)
    [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    """
    count = num_taken(len(ids), take)
    if not count:
        return []
    whole, rest = divmod(count, len(ids))
    ranks = np.array([_rank(seed, "draw", name) for name in ids], np.uint64)
    drawn = np.zeros(len(ids), bool)
    drawn[np.argsort(ranks, kind="stable")[:rest]] = True
    return [(index, repetition) for index in range(len(ids)) for repetition in range(whole + int(drawn[index]))]


def shuffled(names: Sequence[str], *, seed: int) -> np.ndarray:
    """The order of the mixture: a permutation of the indices of `names`, `[N]` int64."""
    return np.argsort(np.array([_rank(seed, "order", name) for name in names], np.uint64), kind="stable")


def _rank(seed: int, purpose: str, name: str) -> int:
    key = f"{seed}\0{purpose}\0{name}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
