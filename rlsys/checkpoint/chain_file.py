"""A file of JSON lines that grows with the run and goes back with it: one record for every ordinal's end, say.

Records are appended and synced before the checkpoint that implies them is committed; the checkpoint keeps the
position. A resume cuts the file there, so that it always tells the story of the chain of committed checkpoints and of
nothing else. It may grow without bound where a checkpoint must not.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rlsys.errors import CheckpointError


class ChainFile:
    """Append-only but for `rewind`.

    Args:
        path: of the file; made by the first append.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, records: Iterable[Any]) -> int:
        """Adds records, synced, and gives the position after them, in bytes: what a checkpoint keeps.

        Raises:
            CheckpointError: the disk is full, say; nothing was added.
        """
        content = b"".join(json.dumps(record, allow_nan=False).encode() + b"\n" for record in records)
        try:
            with open(self.path, "ab") as stream:
                start = stream.tell()
                try:
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                except OSError:
                    os.ftruncate(stream.fileno(), start)
                    raise
                return start + len(content)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be written", value=error.strerror, fix="free space") from error

    def rewind(self, position: int) -> None:
        """Forgets everything after a committed position; 0 empties it.

        Raises:
            CheckpointError: the file is shorter than that, or the position is inside of a record.
        """
        num_bytes = self.path.stat().st_size if self.path.exists() else 0
        if num_bytes < position:
            raise CheckpointError(
                f"{self.path} has lost records of committed checkpoints", value=f"{num_bytes} bytes, not {position}"
            )
        if num_bytes == 0:
            return
        with open(self.path, "r+b") as stream:
            stream.seek(max(0, position - 1))
            if position and stream.read(1) != b"\n":
                raise CheckpointError(f"{self.path} has no record that ends there", value=position)
            stream.truncate(position)
            os.fsync(stream.fileno())

    def records(self) -> Iterator[Any]:
        """All records, oldest first."""
        if self.path.exists():
            with open(self.path, "rb") as stream:
                yield from map(json.loads, stream)
