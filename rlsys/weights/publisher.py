"""The two phases of a publication: who does what, in which order, and what happens when one of them cannot.

    learner                       every engine
    -------                       ------------
                                  prepare: what runs is drained, or just stops being stepped
    open, join a group     ---    connect                               (kept from one publication to the next)
    send, manifest         -->    receive, load, receipt
    canary logprobs        ---    canary logprobs under the new weights
                 compare: names, dtypes, shapes, digests, parameters without weights, canary
                                  commit: the version flips and sampling goes on

Anything that goes wrong before `commit` ends in one `PublicationError`; no version was flipped and the engines whose
weights were touched sample nothing until a publication succeeds. The group is given up, and the next publication
builds another with the engines that are then there. Only an engine that dies fails in `commit`; the others have then
flipped.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from rlsys.errors import RlsysError, WeightTransferError
from rlsys.recipe.rollout import UpdateMode, WeightTransfer
from rlsys.types import PolicyVersion
from rlsys.weights.records import DigestName, Manifest, Receipt, Rendezvous, first_difference

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")

CANARY_PEAK = 10.0
"""A logit in bfloat16 has steps of 0.06 from 8 on and 0.12 from 16 on: one token of many may be that far off, its mean
may not."""
MEANWHILE_S = 0.5
"""Between two calls of what is done while engines drain."""
GIVE_UP_S = 10.0
"""How long those that are still alive may take to leave a group after a failure."""


class Pending(Protocol[T_co]):
    """An answer that is on its way: a `concurrent.futures.Future`, or a Ray reference in its clothes."""

    def result(self, timeout: float | None = None) -> T_co:
        """Waits at most `timeout` seconds.

        Raises:
            TimeoutError: there was no answer in time.
            RlsysError: what went wrong on the other side.
        """
        ...


class LearnerLink(Protocol):
    """The learner as the publisher sees it; each call goes to all of its ranks where that is needed."""

    def open_group(self, *, num_receivers: int, deadline_s: float) -> Pending[Rendezvous]: ...
    def join_group(self) -> Pending[None]: ...
    def send_weights(self, *, transfer: int, cap_bytes: int) -> Pending[Manifest]: ...
    def canary_logprobs(self, token_ids: Sequence[int]) -> Pending[np.ndarray]: ...
    def close_group(self) -> Pending[None]: ...


class EngineLink(Protocol):
    """One rollout worker as the publisher sees it."""

    @property
    def name(self) -> str: ...
    @property
    def num_ranks(self) -> int: ...
    def prepare_update(self, mode: UpdateMode) -> Pending[None]: ...
    def connect_weights(self, rendezvous: Rendezvous, *, rank_offset: int, digest: DigestName) -> Pending[None]: ...
    def receive_weights(self, transfer: int, *, canary_ids: Sequence[int]) -> Pending["Reception"]: ...
    def commit_version(self, version: PolicyVersion) -> Pending[None]: ...
    def abandon_update(self) -> Pending[None]: ...


@dataclass(frozen=True, slots=True)
class Reception:
    """What one engine says of a transfer."""

    receipts: tuple[Receipt, ...]
    """One for each of its worker processes."""
    canary_logprobs: np.ndarray
    """`[T - 1]` float32 under the new weights; empty when no canary was asked for."""


@dataclass(frozen=True, slots=True)
class PublicationSettings:
    """How weights are published, as the recipe's `[rollout]` has it."""

    mode: UpdateMode
    transport: WeightTransfer
    """What carries the bytes; the engines were built for it."""
    digest: DigestName
    cap_bytes: int
    """The most bytes gathered at once, one tensor of more bytes excepted."""
    update_timeout_s: float
    """The longest that any one phase may last, draining excepted."""
    drain_timeout_s: float
    canary_tolerance: float
    """How far an engine's logprobs may be from the learner's (`canary_gap`): on average over the canary's tokens, and
    at a single token `CANARY_PEAK` times as far. 1e-5 holds in float32."""


@dataclass(frozen=True, slots=True)
class PublicationReport:
    """What a publication that succeeded did."""

    version: PolicyVersion
    new_group: bool
    """Whether the group had to be built first."""
    canary_gap: float
    """The largest difference between any engine's logprobs and the learner's, as `canary_gap` has it; NaN without a
    canary."""


