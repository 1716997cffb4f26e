"""A file that grows by whole lines."""

import os
from pathlib import Path


class LineFile:
    """Appends lines, each flushed to the system at once, so that a killed process loses no line that it wrote.

    Half a line, left by a process killed inside a write, is cut off at opening: the next must not be glued to it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        self._file.seek(0)
        whole = sum(len(line) for line in self._file if line.endswith(b"\n"))
        self._file.truncate(whole)

    def append(self, text: str) -> None:
        """Writes one or more lines; the text ends with a line's end."""
        assert text.endswith("\n"), text
        self._file.write(text.encode())
        self._file.flush()

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
