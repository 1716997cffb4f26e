"""Scalar models on n ranks: the reward model while it is trained, the value model of RLVR after it.

train_reward(pairs)                                  reports
values(shards) --> advantages (learner) --> returns --> train_value(shards, returns, old_values)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from actors.groups import ModelGroup, Pending, in_shard_order, of_rank_0
from actors.rank import Rank, fetch, publish, remote_rank
from rlsys.recipe.algorithm import AlgorithmSettings, RewardLossSettings

if TYPE_CHECKING:
    import numpy as np

    from rlsys.algorithms.step_guard import StepReport
    from rlsys.models.row_order import PairSteps

Refs = Sequence[Any]
"""One ObjectRef (or value) a shard."""


@remote_rank
class ValueModelRank(Rank):
    """One rank of a scalar model."""

    kind = "scalar"

    def train_reward(self, *, folder: str, steps: "PairSteps", settings: RewardLossSettings) -> "list[StepReport]":
        """`rlsys.models.pairs.train_reward` over the pair store in `folder`."""
        from rlsys.data.token_store import PairStore
        from rlsys.models.pairs import train_reward

        return train_reward(self.engine, PairStore(folder), steps, settings)

    def pair_scores(self, *, folder: str) -> "np.ndarray":
        """`[P, 2]` float32, chosen and rejected."""
        from rlsys.data.token_store import PairStore
        from rlsys.models.pairs import pair_scores

        return pair_scores(self.engine, PairStore(folder))

    def values(self, *, shards: Refs) -> list[Any]:
        """References to the estimates before each response token of each shard."""
        from rlsys.models.value import shard_values

        return publish(shard_values(self.engine, fetch(shards, 0)))

    def train_value(
        self, *, shards: Refs, returns: Refs, old_values: Refs, settings: AlgorithmSettings, **step_settings: Any
    ) -> "list[StepReport]":
        """`rlsys.models.value.train_value`, which has the `step_settings`."""
        from rlsys.models.value import ValueInputs, train_value

        columns = (fetch(column, len(shards)) for column in (shards, returns, old_values))
        inputs = [ValueInputs(*row) for row in zip(*columns, strict=True)]
        return train_value(self.engine, inputs, settings, **step_settings)


class ValueModel(ModelGroup):
    """The driver's end of the group."""

    actor_class = ValueModelRank

    def train_reward(
        self, folder: str, steps: "PairSteps", settings: RewardLossSettings
    ) -> "Pending[list[StepReport]]":
        """One optimizer step for each learning rate."""
        return self.ranks.submit("train_reward", folder=folder, steps=steps, settings=settings).map(of_rank_0)

    def pair_scores(self, folder: str) -> "Pending[np.ndarray]":
        """`[P, 2]` float32, chosen and rejected."""
        return self.ranks.submit("pair_scores", folder=folder).map(of_rank_0)

    def values(self, shards: Refs) -> Pending[list[Any]]:
        """One reference a shard."""
        return self.ranks.submit_sharded("values", {"shards": shards}).map(in_shard_order)

    def train_value(
        self, shards: Refs, settings: AlgorithmSettings, *, returns: Refs, old_values: Refs, **step_settings: Any
    ) -> "Pending[list[StepReport]]":
        """`step_settings`: `lrs`, `seed`, `oldest_version` of `rlsys.models.value.train_value`."""
        columns = {"shards": shards, "returns": returns, "old_values": old_values}
        return self.ranks.submit("train_value", settings=settings, **columns, **step_settings).map(of_rank_0)
