"""The learner: the policy on n ranks. `LearnerRank` is one rank, `Learner` the driver's end of the group.

    supervised, preferences      rows and pairs from a token store that every rank can read
    RLVR                         shards of experience

    logprobs(shards) ----------> proximal --+                                  rank r of n takes shards r, r + n, …
    advantages(shards, proximal, reference, values) --> advantages, returns    the same; whitened over all ranks
    train_policy(shards, advantages, proximal, reference) --> reports          epochs x minibatches optimizer steps;
                                                                               ranks read all and share each step

What is computed for the response tokens of a shard is one flat float32 array in the object store; the driver passes
references on.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from actors.groups import ModelGroup, Pending, in_shard_order, of_rank_0
from actors.rank import Rank, fetch, publish, remote_rank
from rlsys.recipe.algorithm import AlgorithmSettings, PreferenceLossSettings, SupervisedLossSettings
from rlsys.recipe.rollout import WeightTransfer

if TYPE_CHECKING:
    import numpy as np

    from rlsys.algorithms.step_guard import StepReport
    from rlsys.models.row_order import PairSteps
    from rlsys.weights.records import DigestName, Manifest, Rendezvous
    from rlsys.weights.sender import WeightSender

Refs = Sequence[Any]
"""One ObjectRef (or value) a shard."""


@remote_rank
class LearnerRank(Rank):
    """One rank of the policy."""

    def __init__(self) -> None:
        super().__init__()
        self._sender: WeightSender | None = None

    def train_supervised(
        self, *, folder: str, settings: SupervisedLossSettings, **step_settings: Any
    ) -> "list[StepReport]":
        """`rlsys.models.supervised.train_supervised`, which has the `step_settings`, over a token store."""
        from rlsys.data.token_store import TokenStore
        from rlsys.models.supervised import train_supervised

        return train_supervised(self.engine, TokenStore(folder), settings, **step_settings)

    def train_preferences(
        self, *, folder: str, steps: "PairSteps", settings: PreferenceLossSettings, reference: "np.ndarray | None"
    ) -> "list[StepReport]":
        """`rlsys.models.pairs.train_preferences` over the pair store in `folder`."""
        from rlsys.data.token_store import PairStore
        from rlsys.models.pairs import train_preferences

        return train_preferences(self.engine, PairStore(folder), steps, settings, reference)

    def logprobs(self, *, shards: Refs, temperature: float) -> list[Any]:
        """References to the response tokens' log-probabilities of each shard."""
        from rlsys.models.policy import shard_logprobs

        return publish(shard_logprobs(self.engine, fetch(shards, 0), temperature=temperature))

    def advantages(
        self,
        *,
        shards: Refs,
        proximal: Refs | None,
        reference: Refs | None,
        values: Refs | None,
        settings: AlgorithmSettings,
        oldest_version: int | None,
    ) -> tuple[list[Any], list[Any], dict[str, float]]:
        """References to advantages and returns of each shard, and metrics."""
        from rlsys.models.policy import AdvantageInputs, advantages

        columns = (fetch(column, len(shards)) for column in (shards, proximal, reference, values))
        inputs = [AdvantageInputs(*row) for row in zip(*columns, strict=True)]
        computed, returns, metrics = advantages(inputs, settings, self.group, oldest_version=oldest_version)
        return publish(computed), publish(returns), metrics

    def train_policy(
        self,
        *,
        shards: Refs,
        advantages: Refs,
        proximal: Refs | None,
        reference: Refs | None,
        settings: AlgorithmSettings,
        **step_settings: Any,
    ) -> "list[StepReport]":
        """`rlsys.models.policy.train_policy`, which has the `step_settings`."""
        from rlsys.models.policy import PolicyInputs, train_policy

        columns = (fetch(column, len(shards)) for column in (shards, advantages, proximal, reference))
        inputs = [PolicyInputs(*row) for row in zip(*columns, strict=True)]
        return train_policy(self.engine, inputs, settings, **step_settings)

    def open_weight_group(
        self, *, num_receivers: int, deadline_s: float, transport: WeightTransfer, digest: "DigestName"
    ) -> "Rendezvous":
        """Start to listen for receivers; rank 0 only, not collective."""
        from rlsys.weights.sender import WeightSender

        self.close_weight_group()
        self._sender = WeightSender(transport, digest=digest)
        host = ray.util.get_node_ip_address()
        return self._sender.open(host=host, num_receivers=num_receivers, deadline_s=deadline_s)

    def join_weight_group(self) -> None:
        """Returns when every receiver has come; rank 0 only, not collective."""
        assert self._sender is not None, "open_weight_group() comes first"
        self._sender.join()

    def send_weights(self, *, transfer: int, cap_bytes: int) -> "Manifest | None":
        """Gather and send all weights; rank 0 returns what it sent."""
        from rlsys.models.weights import weight_buckets

        buckets = weight_buckets(self.engine, cap_bytes)
        if self._sender is None:
            for _ in buckets:
                pass
            return None
        return self._sender.send(buckets, transfer=transfer)

    def close_weight_group(self) -> None:
        """Leave the receivers; rank 0 only, not collective."""
        if self._sender is not None:
            self._sender.close()

    def canary_logprobs(self, *, token_ids: Sequence[int]) -> "np.ndarray":
        """`[L - 1]` float32: log-probability of each token but the first, the same on every rank."""
        import numpy as np

        from rlsys.data.packing import Row

        ids = np.array(token_ids, np.int32)
        return self.engine.logprobs([Row(ids, {"mask": np.ones(len(ids), np.float32)})])[0][1:]


