"""Finished groups on their way to the learner: references to the tokens, and what the driver may know of them."""

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlsys.errors import LedgerError
from rlsys.types import GroupSummary

Reference = TypeVar("Reference")


@dataclass(frozen=True, slots=True)
class BufferedGroup(Generic[Reference]):
    """A group's summary and where its experience is."""

    summary: GroupSummary
    reference: Reference
    """Opaque here: an object reference of the cluster in a run, anything in a test."""


class ExperienceBuffer(Generic[Reference]):
    """What the ledger has accepted, by ordinal. The ledger decides; this only holds.

    >>> buffer = ExperienceBuffer[str]()
    >>> buffer.put(GroupSummary(7, (3, 4), 5, 0, 0, ("stop", "stop"), (0.0, 1.0), ((), ())), "somewhere")
    >>> [group.reference for group in buffer.take([7])], len(buffer)
    (['somewhere'], 0)
    """

    def __init__(self) -> None:
        self._groups: dict[int, BufferedGroup[Reference]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def put(self, summary: GroupSummary, reference: Reference) -> None:
        """Holds a group that `Ledger.finished` has just accepted; one of an earlier attempt is replaced."""
        self._groups[summary.ordinal] = BufferedGroup(summary, reference)

    def take(self, ordinals: Sequence[int]) -> list[BufferedGroup[Reference]]:
        """Removes a batch's groups and gives them in its order.

        Raises:
            LedgerError: a group is not held; none is removed.
        """
        if missing := [ordinal for ordinal in ordinals if ordinal not in self._groups]:
            raise LedgerError(
                "the buffer lacks groups of the batch", value=missing, fix="put() what finished() accepts"
            )
        return [self._groups.pop(ordinal) for ordinal in ordinals]

    def retain(self, ordinals: Collection[int]) -> list[int]:
        """Lets go of every group but these, say `ledger.buffered`, and gives the ordinals let go of, ascending."""
        gone = sorted(self._groups.keys() - set(ordinals))
        for ordinal in gone:
            del self._groups[ordinal]
        return gone

    def groups(self) -> list[BufferedGroup[Reference]]:
        """All groups by ordinal, for a checkpoint."""
        return [self._groups[ordinal] for ordinal in sorted(self._groups)]


def balance(lengths: Sequence[int], num_shards: int) -> list[list[int]]:
    """Assigns whole groups to shards: counts differ by at most one, token counts are as even as that allows.

    The differencing method of Karmarkar and Karp (1982) on tuples of `num_shards` groups, which keeps the counts equal
    (Michiels et al., Performance ratios of the differencing method, 2004), then swaps between the heaviest and the
    lightest shard. Deterministic.

    Args:
        lengths: tokens of each group.
        num_shards: learner ranks, at least 1.

    Returns:
        For each shard, ascending indices into `lengths`.

    >>> balance([8, 7, 6, 5, 4, 2], 2)
    [[1, 3, 4], [0, 2, 5]]
    """
    if num_shards < 1:
        raise ValueError(f"num_shards must be at least 1; got {num_shards}; count the learner's ranks")
    by_length = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    # A partition is a list of (tokens, indices), heaviest first; the heap gives the one with the widest spread first.
    heap: list[tuple[int, int, list[tuple[int, list[int]]]]] = []
    for start in range(0, len(by_length), num_shards):
        indices = by_length[start : start + num_shards]
        partition = [(lengths[index], [index]) for index in indices]
        partition += [(0, []) for _ in range(num_shards - len(indices))]
        heapq.heappush(heap, (partition[-1][0] - partition[0][0], start, partition))
    if not heap:
        return [[] for _ in range(num_shards)]
    while len(heap) > 1:
        _, first_start, wide = heapq.heappop(heap)
        _, second_start, narrow = heapq.heappop(heap)
        merged = [(a + b, left + right) for (a, left), (b, right) in zip(wide, reversed(narrow), strict=True)]
        merged.sort(key=lambda shard: (-shard[0], shard[1]))
        heapq.heappush(heap, (merged[-1][0] - merged[0][0], min(first_start, second_start), merged))
    shards = [indices for _, indices in heap[0][2]]
    _swap_while_it_helps(lengths, shards)
    return [sorted(indices) for indices in shards]


def _swap_while_it_helps(lengths: Sequence[int], shards: list[list[int]]) -> None:
    """Exchanges the pair of groups that best evens out the heaviest and the lightest shard, again and again."""
    loads = [sum(lengths[index] for index in indices) for indices in shards]
    for _ in range(len(lengths)):
        heavy = max(range(len(shards)), key=lambda shard: (loads[shard], -shard))
        light = min(range(len(shards)), key=lambda shard: (loads[shard], shard))
        gap = loads[heavy] - loads[light]
        pairs = ((abs(gap - 2 * (lengths[a] - lengths[b])), a, b) for a in shards[heavy] for b in shards[light])
        gap_after, a, b = min(pairs, default=(gap, -1, -1))
        if gap_after >= gap:
            return
        shards[heavy][shards[heavy].index(a)], shards[light][shards[light].index(b)] = b, a
        loads[heavy] -= lengths[a] - lengths[b]
        loads[light] += lengths[a] - lengths[b]
