"""The value model of RLVR on one rank: values and updates over the shards that the rank was given. Collective."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlsys.algorithms.metric_sums import MetricSums
from rlsys.algorithms.value_loss import value_loss
from rlsys.models.engine import StepInput, StepReport, TrainEngine
from rlsys.models.experience_rows import Ragged, Shard, experiences_of, response_rows, responses_of, trained_mask
from rlsys.models.minibatches import Minibatches, locate_samples
from rlsys.recipe.algorithm import AlgorithmSettings


@dataclass(frozen=True, slots=True)
class ValueInputs:
    """One shard with the targets of its response tokens."""

    shard: Shard
    returns: Ragged
    old_values: Ragged


def shard_values(engine: TrainEngine, shards: Sequence[Shard]) -> list[Ragged]:
    """The estimate before each response token of each shard."""
    experiences = [experiences_of(shard) for shard in shards]
    rows = [row for members in experiences for row in response_rows(members)]
    computed = iter(engine.values(rows))
    return [responses_of(members, [next(computed) for _ in members]) for members in experiences]


def train_value(
    engine: TrainEngine,
    inputs: Sequence[ValueInputs],
    settings: AlgorithmSettings,
    *,
    lrs: Sequence[float],
    seed: int,
    oldest_version: int | None = None,
) -> list[StepReport]:
    """As `train_policy`, with the value loss; the same seed gives the same minibatches."""
    rows = []
    keep: list[np.ndarray] = []
    for item in inputs:
        experiences = experiences_of(item.shard)
        fields = {"returns": item.returns, "old_values": item.old_values}
        rows += response_rows(experiences, fields, trained_mask(experiences, oldest_version))
        keep.append(np.array([row.fields["mask"].any() for row in rows[-len(experiences) :]]))

    def objective(step: StepInput) -> tuple[torch.Tensor, MetricSums]:
        assert step.values is not None
        fields = step.fields
        loss, sums = value_loss(
            step.values,
            fields["old_values"],
            fields["returns"],
            fields["mask"],
            clip=settings.value_clip or 0.0,
            denominator=step.denominators["tokens"],
        )
        return settings.value_coef * loss, sums

    order = Minibatches(
        locate_samples(keep, engine.group), seed=seed, epochs=settings.epochs_per_batch, parts=settings.minibatches
    )
    if len(lrs) != len(order):
        raise ValueError(f"expected {len(order)} learning rates, one an optimizer step; got {len(lrs)}")
    reports = []
    for lr, members in zip(lrs, order.local_members(), strict=True):
        tokens = float(sum(np.count_nonzero(rows[i].fields["mask"]) for i in members))
        units = [[rows[i]] for i in members]
        reports.append(engine.train_step(units, objective, lr=lr, denominators={"tokens": tokens}))
    return reports
