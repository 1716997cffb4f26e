"""Supervised steps on one rank: a step's rows are a pure function of seed and step, dealt to the ranks by length."""

from collections.abc import Sequence

import torch

from rlsys.algorithms.metric_sums import MetricSums
from rlsys.algorithms.step_guard import StepReport
from rlsys.algorithms.supervised_loss import supervised_loss
from rlsys.data.packing import Row
from rlsys.data.token_store import TokenStore
from rlsys.data.tokenized import TokenizedRow
from rlsys.models.engine import StepInput, TrainEngine
from rlsys.models.row_order import balanced_parts, rows_of_step
from rlsys.recipe.algorithm import SupervisedLossSettings


def train_supervised(
    engine: TrainEngine,
    store: TokenStore,
    settings: SupervisedLossSettings,
    *,
    first_step: int,
    lrs: Sequence[float],
    batch_size: int,
    seed: int,
) -> list[StepReport]:
    """One optimizer step for each learning rate, from number `first_step` on. Collective.

    Args:
        engine: of a policy.
        store: the whole data set; every rank can read all of it.
        settings: of the loss.
        first_step: counted from 0 over all epochs.
        lrs: learning rates of the steps.
        batch_size: rows of a step over all ranks; the last step of an epoch takes what is left.
        seed: of the order of rows.
    """

    def objective(step: StepInput) -> tuple[torch.Tensor, MetricSums]:
        assert step.logprobs is not None
        denominator = step.denominators["weight"] if settings.reduction == "tokens" else 1.0
        return supervised_loss(step.logprobs, step.fields["mask"], denominator=denominator)

    lengths = store.lengths
    reports = []
    for step, lr in enumerate(lrs, first_step):
        taken = rows_of_step(len(lengths), batch_size=batch_size, step=step, seed=seed)
        mine = balanced_parts(lengths[taken], engine.group.world_size)[engine.group.rank]
        units = [[_row(store.row(int(taken[i])))] for i in mine]
        weight = float(sum(row.fields["mask"][1:].sum() for unit in units for row in unit))
        reports.append(engine.train_step(units, objective, lr=lr, denominators={"weight": weight}))
    return reports


def _row(row: TokenizedRow) -> Row:
    return Row(row.token_ids, {"mask": row.loss_weights})
