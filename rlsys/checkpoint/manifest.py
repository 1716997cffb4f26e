"""The list of a checkpoint's files with their digests: what makes a folder a checkpoint, and its damage visible."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rlsys.checkpoint.durable_file import write_durably
from rlsys.checkpoint.seal import FileDigest, digest_files

MANIFEST = "manifest.json"
MANIFEST_DIGEST = "manifest.json.sha256"
"""In the form of `sha256sum`, so that `sha256sum -c` can check it."""
FORMAT = 2


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a checkpoint holds.

    >>> Manifest(100, {"policy/weights.bin": FileDigest(3, "ab12")}, {"score": 0.5}).step
    100
    """

    step: int
    files: Mapping[str, FileDigest]
    """By name relative to the checkpoint's folder, with `/`; this file and its digest excepted."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: what the committer wants to know before any file is opened."""


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest and its digest.

    Raises:
        OSError: the disk is full, say.
        ValueError: the metadata are no JSON values.
    """
    tree = {
        "format": FORMAT,
        "step": manifest.step,
        "metadata": dict(manifest.metadata),
        "files": {name: asdict(file) for name, file in sorted(manifest.files.items())},
    }
    content = json.dumps(tree, indent=1, allow_nan=False).encode()
    write_durably(folder / MANIFEST, content)
    write_durably(folder / MANIFEST_DIGEST, _digest_line(content))


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest, after its digest was checked.

    Raises:
        ValueError: it is missing or damaged, which the message tells.
    """
    try:
        content, digest_line = (folder / MANIFEST).read_bytes(), (folder / MANIFEST_DIGEST).read_bytes()
    except OSError as error:
        raise ValueError(f"{Path(error.filename).name} cannot be read: {error.strerror}") from None
    if digest_line != _digest_line(content):
        raise ValueError(f"{MANIFEST} does not match {MANIFEST_DIGEST}")
    tree = json.loads(content)
    if tree["format"] != FORMAT:
        raise ValueError(f"{MANIFEST} has format {tree['format']}; this version reads {FORMAT}")
    files = {name: FileDigest(**entry) for name, entry in tree["files"].items()}
    if outside := [name for name in files if not _stays_inside(name)]:
        raise ValueError(f"{MANIFEST} names files outside of the checkpoint: {outside}")
    return Manifest(tree["step"], files, tree["metadata"])


def find_damage(folder: Path, manifest: Manifest) -> list[str]:
    """What is wrong with the files, one sentence each; empty when the checkpoint is intact.

    A file that the manifest does not list is damage too: whoever opens what is in the folder must not find it. Names
    with a dot in front are scratch files of a resume that was killed. Sizes are compared before any file is read.
    """
    listed = {MANIFEST, MANIFEST_DIGEST, *manifest.files}
    damage = [f"{name} is not in the manifest" for name in sorted(_file_names(folder) - listed)]
    for name, expected in manifest.files.items():
        path = folder / name
        if path.is_symlink() or not path.is_file():
            damage.append(f"{name} is missing")
        elif (num_bytes := path.stat().st_size) != expected.num_bytes:
            damage.append(f"{name} has {num_bytes} bytes in place of {expected.num_bytes}")
    if damage:
        return damage
    try:
        found = digest_files(folder, list(manifest.files))
    except OSError as error:
        return [f"{error.filename} cannot be read: {error.strerror}"]
    return [f"{name} has another SHA-256" for name, expected in manifest.files.items() if found[name] != expected]


def _file_names(folder: Path) -> set[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}


def _digest_line(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}  {MANIFEST}\n".encode()


def _stays_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
