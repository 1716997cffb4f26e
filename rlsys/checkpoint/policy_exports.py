"""The models that a stage exported as its best so far, one of which becomes `hf/` when the stage ends.

    hf.draft/ --whole--> hf.step_000020/ --the stage's end--> hf/

Which step is the best goes back with a checkpoint, so that more than one is kept: `hf/` alone could hold weights of
batches that a resume has forgotten.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rlsys.checkpoint.durable_file import sync, write_durably


class PolicyExports:
    """In the folder of one stage.

    >>> import tempfile
    >>> exports = PolicyExports(Path(tempfile.mkdtemp()))
    >>> exports.add(20, lambda folder: folder.mkdir())
    >>> exports.finish(20), sorted(path.name for path in exports.folder.iterdir())
    (None, ['exported.json', 'hf'])
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, step: int, write: Callable[[Path], None]) -> None:
        """Has `write` make the model's folder, and keeps it under its step in place of an earlier one."""
        draft = self.folder / "hf.draft"
        _remove(draft)
        write(draft)
        self._rename(draft, self._of(step))

    def holds(self, step: int) -> bool:
        """Whether the model of that step is there, whole."""
        return self._of(step).is_dir()

    def forget_before(self, step: int) -> None:
        """Removes models of earlier steps, which no checkpoint that will be resumed from calls the best."""
        for path in self.folder.glob("hf.step_*"):
            if path < self._of(step):
                _remove(path)

    def finish(self, step: int) -> None:
        """Makes the model of that step `hf/`, and removes the others."""
        write_durably(self.folder / "exported.json", json.dumps({"step": step}).encode())
        self._rename(self._of(step), self.folder / "hf")
        for path in (*self.folder.glob("hf.step_*"), self.folder / "hf.draft"):
            _remove(path)

    def reopen(self) -> None:
        """Undoes `finish`, for a stage that goes on from a checkpoint."""
        hf, about = self.folder / "hf", self.folder / "exported.json"
        if hf.is_dir() and about.exists():
            self._rename(hf, self._of(json.loads(about.read_bytes())["step"]))

    def _of(self, step: int) -> Path:
        return self.folder / f"hf.step_{step:06d}"

    def _rename(self, source: Path, target: Path) -> None:
        _remove(target)
        os.rename(source, target)
        sync(self.folder)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
