"""One checkpoint being written: a hidden folder that becomes a checkpoint in a single rename, or goes away.

transaction = store.begin(step)
... every component writes below transaction.folder, and may return seal(transaction.folder, under="policy") ...
transaction.commit(metadata={"ledger": ledger.state_dict()}, sealed=digests)
"""

import os
import shutil
import threading
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlsys.checkpoint.checkpoint import folder_name
from rlsys.checkpoint.durable_file import sync, sync_folders
from rlsys.checkpoint.manifest import MANIFEST, MANIFEST_DIGEST, Manifest, write_manifest
from rlsys.checkpoint.seal import FileDigest, digest_files, list_files
from rlsys.errors import CheckpointError

UNFINISHED = ".unfinished-"


class Transaction:
    """Made by `CheckpointStore.begin`.

    Args:
        step: of the run.
        parent: the folder of checkpoints; the transaction's own is made in it.

    Raises:
        CheckpointError: the step is committed already, or the folder cannot be made.
    """

    def __init__(self, step: int, parent: Path) -> None:
        self.step = step
        self.destination = parent / folder_name(step)
        self.folder = parent / f"{UNFINISHED}{self.destination.name}-{uuid.uuid4().hex[:8]}"
        """Where to write; on a file system that every writer shares. Its name is new each time, which keeps out whoever
        still writes to an earlier attempt at this step."""
        self._state_lock = threading.Lock()
        self._state = "open"
        self._committed = False
        if self.destination.exists():
            raise CheckpointError(
                "the step is committed already", value=str(self.destination), fix="rewind the store before a resume"
            )
        try:
            self.folder.mkdir(parents=True)
        except OSError as error:
            raise _cannot("begun", self.destination, error) from error

    def commit(
        self, *, metadata: Mapping[str, Any] | None = None, sealed: Mapping[str, FileDigest] | None = None
    ) -> Manifest:
        """Syncs and digests every file, then publishes the folder by one rename. After an error nothing is left of it.

        Args:
            metadata: JSON values, kept in the manifest.
            sealed: digests from `seal`, of files that their writers have synced; those are not read again.

        Raises:
            CheckpointError: the disk is full, a sealed file is missing or of another size, or it was cancelled.
        """
        try:
            manifest = Manifest(self.step, self._digests(sealed or {}), metadata or {})
            write_manifest(self.folder, manifest)
            sync_folders(self.folder)
            if not self._leave_open("renamed"):
                raise CheckpointError(f"the checkpoint of step {self.step} was given up before it was whole")
            os.rename(self.folder, self.destination)
            self._committed = True
            sync(self.destination.parent)
        except OSError as error:
            raise _cannot("committed", self.destination, error) from error
        finally:
            if not self._committed:
                self._leave_open("given up")
                self._remove()
        return manifest

    def give_up(self) -> bool:
        """From any thread, touching no disk: whether it is now certain that this checkpoint will not appear."""
        return self._leave_open("given up") or self._state == "given up"

    def cancel(self) -> None:
        """Gives it up and removes what was written; does nothing once it is committed."""
        if self.give_up():
            self._remove()

    def _leave_open(self, state: str) -> bool:
        with self._state_lock:
            if self._state != "open":
                return False
            self._state = state
            return True

    def _remove(self) -> None:
        # A writer that is still at it may leave something; `CheckpointStore.clean` takes that at the next start.
        shutil.rmtree(self.folder, ignore_errors=True)

    def _digests(self, sealed: Mapping[str, FileDigest]) -> dict[str, FileDigest]:
        names = list_files(self.folder)
        if reserved := {MANIFEST, MANIFEST_DIGEST}.intersection(names):
            raise CheckpointError("a component wrote a file of a reserved name", value=sorted(reserved))
        if unseen := sorted(sealed.keys() - set(names)):
            raise CheckpointError(
                "files written by other processes are not there", value=unseen, fix="put runs on a shared file system"
            )
        for name, digest in sealed.items():
            if (num_bytes := (self.folder / name).stat().st_size) != digest.num_bytes:
                raise CheckpointError(
                    f"{name} changed after its writer had sealed it", value=f"{num_bytes} bytes, not {digest.num_bytes}"
                )
        unsealed = [name for name in names if name not in sealed]
        for name in unsealed:
            sync(self.folder / name)
        return {**sealed, **digest_files(self.folder, unsealed)}


def _cannot(done: str, destination: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {destination.name} cannot be {done}",
        value=error.strerror or str(error),
        fix=f"free space in {destination.parent} or mend its permissions; older checkpoints are untouched",
    )
