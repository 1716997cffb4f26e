"""When a run stops because nothing reaches the weights."""

import json

import pytest

from rlsys.algorithms.step_guard import StepGuard
from rlsys.errors import TrainingError


def test_the_guard_counts_updates_in_a_row_for_each_model():
    guard = StepGuard(3)
    for _ in range(2):  # eight passes over one bad batch are one update; the value model's good ones change nothing
        guard.record("value", [None] * 8)
        guard.record("policy", ["loss_not_finite"] * 8)
        guard.check()
    guard.record("policy", ["loss_not_finite", None])  # half of a batch was applied
    guard.check()
    assert guard.in_a_row == {"value": [], "policy": []}
    for reason in ("all_masked", "loss_not_finite"):
        guard.record("policy", [reason])
    resumed = StepGuard(3)
    resumed.restore(json.loads(json.dumps(guard.state())))
    assert resumed.skipped == {"loss_not_finite": 18, "all_masked": 1}
    resumed.check()
    resumed.record("value", [None])
    resumed.record("policy", ["gradient_not_finite"])
    with pytest.raises(TrainingError, match="3 updates of the policy in a row were skipped, the last one for gradient"):
        resumed.check()
    assert guard.in_a_row["policy"] == ["all_masked", "loss_not_finite"], "the state is a copy"


def test_a_checkpoints_state_is_that_of_its_step():
    """It is written while training goes on."""
    guard = StepGuard(5)
    guard.record("policy", ["all_masked"])
    state = guard.state()
    guard.record("policy", ["all_masked"])
    guard.record("value", [None])
    assert state == {"skipped": {"all_masked": 1}, "in_a_row": {"policy": ["all_masked"]}}
