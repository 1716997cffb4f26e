"""Folders that appear whole or not at all: written beside their place, synced, renamed once."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlsys.checkpoint.durable_file import sync
from rlsys.errors import DataError


@contextmanager
def publishing(folder: Path, *, marker: str) -> Iterator[Path]:
    """A draft folder to write in, which takes the place of `folder` at the end unless an exception leaves the block.

    Args:
        folder: where it appears; an earlier one that holds `marker` is replaced.
        marker: name of a file that every such folder has.

    Raises:
        DataError: the folder exists and has no such file, so that it is somebody else's.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    require_replaceable(folder, marker=marker)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        for path in draft.iterdir():
            sync(path)
        sync(draft)
        _swap(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def require_replaceable(folder: Path, *, marker: str) -> None:
    """Raises DataError where something else than such a folder, or an empty one, is in the way."""
    if folder.exists() and not (folder / marker).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"the folder exists and has no {marker}", value=str(folder), fix="choose another folder")


def _swap(draft: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(old)
    draft.rename(folder)
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
