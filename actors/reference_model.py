"""The reference model on n ranks: log-probabilities under weights that never change. Partitioned, without optimizer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors.groups import ModelGroup, Pending, of_rank_0
from actors.rank import Rank, fetch, remote_rank

if TYPE_CHECKING:
    import numpy as np


@remote_rank
class ReferenceModelRank(Rank):
    """One rank of the reference model."""

    trainable = False

    def logprobs(self, *, shards: Sequence[Any], temperature: float) -> tuple[Any, ...]:
        """None, then the response tokens' log-probabilities of each shard (`RankGroup.submit_kept`)."""
        from rlsys.models.policy import shard_logprobs

        return None, *shard_logprobs(self.engine, fetch(shards, 0), temperature=temperature)

    def pair_logprobs(self, *, folder: str) -> "np.ndarray":
        """`[P, 2]` float32: summed log-probability of each chosen and rejected response of a pair store."""
        from rlsys.data.token_store import PairStore
        from rlsys.models.pairs import pair_logprobs

        return pair_logprobs(self.engine, PairStore(folder))


class ReferenceModel(ModelGroup):
    """The driver's end of the group."""

    actor_class = ReferenceModelRank

    def logprobs(self, shards: Sequence[Any], *, temperature: float = 1.0) -> Pending[list[Any]]:
        """One reference a shard, to what is still there when a rank has died: it is started again alone."""
        return self.ranks.submit_kept("logprobs", shards, temperature=temperature)

    def pair_logprobs(self, folder: str) -> "Pending[np.ndarray]":
        """`[P, 2]` float32, chosen and rejected; `rlsys.data.reference_logprobs` keeps them on disk."""
        return self.ranks.submit("pair_logprobs", folder=folder).map(of_rank_0)
