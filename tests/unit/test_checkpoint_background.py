"""Commits in the background: training goes on meanwhile, errors come up, and a deadline is one."""

import threading
from pathlib import Path

import pytest

from rlsys.checkpoint.background import BackgroundCommitter
from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.checkpoint.retention import Retention
from rlsys.checkpoint.seal import FileDigest, seal
from rlsys.checkpoint.transaction import Transaction
from rlsys.errors import ActorError, CheckpointError


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", Retention(keep_last=1))


def begin(store: CheckpointStore, step: int) -> Transaction:
    transaction = store.begin(step)
    (transaction.folder / "w").write_text(str(step))
    return transaction


class Gate:
    """A component's write that ends when the test says so."""

    def __init__(self, transaction: Transaction) -> None:
        self.transaction, self.started, self.opened = transaction, threading.Event(), threading.Event()
        self.thread: threading.Thread | None = None

    def __call__(self) -> dict[str, FileDigest]:
        self.thread = threading.current_thread()
        self.started.set()
        assert self.opened.wait(30)
        return seal(self.transaction.folder)


def test_training_goes_on_while_a_commit_is_under_way(store: CheckpointStore):
    committer = BackgroundCommitter(store, deadline_s=30)
    transaction = begin(store, 1)
    gate = Gate(transaction)
    committer.submit(transaction, metadata={"k": 1}, gather=gate)
    assert gate.started.wait(30)
    committer.poll()
    assert store.steps == []
    gate.opened.set()
    committer.wait()
    assert store.steps == [1]
    committer.poll()
    committer.wait()


def test_the_next_commit_waits_for_the_one_before_and_retention_is_applied(store: CheckpointStore):
    committer = BackgroundCommitter(store, deadline_s=30)
    committer.submit(begin(store, 1))
    following = begin(store, 2)
    gate = Gate(following)
    committer.submit(following, gather=gate)
    assert store.steps == [1]
    gate.opened.set()
    committer.wait()
    assert store.steps == [2]


def test_a_components_failure_is_the_callers_error_and_leaves_nothing(store: CheckpointStore):
    committer = BackgroundCommitter(store, deadline_s=30)

    def die() -> dict[str, FileDigest]:
        raise ActorError("learner rank 1 died while writing")

    committer.submit(begin(store, 1), gather=die)
    with pytest.raises(CheckpointError, match=r"step 1 failed.*learner rank 1 died") as caught:
        committer.wait()
    assert isinstance(caught.value.__cause__, ActorError)
    assert list(store.folder.iterdir()) == []
    committer.submit(begin(store, 1))  # the committer can be used again, for the same step
    committer.wait()
    assert store.steps == [1]


def test_an_error_nobody_polled_for_comes_up_at_the_next_submit(store: CheckpointStore):
    committer = BackgroundCommitter(store, deadline_s=30)
    broken = begin(store, 1)
    (broken.folder / "manifest.json").write_text("reserved")
    committer.submit(broken)
    following = begin(store, 2)
    with pytest.raises(CheckpointError, match="reserved"):
        committer.submit(following)
    assert not following.folder.exists()
    committer.wait()


def test_a_commit_that_misses_its_deadline_is_an_error_and_never_appears(store: CheckpointStore):
    committer = BackgroundCommitter(store, deadline_s=0.05)
    transaction = begin(store, 1)
    gate = Gate(transaction)
    committer.submit(transaction, gather=gate)
    with pytest.raises(CheckpointError, match=r"step 1 was not done by its deadline; got '0\.05 s'"):
        committer.wait()
    committer.wait()
    gate.opened.set()
    assert gate.thread is not None
    gate.thread.join(30)
    assert store.steps == [] and list(store.folder.iterdir()) == []
