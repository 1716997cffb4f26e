"""When an RLVR stage whose prompts come to nothing says so, instead of sampling for ever."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from actors.pump_records import VerifiedGroup
from actors.shards import GroupReference
from launch.rlvr import absorb
from launch.rlvr_run import MAX_FILTERED_BATCHES, RlvrRun
from rlsys.errors import TrainingError
from rlsys.rollouts.experience_buffer import ExperienceBuffer
from rlsys.rollouts.ledger import Ledger
from rlsys.rollouts.ledger_records import LedgerSettings
from rlsys.types import GroupSummary

BATCH_GROUPS = 4


@pytest.fixture
def run() -> Any:
    """A stage of which nothing is left but what `absorb` asks."""
    run: Any = object.__new__(RlvrRun)
    run.settings = SimpleNamespace(
        batch_groups=BATCH_GROUPS, max_attempts=3, algorithm=SimpleNamespace(filter_equal_groups=True)
    )
    run.ledger = Ledger(LedgerSettings(batch_groups=BATCH_GROUPS, max_staleness=0, total_batches=9))
    run.buffer, run.pump = ExperienceBuffer(), SimpleNamespace(reward_model_error=None)
    run.judged_groups, run.lost_groups = [], Counter()
    run.expired_in_a_row = run.masked_in_a_row = run.filtered_in_a_row = 0
    return run


def arrive(run: Any, *rewards: float) -> None:
    """The next group that the ledger starts comes through with these."""
    (ordinal,) = run.ledger.admit(limit=1)
    summary = GroupSummary(ordinal, (1, 1), 1, 0, 0, ("stop", "stop"), rewards, ((), ()))
    absorb(run, [VerifiedGroup(summary, GroupReference(None, 0), 0.1)])


def test_prompts_that_all_have_one_reward_end_the_run(run: Any):
    for _ in range(MAX_FILTERED_BATCHES * BATCH_GROUPS - 1):
        arrive(run, 0.0, 0.0)
    with pytest.raises(TrainingError, match=r"all have one reward.*got 80; use easier or harder prompts"):
        arrive(run, 0.0, 0.0)
    assert run.ledger.counters["filtered"] == MAX_FILTERED_BATCHES * BATCH_GROUPS


def test_one_that_teaches_something_begins_the_count_anew(run: Any):
    for _ in range(BATCH_GROUPS - 1):
        for _ in range(MAX_FILTERED_BATCHES * BATCH_GROUPS - 1):
            arrive(run, 0.0, 0.0)
        arrive(run, 0.0, 1.0)
        assert run.filtered_in_a_row == 0
    assert len(run.ledger.buffered) == BATCH_GROUPS - 1
