"""A committed checkpoint, open for reading. Nothing is loaded from it before its digest was checked."""

import io
from pathlib import Path

from rlsys.checkpoint.manifest import Manifest, find_damage, read_manifest
from rlsys.checkpoint.seal import digest_stream
from rlsys.errors import CheckpointError

PREFIX = "step_"


class Checkpoint:
    """An intact checkpoint.

    Args:
        path: a committed folder `step_000100`.

    Raises:
        CheckpointError: it is no checkpoint, or damaged; names every damaged file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_intact(path)

    @property
    def step(self) -> int:
        """Of the run, as given to `begin`."""
        return self.manifest.step

    def open(self, name: str) -> io.BufferedReader:
        """Opens a file, reads it through, compares its digest and goes back to its start.

        What is then read is what was checked: the file is open already, and a rename cannot exchange it.

        Raises:
            CheckpointError: the manifest does not list the file, or it has changed.
        """
        expected = self.manifest.files.get(name)
        if expected is None:
            raise CheckpointError(
                f"checkpoint {self.path.name} has no such file", value=name, fix="only files of the manifest are read"
            )
        stream = io.open(self.path / name, "rb")  # noqa: UP020, SIM115 - the caller closes it; `open` is this method
        if digest_stream(stream) != expected:
            stream.close()
            raise CheckpointError(f"checkpoint {self.path.name} is damaged", value=f"{name} has another SHA-256")
        stream.seek(0)
        return stream


def folder_name(step: int) -> str:
    """Of a committed checkpoint.

    >>> folder_name(100)
    'step_000100'
    """
    return f"{PREFIX}{step:06d}"


def step_of(name: str) -> int | None:
    """The step of a committed checkpoint's folder; None for any other name.

    >>> step_of("step_000100"), step_of("step_000100.set-aside-1"), step_of("step_7")
    (100, None, 7)
    """
    digits = name.removeprefix(PREFIX)
    return int(digits) if name.startswith(PREFIX) and digits.isascii() and digits.isdigit() else None


def _read_intact(path: Path) -> Manifest:
    try:
        manifest = read_manifest(path)
        damage = find_damage(path, manifest)
        if manifest.step != step_of(path.name):
            damage = [f"it is the checkpoint of step {manifest.step} under another name", *damage]
    except ValueError as error:
        damage, manifest = [str(error)], None
    if damage or manifest is None:
        raise CheckpointError(
            f"checkpoint {path.name} is damaged or none", value="; ".join(damage), fix="resume from another one"
        )
    return manifest
