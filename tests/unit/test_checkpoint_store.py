"""Which checkpoints stay, which is the best, and what a rewind does."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.checkpoint.checkpoint_store import BEST, Best, CheckpointStore
from rlsys.checkpoint.retention import Retention
from rlsys.errors import CheckpointError


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", Retention(keep_last=2, keep_every=30))


def commit(store: CheckpointStore, *steps: int) -> None:
    for step in steps:
        transaction = store.begin(step)
        (transaction.folder / "w").write_text(str(step))
        transaction.commit()


@settings(deadline=None)
@given(
    steps=st.sets(st.integers(0, 60)),
    keep_last=st.integers(1, 5),
    keep_every=st.integers(0, 10),
    best=st.none() | st.integers(0, 60),
)
def test_retention_keeps_exactly_what_it_says(steps: set[int], keep_last: int, keep_every: int, best: int | None):
    removed = Retention(keep_last=keep_last, keep_every=keep_every).steps_to_remove(steps, best=best)
    for step in steps:
        num_newer = sum(other > step for other in steps)
        kept = num_newer < keep_last or step == best or (keep_every > 0 and step % keep_every == 0)
        assert (step in removed) == (not kept)
    assert removed <= steps


def test_old_checkpoints_go_and_the_best_stays(store: CheckpointStore):
    commit(store, 10, 20)
    assert store.offer_best(20, 0.7)
    commit(store, 30, 40, 50)
    assert store.remove_old() == [10]
    commit(store, 60)
    assert store.remove_old() == [40]
    assert store.steps == [20, 30, 50, 60]
    assert not (store.folder / "step_000010").exists() and store.clean() == []


def test_only_a_better_score_takes_the_mark(store: CheckpointStore):
    commit(store, 1, 2, 3)
    assert store.best() is None
    assert [store.offer_best(step, score) for step, score in ((1, 0.5), (2, 0.5), (3, 0.6))] == [True, False, True]
    assert store.best() == Best(3, 0.6)


def test_recover_goes_on_from_the_newest_and_keeps_what_is_damaged_under_another_name(store: CheckpointStore):
    commit(store, 1, 2, 3)
    (store.folder / "step_000003" / "w").write_text("4")
    found = store.recover()
    assert found.checkpoint is not None and found.checkpoint.step == 2
    assert found.passed_over == ("step_000003: w has another SHA-256",)
    assert store.steps == [1, 2]
    assert (store.folder / "step_000003.set-aside-1" / "w").read_text() == "4"
    commit(store, 3)  # the step can be reached and committed again
    assert store.recover().passed_over == ()


def test_a_rewind_gives_up_the_later_checkpoints_and_their_best_mark(store: CheckpointStore):
    commit(store, 1, 2, 3)
    store.offer_best(3, 0.9)
    found = store.recover(step=1)
    assert found.checkpoint is not None and found.checkpoint.step == 1
    assert store.steps == [1] and store.best() is None
    commit(store, 3)
    assert store.best() is None  # the mark was of the future that was given up
    store.recover(step=1)
    assert sorted(p.name for p in store.folder.glob("step_000003*")) == [
        "step_000003.set-aside-1",
        "step_000003.set-aside-2",
    ]


def test_a_rewind_to_what_is_not_there_changes_nothing(store: CheckpointStore):
    commit(store, 1, 2)
    with pytest.raises(CheckpointError, match="step_000005"):
        store.recover(step=5)
    assert store.steps == [1, 2]


def test_an_interrupted_removal_leaves_no_damaged_checkpoint(store: CheckpointStore):
    commit(store, 1)
    (store.folder / "step_000001").rename(store.folder / ".removing-step_000001")
    assert store.steps == []
    assert store.clean() == [".removing-step_000001"]
    assert list(store.folder.iterdir()) == []


def test_a_damaged_best_mark_is_an_error_that_names_it(store: CheckpointStore):
    commit(store, 1)
    store.offer_best(1, 0.5)
    (store.folder / BEST).write_text('{"step": 1}')
    with pytest.raises(CheckpointError, match=r"best\.json"):
        store.best()


def test_a_store_without_a_folder_is_empty(tmp_path: Path):
    store = CheckpointStore(tmp_path / "none")
    assert store.steps == [] and store.clean() == [] and store.best() is None
    assert store.recover().checkpoint is None
    assert not store.folder.exists()


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_every": -1}])
def test_impossible_retention_is_refused(wrong):
    with pytest.raises(ValueError, match="keep_last"):
        Retention(**wrong)
