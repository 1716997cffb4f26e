"""The value model of RLVR on one rank: values and updates over the shards that the rank was given. Collective."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlsys.algorithms.metric_sums import MetricSums
from rlsys.algorithms.step_guard import StepReport
from rlsys.algorithms.value_loss import value_loss
from rlsys.models.engine import StepInput, TrainEngine
from rlsys.models.experience_rows import (
    Ragged,
    Sample,
    Shard,
    experiences_of,
    response_rows,
    responses_of,
    samples_of,
    trained_mask,
)
from rlsys.models.minibatches import minibatches
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
    samples: list[Sample] = []
    for item in inputs:
        experiences = experiences_of(item.shard)
        mask = trained_mask(experiences, oldest_version)
        fields = {"mask": mask, "returns": item.returns, "old_values": item.old_values}
        samples += samples_of(experiences, fields)

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

    reports = []
    for lr, members in minibatches(samples, lrs, settings, engine.group, seed=seed):
        tokens = float(sum(np.count_nonzero(sample.fields["mask"]) for sample in members))
        units = [[sample.row()] for sample in members]
        reports.append(engine.train_step(units, objective, lr=lr, denominators={"tokens": tokens}))
    return reports
