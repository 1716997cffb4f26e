"""Everything that training needs to go on, in a folder: each rank's DeepSpeed state and torch's random
generators (dropout). The order of data is a pure function of the seed and needs no state.
"""

import shutil
import tempfile
from argparse import Namespace
from pathlib import Path

import torch

from rlsys.checkpoint.seal import FileDigest
from rlsys.errors import CheckpointError
from rlsys.models.engine import TrainEngine
from rlsys.models.loading import whole_size
from rlsys.models.state_writer import StateWriter

_TAG = "deepspeed"
BYTES_A_WEIGHT = 12
"""What training needs of a weight, in float32: itself and Adam's two moments."""


def save_state(engine: TrainEngine, folder: str | Path) -> None:
    """Take this rank's part into memory and begin to write it; `written_state` tells the end. Collective.

    The folder is shared by all ranks' nodes. Its commit is the caller's, and so is the room for it (`state_room`): a
    rank that fails alone leaves the others in DeepSpeed's barriers.

    Raises:
        CheckpointError: the folder cannot be made.
    """
    writer = _writer(engine)
    writer.drop()  # of a checkpoint that was given up
    try:
        engine.engine.save_checkpoint(str(folder), tag=_TAG, save_latest=False)
    except (OSError, RuntimeError) as error:
        raise _cannot_be_written(folder, error) from error
    generators = {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if engine.group.device.type == "cuda" else None,
    }
    writer.save(generators, _generators_file(folder, engine.group.rank))
    engine.group.barrier()


def written_state(engine: TrainEngine, folder: str | Path) -> dict[str, FileDigest] | None:
    """The files of this rank's part of the newest `save_state`, once all are on the disk; never waits, not collective.

    Returns:
        Digests by name relative to the folder, with `/`; None while there is something to write.

    Raises:
        CheckpointError: one could not be written.
    """
    writer = _writer(engine)
    try:
        if not writer.written():
            return None
    except OSError as error:
        raise _cannot_be_written(folder, error) from error
    return {path.relative_to(folder).as_posix(): digest for path, digest in writer.digests.items()}


def state_room(engine: TrainEngine, folder: str | Path) -> tuple[int, int]:
    """Bytes that the state of the whole model takes, and bytes that are free where this rank writes."""
    trained = [parameter for parameter in engine.module.parameters() if parameter.requires_grad]
    Path(folder).mkdir(parents=True, exist_ok=True)
    return BYTES_A_WEIGHT * sum(map(whole_size, trained)), shutil.disk_usage(folder).free


def _writer(engine: TrainEngine) -> StateWriter:
    """The engine's own, in place of DeepSpeed's, which writes while training waits."""
    if not isinstance(engine.engine.checkpoint_engine, StateWriter):
        engine.engine.checkpoint_engine = StateWriter(engine.engine._config)
    return engine.engine.checkpoint_engine


def _cannot_be_written(folder: str | Path, error: Exception) -> CheckpointError:
    free_mib = shutil.disk_usage(folder).free >> 20
    return CheckpointError(
        f"a checkpoint cannot be written: {error}",
        value=str(folder),
        fix=f"{free_mib} MiB are free there: make room, or move the runs",
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
