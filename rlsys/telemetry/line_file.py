"""A file that grows by whole lines."""

import os
from pathlib import Path

from rlsys.errors import RlsysError


class LineFile:
    """Appends lines, each flushed to the system at once, so that a killed process loses no line that it wrote.

    Half a line, left by a process killed inside a write, is cut off at opening: the next must not be glued to it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer: what a full disk refuses would be written, and refused, again at the close.
        self._file = self.path.open("a+b", buffering=0)
        with self.path.open("rb") as lines:
            self._file.truncate(sum(len(line) for line in lines if line.endswith(b"\n")))

    def append(self, text: str) -> None:
        """Writes one or more lines; the text ends with a line's end.

        Raises:
            RlsysError: the disk is full, say.
        """
        assert text.endswith("\n"), text
        left = memoryview(text.encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise RlsysError(
                f"{self.path} cannot be written",
                value=error.strerror,
                fix="make room and give the same command again: it goes on after the last checkpoint",
            ) from error

    def size(self) -> int:
        """The file's length in bytes, all of it on disk."""
        os.fsync(self._file.fileno())
        return self.path.stat().st_size

    def ends_a_line(self, position: int) -> bool:
        """Whether a line ends, and so another may begin, at that byte."""
        self._file.seek(max(position - 1, 0))
        return position == 0 or self._file.read(1) == b"\n"

    def truncate(self, position: int) -> None:
        """Drops what lies after that byte, on disk too."""
        self._file.truncate(position)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Everything to disk; a second call does nothing."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()
