"""Preference pairs on one rank: DPO and its variants on a policy, reward modelling on a scalar model. Collective."""

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from rlsys.algorithms.metric_sums import MetricSums
from rlsys.algorithms.preference_loss import PairLogprobs, preference_loss, reward_model_loss
from rlsys.algorithms.step_guard import StepReport
from rlsys.data.packing import Row, Unit
from rlsys.data.token_store import PairStore
from rlsys.models.engine import Objective, StepInput, TrainEngine
from rlsys.models.process_group import ProcessGroup
from rlsys.models.row_order import PairSteps, balanced_parts, rows_of_step
from rlsys.recipe.algorithm import PreferenceLossSettings, RewardLossSettings

_ROWS_A_CALL = 4096


def train_preferences(
    engine: TrainEngine,
    store: PairStore,
    steps: PairSteps,
    settings: PreferenceLossSettings,
    reference_logprobs: np.ndarray | None = None,
) -> list[StepReport]:
    """Optimizer steps of a policy on the loss that `settings` names.

    Args:
        engine: of the policy.
        store: every rank can read all of it.
        steps: which.
        settings: the loss.
        reference_logprobs: `[P, 2]` from `pair_logprobs` of the reference model; not needed by SimPO.
    """

    def objective(step: StepInput) -> tuple[Tensor, MetricSums]:
        assert step.logprobs is not None
        mask = (step.fields["mask"] != 0).float()
        sums, lengths = _document_sums(step.logprobs * mask, step), _document_sums(mask, step)
        reference = _per_document(step, "reference") if settings.needs_reference else None
        pairs = PairLogprobs(
            chosen=sums[::2],
            rejected=sums[1::2],
            chosen_tokens=lengths[::2],
            rejected_tokens=lengths[1::2],
            reference_chosen=None if reference is None else reference[::2],
            reference_rejected=None if reference is None else reference[1::2],
        )
        return preference_loss(pairs, settings, denominator=step.denominators["pairs"])

    return _train(engine, store, steps, objective, reference_logprobs)


def train_reward(
    engine: TrainEngine, store: PairStore, steps: PairSteps, settings: RewardLossSettings
) -> list[StepReport]:
    """Optimizer steps of a reward model."""

    def objective(step: StepInput) -> tuple[Tensor, MetricSums]:
        assert step.scores is not None
        return reward_model_loss(
            step.scores[::2],
            step.scores[1::2],
            _per_document(step, "margin")[::2] if settings.use_margins else None,
            denominator=step.denominators["pairs"],
            center_coef=settings.center_coef,
        )

    return _train(engine, store, steps, objective, None)


def pair_logprobs(engine: TrainEngine, store: PairStore) -> np.ndarray:
    """Summed log-probability of each response, `[P, 2]` float32 (chosen, rejected), the same array on every rank."""
    return _map_pairs(
        store, engine.group, lambda rows: np.array([values.sum(dtype=np.float64) for values in engine.logprobs(rows)])
    )


def pair_scores(engine: TrainEngine, store: PairStore) -> np.ndarray:
    """A reward model's scores, `[P, 2]` float32 (chosen, rejected), the same array on every rank."""
    return _map_pairs(store, engine.group, engine.scores)


def _train(
    engine: TrainEngine, store: PairStore, steps: PairSteps, objective: Objective, reference: np.ndarray | None
) -> list[StepReport]:
    totals = store.lengths.sum(1)
    reports = []
    for step, lr in enumerate(steps.lrs, steps.first_step):
        taken = rows_of_step(len(store), batch_size=steps.batch_size, step=step, seed=steps.seed)
        mine = balanced_parts(totals[taken], engine.group.world_size)[engine.group.rank]
        units = [_unit(store, int(taken[i]), reference) for i in mine]
        reports.append(engine.train_step(units, objective, lr=lr, denominators={"pairs": float(len(units))}))
    return reports


def _unit(store: PairStore, index: int, reference: np.ndarray | None) -> Unit:
    pair = store.pair(index)
    rows = []
    for side, row in enumerate((pair.chosen, pair.rejected)):
        length = len(row.token_ids)
        fields = {"mask": row.loss_weights, "margin": np.full(length, np.nan_to_num(pair.margin), np.float32)}
        if reference is not None:
            fields["reference"] = np.full(length, reference[index, side], np.float32)
        rows.append(Row(row.token_ids, fields))
    return rows


def _per_document(step: StepInput, name: str) -> Tensor:
    """`[N]`, of a field that is constant over each document."""
    return step.fields[name].reshape(-1)[step.last_positions]


def _document_sums(values: Tensor, step: StepInput) -> Tensor:
    """`[N]` sums of `[R, L]` over documents; padding must be 0."""
    ids = step.document_ids.clamp(min=0).reshape(-1)
    return values.new_zeros(step.num_documents).index_add(0, ids, values.reshape(-1))


def _map_pairs(store: PairStore, group: ProcessGroup, evaluate: Callable[[Sequence[Row]], np.ndarray]) -> np.ndarray:
    mine = np.array(balanced_parts(store.lengths.sum(1), group.world_size)[group.rank], np.int64)
    num_calls = max(group.gather(-(-2 * len(mine) // _ROWS_A_CALL)))
    pieces = [np.zeros(0)]
    for call in range(num_calls):
        part = mine[call * _ROWS_A_CALL // 2 : (call + 1) * _ROWS_A_CALL // 2]
        rows = [Row(row.token_ids, {"mask": row.loss_weights}) for i in part for row in store.pair(int(i))[:2]]
        pieces.append(evaluate(rows))
    whole = np.zeros((len(store), 2), np.float32)
    for indices, values in group.gather((mine, np.concatenate(pieces).reshape(-1, 2))):
        whole[indices] = values
    return whole