class PublicationError(WeightTransferError):
    """A publication failed before the flip. `phase` and `engines` say where; no engines means the learner alone."""

    def __init__(
        self, problem: str, *, phase: str, engines: tuple[str, ...], with_learner: bool = False, fix: str = ""
    ) -> None:
        super().__init__(problem, fix=fix)
        self.phase, self.engines, self.with_learner = phase, engines, with_learner


class WeightPublisher:
    """Publishes one learner's weights to a set of engines, again and again.

    Args:
        learner: sends.
        engines: receive; `set_engines` replaces them between two publications.
        settings: of every publication.
    """

    def __init__(self, learner: LearnerLink, engines: Sequence[EngineLink], settings: PublicationSettings) -> None:
        self.learner = learner
        self.settings = settings
        self.set_engines(engines)
        self._transfer = 0

    def set_engines(self, engines: Sequence[EngineLink]) -> None:
        """From the next publication on, these engines receive.

        Raises:
            ValueError: there is none.
        """
        if not engines:
            raise ValueError("weights need at least one engine; got none; replace the dead ones first")
        self._engines = tuple(engines)
        self._connected = False

    def publish(
        self,
        version: PolicyVersion,
        *,
        canary_ids: Sequence[int] = (),
        meanwhile: Callable[[], None] = lambda: None,
    ) -> PublicationReport:
        """Brings the learner's weights to every engine and flips their version, or changes nothing that is sampled.

        Args:
            version: of the weights.
            canary_ids: a text of 2 tokens or more whose logprobs are compared; none leaves that out.
            meanwhile: called again and again while engines drain, which may take long: to end what takes too long.

        Raises:
            PublicationError: one of them failed; naming phase, engine and, where one is at fault, tensor.
            RlsysError: of `meanwhile`, as it is.
        """
        new_group = not self._connected
        try:
            self._prepare(meanwhile)
            if new_group:
                self._connect()
            gap = self._compare(*self._send(canary_ids))
        except PublicationError:
            self._give_up()
            raise
        except _InterruptedError as interruption:
            self._give_up()
            raise interruption.error from None
        try:
            self._commit(version)
        except PublicationError:
            self._connected = False
            raise
        return PublicationReport(version, new_group=new_group, canary_gap=gap)

    def _prepare(self, meanwhile: Callable[[], None]) -> None:
        mode = self.settings.mode
        timeout_s = self.settings.drain_timeout_s if mode == "drain" else self.settings.update_timeout_s
        pending = [(engine.name, engine.prepare_update(mode)) for engine in self._engines]
        _gather("prepare", pending, timeout_s, meanwhile=meanwhile)

    def _connect(self) -> None:
        deadline_s = self.settings.update_timeout_s
        num_receivers = sum(engine.num_ranks for engine in self._engines)
        opening = self.learner.open_group(num_receivers=num_receivers, deadline_s=deadline_s)
        (rendezvous,) = _gather("connect", [("", opening)], deadline_s)
        joining: list[tuple[str, Pending[None]]] = [("", self.learner.join_group())]
        rank = 1
        for engine in self._engines:
            pending = engine.connect_weights(rendezvous, rank_offset=rank, digest=self.settings.digest)
            joining.append((engine.name, pending))
            rank += engine.num_ranks
        _gather("connect", joining, deadline_s * 1.25)
        self._connected = True

    def _send(self, canary_ids: Sequence[int]) -> tuple[Manifest, np.ndarray, list[Reception]]:
        # Both sides of a wait have the deadline; the one who waits for both gives them a little more.
        timeout_s = self.settings.update_timeout_s * 1.25
        self._transfer += 1
        sending = self.learner.send_weights(transfer=self._transfer, cap_bytes=self.settings.cap_bytes)
        receiving = [
            (engine.name, engine.receive_weights(self._transfer, canary_ids=canary_ids)) for engine in self._engines
        ]
        manifest, *receptions = _gather("transfer", [("", sending), *receiving], timeout_s)
        if not canary_ids:
            return manifest, np.empty(0, np.float32), receptions
        (logprobs,) = _gather("canary", [("", self.learner.canary_logprobs(canary_ids))], timeout_s)
        return manifest, logprobs, receptions

    def _compare(self, manifest: Manifest, learner_logprobs: np.ndarray, receptions: Sequence[Reception]) -> float:
        gaps = [float("nan")]
        for engine, reception in zip(self._engines, receptions, strict=True):
            problem = difference(manifest, reception)
            if problem is None and len(learner_logprobs):
                gap = canary_gap(reception.canary_logprobs, learner_logprobs)
                gaps.append(float(gap.max()))
                problem = self._canary_problem(float(gap.mean()), gaps[-1])
            if problem is not None:
                raise PublicationError(
                    f"engine {engine.name} has wrong weights: {problem}",
                    phase="compare",
                    engines=(engine.name,),
                    fix="publish again; if it happens again, replace the engine",
                )
        return max(gaps[1:], default=gaps[0])

    def _canary_problem(self, mean: float, peak: float) -> str | None:
        tolerance = self.settings.canary_tolerance
        if mean <= tolerance and peak <= CANARY_PEAK * tolerance:
            return None
        return (
            f"the canary's logprobs differ from the learner's by {mean:.3g} on average and {peak:.3g} at most, "
            f"more than {tolerance:.3g} and {CANARY_PEAK * tolerance:.3g}"
        )

    def _commit(self, version: PolicyVersion) -> None:
        pending = [(engine.name, engine.commit_version(version)) for engine in self._engines]
        _gather("commit", pending, self.settings.update_timeout_s)

    def _give_up(self) -> None:
        self._connected = False
        pending: list[Pending[None]] = [self.learner.close_group(), *(e.abandon_update() for e in self._engines)]
        ends_at = time.monotonic() + min(GIVE_UP_S, self.settings.update_timeout_s)
        for answer in pending:
            try:
                answer.result(timeout=max(0.0, ends_at - time.monotonic()))
            except (RlsysError, TimeoutError):
                continue  # it has failed already, and the error that is raised says so


