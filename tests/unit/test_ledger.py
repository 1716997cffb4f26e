"""The ledger by hand: each transition with the numbers worked out. The random worlds are in test_ledger_properties."""

import json
from typing import Any

import pytest

from rlsys.errors import LedgerError
from rlsys.rollouts.ledger import Ledger
from rlsys.rollouts.ledger_records import End, LedgerSettings


def make_ledger(**changes: Any) -> Ledger:
    small: dict[str, Any] = {"batch_groups": 2, "max_staleness": 0, "total_batches": 3}
    return Ledger(LedgerSettings(**small | changes))


def finish(ledger: Ledger, *ordinals: int, oldest: int, newest: int | None = None) -> None:
    for ordinal in ordinals:
        assert ledger.finished(ordinal, oldest, oldest if newest is None else newest)


def train_one(ledger: Ledger, step: int) -> tuple[int, ...]:
    batch = ledger.take_batch()
    assert batch is not None
    ledger.trained(batch, step)
    return batch.ordinals


def test_synchronous_run_alternates_sampling_and_training():
    ledger = make_ledger(total_batches=2)
    assert ledger.admit() == [0, 1]
    assert ledger.admit() == []
    finish(ledger, 1, 0, oldest=0)
    assert train_one(ledger, step=1) == (0, 1)
    assert ledger.admit() == []  # not before the new weights are out
    ledger.published(1)
    assert ledger.admit() == [2, 3]
    finish(ledger, 2, 3, oldest=1)
    assert train_one(ledger, step=2) == (2, 3)
    ledger.published(2)
    assert ledger.done and ledger.admit() == [] and ledger.take_batch() is None
    assert ledger.drain_ends() == [(o, End("trained", 1 + o // 2)) for o in range(4)]
    assert ledger.drain_ends() == []
    assert (ledger.low_water_mark, ledger.num_in_flight) == (4, 0)


@pytest.mark.parametrize("k, expected", [(0, 2), (1, 4), (3, 8), (9, 10)])
def test_admission_counts_places_ahead(k: int, expected: int):
    ledger = make_ledger(max_staleness=k, total_batches=5)  # never more than the 10 groups that can be trained on
    assert len(ledger.admit()) == expected


def test_admit_respects_the_limit_and_starts_reissued_ordinals_first():
    ledger = make_ledger(max_staleness=1)
    assert ledger.admit(limit=3) == [0, 1, 2]
    assert ledger.failed(2, "worker died") and ledger.failed(0, "worker died")
    assert ledger.admit(limit=0) == []
    assert ledger.admit(limit=1) == [0]
    assert ledger.admit() == [2, 3]
    assert ledger.counters["reissued"] == 2 and ledger.counters["failed/worker died"] == 2


def test_filtered_and_masked_places_are_refilled_so_that_synchronous_runs_go_on():
    ledger = make_ledger()
    assert ledger.admit() == [0, 1]
    assert ledger.filtered(0, "equal rewards")
    assert ledger.admit() == [2]
    finish(ledger, 1, oldest=0)
    assert ledger.masked(1, "timeout")  # after it was buffered
    assert ledger.buffered == () and ledger.admit() == [3]
    finish(ledger, 3, 2, oldest=0)
    assert train_one(ledger, step=1) == (2, 3)
    assert ledger.drain_ends()[:2] == [(0, End("filtered", "equal rewards")), (1, End("masked", "timeout"))]


def test_a_group_expires_after_its_last_attempt_and_another_takes_its_place():
    ledger = make_ledger(max_attempts=2)
    ledger.admit()
    assert ledger.failed(0, "died")
    assert ledger.low_water_mark == 0
    assert ledger.admit() == [0]
    assert ledger.failed(0, "died")
    assert ledger.drain_ends() == [(0, End("expired", 2))]
    assert ledger.low_water_mark == 1
    assert ledger.admit() == [2]


def test_batches_take_the_oldest_version_first_then_the_ordinal():
    ledger = make_ledger(max_staleness=2, total_batches=9)
    assert ledger.admit() == [0, 1, 2, 3, 4, 5]
    finish(ledger, 5, 4, oldest=0)
    assert train_one(ledger, step=1) == (4, 5)
    ledger.published(1)
    finish(ledger, 3, 0, oldest=1)
    finish(ledger, 2, oldest=0, newest=1)
    batch = ledger.take_batch()
    assert batch is not None and batch.ordinals == (2, 0)
    assert (batch.index, batch.min_version, batch.masked) == (1, 0, ())


def straggler(**changes: Any) -> Ledger:
    """k = 1: ordinal 0 is sampled from version 0 on (1 at the end) and finished when batch 2 is due."""
    ledger = make_ledger(max_staleness=1, total_batches=9, **changes)
    assert ledger.admit() == [0, 1, 2, 3]
    finish(ledger, 1, 2, oldest=0)
    train_one(ledger, step=1)
    ledger.published(1)
    assert ledger.admit() == [4, 5]
    finish(ledger, 4, 5, oldest=1)
    assert train_one(ledger, step=2) == (4, 5)
    ledger.published(2)
    assert ledger.admit() == [6, 7]
    finish(ledger, 0, oldest=0, newest=1)
    return ledger


def test_an_over_age_group_is_dropped_counted_and_sampled_again():
    ledger = straggler()
    assert ledger.take_batch() is None
    assert ledger.counters["over_age_dropped"] == 1 and ledger.buffered == ()
    assert ledger.admit() == [0]
    finish(ledger, 0, 3, oldest=2)
    batch = ledger.take_batch()
    assert batch is not None and batch.ordinals == (0, 3)


def test_an_over_age_group_frees_its_place_at_admission_too():
    ledger = straggler()
    assert ledger.admit() == [0]


def test_dropping_is_an_attempt():
    ledger = straggler(max_attempts=1)
    assert ledger.take_batch() is None
    assert (0, End("expired", 1)) in ledger.drain_ends()
    assert ledger.admit() == [8]


def test_masking_keeps_a_group_that_has_fresh_tokens_and_says_where_they_begin():
    ledger = straggler(over_age="mask")
    finish(ledger, 3, oldest=2)
    batch = ledger.take_batch()
    assert batch is not None and batch.ordinals == (0, 3)
    assert (batch.min_version, batch.masked) == (1, (0,))
    ledger.trained(batch, 3)
    assert ledger.counters["over_age_masked"] == 1


def test_masking_drops_a_group_without_one_fresh_token():
    ledger = make_ledger(max_staleness=0, total_batches=9, over_age="mask")
    ledger.admit()
    finish(ledger, 0, 1, oldest=0)
    train_one(ledger, step=1)
    ledger.published(1)
    ledger.admit()
    finish(ledger, 2, oldest=0)  # a partial rollout of before a resume, say
    assert ledger.take_batch() is None
    assert ledger.counters["over_age_dropped"] == 1


def test_late_reports_change_nothing():
    ledger = make_ledger()
    ledger.admit()
    finish(ledger, 0, oldest=0)
    before = ledger.state_dict()
    assert not ledger.finished(0, 0, 0)
    assert ledger.counters["late"] == 1
    ledger.failed(1, "slow")
    assert not ledger.finished(1, 0, 0) and not ledger.failed(1, "slow") and not ledger.filtered(1, "equal")
    assert ledger.state_dict()["buffered"] == before["buffered"] == [[0, 0, 0, 0]]


@pytest.mark.parametrize(
    "impossible",
    [
        lambda ledger: ledger.finished(9, 0, 0),
        lambda ledger: ledger.failed(-1, "died"),
        lambda ledger: ledger.finished(0, 0, 1),
        lambda ledger: ledger.finished(0, 1, 0),
        lambda ledger: ledger.published(1),
    ],
)
def test_impossible_reports_are_errors(impossible):
    ledger = make_ledger()
    ledger.admit()
    with pytest.raises(LedgerError):
        impossible(ledger)


def test_batches_are_closed_once_and_in_turn():
    ledger = make_ledger()
    ledger.admit()
    finish(ledger, 0, 1, oldest=0)
    batch = ledger.take_batch()
    assert batch is not None
    with pytest.raises(LedgerError, match="still out"):
        ledger.take_batch()
    ledger.trained(batch, 1)
    with pytest.raises(LedgerError, match="not the one"):
        ledger.trained(batch, 1)
    ledger.published(1)
    with pytest.raises(LedgerError):
        ledger.published(0)


def test_state_goes_through_json_and_running_groups_are_started_again():
    ledger = straggler()
    ledger.failed(7, "died")
    with pytest.raises(LedgerError, match="drain_ends"):
        ledger.state_dict()
    assert [o for o, _ in ledger.drain_ends()] == [1, 2, 4, 5]
    state = json.loads(json.dumps(ledger.state_dict()))
    assert state["waiting"] == [[3, 0], [6, 0], [7, 1]] and state["buffered"] == [[0, 0, 0, 1]]
    resumed = Ledger.from_state_dict(ledger.settings, state)
    assert resumed.state_dict() == state
    assert (resumed.version, resumed.num_trained_batches, resumed.accepted) == (2, 2, 5)
    assert resumed.counters == ledger.counters
    assert resumed.admit() == [0, 3, 6, 7]  # ordinal 0 was over-age, and is waiting as well


def test_a_batch_that_is_out_is_saved_as_buffered():
    ledger = make_ledger()
    ledger.admit()
    finish(ledger, 0, 1, oldest=0)
    assert ledger.take_batch() is not None
    resumed = Ledger.from_state_dict(ledger.settings, ledger.state_dict())
    assert resumed.buffered == (0, 1) and resumed.next_batch == 0
    assert train_one(resumed, step=1) == (0, 1)


def test_a_run_resumed_with_a_larger_batch_goes_on():
    ledger = make_ledger(total_batches=1)
    ledger.admit()
    finish(ledger, 0, 1, oldest=0)
    train_one(ledger, step=1)
    ledger.drain_ends()
    settings = LedgerSettings(batch_groups=5, max_staleness=0, total_batches=2)
    resumed = Ledger.from_state_dict(settings, ledger.state_dict())
    resumed.published(1)
    assert resumed.admit() == [2, 3, 4, 5, 6]


def test_an_unknown_state_format_is_refused():
    with pytest.raises(LedgerError, match="format"):
        Ledger.from_state_dict(make_ledger().settings, {"format": 99})


@pytest.mark.parametrize(
    "wrong", [{"batch_groups": 0}, {"max_staleness": -1}, {"total_batches": 0}, {"max_attempts": 0}, {"over_age": "x"}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        make_ledger(**wrong)
