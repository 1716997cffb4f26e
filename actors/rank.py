"""What every rank of a model does, whichever model: meet the others, load, save, export. No training here.

Heavy imports wait until a rank runs: whoever starts the actors need not import torch.
"""

import gc
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import ray

from actors.shards import ShardReference, fetch_groups
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings

if TYPE_CHECKING:
    from rlsys.checkpoint.seal import FileDigest
    from rlsys.models.engine import TrainEngine
    from rlsys.models.process_group import ProcessGroup


def remote_rank(rank: type["Rank"]) -> Any:
    """A rank as an actor: `ping` is answered beside the call under way; all other calls run in order, in one thread."""
    return ray.remote(concurrency_groups={"health": 1})(rank)  # pyright: ignore[reportCallIssue, reportArgumentType]


class Rank:
    """Base of the model actors. All methods but `rendezvous`, `ping` and `rest` are collective over a group's ranks."""

    kind: Literal["policy", "scalar"] = "policy"
    trainable = True

    def __init__(self) -> None:
        self._group: ProcessGroup | None = None
        self._engine: TrainEngine | None = None
        self._model: ModelSettings | None = None

    @ray.method(concurrency_group="health")
    def ping(self) -> int:
        """The process id: an answer at all says that the process lives, busy or not."""
        return os.getpid()

    def rest(self) -> None:
        """Returns when the calls before it have ended."""

    def rendezvous(self) -> tuple[str, int]:
        """This node's address and a port that is free on it now."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def join(self, *, address: str, port: int, rank: int, world_size: int, use_gpu: bool, timeout_s: float) -> None:
        """Meet the other ranks."""
        if not use_gpu:
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when DeepSpeed is first imported
        import torch

        from rlsys.models.process_group import join_process_group

        self._group = join_process_group(
            address=address,
            port=port,
            rank=rank,
            world_size=world_size,
            device=torch.device("cuda", 0) if use_gpu else torch.device("cpu"),
            timeout_s=timeout_s,
        )

    def load(self, *, model: ModelSettings, learner: LearnerSettings) -> dict[str, Any]:
        """Load a model in place of the one before; returns `{"num_parameters": …}`."""
        import torch

        from rlsys.models.build import build_engine, close_engine

        assert self._group is not None, "join() comes first"
        if self._engine is not None:
            close_engine(self._engine)
            self._engine = None
            # ZeRO-3's parameters, hooks and optimizer refer to each other: uncollected, there would be two models.
            gc.collect()
            if self._group.device.type == "cuda":
                torch.cuda.empty_cache()
        self._engine = build_engine(
            self.kind, model=model, learner=learner, group=self._group, trainable=self.trainable
        )
        self._model = model
        return {"num_parameters": self._engine.num_parameters}

    def begin_stage(self, *, learner: LearnerSettings) -> None:
        """Keep the weights, forget the optimizer's moments, and take the optimizer and batching settings of a stage."""
        self.engine.begin_stage(learner)

    def save(self, *, folder: str) -> None:
        """Take what is needed to go on, and begin to write it (`rlsys.models.state`)."""
        from rlsys.models.state import save_state

        save_state(self.engine, folder)

    def saved_files(self, *, folder: str) -> "dict[str, FileDigest] | None":
        """Digests of what this rank wrote of what `save` took, None before it has; not collective, never waits."""
        from rlsys.models.state import written_state

        return written_state(self.engine, folder)

    def save_room(self, *, folder: str) -> tuple[int, int]:
        """Bytes that `save` will write, of all ranks together, and bytes that are free for this one; not collective."""
        from rlsys.models.state import state_room

        return state_room(self.engine, folder)

    def restore(self, *, folder: str) -> None:
        """Go on from `save`."""
        from rlsys.models.state import load_state

        load_state(self.engine, folder)

    def export_hf(self, *, folder: str) -> None:
        """Write a Hugging Face folder."""
        from rlsys.data.tokenizer import tokenizer_of
        from rlsys.models.weights import export_hf

        assert self._model is not None
        export_hf(self.engine, folder, tokenizer_of(self._model))

    @property
    def engine(self) -> "TrainEngine":
        """The loaded model."""
        assert self._engine is not None, "load() comes first"
        return self._engine

    @property
    def group(self) -> "ProcessGroup":
        """The ranks that this one joined."""
        assert self._group is not None, "join() comes first"
        return self._group


def fetch(entries: Sequence[Any] | None, num: int) -> list[Any]:
    """The values behind ObjectRefs and shard references (or the values), `num` times None for no entries.

    All are asked for at once: they travel at the same time, and what several shards have groups of is read once.
    """
    if entries is None:
        return [None] * num
    objects = iter(ray.get([entry for entry in entries if isinstance(entry, ray.ObjectRef)]))
    shards = [entry for entry in entries if isinstance(entry, ShardReference)]
    groups = iter(fetch_groups([group for shard in shards for group in shard.groups]))

    def value(entry: Any) -> Any:
        if isinstance(entry, ShardReference):
            return [next(groups) for _ in entry.groups]
        return next(objects) if isinstance(entry, ray.ObjectRef) else entry

    return [value(entry) for entry in entries]


def publish(results: Sequence[Any]) -> list[ray.ObjectRef]:
    """Put each result into the object store, so that the driver sees references alone."""
    return [ray.put(result) for result in results]
