"""The Ray calls of a publication: learner and rollout workers behind the links that the publisher asks for."""

import time
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import ray
from ray import exceptions

from actors.deaths import told
from rlsys.recipe.rollout import UpdateMode
from rlsys.types import PolicyVersion
from rlsys.weights.publisher import PublicationSettings, Reception
from rlsys.weights.records import DigestName, Manifest, Rendezvous

T = TypeVar("T")


class RayPending(Generic[T]):
    """Ray references of one question; its answer is the first one's, when all have answered."""

    def __init__(self, owner: str, refs: Sequence[Any]) -> None:
        self._owner, self._refs = owner, list(refs)

    def result(self, timeout: float | None = None) -> T:
        """Waits for all.

        Raises:
            TimeoutError: not in time.
            RlsysError: raised by the actor, or an ActorError when it died.
        """
        ends_at = None if timeout is None else time.monotonic() + timeout
        waiting = self._refs
        try:
            while waiting:  # one by one, so that the first failure is heard while others still work
                left = None if ends_at is None else max(0.0, ends_at - time.monotonic())
                ready, waiting = ray.wait(waiting, num_returns=1, timeout=left)
                if not ready:
                    raise TimeoutError(f"{self._owner} did not answer in {timeout:g} s")
                ray.get(ready)
            return ray.get(self._refs[0])
        except exceptions.RayError as error:
            raise told(error, self._owner) from error


class RayLearner:
    """A group of learner ranks; rank 0, the first handle, is the sender.

    Args:
        handles: by rank.
        settings: say what carries the bytes, and the digest.

    Each rank is an actor with the methods `open_weight_group`, `join_weight_group`, `send_weights`,
    `canary_logprobs` and `close_weight_group` (docs/weights.md).
    """

    def __init__(self, handles: Sequence[Any], settings: PublicationSettings) -> None:
        self._handles, self._settings = list(handles), settings

    def open_group(self, *, num_receivers: int, deadline_s: float) -> RayPending[Rendezvous]:
        ref = self._handles[0].open_weight_group.remote(
            num_receivers=num_receivers,
            deadline_s=deadline_s,
            transport=self._settings.transport,
            digest=self._settings.digest,
        )
        return RayPending("the learner", [ref])

    def join_group(self) -> RayPending[None]:
        return RayPending("the learner", [self._handles[0].join_weight_group.remote()])

    def send_weights(self, *, transfer: int, cap_bytes: int) -> RayPending[Manifest]:
        return self._on_all("send_weights", transfer=transfer, cap_bytes=cap_bytes)

    def canary_logprobs(self, token_ids: Sequence[int]) -> RayPending[np.ndarray]:
        return self._on_all("canary_logprobs", token_ids=list(token_ids))

    def close_group(self) -> RayPending[None]:
        return RayPending("the learner", [self._handles[0].close_weight_group.remote()])

    def _on_all(self, method: str, **arguments: Any) -> RayPending[Any]:
        return RayPending("the learner", [getattr(handle, method).remote(**arguments) for handle in self._handles])


class RayEngine:
    """One `RolloutWorker`.

    Args:
        handle: the actor.
        name: for messages.
        num_ranks: tensor-parallel size of its engine.
    """

    def __init__(self, handle: Any, *, name: str, num_ranks: int = 1) -> None:
        self._handle, self.name, self.num_ranks = handle, name, num_ranks

    def prepare_update(self, mode: UpdateMode) -> RayPending[None]:
        return RayPending(self.name, [self._handle.prepare_update.remote(mode)])

    def connect_weights(self, rendezvous: Rendezvous, *, rank_offset: int, digest: DigestName) -> RayPending[None]:
        ref = self._handle.connect_weights.remote(rendezvous, rank_offset=rank_offset, digest=digest)
        return RayPending(self.name, [ref])

    def receive_weights(self, transfer: int, *, canary_ids: Sequence[int]) -> RayPending[Reception]:
        ref = self._handle.receive_weights.remote(transfer, canary_ids=list(canary_ids))
        return RayPending(self.name, [ref])

    def commit_version(self, version: PolicyVersion) -> RayPending[None]:
        return RayPending(self.name, [self._handle.commit_version.remote(version)])

    def abandon_update(self) -> RayPending[None]:
        return RayPending(self.name, [self._handle.abandon_update.remote()])
