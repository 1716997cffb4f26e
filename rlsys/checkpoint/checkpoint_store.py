"""A stage's checkpoints: begun, committed, found again, set aside, removed."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rlsys.checkpoint.checkpoint import Checkpoint, folder_name, step_of
from rlsys.checkpoint.durable_file import sync
from rlsys.checkpoint.retention import Retention
from rlsys.checkpoint.transaction import UNFINISHED, Transaction
from rlsys.errors import CheckpointError

REMOVING = ".removing-"
SET_ASIDE = ".set-aside-"


@dataclass(frozen=True, slots=True)
class Found:
    """The newest intact checkpoint, and the newer ones that are not.

    >>> Found(None, ("step_000100: manifest.json cannot be read: No such file or directory",)).passed_over[0][:11]
    'step_000100'
    """

    checkpoint: Checkpoint | None
    """None: there is no checkpoint at all, and the run starts at its beginning."""
    passed_over: tuple[str, ...]
    """For each damaged one, newest first: its name and what is wrong with it."""


def latest_intact(folder: Path) -> Found:
    """The newest checkpoint whose every digest matches.

    Raises:
        CheckpointError: there are checkpoints, and all of them are damaged: starting anew must be asked for.
    """
    passed_over = []
    for step in reversed(committed_steps(folder)):
        try:
            return Found(Checkpoint(folder / folder_name(step)), tuple(passed_over))
        except CheckpointError as error:
            passed_over.append(f"{folder_name(step)}: {error.value}")
    if passed_over:
        raise CheckpointError(
            f"every checkpoint in {folder} is damaged",
            value=passed_over,
            fix="restore one from a copy, or remove them all to start the stage anew",
        )
    return Found(None, ())


def committed_steps(folder: Path) -> list[int]:
    """Steps that have a checkpoint, intact or not, ascending."""
    if not folder.is_dir():
        return []
    return sorted(step for path in folder.iterdir() if path.is_dir() and (step := step_of(path.name)) is not None)


def set_aside(folder: Path) -> Path:
    """Renames a folder, so that it is found no more; gives its new path."""
    number = 1
    while (target := folder.with_name(f"{folder.name}{SET_ASIDE}{number}")).exists():
        number += 1
    os.rename(folder, target)
    sync(folder.parent)
    return target


class CheckpointStore:
    """One writer at a time: `RunFolder` holds the lock.

    Args:
        folder: `<run>/<nn-stage>/checkpoints`; made when the first checkpoint is begun.
        retention: applied by `remove_old`.
    """

    def __init__(self, folder: Path, retention: Retention | None = None) -> None:
        self.folder = folder
        self.retention = retention or Retention()

    @property
    def steps(self) -> list[int]:
        """Steps that have a checkpoint, intact or not, ascending."""
        return committed_steps(self.folder)

    def begin(self, step: int) -> Transaction:
        """A new checkpoint of that step.

        Raises:
            CheckpointError: the step is committed already, or the folder cannot be written to.
        """
        return Transaction(step, self.folder)

    def recover(self, step: int | None = None) -> Found:
        """What to do at the start of a run: cleans, finds where to go on, and sets everything newer aside.

        Newer checkpoints are damaged, or of a future that this run gives up; they are kept under another name, which
        is never loaded.

        Args:
            step: go on from this one, in place of the newest intact one.

        Raises:
            CheckpointError: the step's checkpoint is damaged or missing, or there are only damaged ones.
        """
        self.clean()
        found = latest_intact(self.folder) if step is None else Found(Checkpoint(self.folder / folder_name(step)), ())
        if found.checkpoint is not None:
            self.set_aside_after(found.checkpoint.step)
        return found

    def clean(self) -> list[str]:
        """Removes what interrupted commits and removals left, and gives its names. Only while nothing is written."""
        if not self.folder.is_dir():
            return []
        left = [path for path in self.folder.iterdir() if path.name.startswith((UNFINISHED, REMOVING))]
        for path in left:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        return sorted(path.name for path in left)

    def set_aside_after(self, step: int) -> list[Path]:
        """Renames every checkpoint of a later step, so that it is found no more; gives the new names."""
        return [set_aside(self.folder / folder_name(later)) for later in self.steps if later > step]

    def remove_old(self) -> list[int]:
        """Removes what the retention lets go; a removal that is interrupted leaves no damaged checkpoint behind.

        Raises:
            CheckpointError: one cannot be removed.
        """
        removed = sorted(self.retention.steps_to_remove(self.steps))
        for step in removed:
            doomed = self.folder / f"{REMOVING}{folder_name(step)}"
            shutil.rmtree(doomed, ignore_errors=True)
            try:
                os.rename(self.folder / folder_name(step), doomed)
            except OSError as error:
                raise CheckpointError("an old checkpoint cannot be removed", value=str(error)) from error
            shutil.rmtree(doomed, ignore_errors=True)
        return removed
