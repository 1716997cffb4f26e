"""What was asked and answered, on disk: one line of JSON an answer, so that nothing paid for is asked for twice."""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from rlsys.errors import DataError

Key: TypeAlias = tuple[str | int, ...]
"""Of a response (prompt id, model, sample); of a rating (prompt id, response, judge, aspect, ask)."""


class ResponseStore:
    """An append-only file of (key, value) lines that survives a kill at any moment.

    A line counts once it is whole and on the disk. What a kill left of the last line is cut off when the file is opened
    again; a line that cannot be read is skipped and counted, and its answer is asked for again. Values stay on disk,
    keys are in memory. One process at a time has the file.

    >>> with ResponseStore("answers.jsonl") as store:  # doctest: +SKIP
    ...     store.append(("gsm8k/17", "sft", 0), {"text": "72"})

    Args:
        path: created with its folder where absent.

    Raises:
        DataError: another process has the file open.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise DataError(
                "another process has the store open", value=str(path), fix="let it end, or use another run folder"
            ) from None
        self.num_damaged = 0
        """Lines that could not be read."""
        self._places: dict[Key, tuple[int, int]] = {}
        self._end = 0
        self._recover()

    def __contains__(self, key: Key) -> bool:
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Key]:
        """Keys in the order of their lines."""
        return iter(self._places)

    def __getitem__(self, key: Key) -> Any:
        """The value of the key; KeyError where there is none."""
        start, length = self._places[key]
        return json.loads(os.pread(self._file, length, start))["value"]

    def append(self, key: Key, value: Any) -> None:
        """Adds one answer; it is on the disk when this returns.

        Raises:
            ValueError: the key is there already, so that something was asked for twice; or the value is not JSON.
        """
        self.append_all([(key, value)])

    def append_all(self, items: Iterable[tuple[Key, Any]]) -> None:
        """Adds several answers with one write; after a kill within it, a prefix of them is there."""
        lines: list[bytes] = []
        places: dict[Key, tuple[int, int]] = {}
        end = self._end
        for key, value in items:
            if key in self._places or key in places:
                raise ValueError(f"{key} is in the store already: it was asked for twice")
            line = json.dumps({"key": key, "value": value}, allow_nan=False).encode("ascii") + b"\n"
            places[key] = (end, len(line))
            end += len(line)
            lines.append(line)
        try:
            _write_all(self._file, b"".join(lines))
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._end)  # a full disk: half a line must not spoil the next one
            raise
        self._places |= places
        self._end = end

    def close(self) -> None:
        """Lets another process have the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _recover(self) -> None:
        with open(self.path, "rb") as stream:
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                key = _key_of(line)
                if key is None:
                    self.num_damaged += 1
                else:
                    self._places[key] = (self._end, len(line))
                self._end += len(line)
        if self._end < os.fstat(self._file).st_size:
            os.ftruncate(self._file, self._end)
            os.fsync(self._file)


def _key_of(line: bytes) -> Key | None:
    try:
        return tuple(json.loads(line)["key"])
    except (ValueError, KeyError, TypeError):
        return None


def _write_all(file: int, data: bytes) -> None:
    """A write may be short: the rest follows, or the disk's error comes up."""
    while data:
        data = data[os.write(file, data) :]
