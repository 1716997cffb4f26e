"""Prompt groups on their way from admission to a verdict: one generate call, then one verify call, for every chunk.

    start(ordinals) --> RolloutWorker.generate --rollouts--> VerifierWorker.verify --summaries--> poll()
                          | died, failed, late     |   ^       | died, failed        '--experiences (by reference only)
                          v                        |   |       '--> verified again by another, from the same rollouts
                        LostGroups                 v   | scores
                                           RewardModel.score         where the stage has a reward model
                                                   | died: `reward_model_error`; scored again by the one in its place

The driver sees summaries; tokens go from actor to actor by reference. Whoever polls also supervises: workers that die
or hang are replaced meanwhile, and chunks wait here while there is nobody to take them.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.exceptions

from actors.begun_groups import BegunGroup, UnderWay
from actors.deaths import DEATHS, end_of
from actors.pump_records import Chunk, LossReason, LostGroups, PumpSettings, RewardScoring, VerifiedGroup
from actors.roster import Member, Roster
from actors.shards import GroupReference
from rlsys.errors import ActorError, DataError, RlsysError
from rlsys.rollouts.sampling_engine import PromptRefused
from rlsys.types import Prompt

MAX_VERIFICATIONS = 3
"""Verifier workers that a chunk's rollouts may cost before they are given up; and as many reward models."""
MAX_WAIT_S = 5.0
"""Longest wait between two looks at the workers."""
SNAPSHOT_DEADLINE_S = 30.0
"""For a worker to tell what it has under way, which it does between two steps of its engine."""
TRANSFER_WAIT_S = 5.0
"""For verdicts to come from another node, before other work is looked at and they are asked for again."""


