"""Models' states in a checkpoint: whether there is room for all, their snapshots, and the wait for their files."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from actors.groups import ModelGroup
from rlsys.checkpoint.seal import FileDigest
from rlsys.errors import CheckpointError
from rlsys.recipe.cluster import ClusterSettings

POLL_S = 0.05
WRITE_DEADLINE_S = 900.0
"""For files, digests and the rename."""


def commit_deadline_s(cluster: ClusterSettings) -> float:
    """For a checkpoint, from its snapshot on: ranks say that they have written it when the call under way is over."""
    return WRITE_DEADLINE_S + cluster.operation_timeout_s


def save_states(
    groups: Mapping[str, ModelGroup], folder: Path, *, deadline_s: float
) -> Callable[[], dict[str, FileDigest]]:
    """Takes snapshots of all groups' states, each into a folder of its name; their ranks write them meanwhile.

    Args:
        groups: by the name of their folder.
        folder: of the checkpoint.
        deadline_s: for the writing.

    Returns:
        What waits until everything is written, and gives the digests that the ranks made of it. Ranks answer between
        two calls, so that training goes on.

    Raises:
        CheckpointError: there is no room for all of them together.
    """
    targets = {name: str(folder / name) for name in groups}
    rooms = [answer.get() for answer in [group.save_room(targets[name]) for name, group in groups.items()]]
    needed, free = sum(needed for needed, _ in rooms), min(free for _, free in rooms)
    if free < needed:
        raise CheckpointError(
            f"no space left for a checkpoint: it takes {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free",
            value=str(folder),
            fix="make room, or move the runs to another disk",
        )
    for answer in [group.save(targets[name]) for name, group in groups.items()]:
        answer.get()

    def wait() -> dict[str, FileDigest]:
        ends_at = time.monotonic() + deadline_s
        sealed: dict[str, FileDigest] = {}
        for name, group in groups.items():
            while (files := group.saved_files(targets[name]).get()) is None:
                if time.monotonic() > ends_at:
                    raise CheckpointError("a checkpoint was not written", value=f"{deadline_s:g} s")
                time.sleep(POLL_S)
            sealed |= {f"{name}/{file}": digest for file, digest in files.items()}
        return sealed

    return wait
