"""Groups of ranks: start them, meet, call all of them, wait with a deadline.

driver --submit(method)--> rank 0 .. n - 1      every rank of a group takes part in every call, in the same order
driver <--Pending.get----  one answer a rank    the first failure ends the wait; an error names rank, call and cause
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self, TypeVar

import ray
import ray.exceptions
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.cluster import require_node
from actors.deaths import told
from rlsys.checkpoint.seal import FileDigest
from rlsys.errors import ActorError, RlsysError
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings

LOOK_S = 10.0
"""How often a wait for ranks asks whether the cluster is there."""
T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the ranks of a group live and what each holds."""

    name: str
    """For messages and logs, such as `learner`."""
    num_ranks: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    """A fraction where ranks of several groups share a GPU."""
    placement_group: PlacementGroup | None = None
    bundle_indices: Sequence[int] = field(default_factory=tuple)
    """Of the placement group, by rank."""
    start_timeout_s: float = 600.0
    """Deadline for starting, meeting and loading."""
    operation_timeout_s: float = 1800.0
    """Deadline of a call that names none, and of the collectives inside it."""


class Pending(Generic[T]):
    """Answers that are being computed, one a rank."""

    def __init__(self, group: "RankGroup", method: str, refs: Sequence[Any], finish: Callable[[list[Any]], T]) -> None:
        self._group, self._method, self._refs, self._finish = group, method, list(refs), finish
        self._since = time.monotonic()

    @property
    def refs(self) -> list[Any]:
        """One a rank, for a caller that waits for other things too."""
        return list(self._refs)

    def asked(self, group: "ModelGroup") -> bool:
        """Whether these ranks answer, and not those of a group before or after them."""
        return self._group is group.ranks

    @property
    def ready(self) -> bool:
        """Whether `get` would not wait: every rank has answered, or one has failed, or the deadline has passed."""
        done, waiting = ray.wait(self._refs, num_returns=len(self._refs), timeout=0)
        late = time.monotonic() - self._since > self._group.placement.operation_timeout_s
        return not waiting or late or any(has_failed(ref) for ref in done)

    def get(self, timeout_s: float | None = None) -> T:
        """Waits for every rank.

        Raises:
            ActorError: a rank died, failed or did not answer before the deadline, counted from the call.
            RlsysError: of the kind that a rank raised on purpose.
        """
        limit = self._group.placement.operation_timeout_s if timeout_s is None else timeout_s
        waiting = dict(zip(self._refs, range(len(self._refs)), strict=True))
        answers: dict[int, Any] = {}
        while waiting:
            left = limit - (time.monotonic() - self._since)
            ready, _ = ray.wait(list(waiting), num_returns=1, timeout=max(min(left, LOOK_S), 0.0))
            if not ready and left > LOOK_S:
                require_node()
                continue
            if not ready:
                self._group.unanswered += waiting
                raise ActorError(
                    f"{self._who(min(waiting.values()))} did not answer within {limit:g} s",
                    fix="see its log; raise cluster.operation_timeout_s if the work really takes longer",
                )
            rank = waiting.pop(ready[0])
            try:
                answers[rank] = self._take(ready[0], rank)
            except RlsysError:  # the others may wait for this rank in a collective
                self._group.unanswered += waiting
                raise
        return self._finish([answers[rank] for rank in range(len(self._refs))])

    def map(self, function: Callable[[T], U]) -> "Pending[U]":
        """The same answers, seen through a function once they are there."""
        mapped = Pending(self._group, self._method, self._refs, lambda answers: function(self._finish(answers)))
        mapped._since = self._since
        return mapped

    def _take(self, ref: Any, rank: int) -> Any:
        try:
            return ray.get(ref)
        except ray.exceptions.RayError as error:
            raise told(error, self._who(rank)) from error

    def _who(self, rank: int) -> str:
        seconds = time.monotonic() - self._since
        return f"{self._group.placement.name}[{rank}] in {self._method}, {seconds:.0f} s after the call,"


def has_failed(ref: Any) -> bool:
    """Whether an answer that is there is an error: the actor's own, or its death."""
    try:
        ray.get(ref)
    except ray.exceptions.RayError:
        return True
    return False


