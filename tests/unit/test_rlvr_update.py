"""What the driver does around an RLVR batch: learning rates, metrics, the guard's rows, dynamic sampling."""

from types import SimpleNamespace
from typing import Any

import pytest

from actors.pump_records import VerifiedGroup
from actors.shards import GroupReference
from launch.rlvr import absorb
from launch.rlvr_update import Update, batch_metrics, learning_rates
from rlsys.algorithms.step_guard import StepGuard, StepReport
from rlsys.recipe.algorithm import AlgorithmSettings, OverlongSettings, ScheduleSettings
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.stages import RlvrStage
from rlsys.rollouts.experience_buffer import ExperienceBuffer
from rlsys.rollouts.ledger import Ledger
from rlsys.rollouts.ledger_records import LedgerSettings
from rlsys.telemetry.names import describe
from rlsys.types import GroupSummary, Verdict

LEARNER = LearnerSettings(lr=8.0, schedule=ScheduleSettings(kind="linear", warmup_steps=2))


def stage(**algorithm: Any) -> RlvrStage:
    settings = AlgorithmSettings(epochs_per_batch=1, minibatches=2, **algorithm)
    return RlvrStage(
        kind="rlvr",
        prompts={"source": ({"path": "p"},)},
        learner=LEARNER,
        algorithm=settings,
        batch_groups=4,
        batches=4,
    )


def test_the_policys_schedule_begins_after_the_value_models_warm_up():
    settings = stage(value_warmup_batches=1)
    value = [learning_rates(settings, LEARNER, batch) for batch in range(4)]
    assert value == [[4, 8], pytest.approx([8, 40 / 6]), pytest.approx([32 / 6, 4]), pytest.approx([16 / 6, 8 / 6])]
    policy = [learning_rates(settings, LEARNER, batch, first_batch=1) for batch in range(1, 4)]
    assert policy == [[4, 8], [8, 6], [4, 2]]  # six steps in all, two of them warm-up


def test_a_warm_up_that_leaves_the_policy_nothing_is_refused():
    with pytest.raises(ValueError, match="4 batches of warm-up leave none of 4 to the policy"):
        stage(value_warmup_batches=4)


def test_the_value_models_numbers_are_beside_the_policys():
    value = [
        StepReport({"perf/mfu": 0.5, "perf/peak_mem_gib": 7.0, "optim/lr": 2.0, "loss/value": 1.0}),
        StepReport({"perf/mfu": 0.25, "perf/peak_mem_gib": 9.0, "optim/lr": 4.0, "loss/value": 2.0}),
    ]
    policy = [StepReport({"perf/mfu": 0.75, "perf/peak_mem_gib": 30.0, "optim/lr": 1.0, "loss/policy": 3.0})]
    metrics = batch_metrics(value, "value_") | batch_metrics(policy, "")
    assert metrics == {
        "perf/value_mfu": 0.375, "perf/value_peak_mem_gib": 9.0, "optim/value_lr": 3.0, "loss/value": 1.5,
        "perf/mfu": 0.75, "perf/peak_mem_gib": 30.0, "optim/lr": 1.0, "loss/policy": 3.0,
    }  # fmt: skip
    assert all(map(describe, metrics))


def test_a_policy_that_is_never_trained_is_not_hidden_by_the_value_model():
    guard = StepGuard(5)
    run = SimpleNamespace(guard=guard, context=SimpleNamespace(spans=SimpleNamespace(add=lambda *_: None)))
    for _ in range(2):
        update = object.__new__(Update)
        update._run, update._seconds, update.metrics = run, {}, {}
        update._started = update._began = update._optimizing_since = 0.0
        update._answers = {
            "train_value": [StepReport({"optim/skipped": 0.0})] * 4,
            "train_policy": [StepReport({"optim/skipped": 1.0}, "loss_not_finite")] * 4,
        }
        update._finish()
    assert guard.in_a_row == {"value": [], "policy": ["loss_not_finite"] * 2}, "four passes are one update"
    assert update.metrics == {
        "optim/value_skipped": 0.0, "optim/skipped": 1.0, "skipped/loss_not_finite": 8.0
    }  # fmt: skip


def test_a_group_that_is_right_throughout_is_filtered_though_its_lengths_differ():
    """DAPO counts correct answers (eq. 11); the overlong penalty (eq. 13) comes after."""
    algorithm = AlgorithmSettings(
        advantage="grpo", filter_equal_groups=True, overlong=OverlongSettings(buffer_tokens=4), kl_in="none"
    )
    settings = LedgerSettings(batch_groups=2, max_staleness=0, total_batches=1, max_attempts=1)
    ledger, buffer = Ledger(settings), ExperienceBuffer()
    run: Any = SimpleNamespace(
        ledger=ledger, buffer=buffer, settings=SimpleNamespace(algorithm=algorithm),
        pump=SimpleNamespace(reward_model_error=None), judged=lambda summary: None,
        filtered=lambda ordinal: ledger.filtered(ordinal, "all rewards equal"),
    )  # fmt: skip
    assert ledger.admit() == [0, 1]
    right = ((Verdict("math", "correct", 1.0, 0.1),),) * 2
    absorb(run, [_verified(0, right, rewards=(9.0, 10.0), scores=(10.0, 10.0))])
    absorb(run, [_verified(1, right, rewards=(9.0, 10.0))])  # no penalty is added: these are the scores themselves
    assert ledger.counters["filtered"] == 1
    assert [group.summary.ordinal for group in buffer.groups()] == [1]
    assert [(ordinal, end.kind) for ordinal, end in ledger.drain_ends()] == [(0, "filtered")]


def _verified(ordinal: int, verdicts: Any, *, rewards: tuple[float, ...], scores: tuple[float, ...] = ()) -> Any:
    summary = GroupSummary(ordinal, (9, 3), 5, 0, 0, ("stop", "stop"), rewards, verdicts, (), scores)
    return VerifiedGroup(summary, GroupReference("somewhere", 0), 0.1)
