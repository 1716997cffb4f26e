"""Commits checkpoints in a thread while training goes on; its errors and its deadline are the caller's to meet."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.checkpoint.seal import FileDigest
from rlsys.checkpoint.transaction import Transaction
from rlsys.errors import CheckpointError

Gather = Callable[[], Mapping[str, FileDigest] | None]
"""Waits for the components' writes and gives digests that they made; called in the committer's thread."""


@dataclass(slots=True)
class _Commit:
    transaction: Transaction
    started: float
    done: threading.Event = field(default_factory=threading.Event)
    succeeded: bool = False
    error: Exception | None = None


class BackgroundCommitter:
    """At most one commit at a time.

    Args:
        store: whose retention is applied after each commit.
        deadline_s: for one commit, from `submit` on. One that is not done by then is given up: it will not appear
            later, unless it hangs in the rename itself.
    """

    def __init__(self, store: CheckpointStore, *, deadline_s: float) -> None:
        self._store, self._deadline_s = store, deadline_s
        self._commit: _Commit | None = None

    def submit(
        self, transaction: Transaction, *, metadata: Mapping[str, Any] | None = None, gather: Gather | None = None
    ) -> None:
        """Starts a commit and returns; waits first for the one before.

        Args:
            transaction: begun, with its writers at work or done.
            metadata: JSON values for the manifest; not changed afterwards.
            gather: called first; its errors are the commit's.

        Raises:
            CheckpointError: the commit before failed. This one is not started, and its transaction is cancelled.
        """
        try:
            self.wait()
        except CheckpointError:
            transaction.cancel()
            raise
        commit = self._commit = _Commit(transaction, time.monotonic())

        def run() -> None:
            try:
                sealed = gather() if gather is not None else None
                transaction.commit(metadata=metadata, sealed=sealed)
                self._store.remove_old()
                commit.succeeded = True
            except Exception as error:  # the thread's boundary: `poll` and `wait` raise it in the caller's
                transaction.cancel()
                commit.error = error
            finally:
                commit.done.set()

        # A daemon, as a thread that hangs on a dead file system must not keep the process from ending.
        threading.Thread(target=run, name=f"commit-{transaction.step}", daemon=True).start()

    def poll(self) -> None:
        """Looks whether the commit under way has ended. Call it once a step.

        Raises:
            CheckpointError: it failed, or its deadline has passed. The committer can be used again.
        """
        commit = self._commit
        if commit is None:
            return
        if not commit.done.is_set():
            if time.monotonic() - commit.started < self._deadline_s:
                return
            # No `cancel` here: removing files could hang as the commit does.
            commit.transaction.give_up()
        self._commit = None
        self._require_success(commit)

    def wait(self) -> None:
        """As `poll`, but waits for the end, until the deadline at most."""
        while self._commit is not None:
            self._commit.done.wait(max(0.0, self._commit.started + self._deadline_s - time.monotonic()))
            self.poll()

    def _require_success(self, commit: _Commit) -> None:
        step = commit.transaction.step
        if isinstance(commit.error, CheckpointError):
            raise commit.error
        if commit.error is not None:
            raise CheckpointError(
                f"the checkpoint of step {step} failed: a component could not write its part",
                value=f"{type(commit.error).__name__}: {commit.error}",
            ) from commit.error
        if not commit.succeeded:
            raise CheckpointError(
                f"the checkpoint of step {step} was not done by its deadline",
                value=f"{self._deadline_s} s",
                fix="is the file system still answering? Raise the checkpoint deadline if it is only slow",
            )
