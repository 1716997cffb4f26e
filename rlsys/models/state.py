"""Everything that training needs to go on, in a folder: each rank's DeepSpeed state and torch's random
generators (dropout). The order of data is a pure function of the seed and needs no state.
"""

import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

import torch

from rlsys.errors import CheckpointError
from rlsys.models.engine import TrainEngine
from rlsys.models.loading import whole_size

_TAG = "deepspeed"
BYTES_A_WEIGHT = 12
"""What training needs of a weight, in float32: itself and Adam's two moments."""


def save_state(engine: TrainEngine, folder: str | Path) -> None:
    """Write this rank's part. Collective; the folder is shared by all ranks' nodes. Its commit is the caller's.

    Raises:
        CheckpointError: the disk has no room for it, or writing failed.
    """
    _require_room(engine, Path(folder))
    try:
        engine.engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
    except (OSError, RuntimeError) as error:
        free_mib = shutil.disk_usage(folder).free >> 20
        raise CheckpointError(
            f"a checkpoint cannot be written: {error}",
            value=str(folder),
            fix=f"{free_mib} MiB are free there: make room, or move the runs",
        ) from error
    generators = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if engine.group.device.type == "cuda" else None,
    }
    torch.save(generators, _generators_file(folder, engine.group.rank))
    engine.group.barrier()


def _require_room(engine: TrainEngine, folder: Path) -> None:
    """Every rank alike, before the first byte: a rank that fails alone leaves the others in DeepSpeed's barriers."""
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    needed = BYTES_A_WEIGHT * sum(whole_size(parameter) for parameter in trained)
    folder.mkdir(parents=True, exist_ok=True)
    free = min(engine.group.gather(shutil.disk_usage(folder).free))
    if free < needed:
        raise CheckpointError(
            f"no space left for a checkpoint: it takes {needed / 2**20:.1f} MiB and {free / 2**20:.1f} MiB are free",
            value=str(folder),
            fix="make room, or move the runs to another disk",
        )


def load_state(engine: TrainEngine, folder: str | Path) -> None:
    """Go on from `save_state`, on a freshly loaded model. Collective.

    Written by as many ranks, training goes on bit for bit. Written by another number, the state is first converted to a
    DeepSpeed universal checkpoint, in a folder beside it that is removed again; dropout draws other numbers then.

    Raises:
        CheckpointError: the folder holds no whole state.
    """
    written_by = len(list(Path(folder).glob("generators_rank*.pt")))
    shards = len(list((Path(folder) / _TAG).glob("*_optim_states.pt")))
    if not written_by or shards != written_by:
        raise CheckpointError(
            f"the folder holds no whole state of a learner: {shards} optimizer shards of {written_by} ranks",
            value=str(folder),
            fix="resume from another checkpoint",
        )
    if written_by != engine.group.world_size:
        _load_universal(engine, Path(folder))
        return
    _load(engine, Path(folder))
    generators = torch.load(_generators_file(folder, engine.group.rank), weights_only=True)
    torch.set_rng_state(generators["torch"])
    if generators["cuda"] is not None:
        torch.cuda.set_rng_state(generators["cuda"])
    engine.group.barrier()


def _load_universal(engine: TrainEngine, folder: Path) -> None:
    rank = engine.group.rank
    made = tempfile.mkdtemp(prefix=f".{folder.name}.universal.", dir=folder.parent) if rank == 0 else None
    universal = Path(engine.group.gather(made)[0])
    try:
        if rank == 0:
            _convert(folder / _TAG, universal / _TAG)
        engine.group.barrier()
        config = engine.engine._config
        config.load_universal_checkpoint = True
        try:
            _load(engine, universal)
        finally:
            config.load_universal_checkpoint = False
        engine.group.barrier()
    finally:
        if rank == 0:
            shutil.rmtree(universal, ignore_errors=True)


def _load(engine: TrainEngine, folder: Path) -> None:
    path, _ = engine.engine.load_checkpoint(str(folder), tag=_TAG)
    if path is None:
        raise CheckpointError("the checkpoint holds no DeepSpeed state", value=str(folder))


def _convert(source: Path, target: Path) -> None:
    """DeepSpeed's own conversion, in this process."""
    from deepspeed.checkpoint import ds_to_universal

    target.mkdir(parents=True)
    ds_to_universal.main(
        Namespace(
            input_folder=str(source),
            output_folder=str(target),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
    )


def _generators_file(folder: str | Path, rank: int) -> Path:
    return Path(folder) / f"generators_rank{rank:05d}.pt"
