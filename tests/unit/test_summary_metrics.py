import math

import pytest

from rlsys.rollouts.summary_metrics import rollout_metrics, staleness_metrics, verdict_metrics
from rlsys.telemetry.names import check_name
from rlsys.types import GroupSummary, Verdict


def verdict(outcome, score=0.0, seconds=0.5):
    return (Verdict("math", outcome, score, seconds),)


GROUPS = (
    GroupSummary(
        0, (2, 4), 9, 3, 4, ("stop", "length"), (10.0, -10.0), (verdict("correct", 1.0), verdict("wrong")), (0.5, -3.5)
    ),
    GroupSummary(1, (6, 8), 9, 4, 4, ("stop", "stop"), (math.nan, 0.0), (verdict("timeout"), verdict("wrong"))),
)


def test_masked_samples_leave_rewards_but_are_counted():
    metrics = rollout_metrics(GROUPS) | verdict_metrics(GROUPS)
    assert metrics["reward/mean"] == 0.0  # (10 - 10 + 0) / 3
    assert metrics["reward/std"] == pytest.approx(math.sqrt(200 / 3))
    assert (metrics["reward/reward_model/mean"], metrics["reward/reward_model/std"]) == (-1.5, 2.0)
    assert metrics["verifier/math/timeout_frac"] == 0.25
    assert metrics["verifier/math/wrong_frac"] == 0.5
    assert metrics["reward/math/mean"] == pytest.approx(1 / 3)
    assert metrics["rollout/length/mean"] == 5.0
    assert metrics["rollout/truncated_frac"] == 0.25
    assert metrics["rollout/informative_groups_frac"] == 0.5


def test_names_of_verifiers_become_names_of_metrics():
    """Whatever users call them: a metric whose name is refused would end the run at its first step."""
    verdicts = (Verdict("code:py", "correct", 1.0, 0.5), Verdict("my own", "wrong", 0.0, 0.5))
    metrics = verdict_metrics([GroupSummary(0, (2,), 9, 0, 0, ("stop",), (1.0,), (verdicts,))])
    assert [check_name(name) for name in metrics] == list(metrics)
    assert (metrics["verifier/code_py/correct_frac"], metrics["reward/my_own/mean"]) == (1.0, 0.0)


def test_staleness_is_counted_from_the_oldest_token():
    assert staleness_metrics(GROUPS, 5, num_dropped=7) == {
        "staleness/mean_steps": 1.5,
        "staleness/max_steps": 2.0,
        "staleness/dropped": 7.0,
    }
