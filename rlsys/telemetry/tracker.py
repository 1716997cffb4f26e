"""Where the metrics of a step go."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from rlsys.errors import CheckpointError
from rlsys.telemetry.line_file import LineFile
from rlsys.telemetry.names import check_name

Position: TypeAlias = dict[str, Any]
"""How far a tracker has written: JSON values, part of a checkpoint."""


class Tracker(Protocol):
    """Takes the metrics of each step, once a step."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes one step.

        Args:
            step: the stage's clock: rollout batches for RLVR, optimizer steps elsewhere.
            metrics: by names that `names.check_name` accepts.
        """
        ...

    def position(self) -> Position:
        """What a checkpoint keeps, so that `restore` can take back what was written after it."""
        ...

    def restore(self, position: Position) -> None:
        """Goes back to a committed position."""
        ...

    def close(self) -> None:
        """Writes what is buffered and lets go; a second call does nothing."""
        ...


class JsonlTracker:
    """metrics.jsonl: one line of JSON a step, appended and flushed, so that a killed run loses no finished line.

    A line is `{"stage": ., "step": ., "time": unix seconds, <metric>: .}`; a metric that is NaN or infinite is null.
    Several stages, one after the other, share a file.
    """

    def __init__(self, path: str | Path, *, stage: str = "") -> None:
        self._stage = stage
        self._file = LineFile(path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Appends one line.

        Raises:
            ValueError: a metric's name has the wrong form or namespace.
        """
        values = {check_name(name): float(value) for name, value in metrics.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"stage": self._stage, "step": step, "time": round(time.time(), 3), **finite}
        self._file.append(json.dumps(line) + "\n")

    def position(self) -> Position:
        """The file's length in bytes, all of it on disk."""
        return {"bytes": self._file.size()}

    def restore(self, position: Position) -> None:
        """Drops the lines written after the position was taken: those steps will be run again.

        Raises:
            CheckpointError: the file is shorter than that, or was changed so that the position is inside a line.
        """
        keep, size, path = position["bytes"], self._file.size(), self._file.path
        fix = "restore metrics.jsonl from the run that wrote the checkpoint, or resume in a new run folder"
        if size < keep:
            raise CheckpointError(f"{path} is shorter than the checkpoint says ({keep} bytes)", value=size, fix=fix)
        if not self._file.ends_a_line(keep):
            raise CheckpointError(f"{path} was changed since the checkpoint", value=position, fix=fix)
        self._file.truncate(keep)

    def close(self) -> None:
        """Everything to disk."""
        self._file.close()


class MultiTracker:
    """Hands every call to several trackers."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)
        kinds = [type(tracker).__name__ for tracker in trackers]
        self._names = [f"{kind}-{kinds[:number].count(kind)}" for number, kind in enumerate(kinds)]

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """To each, in order."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def position(self) -> Position:
        """Of each, by its kind and its number among those of the kind."""
        return {name: tracker.position() for name, tracker in zip(self._names, self._trackers, strict=True)}

    def restore(self, position: Position) -> None:
        """Of each that the checkpoint knew: trackers may have been added or left out since."""
        for name, tracker in zip(self._names, self._trackers, strict=True):
            if name in position:
                tracker.restore(position[name])

    def close(self) -> None:
        """Each, in order."""
        for tracker in self._trackers:
            tracker.close()


def read_metrics(path: str | Path) -> Iterator[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first; a torn last line is left out."""
    with Path(path).open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield json.loads(line)