class RankGroup:
    """n actors of one class that hold one model together. Use `start`."""

    def __init__(self, placement: Placement, handles: Sequence[Any]) -> None:
        self.placement = placement
        self.handles = list(handles)
        self.unanswered: list[Any] = []
        """References of calls that failed on another rank or passed their deadline: a rank that does not answer them
        even later is held in one."""

    @classmethod
    def start(cls, actor_class: Any, placement: Placement, *, use_gpu: bool = False) -> "RankGroup":
        """Create the actors and let them meet at rank 0's address.

        Args:
            actor_class: a Ray actor class with `rendezvous` and `join` (`actors.rank.Rank`).
            placement: where.
            use_gpu: NCCL between GPUs; gloo between CPUs without.

        Raises:
            ActorError: not all of them are up and joined before `placement.start_timeout_s`.
        """
        handles = [
            actor_class.options(
                num_cpus=placement.cpus, num_gpus=placement.gpus, **_scheduling(placement, rank)
            ).remote()
            for rank in range(placement.num_ranks)
        ]
        group = cls(placement, handles)
        deadline = time.monotonic() + placement.start_timeout_s
        try:
            first = Pending(group, "rendezvous", [handles[0].rendezvous.remote()], lambda answers: answers[0])
            address, port = first.get(placement.start_timeout_s)
            joining = group.submit_each(
                "join",
                [
                    {
                        "address": address,
                        "port": port,
                        "rank": rank,
                        "world_size": placement.num_ranks,
                        "use_gpu": use_gpu,
                        "timeout_s": placement.operation_timeout_s,
                    }
                    for rank in range(placement.num_ranks)
                ],
            )
            joining.get(max(deadline - time.monotonic(), 1.0))
        except RlsysError:
            group.shutdown()
            raise
        return group

    @property
    def num_ranks(self) -> int:
        """n."""
        return len(self.handles)

    def submit(self, method: str, **arguments: Any) -> Pending[list[Any]]:
        """Calls the method on every rank with the same arguments; answers by rank."""
        return self.submit_each(method, [arguments] * self.num_ranks)

    def submit_each(self, method: str, arguments: Sequence[dict[str, Any]]) -> Pending[list[Any]]:
        """Calls the method on every rank with arguments of its own; answers by rank."""
        calls = zip(self.handles, arguments, strict=True)
        refs = [getattr(handle, method).remote(**own) for handle, own in calls]
        return Pending(self, method, refs, lambda answers: answers)

    def submit_sharded(
        self, method: str, sharded: Mapping[str, Sequence[Any] | None], **arguments: Any
    ) -> Pending[list[Any]]:
        """Deals lists with one entry a shard to the ranks, rank r taking entries r, r + n, …; answers by rank.

        An entry is an ObjectRef, which the rank fetches, or the value; None in place of a list goes to every rank.
        """
        n = self.num_ranks
        dealt = [
            {name: None if entries is None else list(entries)[rank::n] for name, entries in sharded.items()}
            for rank in range(n)
        ]
        return self.submit_each(method, [own | arguments for own in dealt])

    def submit_kept(self, method: str, shards: Sequence[Any], **arguments: Any) -> Pending[list[Any]]:
        """Deals shards to the ranks, for a method that returns None and then one object a shard.

        These belong to the caller and outlive the ranks; what a rank puts into the object store itself does not.

        Returns:
            A reference a shard.
        """
        refs, kept = [], []
        for rank, handle in enumerate(self.handles):
            own = list(shards)[rank :: self.num_ranks]
            done, *results = getattr(handle, method).options(num_returns=1 + len(own)).remote(shards=own, **arguments)
            refs.append(done)
            kept.append(results)
        return Pending(self, method, refs, lambda _: in_shard_order(kept))

    def shutdown(self) -> None:
        """Ends the actors at once; harmless when they are gone already."""
        for handle in self.handles:
            ray.kill(handle)


class ModelGroup:
    """The driver's end of one model's ranks. Methods answer with a `Pending`, so that groups work at the same time."""

    actor_class: Any
    """The Ray actor class of a rank."""

    def __init__(self, ranks: RankGroup) -> None:
        self.ranks = ranks

    @classmethod
    def start(cls, placement: Placement, *, use_gpu: bool = False) -> Self:
        """Start the ranks and let them meet; `load` comes next."""
        return cls(RankGroup.start(cls.actor_class, placement, use_gpu=use_gpu))

    def load(self, model: ModelSettings, learner: LearnerSettings) -> Pending[dict[str, Any]]:
        """Load a model in place of the one before; answers `{"num_parameters": …}`."""
        return self.ranks.submit("load", model=model, learner=learner).map(of_rank_0)

    def begin_stage(self, learner: LearnerSettings) -> Pending[None]:
        """Keep the weights; a new optimizer with the settings of the stage."""
        return self.ranks.submit("begin_stage", learner=learner).map(of_rank_0)

    def save(self, folder: str) -> Pending[None]:
        """Take what is needed to go on; every rank writes its part while it goes on with other calls."""
        return self.ranks.submit("save", folder=folder).map(of_rank_0)

    def saved_files(self, folder: str) -> Pending[dict[str, FileDigest] | None]:
        """Digests of the files of all ranks, by name in the folder; None before all have written what `save` took.
        Answered between two other calls."""
        return self.ranks.submit("saved_files", folder=folder).map(_all_files)

    def save_room(self, folder: str) -> Pending[tuple[int, int]]:
        """Bytes that `save` will write, and bytes that are free where the fullest rank writes."""
        return self.ranks.submit("save_room", folder=folder).map(
            lambda answers: (answers[0][0], min(free for _, free in answers))
        )

    def restore(self, folder: str) -> Pending[None]:
        """Go on from `save`, after `load` with the same settings."""
        return self.ranks.submit("restore", folder=folder).map(of_rank_0)

    def export_hf(self, folder: str) -> Pending[None]:
        """Write a Hugging Face folder."""
        return self.ranks.submit("export_hf", folder=folder).map(of_rank_0)

    def shutdown(self) -> None:
        """End the ranks at once."""
        self.ranks.shutdown()


def _all_files(by_rank: Sequence[dict[str, FileDigest] | None]) -> dict[str, FileDigest] | None:
    found: dict[str, FileDigest] = {}
    for files in by_rank:
        if files is None:
            return None
        found |= files
    return found


def of_rank_0(answers: Sequence[Any]) -> Any:
    """For answers that are the same on every rank."""
    return answers[0]


def in_shard_order(by_rank: Sequence[Sequence[T]]) -> list[T]:
    """What the ranks answered for their shards, in the order in which `submit_sharded` was given them."""
    num_shards = sum(len(answers) for answers in by_rank)
    return [by_rank[shard % len(by_rank)][shard // len(by_rank)] for shard in range(num_shards)]


def _scheduling(placement: Placement, rank: int) -> dict[str, Any]:
    if placement.placement_group is None:
        return {}
    strategy = PlacementGroupSchedulingStrategy(
        placement_group=placement.placement_group, placement_group_bundle_index=placement.bundle_indices[rank]
    )
    return {"scheduling_strategy": strategy}