class Learner(ModelGroup):
    """The driver's end of the learner group."""

    actor_class = LearnerRank

    def train_supervised(
        self, folder: str, settings: SupervisedLossSettings, **step_settings: Any
    ) -> "Pending[list[StepReport]]":
        """`step_settings`: `first_step`, `lrs`, `batch_size`, `seed`; one optimizer step for each learning rate."""
        return self.ranks.submit("train_supervised", folder=folder, settings=settings, **step_settings).map(of_rank_0)

    def train_preferences(
        self,
        folder: str,
        steps: "PairSteps",
        settings: PreferenceLossSettings,
        *,
        reference: "np.ndarray | ray.ObjectRef | None" = None,
    ) -> "Pending[list[StepReport]]":
        """One optimizer step for each learning rate; `reference` is what `ReferenceModel.pair_logprobs` gives, or a
        Ray reference to it."""
        return self.ranks.submit(
            "train_preferences", folder=folder, steps=steps, settings=settings, reference=reference
        ).map(of_rank_0)

    def logprobs(self, shards: Refs, *, temperature: float = 1.0) -> Pending[list[Any]]:
        """One reference a shard."""
        return self.ranks.submit_sharded("logprobs", {"shards": shards}, temperature=temperature).map(in_shard_order)

    def advantages(
        self,
        shards: Refs,
        settings: AlgorithmSettings,
        *,
        proximal: Refs | None = None,
        reference: Refs | None = None,
        values: Refs | None = None,
        oldest_version: int | None = None,
    ) -> Pending[tuple[list[Any], list[Any], dict[str, float]]]:
        """References to advantages and returns, one a shard each, and metrics."""
        columns = {"shards": shards, "proximal": proximal, "reference": reference, "values": values}
        pending = self.ranks.submit_sharded("advantages", columns, settings=settings, oldest_version=oldest_version)
        return pending.map(_gather_advantages)

    def train_policy(
        self,
        shards: Refs,
        settings: AlgorithmSettings,
        *,
        advantages: Refs,
        proximal: Refs | None = None,
        reference: Refs | None = None,
        **step_settings: Any,
    ) -> "Pending[list[StepReport]]":
        """`step_settings`: `lrs`, `seed`, `max_response_length`, `temperature`, `oldest_version` of `train_policy`."""
        columns = {"shards": shards, "advantages": advantages, "proximal": proximal, "reference": reference}
        return self.ranks.submit("train_policy", settings=settings, **columns, **step_settings).map(of_rank_0)


def _gather_advantages(answers: Sequence[tuple[list[Any], list[Any], dict[str, float]]]) -> Any:
    computed = in_shard_order([answer[0] for answer in answers])
    returns = in_shard_order([answer[1] for answer in answers])
    return computed, returns, answers[0][2]
