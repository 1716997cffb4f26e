"""The thread that steps an engine, and the only one that touches it.

    other threads                        the engine's thread
    -------------                        -------------------
    add(groups)   -> Futures    --->     between two steps: do what was asked
    call(f)       -> Future     --->     then step, if something runs and no update is on
    prepare(mode) -> Future     --->     resolves when the engine is ready to take weights; steps stop
    commit(v)     -> Future     --->     the new version; steps go on

What is asked is done in the order of asking. When a step fails, every future fails with its error, and so does
whatever is asked later: an engine that failed once is not trusted again.
"""

import queue
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from rlsys.errors import ActorError, WeightTransferError
from rlsys.recipe.rollout import SamplingSettings, UpdateMode
from rlsys.rollouts.partial_group import Response
from rlsys.rollouts.sampling_engine import SamplingEngine
from rlsys.telemetry.trace import Span, SpanRecorder
from rlsys.types import PolicyVersion, Rollout

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """One prompt's samples, as `SamplingEngine.add_group` takes them."""

    prompt_ids: Sequence[int]
    ordinal: int
    seeds: Sequence[int]
    """One for each sample."""
    sampling: SamplingSettings
    begun: Sequence[Response] = ()
    """What there is of some samples already."""


@dataclass(frozen=True, slots=True)
class LoopStats:
    """Counters since the start; differences between two of them are rates."""

    version: PolicyVersion
    num_tokens: int
    """Response tokens sampled."""
    num_steps: int
    num_groups: int
    """Groups finished."""
    num_unfinished: int
    """Samples queued or running now."""
    num_restarted: int
    """Requests ended and asked for anew by updates of the kind `abort_and_continue`."""
    update_s: float
    """Time between `prepare` and `commit`, in which nothing was sampled."""
    beat_age_s: float
    """Since the thread last said that it lives, as it does after each step and each thing asked; 0 while it waits."""