def canary_gap(engine: np.ndarray, learner: np.ndarray) -> np.ndarray:
    """How far two computations of the same logprobs are apart: in nats, beyond 1 nat as a share of the logprob.

    Floating point has relative precision: a policy that thinks a token all but impossible gives it a logprob of -100,
    and float32 holds that to some 1e-5.

    >>> canary_gap(np.array([-0.5, -101.0]), np.array([-0.25, -100.0]))
    array([0.25, 0.01])
    """
    return np.abs(engine - learner) / np.maximum(1.0, np.abs(learner))


def difference(manifest: Manifest, reception: Reception) -> str | None:
    """What is wrong with what an engine received, naming the tensor; None when all is well."""
    for receipt in reception.receipts:
        problem = first_difference(manifest.tensors, receipt.tensors) or next(iter(receipt.problems), None)
        if problem is not None:
            return problem
    return None


def _gather(
    phase: str,
    pending: Sequence[tuple[str, Pending]],
    timeout_s: float,
    *,
    meanwhile: Callable[[], None] | None = None,
) -> list:
    """Waits for all answers, of engines by name or of the learner (no name); one error speaks for all that failed."""
    ends_at = time.monotonic() + timeout_s
    results, failed = [], []
    for name, answer in pending:
        try:
            results.append(_wait(answer, ends_at, meanwhile))
        except TimeoutError:
            failed.append((name, f"no answer in {timeout_s:g} s"))
        except RlsysError as error:
            failed.append((name, str(error)))
    if failed:
        told = "; ".join(f"{f'engine {name}' if name else 'the learner'}: {problem}" for name, problem in failed)
        raise PublicationError(
            f"publication failed in the {phase} phase: {told}",
            phase=phase,
            engines=tuple(name for name, _ in failed if name),
            with_learner=any(not name for name, _ in failed),
            fix="the next publication builds a new group of the engines that are then alive",
        )
    return results


class _InterruptedError(Exception):
    """An error of `meanwhile`, which no engine is to be blamed for: not an `RlsysError`, so that no wait takes it."""

    def __init__(self, error: RlsysError) -> None:
        super().__init__(str(error))
        self.error = error


def _wait(answer: Pending[T], ends_at: float, meanwhile: Callable[[], None] | None) -> T:
    while meanwhile is not None and time.monotonic() < ends_at:
        try:
            return answer.result(timeout=min(MEANWHILE_S, max(0.0, ends_at - time.monotonic())))
        except TimeoutError:
            try:
                meanwhile()
            except RlsysError as error:
                raise _InterruptedError(error) from error
    return answer.result(timeout=max(0.0, ends_at - time.monotonic()))
