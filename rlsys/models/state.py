"""Everything that training needs to go on, in a folder: each rank's DeepSpeed state and torch's random
generators (dropout). The order of data is a pure function of the seed and needs no state."""

from pathlib import Path

import torch

from rlsys.errors import CheckpointError
from rlsys.models.engine import TrainEngine

_TAG = "deepspeed"


def save_state(engine: TrainEngine, folder: str | Path) -> None:
    """Write this rank's part. Collective; the folder is shared by all ranks' nodes. Its commit is the caller's."""
    engine.engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
    generators = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if engine.group.device.type == "cuda" else None,
    }
    torch.save(generators, _generators_file(folder, engine.group.rank))
    engine.group.barrier()


def load_state(engine: TrainEngine, folder: str | Path) -> None:
    """Go on from `save_state`, with as many ranks as wrote it. Collective.

    Raises:
        CheckpointError: the folder lacks this rank's part, or another number of ranks wrote it.
    """
    ranks = len(list(Path(folder).glob("generators_rank*.pt")))
    if ranks != engine.group.world_size:
        raise CheckpointError(
            f"{folder} was written by {ranks} ranks, not {engine.group.world_size}",
            fix="run with as many learner ranks, or convert it to a universal checkpoint",
        )
    path, _ = engine.engine.load_checkpoint(str(folder), tag=_TAG)
    if path is None:
        raise CheckpointError("the checkpoint holds no DeepSpeed state", value=str(folder))
    generators = torch.load(_generators_file(folder, engine.group.rank), weights_only=True)
    torch.set_rng_state(generators["torch"])
    if generators["cuda"] is not None:
        torch.cuda.set_rng_state(generators["cuda"])
    engine.group.barrier()


def _generators_file(folder: str | Path, rank: int) -> Path:
    return Path(folder) / f"generators_rank{rank:05d}.pt"
