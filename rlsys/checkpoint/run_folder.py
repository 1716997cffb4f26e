"""The run folder: everything of one run, and what to do with one that exists.

    runs/<name>/recipe.toml  manifest.json  metrics.jsonl  trace.json  report.html  logs/
    runs/<name>/<nn-stage>/  done.json  ends.jsonl  checkpoints/step_000100/  hf/  rollouts/  eval/

The resolved recipe, the package versions and the command line are in it before the first model is loaded, for each
start of the run. One driver at a time works in it: the lock goes away with its process, however that ends.
"""

import difflib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlsys.checkpoint.checkpoint import step_of
from rlsys.checkpoint.checkpoint_store import SET_ASIDE, CheckpointStore, set_aside
from rlsys.checkpoint.durable_file import write_durably
from rlsys.errors import CheckpointError

FORMAT = 1
LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class StageFolder:
    """Where one stage leaves what it makes, and whether it is done.

    >>> StageFolder(Path("runs/mine/05-rlvr")).result is None
    True
    """

    path: Path

    @property
    def result(self) -> dict[str, Any] | None:
        """What `finish` was given; None while the stage is not done."""
        mark = self.path / "done.json"
        return json.loads(mark.read_bytes()) if mark.exists() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Marks the stage as done, after everything that it made is on the disk.

        Args:
            result: JSON values, for the table at the end of the run.
        """
        write_durably(self.path / "done.json", json.dumps(dict(result), indent=1).encode())


class RunFolder:
    """Made by `open`; a context manager that holds the lock."""

    def __init__(self, path: Path, lock_descriptor: int, *, recipe_changes: tuple[str, ...]) -> None:
        self.path = path
        self.recipe_changes = recipe_changes
        """Lines of a unified diff from the recipe of the start before to this one's; empty when they are equal."""
        self._lock_descriptor = lock_descriptor

    @classmethod
    def open(cls, path: Path, *, resume: str, recipe_toml: str, command: Sequence[str]) -> "RunFolder":
        """Makes the folder, or goes on with one that exists, and records this start in it.

        Args:
            path: `runs/<name>`.
            resume: `auto` goes on where the folder ends, `never` refuses a folder that exists, and the path of one of
                this run's checkpoints goes on from there, setting aside everything later.
            recipe_toml: the resolved recipe.
            command: the command line.

        Raises:
            CheckpointError: the folder exists and must not, is none of ours, is in use by another driver, or lacks the
                checkpoint.
        """
        starts, checkpoint = cls.check(path, resume=resume)
        with ExitStack() as undo:
            try:
                path.mkdir(parents=True, exist_ok=True)
                descriptor = _lock(path)
                undo.callback(os.close, descriptor)
                if checkpoint is not None:
                    _set_aside_after(path, checkpoint)
                changes = _keep_recipe(path, recipe_toml, number=len(starts))
                (path / "logs").mkdir(exist_ok=True)
                starts.append(_describe_start(recipe_toml, command, resume))
                content = json.dumps({"format": FORMAT, "name": path.name, "starts": starts}, indent=1)
                write_durably(path / "manifest.json", content.encode())
            except OSError as error:
                raise CheckpointError(
                    f"the run folder {path} cannot be written to",
                    value=error.strerror,
                    fix="free space, or set runs elsewhere",
                ) from error
            undo.pop_all()
        return cls(path, descriptor, recipe_changes=changes)

    @staticmethod
    def check(path: Path, *, resume: str) -> tuple[list[dict[str, Any]], Path | None]:
        """What `open` looks at before it changes anything: the run's earlier starts, and the checkpoint to resume from.

        Raises:
            CheckpointError: as `open`, but for the lock and what is in the checkpoint.
        """
        starts = _earlier_starts(path)
        if resume == "never" and path.exists() and any(path.iterdir()):
            raise CheckpointError(
                "the run folder exists",
                value=str(path),
                fix="give the run another name, or --resume auto to go on with it",
            )
        return starts, None if resume in ("auto", "never") else _checkpoint_of(path, Path(resume))

    def stage(self, number: int, label: str) -> StageFolder:
        """The folder of a stage, made if need be.

        Args:
            number: its place in the recipe, 1 for the first.
            label: its name.
        """
        folder = self.path / f"{number:02d}-{label}"
        folder.mkdir(exist_ok=True)
        return StageFolder(folder)

    def set_aside_from(self, number: int) -> list[Path]:
        """Renames the folders of this stage and of all after it, so that they are done again; gives the new paths."""
        return [set_aside(folder) for folder in _stage_folders(self.path) if _number(folder) >= number]

    def close(self) -> None:
        """Lets go of the lock; the process's end does too."""
        if self._lock_descriptor >= 0:
            os.close(self._lock_descriptor)
            self._lock_descriptor = -1

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _earlier_starts(path: Path) -> list[dict[str, Any]]:
    manifest = path / "manifest.json"
    if manifest.exists():
        try:
            tree = json.loads(manifest.read_bytes())
        except ValueError:
            tree = {}
        if tree.get("format") != FORMAT:
            raise CheckpointError(
                "the run folder's manifest is damaged or of another version",
                value=str(manifest),
                fix="give the run another name, or remove the manifest",
            )
        return tree["starts"]
    # A start that was killed before its manifest leaves some of these, and hidden scratch files.
    ours = {"recipe.toml", "logs"}
    if path.exists() and not path.is_dir():
        raise CheckpointError("not a run folder", value=str(path), fix="give the run another name")
    if path.exists() and any(e.name not in ours and not e.name.startswith(".") for e in path.iterdir()):
        raise CheckpointError("not a run folder", value=str(path), fix="give the run another name")
    return []


