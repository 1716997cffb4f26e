"""Which checkpoints stay, and what a rewind does."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.checkpoint.checkpoint_store import CheckpointStore
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
)
def test_retention_keeps_exactly_what_it_says(steps: set[int], keep_last: int, keep_every: int):
    removed = Retention(keep_last=keep_last, keep_every=keep_every).steps_to_remove(steps)
    for step in steps:
        num_newer = sum(other > step for other in steps)
        kept = num_newer < keep_last or (keep_every > 0 and step % keep_every == 0)
        assert (step in removed) == (not kept)
    assert removed <= steps


def test_old_checkpoints_go(store: CheckpointStore):
    commit(store, 10, 20, 30, 40, 50)
    assert store.remove_old() == [10, 20]
    commit(store, 60)
    assert store.remove_old() == [40]
    assert store.steps == [30, 50, 60]
    assert not (store.folder / "step_000010").exists() and store.clean() == []


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


def test_a_rewind_gives_up_the_later_checkpoints(store: CheckpointStore):
    commit(store, 1, 2, 3)
    found = store.recover(step=1)
    assert found.checkpoint is not None and found.checkpoint.step == 1
    assert store.steps == [1]
    commit(store, 3)
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


def test_a_store_without_a_folder_is_empty(tmp_path: Path):
    store = CheckpointStore(tmp_path / "none")
    assert store.steps == [] and store.clean() == []
    assert store.recover().checkpoint is None
    assert not store.folder.exists()


@pytest.mark.parametrize("wrong", [{"keep_last": 0}, {"keep_every": -1}])
def test_impossible_retention_is_refused(wrong):
    with pytest.raises(ValueError, match="keep_last"):
        Retention(**wrong)
