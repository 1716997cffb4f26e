"""The reference model on n ranks: log-probabilities under weights that never change. Partitioned, without optimizer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from actors.groups import ModelGroup, Pending, in_shard_order, of_rank_0
from actors.rank import Rank, fetch, publish

if TYPE_CHECKING:
    import numpy as np


@ray.remote
class ReferenceModelRank(Rank):
    """One rank of the reference model."""

    trainable = False

    def logprobs(self, *, shards: Sequence[Any], temperature: float) -> list[Any]:
        """References to the response tokens' log-probabilities of each shard."""
        from rlsys.models.policy import shard_logprobs

        return publish(shard_logprobs(self.engine, fetch(shards, 0), temperature=temperature))

    def pair_logprobs(self, *, folder: str) -> "np.ndarray":
        """`[P, 2]` float32: summed log-probability of each chosen and rejected response of a pair store."""
        from rlsys.data.token_store import PairStore
        from rlsys.models.pairs import pair_logprobs

        return pair_logprobs(self.engine, PairStore(folder))


class ReferenceModel(ModelGroup):
    """The driver's end of the group."""

    actor_class = ReferenceModelRank

    def logprobs(self, shards: Sequence[Any], *, temperature: float = 1.0) -> Pending[list[Any]]:
        """One reference a shard."""
        return self.ranks.submit_sharded("logprobs", {"shards": shards}, temperature=temperature).map(in_shard_order)

    def pair_logprobs(self, folder: str) -> "Pending[np.ndarray]":
        """`[P, 2]` float32, chosen and rejected; `rlsys.data.reference_logprobs` keeps them on disk."""
        return self.ranks.submit("pair_logprobs", folder=folder).map(of_rank_0)