class RolloutPump:
    """Keeps every rollout worker busy with what was started.

    Args:
        workers: of the rollouts.
        verifiers: of the verdicts.
        settings: of the sampling and of the chunks.
        prompts: the prompt of an ordinal.
        scoring: by a reward model, between sampling and verifying.
    """

    def __init__(
        self,
        workers: Roster,
        verifiers: Roster,
        settings: PumpSettings,
        *,
        prompts: Callable[[int], Prompt],
        scoring: RewardScoring | None = None,
    ) -> None:
        self._workers, self._verifiers = workers, verifiers
        self._settings, self._prompts, self._scoring = settings, prompts, scoring
        self._next_verifier = 0
        self._queue: deque[tuple[tuple[int, ...], int | None]] = deque()
        """Ordinals of a call that waits for a worker with room, and the place of the one that must take it."""
        self._given: Counter[Member] = Counter()
        """Groups of this pump that each worker has; its `load` is of all pumps, and one may wait for another."""
        self._unverified: list[Chunk] = []
        """Chunks that wait for a verifier."""
        self._unscored: list[Chunk] = []
        """Chunks that wait for another reward model."""
        self._chunks: dict[Any, Chunk] = {}
        """Chunks with a step under way, by its reference."""
        self._begun: dict[int, BegunGroup] = {}
        """What a checkpoint had of ordinals that are not started yet."""
        self.num_continued = 0
        """Responses that were gone on with from a checkpoint."""

    @property
    def num_running(self) -> int:
        """Groups started and not yet given back."""
        return sum(len(chunk.ordinals) for chunk in self._under_way) + sum(len(queued) for queued, _ in self._queue)

    @property
    def reward_model_error(self) -> ActorError | None:
        """What ended the reward model, while chunks wait for the one that the caller must start in its place."""
        return next((chunk.scoring_error for chunk in self._unscored if not self._is_replaced(chunk)), None)

    @property
    def needs_weights(self) -> bool:
        """Whether a call waits for the worker in its place, which is built and has no weights yet."""
        places = {place for _, place in self._queue if place is not None}
        return any(member.slot in places and member.state == "joining" for member in self._workers.built)

    @property
    def _under_way(self) -> list[Chunk]:
        return [*self._chunks.values(), *self._unscored, *self._unverified]

    def start(self, ordinals: Sequence[int]) -> None:
        """Hands prompts to the workers with the fewest groups under way, the lowest one first, while they take any."""
        if self._settings.fixed:
            places = self._workers.size
            for place in range(places):
                own = tuple(ordinal for ordinal in ordinals if ordinal % places == place)
                if own:
                    self._queue.append((own, place))
        else:
            for first in range(0, len(ordinals), self._settings.groups_per_call):
                self._queue.append((tuple(ordinals[first : first + self._settings.groups_per_call]), None))
        self._place()

    def poll(self, *, timeout_s: float, until: Sequence[Any] = ()) -> list[VerifiedGroup | LostGroups]:
        """Waits until something came through, a reference in `until` is ready, a worker changed or some time is over.

        Returns:
            Everything that has come through, in the order in which it was started.

        Raises:
            ActorError: no worker is left, and none can be started; or not the one in whose place a call must run.
            DataError: a prompt or its ground truth cannot be used.
            RlsysError: verifying a chunk failed on `MAX_VERIFICATIONS` workers.
        """
        self._supervise()
        waiting = [*self._chunks, *until, *self._workers.starting, *self._verifiers.starting]
        if waiting:
            ray.wait(waiting, num_returns=1, timeout=min(timeout_s, MAX_WAIT_S), fetch_local=False)
        done: list[VerifiedGroup | LostGroups] = []
        if self._chunks:
            ready, _ = ray.wait(list(self._chunks), num_returns=len(self._chunks), timeout=0, fetch_local=False)
            for ref in ready:
                done += self._collect(self._chunks.pop(ref))
        return done + self._take_late()

    def give(self, begun: Mapping[int, BegunGroup]) -> None:
        """When one of these ordinals is started, its worker goes on from what there is of it. Used once."""
        self._begun = dict(begun)

    def under_way(self) -> UnderWay:
        """What a checkpoint can keep of the groups that were started: tokens so far, rollouts without a verdict.

        Workers that do not answer in time are left out.
        """
        chunks = self._under_way
        workers = {chunk.worker for chunk in chunks if not _is_there(chunk.generated)}
        tag = self._settings.tag
        asked = [worker.handle.begun.remote(tag=tag) for worker in workers if worker in self._workers]
        timeout_s = SNAPSHOT_DEADLINE_S
        told, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout_s, fetch_local=False) if asked else ([], [])
        # Only now: what was finished before a worker told is not in what it told.
        sampled = [chunk for chunk in chunks if _is_there(chunk.generated)]
        return UnderWay(
            not_started=tuple(group.reference for group in self._begun.values()),
            sampled=tuple(told),
            unverified=tuple((chunk.prompts, chunk.rollouts) for chunk in sampled),
        )

    def abort(self) -> None:
        """Forgets everything that was started; the workers end the requests. Nothing of it will come through."""
        for chunk in self._under_way:
            self._abort(chunk)
            self._unload(chunk)
        self._queue.clear()
        self._unscored.clear()
        self._unverified.clear()
        self._chunks.clear()
        self._begun.clear()

    def _supervise(self) -> None:
        self._workers.beat()
        self._verifiers.beat()
        self._place()

    def _place(self) -> None:
        """Gives what waits to whoever can take it."""
        for chunk in [chunk for chunk in self._unscored if self._is_replaced(chunk)]:
            self._unscored.remove(chunk)
            self._score(chunk)
        for chunk in self._unverified[:]:
            if self._verify(chunk):
                self._unverified.remove(chunk)
        kept: deque[tuple[tuple[int, ...], int | None]] = deque()
        while self._queue:
            ordinals, place = self._queue[0]
            worker = self._worker_for(place)
            if worker is None and place is None:  # nor is there one for what comes after it
                break
            self._queue.popleft()
            if worker is None:
                kept.append((ordinals, place))
                continue
            prompts = ray.put([self._prompts(ordinal) for ordinal in ordinals])
            generated, rollouts = worker.handle.generate.remote(
                prompts,
                num_samples=self._settings.num_samples,
                sampling=self._settings.sampling,
                seed=self._settings.seed,
                tag=self._settings.tag,
                **self._begun_of(ordinals),
            )
            worker.load += len(ordinals)
            self._given[worker] += len(ordinals)
            chunk = Chunk(ordinals, worker, prompts, generated, rollouts, time.monotonic())
            if self._scoring is not None:
                self._chunks[chunk.awaited] = chunk
            elif not self._verify(chunk):
                self._unverified.append(chunk)
        self._queue = kept + self._queue

    def _begun_of(self, ordinals: Sequence[int]) -> dict[str, list[Any]]:
        begun = [self._begun.pop(ordinal, None) for ordinal in ordinals]
        if not any(begun):
            return {}
        self.num_continued += sum(group.num_responses for group in begun if group)
        return {"begun": [group and group.reference for group in begun]}

    def _worker_for(self, place: int | None) -> Member | None:
        serving = self._workers.serving
        if place is not None:
            if place not in self._workers.slots:
                raise ActorError(
                    f"rollout worker {place} is not replaced any more, and a deterministic run needs its place",
                    fix="see its log; run again, which resumes",
                )
            return next((member for member in serving if member.slot == place), None)
        free = (member for member in serving if self._given[member] < self._settings.groups_per_worker)
        return min(free, key=lambda member: (member.load, member.slot), default=None)

    def _is_replaced(self, chunk: Chunk) -> bool:
        assert self._scoring is not None
        return chunk.scorer is not self._scoring.model()

    def _score(self, chunk: Chunk) -> None:
        assert self._scoring is not None
        chunk.scorer = self._scoring.model()
        chunk.num_scorings += 1
        now = time.monotonic()
        if chunk.scoring_since is not None:  # by a model that died
            chunk.started += now - chunk.scoring_since
        chunk.scoring_since = now
        chunk.scored, *chunk.scored_beside = chunk.scorer.score(chunk.prompts, chunk.rollouts)
        self._chunks[chunk.scored] = chunk

    def _verify(self, chunk: Chunk) -> bool:
        verifiers = self._verifiers.serving
        if not verifiers:
            return False
        chunk.verifier = verifiers[self._next_verifier % len(verifiers)]
        self._next_verifier += 1
        chunk.verifier.load += len(chunk.ordinals)
        chunk.num_verifications += 1
        options: dict[str, Any] = {} if self._settings.mode is None else {"mode": self._settings.mode}
        if self._settings.overlong is not None:
            options["overlong"] = self._settings.overlong
        if self._scoring is not None:
            options |= {"reward_model_scores": chunk.scored, "reward_model_weight": self._scoring.weight}
        chunk.verified, chunk.experiences = chunk.verifier.handle.verify.remote(
            chunk.prompts, chunk.rollouts, **options
        )
        self._chunks[chunk.verified] = chunk
        return True

    def _collect(self, chunk: Chunk) -> list[VerifiedGroup | LostGroups]:
        """Goes on with a chunk whose step is done."""
        if chunk.verified is not None:
            return self._take_verdicts(chunk)
        if (error := _error_of(chunk.awaited)) is not None:
            return self._not_sampled(chunk, error) if chunk.scored is None else self._not_scored(chunk, error)
        if chunk.scored is None:
            self._score(chunk)
            return []
        assert chunk.scoring_since is not None
        chunk.started += time.monotonic() - chunk.scoring_since  # scoring has a deadline of its own
        chunk.scoring_since = None
        if not self._verify(chunk):
            self._unverified.append(chunk)
        return []

    def _take_verdicts(self, chunk: Chunk) -> list[VerifiedGroup | LostGroups]:
        try:
            summaries = ray.get(chunk.verified, timeout=TRANSFER_WAIT_S)
        except ray.exceptions.GetTimeoutError:  # large, and still on its way from another node
            self._chunks[chunk.verified] = chunk
            return []
        except ray.exceptions.RayError as error:
            return self._not_verified(chunk, error)
        self._unload(chunk)
        seconds = time.monotonic() - chunk.started
        return [
            VerifiedGroup(summary, GroupReference(chunk.experiences, index), seconds)
            for index, summary in enumerate(summaries)
        ]

    def _not_sampled(self, chunk: Chunk, error: Exception) -> list[VerifiedGroup | LostGroups]:
        if isinstance(error, DEATHS):
            self._unload(chunk)
            self._workers.lost(chunk.worker, end_of(error))
            return [LostGroups(chunk.ordinals, "rollout_worker_died", error)]
        if isinstance(error, ray.exceptions.RayTaskError):
            if isinstance(error.cause, PromptRefused):
                raise error.cause from error
            self._unload(chunk)
            self._workers.lost(chunk.worker, f"failed ({error.cause!r})")
            return [LostGroups(chunk.ordinals, "rollout_worker_failed", error)]
        return self._give_up(chunk, "rollouts_lost", error)

    def _not_scored(self, chunk: Chunk, error: Exception) -> list[VerifiedGroup | LostGroups]:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, ray.exceptions.RayError) and not isinstance(cause, DEATHS):
            return self._give_up(chunk, "rollouts_lost", error)
        assert chunk.scorer is not None
        chunk.scorer.ranks.unanswered += chunk.scored_beside  # they may wait for the rank that failed
        return self._wait_for_another_scorer(chunk, error)

    def _wait_for_another_scorer(self, chunk: Chunk, error: Exception) -> list[VerifiedGroup | LostGroups]:
        if chunk.num_scorings >= MAX_VERIFICATIONS:
            return self._give_up(chunk, "reward_model_died", error)
        chunk.scoring_error = ActorError(f"the reward model did not score groups {chunk.ordinals}: {error}")
        self._unscored.append(chunk)
        return []

    def _give_up(self, chunk: Chunk, reason: LossReason, error: Exception) -> list[VerifiedGroup | LostGroups]:
        self._unload(chunk)
        return [LostGroups(chunk.ordinals, reason, error)]

    def _not_verified(self, chunk: Chunk, error: ray.exceptions.RayError) -> list[VerifiedGroup | LostGroups]:
        sampling = _error_of(chunk.generated)
        if isinstance(sampling, (*DEATHS, ray.exceptions.RayTaskError)):
            return self._not_sampled(chunk, sampling)
        died = isinstance(error, DEATHS)
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if not died and isinstance(cause, ray.exceptions.RayError):
            return self._give_up(chunk, "rollouts_lost", error)
        if isinstance(cause, DataError):  # it would be one on every worker
            raise cause from error
        assert chunk.verifier is not None
        self._verifiers.lost(chunk.verifier, end_of(error) if died else f"failed ({cause!r})")
        if chunk.num_verifications < MAX_VERIFICATIONS:
            self._unverified.append(chunk)
            self._place()
            return []
        if died:
            return self._give_up(chunk, "verifier_died", error)
        raise _told(cause) from error

    def _take_late(self) -> list[VerifiedGroup | LostGroups]:
        now = time.monotonic()
        done: list[VerifiedGroup | LostGroups] = []
        for chunk in [*self._chunks.values(), *self._unverified]:
            if chunk.scoring_since is not None:
                done += self._take_late_scoring(chunk, now - chunk.scoring_since)
            elif now - chunk.started > self._settings.group_timeout_s:
                self._chunks.pop(chunk.awaited, None)
                if chunk in self._unverified:
                    self._unverified.remove(chunk)
                self._abort(chunk)
                error = ActorError(
                    f"groups {chunk.ordinals} did not come through", value=f"{self._settings.group_timeout_s:g} s"
                )
                done += self._give_up(chunk, "timeout", error)
        return done

    def _take_late_scoring(self, chunk: Chunk, seconds: float) -> list[VerifiedGroup | LostGroups]:
        assert self._scoring is not None
        if seconds <= self._scoring.timeout_s:
            return []
        del self._chunks[chunk.awaited]
        assert chunk.scorer is not None
        chunk.scorer.ranks.unanswered += [chunk.scored, *chunk.scored_beside]
        return self._wait_for_another_scorer(chunk, TimeoutError(f"no answer within {self._scoring.timeout_s:g} s"))

    def _unload(self, chunk: Chunk) -> None:
        chunk.unload()
        self._given[chunk.worker] -= len(chunk.ordinals)
        if not self._given[chunk.worker]:
            del self._given[chunk.worker]  # it may have been replaced

    def _abort(self, chunk: Chunk) -> None:
        if chunk.worker in self._workers:
            chunk.worker.handle.abort.remote(chunk.ordinals, tag=self._settings.tag)


def _is_there(ref: Any) -> bool:
    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])


def _error_of(ref: Any) -> Exception | None:
    try:
        ray.get(ref, timeout=0)
    except ray.exceptions.GetTimeoutError:  # it is there, on another node
        return None
    except ray.exceptions.RayError as error:
        return error
    return None


def _told(cause: Exception) -> RlsysError:
    """What verifying failed with, in an error of ours."""
    if isinstance(cause, RlsysError):
        return cause
    return ActorError(f"verifying failed: {cause!r}", fix="see the worker's log in the run folder")
