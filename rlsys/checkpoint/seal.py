"""Digests of files: taken by whoever wrote them, checked by whoever reads them."""

import hashlib
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from rlsys.checkpoint.durable_file import sync
from rlsys.errors import CheckpointError

CHUNK_BYTES = 4 * 1024 * 1024
MAX_THREADS = 8
"""Hashing releases the interpreter's lock, so that files are digested side by side."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size and SHA-256 of one file.

    >>> FileDigest(3, "ab12").num_bytes
    3
    """

    num_bytes: int
    sha256: str
    """Lower-case hexadecimal."""


def digest_stream(stream: BinaryIO) -> FileDigest:
    """Reads to the end."""
    sha, num_bytes = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK_BYTES):
        sha.update(chunk)
        num_bytes += len(chunk)
    return FileDigest(num_bytes, sha.hexdigest())


def digest_files(folder: Path, names: Collection[str]) -> dict[str, FileDigest]:
    """Digests files in parallel.

    Raises:
        OSError: one cannot be read.
    """

    def digest(name: str) -> FileDigest:
        with open(folder / name, "rb") as stream:
            return digest_stream(stream)

    with ThreadPoolExecutor(max_workers=max(1, min(MAX_THREADS, os.cpu_count() or 1, len(names)))) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def seal(folder: Path, *, under: str = "") -> dict[str, FileDigest]:
    """Syncs and digests what a component wrote, on the machine where it wrote it; the commit then need not read it.

    Args:
        folder: `Transaction.folder`.
        under: the component's own sub-folder of it, such as `policy`; all of it when empty.

    Returns:
        By name relative to `folder`, with `/`.

    Raises:
        OSError: a file cannot be synced or read.
        CheckpointError: something is not a plain file.
    """
    names = [f"{under}/{name}" if under else name for name in list_files(folder / under)]
    for name in names:
        sync(folder / name)
    return digest_files(folder, names)


def list_files(folder: Path) -> list[str]:
    """Names of all files in the tree, relative, with `/`, ascending.

    Raises:
        CheckpointError: something is neither a plain file nor a folder: its content could change after its digest.
    """
    names = []
    for inner, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(inner, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise CheckpointError(
                    "a checkpoint holds plain files only", value=str(path), fix="write a copy of the file itself"
                )
        names += [Path(inner, name).relative_to(folder).as_posix() for name in files]
    return sorted(names)
