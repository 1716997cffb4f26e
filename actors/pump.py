"""Prompt groups on their way from admission to a verdict: one generate call, then one verify call, for every chunk.

    start(ordinals) --> RolloutWorker.generate --rollouts--> VerifierWorker.verify --summaries--> poll()
                                                                       '--experiences (by reference only)

The driver sees summaries; tokens go from actor to actor by reference.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import ray
import ray.exceptions

from actors.shards import GroupReference
from rlsys.errors import ActorError, RlsysError
from rlsys.recipe.rollout import SamplingSettings
from rlsys.types import GroupSummary, Prompt


@dataclass(frozen=True, slots=True)
class VerifiedGroup:
    """A group that came through."""

    summary: GroupSummary
    reference: GroupReference
    seconds: float
    """From its start to its verdict."""


@dataclass(frozen=True, slots=True)
class LostGroups:
    """Groups whose worker or verifier failed."""

    ordinals: tuple[int, ...]
    reason: Literal["rollout_worker_died", "verifier_died", "timeout"]
    error: Exception


@dataclass(slots=True)
class _Chunk:
    ordinals: tuple[int, ...]
    worker: int
    started: float
    generated: Any
    verified: Any
    experiences: Any


class RolloutPump:
    """Keeps every rollout worker busy with what was started.

    Args:
        workers: `RolloutWorker` actors.
        verifiers: `VerifierWorker` actors.
        prompts: the prompt of an ordinal.
        num_samples: responses to each prompt.
        sampling: of all of them.
        seed: of the sampling.
        groups_per_call: prompts in one call.
        group_timeout_s: a chunk that takes longer is lost.
        tag: of the calls, `train` or `eval`.
        mode: of the verifiers; their own setting when absent.
    """

    def __init__(
        self,
        workers: Sequence[Any],
        verifiers: Sequence[Any],
        *,
        prompts: Callable[[int], Prompt],
        num_samples: int,
        sampling: SamplingSettings,
        seed: int,
        groups_per_call: int = 1,
        group_timeout_s: float = 1800.0,
        tag: str = "train",
        mode: Literal["eval", "reward"] | None = None,
    ) -> None:
        self._workers, self._verifiers = list(workers), list(verifiers)
        self._prompts = prompts
        self._request = {"num_samples": num_samples, "sampling": sampling, "seed": seed, "tag": tag}
        self._mode = mode
        self._groups_per_call = groups_per_call
        self._timeout_s = group_timeout_s
        self._load = [0] * len(self._workers)
        self._next_verifier = 0
        self._chunks: dict[Any, _Chunk] = {}

    @property
    def num_running(self) -> int:
        """Groups started and not yet given back."""
        return sum(len(chunk.ordinals) for chunk in self._chunks.values())

    def start(self, ordinals: Sequence[int]) -> None:
        """Hands prompts to the workers with the fewest groups under way, the lowest one first."""
        for first in range(0, len(ordinals), self._groups_per_call):
            self._start_chunk(tuple(ordinals[first : first + self._groups_per_call]))

    def poll(self, *, timeout_s: float, until: Sequence[Any] = ()) -> list[VerifiedGroup | LostGroups]:
        """Waits until something came through, one of the references `until` is ready, or the time is over.

        Returns:
            Everything that has come through, in the order in which it was started.
        """
        waiting = [*self._chunks, *until]
        if waiting:
            ray.wait(waiting, num_returns=1, timeout=timeout_s, fetch_local=False)
        if not self._chunks:
            return []
        ready, _ = ray.wait(list(self._chunks), num_returns=len(self._chunks), timeout=0, fetch_local=False)
        done: list[VerifiedGroup | LostGroups] = []
        for ref in ready:
            done += self._collect(self._chunks.pop(ref))
        now = time.monotonic()
        late = [ref for ref, chunk in self._chunks.items() if now - chunk.started > self._timeout_s]
        for ref in late:
            chunk = self._chunks.pop(ref)
            self._load[chunk.worker] -= len(chunk.ordinals)
            error = ActorError(f"groups {chunk.ordinals} did not come through", value=f"{self._timeout_s:g} s")
            done.append(LostGroups(chunk.ordinals, "timeout", error))
        return done

    def _start_chunk(self, ordinals: tuple[int, ...]) -> None:
        worker = min(range(len(self._workers)), key=lambda index: (self._load[index], index))
        verifier = self._verifiers[self._next_verifier]
        self._next_verifier = (self._next_verifier + 1) % len(self._verifiers)
        prompts = ray.put([self._prompts(ordinal) for ordinal in ordinals])
        generated, rollouts = self._workers[worker].generate.remote(prompts, **self._request)
        extra = {} if self._mode is None else {"mode": self._mode}
        verified, experiences = verifier.verify.remote(prompts, rollouts, **extra)
        self._load[worker] += len(ordinals)
        self._chunks[verified] = _Chunk(ordinals, worker, time.monotonic(), generated, verified, experiences)

    def _collect(self, chunk: _Chunk) -> list[VerifiedGroup | LostGroups]:
        self._load[chunk.worker] -= len(chunk.ordinals)
        try:
            summaries = ray.get(chunk.verified, timeout=0)
        except ray.exceptions.RayActorError as error:
            return [LostGroups(chunk.ordinals, self._who_died(chunk), error)]
        except ray.exceptions.RayTaskError as error:
            raise _user_error(error) from error
        seconds = time.monotonic() - chunk.started
        return [
            VerifiedGroup(summary, GroupReference(chunk.experiences, index), seconds)
            for index, summary in enumerate(summaries)
        ]

    def _who_died(self, chunk: _Chunk) -> Literal["rollout_worker_died", "verifier_died"]:
        try:
            ray.get(chunk.generated, timeout=0)
        except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
            return "rollout_worker_died"
        return "verifier_died"


def _user_error(error: ray.exceptions.RayTaskError) -> Exception:
    if isinstance(error.cause, RlsysError):
        return error.cause
    return ActorError(f"sampling or verifying failed: {error.cause!r}", fix="see the worker's log in the run folder")