def _checkpoint_of(path: Path, checkpoint: Path) -> Path:
    checkpoint = checkpoint.resolve()
    if step_of(checkpoint.name) is None or not checkpoint.is_dir():
        raise CheckpointError(
            "--resume takes auto, never or the folder of a checkpoint",
            value=str(checkpoint),
            fix="name a step_… folder",
        )
    if path.resolve() not in checkpoint.parents[2:3]:
        raise CheckpointError(
            f"the checkpoint is not of the run {path}",
            value=str(checkpoint),
            fix="run its own recipe, or name its exported model in a new one",
        )
    return checkpoint


def _lock(path: Path) -> int:
    descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise CheckpointError(
            f"another driver is at work in the run folder {path}",
            value=holder,
            fix="end it first, or give the run another name",
        ) from None
    except OSError:
        os.close(descriptor)
        raise
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def _keep_recipe(path: Path, recipe_toml: str, *, number: int) -> tuple[str, ...]:
    """Writes the recipe; one that differs from it stays as `recipe.<number of the start>.toml`."""
    file = path / "recipe.toml"
    before = file.read_text() if file.exists() else recipe_toml
    if before != recipe_toml and number:
        write_durably(path / f"recipe.{number}.toml", before.encode())
    write_durably(file, recipe_toml.encode())
    return tuple(difflib.unified_diff(before.splitlines(), recipe_toml.splitlines(), "before", "now", lineterm="", n=0))


def _describe_start(recipe_toml: str, command: Sequence[str], resume: str) -> dict[str, Any]:
    packages = {entry.metadata["Name"]: entry.version for entry in importlib.metadata.distributions()}
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "resume": resume,
        "recipe_sha256": hashlib.sha256(recipe_toml.encode()).hexdigest(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": dict(sorted(packages.items(), key=lambda entry: str(entry[0]).lower())),
    }


def _stage_folders(path: Path) -> list[Path]:
    named = (entry for entry in path.iterdir() if entry.is_dir() and SET_ASIDE not in entry.name)
    return sorted(entry for entry in named if entry.name[:2].isdigit() and entry.name[2:3] == "-")


def _number(stage_folder: Path) -> int:
    return int(stage_folder.name[:2])


def _set_aside_after(path: Path, checkpoint: Path) -> None:
    """Everything later than the checkpoint: its store's newer ones, its stage's mark, and the stages after it."""
    stage_folder = checkpoint.parents[1]
    found = CheckpointStore(checkpoint.parent).recover(step_of(checkpoint.name))
    assert found.checkpoint is not None
    (stage_folder / "done.json").unlink(missing_ok=True)
    for later in _stage_folders(path):
        if _number(later) > _number(stage_folder):
            set_aside(later)
