"""Files that are either there, whole and on the disk, or not there at all."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def write_durably(path: Path, content: bytes | Iterable[bytes]) -> None:
    """Replaces the file in one step: whoever opens it, after a crash too, finds the old content or the new.

    Args:
        path: of the file.
        content: whole, or in parts that need not all be in memory.

    Raises:
        OSError: the disk is full, say; the old file is as it was.
    """
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with open(scratch, "wb") as stream:
            stream.writelines([content] if isinstance(content, bytes) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk.

    Raises:
        OSError: it cannot be written; what is on the disk is then unknown, and trying again proves nothing.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folders(folder: Path) -> None:
    """Syncs every folder of a tree, the inner ones first; the files are the caller's to sync."""
    for inner, _, _ in os.walk(folder, topdown=False):
        sync(Path(inner))
