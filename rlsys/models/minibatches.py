"""Which samples of a rollout batch make each optimizer step: a pure function of the seed and their global order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.models.process_group import ProcessGroup


@dataclass(frozen=True, slots=True)
class LocalSamples:
    """Where this rank's samples stand in the order of all samples that are trained on."""

    local_of: dict[int, int]
    """Global place to index among this rank's samples."""
    num_global: int


def locate_samples(keep: Sequence[np.ndarray], group: ProcessGroup) -> LocalSamples:
    """Collective. The global order goes through the shards as the driver numbered them: shard r, r + n, … are rank r's.

    Args:
        keep: for each of this rank's shards `[N]` bool, False for samples that are not trained on and have no place.
    """
    everyone = group.gather([list(map(bool, flags)) for flags in keep])
    num_shards = sum(len(shards) for shards in everyone)
    local_of: dict[int, int] = {}
    place = local = 0
    for shard in range(num_shards):
        rank, index = shard % group.world_size, shard // group.world_size
        for kept in everyone[rank][index]:
            if kept and rank == group.rank:
                local_of[place] = local
            place += kept
            local += rank == group.rank
    return LocalSamples(local_of, place)


class Minibatches:
    """`epochs` passes, each a fresh permutation of all samples cut in `parts` steps of nearly equal size."""

    def __init__(self, samples: LocalSamples, *, seed: int, epochs: int, parts: int) -> None:
        self._samples, self._seed, self._epochs, self._parts = samples, seed, epochs, parts

    def __len__(self) -> int:
        return self._epochs * self._parts

    def local_members(self) -> Iterator[list[int]]:
        """For each optimizer step, the indices of this rank's samples in it."""
        for epoch in range(self._epochs):
            order = np.random.default_rng((self._seed, epoch)).permutation(self._samples.num_global)
            for members in np.array_split(order, self._parts):
                yield [self._samples.local_of[int(i)] for i in members if int(i) in self._samples.local_of]