class EngineLoop:
    """Builds an engine in a thread of its own and steps it there.

    Args:
        build: makes the engine; called in the thread.
        name: of the worker, for error messages.
    """

    def __init__(self, build: Callable[[], SamplingEngine], *, name: str) -> None:
        self.name = name
        self.ready: Future[None] = Future()
        """Resolved when the engine is built; fails with what building it raised."""
        self._build = build
        self._commands: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._waiters: dict[int, Future[tuple[Rollout, ...]]] = {}
        self._held: list[tuple[GroupRequest, Future[tuple[Rollout, ...]]]] = []
        self._prepared: Future[None] | None = None
        self._mode: UpdateMode = "in_flight"
        self._paused = True
        self._closed = False
        self._failure: BaseException | None = None
        self._num_steps = self._num_groups = self._num_restarted = 0
        self._update_s = 0.0
        self._update_started: float | None = None
        self._busy_since: float | None = None
        self._spans = SpanRecorder(name)
        self._beat = time.monotonic()
        self._rests = False
        """Whether the thread waits to be asked for something, as between the phases of a publication."""
        self._engine: SamplingEngine | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine-{name}", daemon=True)
        self._thread.start()

    # --- called from other threads -----------------------------------------------------------------------------

    def add(self, requests: Sequence[GroupRequest]) -> "list[Future[tuple[Rollout, ...]]]":
        """Queues groups, all of them between the same two steps.

        Returns:
            For each group a future of its rollouts, by sample index; `PromptRefused` when there is no room for it.
        """
        futures: list[Future[tuple[Rollout, ...]]] = [_promise() for _ in requests]

        def told(asked: "Future[None]") -> None:
            for future in futures:
                _pass_error(asked, future)

        self._ask(lambda: self._admit_all(requests, futures)).add_done_callback(told)
        return futures

    def call(self, function: Callable[[SamplingEngine], T]) -> "Future[T]":
        """Runs `function` in the engine's thread, between two steps."""
        return self._ask(lambda: function(self._live_engine))

    def prepare(self, mode: UpdateMode) -> "Future[None]":
        """Gets ready for new weights: with `drain`, when what runs is finished; else at once. Then steps stop.

        What is asked for meanwhile waits for `commit`. A preparation that was under way is given up for this one.
        """
        ready: Future[None] = _promise()
        self._ask(lambda: self._begin_update(mode, ready)).add_done_callback(lambda asked: _pass_error(asked, ready))
        return ready

    def commit(self, version: PolicyVersion) -> "Future[None]":
        """Makes the weights that were received the current ones and goes on sampling."""
        return self._ask(lambda: self._commit(version))

    def abandon(self) -> "Future[None]":
        """Ends a preparation that came to nothing. An engine whose weights were touched stays paused."""
        return self._ask(self._abandon)

    def abort(self, futures: "Collection[Future[tuple[Rollout, ...]]]") -> "Future[None]":
        """Ends groups of `add` that are unfinished: their futures fail, and the engine forgets them."""
        return self._ask(lambda: self._abort(futures))

    def begun(self, futures: "Sequence[Future[tuple[Rollout, ...]]]") -> "Future[list[tuple[Response, ...]]]":
        """The responses of groups of `add` as far as they are, all at the same moment between two steps.

        Returns:
            For each group its responses by sample index, nothing for a group that failed.
        """
        return self._ask(lambda: self._begun(futures))

    def drain_spans(self) -> list[Span]:
        """`sampling` (from one step to another without a rest) and `update` spans, since the last call up to now."""
        busy = self._busy_since is not None
        self._end_busy_time()
        if busy:
            self._busy_since = time.time()
        return self._spans.drain()

    def check(self) -> None:
        """Raises what the engine failed with, if it has."""
        if self._failure is not None:
            raise self._failure

    def stats(self) -> LoopStats:
        """A snapshot; answers even while a step is stuck."""
        engine = self._engine
        return LoopStats(
            version=engine.version if engine else 0,
            num_tokens=engine.num_tokens if engine else 0,
            num_steps=self._num_steps,
            num_groups=self._num_groups,
            num_unfinished=engine.num_unfinished if engine else 0,
            num_restarted=self._num_restarted,
            update_s=self._update_s,
            beat_age_s=0.0 if self._rests else time.monotonic() - self._beat,
        )

    def close(self, *, timeout_s: float = 30.0) -> None:
        """Ends the thread and the engine; what is unfinished fails.

        Raises:
            ActorError: the thread did not end in time.
        """
        self._commands.put((self._stop, Future()))
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise ActorError(f"the engine of {self.name} did not stop", value=timeout_s, fix="kill its process")

    # --- the engine's thread -----------------------------------------------------------------------------------

    @property
    def _live_engine(self) -> SamplingEngine:
        assert self._engine is not None, "commands run after the engine was built"
        return self._engine

    def _ask(self, function: Callable[[], T]) -> "Future[T]":
        future: Future[T] = _promise()
        if self._failure is not None:
            future.set_exception(self._failure)
        else:
            self._commands.put((function, future))
            if self._failure is not None:  # the thread may have failed in between and emptied the queue before
                self._fail_commands(self._failure)
        return future

    def _run(self) -> None:
        try:
            self._engine = self._build()
            self._paused = self._engine.updating
            self.ready.set_result(None)
            while not self._closed:
                self._do_commands()
                self._step()
        except BaseException as error:  # whatever ends this thread must reach those who wait for it
            self._fail(error)
        else:
            self._fail(ActorError(f"the engine of {self.name} was closed", fix="ask another worker"))
        finally:
            if self._engine is not None:
                self._engine.close()

    def _do_commands(self) -> None:
        block = self._paused or not self._live_engine.has_work
        if block:
            self._end_busy_time()
        while not self._closed:
            self._rests = block
            try:
                function, future = self._commands.get(block=block)
            except queue.Empty:
                break
            finally:
                self._beat = time.monotonic()
                self._rests = False
            block = False
            _resolve(future, function)
        self._beat = time.monotonic()

    def _step(self) -> None:
        engine = self._live_engine
        if not self._paused and engine.has_work and not self._closed:
            self._busy_since = self._busy_since or time.time()
            for group in engine.step():
                self._num_groups += 1
                self._waiters.pop(group.key).set_result(group.rollouts)
            self._num_steps += 1
            self._beat = time.monotonic()
        if self._prepared is not None and not self._paused and not engine.has_work:
            self._pause()

    def _end_busy_time(self) -> None:
        since, self._busy_since = self._busy_since, None
        if since is not None:
            self._spans.add("sampling", since, time.time())

    def _admit_all(self, requests: Sequence[GroupRequest], futures: "Sequence[Future[tuple[Rollout, ...]]]") -> None:
        for request, future in zip(requests, futures, strict=True):
            if self._prepared is not None or self._paused:
                self._held.append((request, future))
            else:
                self._admit(request, future)

    def _admit(self, request: GroupRequest, future: "Future[tuple[Rollout, ...]]") -> None:
        try:
            key = self._live_engine.add_group(
                request.prompt_ids,
                ordinal=request.ordinal,
                num_samples=len(request.seeds),
                seeds=request.seeds,
                sampling=request.sampling,
                begun=request.begun,
            )
        except Exception as error:  # told to the one who asked; groups that were held with this one still get in
            future.set_exception(error)
        else:
            self._waiters[key] = future

    def _begin_update(self, mode: UpdateMode, ready: "Future[None]") -> None:
        if self._prepared is not None and not self._prepared.done():
            self._prepared.set_exception(WeightTransferError(f"another update of {self.name} began before this one"))
        self._mode, self._prepared = mode, ready
        if mode != "drain" or self._paused or not self._live_engine.has_work:
            self._pause()

    def _pause(self) -> None:
        assert self._prepared is not None
        self._paused = True
        self._update_started = time.monotonic()
        self._prepared.set_result(None)

    def _commit(self, version: PolicyVersion) -> None:
        engine = self._live_engine
        engine.commit_version(version)
        if self._mode == "abort_and_continue" and self._prepared is not None:
            self._num_restarted += engine.restart_requests()
        self._resume()

    def _abandon(self) -> None:
        if not self._live_engine.updating:
            self._resume()
        self._prepared = None

    def _abort(self, futures: "Collection[Future[tuple[Rollout, ...]]]") -> None:
        keys = [key for key, future in self._waiters.items() if future in futures]
        self._live_engine.abort_groups(frozenset(keys))
        ended = [self._waiters.pop(key) for key in keys]
        ended += [future for _, future in self._held if future in futures]
        self._held = [(request, future) for request, future in self._held if future not in futures]
        for future in ended:
            future.set_exception(ActorError(f"{self.name} was told to abort the request"))

    def _begun(self, futures: "Sequence[Future[tuple[Rollout, ...]]]") -> list[tuple[Response, ...]]:
        responses = self._live_engine.begun()
        so_far = {future: responses[key] for key, future in self._waiters.items()}
        so_far |= {future: tuple(request.begun) for request, future in self._held}
        for future in futures:
            if future.done() and future.exception() is None:
                so_far[future] = future.result()
        return [so_far.get(future, ()) for future in futures]

    def _resume(self) -> None:
        if self._update_started is not None:
            seconds = time.monotonic() - self._update_started
            self._update_s += seconds
            self._spans.add("take weights", time.time() - seconds, time.time())
        self._update_started = self._prepared = None
        self._paused = False
        held, self._held = self._held, []
        for request, future in held:
            self._admit(request, future)

    def _stop(self) -> None:
        self._closed = True

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        if not self.ready.done():
            self.ready.set_exception(error)
        pending: list[Future[Any]] = [*self._waiters.values(), *(future for _, future in self._held)]
        if self._prepared is not None:
            pending.append(self._prepared)
        for future in pending:
            if not future.done():
                future.set_exception(error)
        self._waiters.clear()
        self._fail_commands(error)

    def _fail_commands(self, error: BaseException) -> None:
        while True:
            try:
                _, future = self._commands.get_nowait()
            except queue.Empty:
                return
            future.set_exception(error)


def _promise() -> "Future[Any]":
    """A future that whoever waits for it cannot cancel: the engine's thread will give its result."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def _resolve(future: "Future[Any]", function: Callable[[], Any]) -> None:
    try:
        result = function()
    except Exception as error:  # belongs to the one who asked; an engine that is unusable also fails its next step
        future.set_exception(error)
    else:
        future.set_result(result)


def _pass_error(asked: "Future[Any]", future: "Future[Any]") -> None:
    error = asked.exception()
    if error is not None and not future.done():
        future.set_exception(error)
