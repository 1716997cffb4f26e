"""The process between a VerifierPool and its scoring processes: `python -m rlsys.verifiers.broker SETTINGS`.

     VerifierPool  --lines-->  broker (pebble pool)  --batches-->  scoring processes, forked from a clean server
                   <--lines--                        <--verdicts--

It exists so that scoring processes inherit nothing of their user's: neither its environment, nor its threads, open
files and gigabytes of imports, nor its `__main__`. What a killed process was doing is known from shared memory: only
the request that hung or crashed bears the blame, the others of its batch are scored again.

Lines in: `id JSON-request`. Lines out: `id JSON-result`; first of all `ready`. The end of the input ends everything.
"""

import ctypes
import json
import os
import queue
import signal
import sys
import threading
from collections import deque
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from pebble import CONSTS, ProcessExpired, ProcessPool

from rlsys.verifiers import scoring
from rlsys.verifiers.pipe_lock import NamelessContext
from rlsys.verifiers.registry import BUILT_IN

READY_LINE = b"ready\n"
MAX_BATCH = 32
MAX_CRASHES = 2
"""A request whose scoring ended its process so often, limits aside, is an error: once may have been another's fault."""
MAX_ATTEMPTS = 5
"""A request that was in so many batches that came to nothing, without being the cause, is an error too."""
BATCHES_PER_WORKER = 2
IMPORTED_LATE = ("rlsys.verifiers.math.second_reader",)
"""Modules that a verifier imports when it first needs them: here that is before any clock runs."""
RECYCLE_AFTER_BATCHES = 5_000
BACKSTOP_GRACE_S = 10.0
PARENT_CHECK_S = 1.0
START_LIMIT_S = 100.0


@dataclass(slots=True)
class _Request:
    id: bytes
    payload: bytes
    crashes: int = 0
    attempts: int = 0

    @property
    def given_up(self) -> bool:
        return self.crashes >= MAX_CRASHES or self.attempts >= MAX_ATTEMPTS


@dataclass(frozen=True, slots=True)
class _Batch:
    slot: int
    requests: list[_Request]


class Broker:
    """Schedules requests on a pebble pool and writes their results.

    Args:
        limits: of one request.
        results: where result lines are written.
    """

    def __init__(self, num_workers: int, limits: scoring.ScoringLimits, results: BinaryIO) -> None:
        self._num_workers, self._limits, self._results = num_workers, limits, results
        self._context = NamelessContext()
        modules = sorted({module for module, _, _ in BUILT_IN.values()})
        self._context.set_forkserver_preload([scoring.__name__, *modules, *IMPORTED_LATE, *limits.modules])
        num_slots = num_workers * BATCHES_PER_WORKER
        self._progress = self._context.RawArray(ctypes.c_int64, [scoring.IDLE] * num_slots)
        self._free_slots = list(range(num_slots))
        self._pending: deque[_Request] = deque()
        self._events: queue.SimpleQueue[list[_Request] | tuple[_Batch, Future[list[str]]] | None] = queue.SimpleQueue()
        self._pool = self._new_pool()

    def start(self) -> None:
        """Starts the scoring processes, and waits for one to be ready.

        Raises:
            Exception: what kept it from starting; the process itself has written why to standard error.
        """
        self._schedule(_Batch(0, [])).result(START_LIMIT_S)

    def run(self, requests: BinaryIO) -> None:
        """Serves until the input or the process that feeds it ends."""
        threading.Thread(target=self._read, args=(requests,), daemon=True).start()
        parent = os.getppid()
        while os.getppid() == parent:
            try:
                event = self._events.get(timeout=PARENT_CHECK_S)
            except queue.Empty:
                continue
            if event is None:
                break
            if isinstance(event, list):
                self._pending.extend(event)
            else:
                self._finish(*event)
            self._dispatch()
        self._pool.stop()
        self._pool.join()

    def _read(self, requests: BinaryIO) -> None:
        for line in requests:
            request_id, _, payload = line.partition(b" ")
            self._events.put([_Request(request_id, payload)])
        self._events.put(None)

    def _new_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._num_workers,
            max_tasks=RECYCLE_AFTER_BATCHES,
            initializer=scoring.initialize,
            initargs=(self._limits, self._progress),
            context=self._context,  # pyright: ignore[reportArgumentType]  # pebble's protocol has Linux's pipes only
        )

    def _dispatch(self) -> None:
        """Hands out batches: large enough to amortise a task's cost, small enough that all processes are busy."""
        while self._free_slots and self._pending:
            size = min(MAX_BATCH, 1 + len(self._pending) // (2 * BATCHES_PER_WORKER * self._num_workers))
            batch = _Batch(self._free_slots.pop(), [self._pending.popleft() for _ in range(size)])
            self._progress[batch.slot] = scoring.IDLE
            future = self._schedule(batch)
            future.add_done_callback(lambda done, batch=batch: self._events.put((batch, done)))

    def _schedule(self, batch: _Batch) -> Future[list[str]]:
        arguments = (batch.slot, [request.payload for request in batch.requests])
        timeout_s = self._limits.wall_limit_s + scoring.SLICE_S + BACKSTOP_GRACE_S
        try:
            return self._pool.schedule(scoring.score_batch, args=arguments, timeout=timeout_s)
        except RuntimeError:  # the pool broke: a process died outside of any task
            self._pool.stop()
            self._pool.join()
            self._pool = self._new_pool()
            return self._pool.schedule(scoring.score_batch, args=arguments, timeout=timeout_s)

    def _finish(self, batch: _Batch, future: Future[list[str]]) -> None:
        failure = future.exception()
        if failure is None:
            scored = future.result()
            for request, result in zip(batch.requests, scored, strict=False):
                self._emit(request, result)
            unscored = batch.requests[len(scored) :]
        else:
            unscored = self._after_failure(batch, failure)
        self._pending.extendleft(reversed(unscored))
        self._free_slots.append(batch.slot)

    def _after_failure(self, batch: _Batch, failure: BaseException) -> list[_Request]:
        """Settles the request that ended its process, and returns those to be scored again."""
        index = self._progress[batch.slot]
        outcome, seconds, detail = self._explain(failure)
        if index == scoring.IDLE or isinstance(failure, BrokenProcessPool):
            for request in batch.requests:
                request.attempts += 1
        else:
            culprit = batch.requests[index]
            final = outcome == "timeout" or detail.get("exit_code") == scoring.EXIT_OUT_OF_MEMORY
            culprit.crashes = MAX_CRASHES if final else culprit.crashes + 1
        for request in batch.requests:
            if request.given_up:
                self._emit(request, json.dumps([outcome, 0.0, seconds, detail]))
        return [request for request in batch.requests if not request.given_up]

    def _explain(self, failure: BaseException) -> tuple[str, float, dict[str, Any]]:
        """Outcome, seconds and detail of the request that ended its process."""
        if isinstance(failure, TimeoutError):
            return "timeout", self._limits.wall_limit_s, {"limit": "wall, without answering signals"}
        if not isinstance(failure, ProcessExpired):
            return "error", 0.0, {"error": f"{type(failure).__name__}: {failure}"[:500]}
        if failure.exitcode == -signal.SIGPROF:
            return "timeout", self._limits.cpu_limit_s, {"limit": "cpu"}
        if failure.exitcode == -signal.SIGALRM:
            return "timeout", self._limits.wall_limit_s, {"limit": "wall"}
        what = "out of memory" if failure.exitcode == scoring.EXIT_OUT_OF_MEMORY else "the scoring process died"
        return "error", 0.0, {"error": what, "exit_code": failure.exitcode}

    def _emit(self, request: _Request, result: str) -> None:
        self._results.write(b"%s %s\n" % (request.id, result.encode("ascii")))
        self._results.flush()


def broker_arguments(num_workers: int, limits: scoring.ScoringLimits) -> str:
    """The command line argument from which `main` makes a broker."""
    return json.dumps({"num_workers": num_workers, "limits": asdict(limits)})


def main(arguments: str) -> None:
    """Serves standard input. What scoring code prints goes to standard error, never between the results."""
    settings = json.loads(arguments)
    CONSTS.term_timeout = 0.2  # a process that does not answer SIGTERM is killed after so long
    limits = scoring.ScoringLimits(**{**settings["limits"], "modules": tuple(settings["limits"]["modules"])})
    with os.fdopen(os.dup(1), "wb") as results:
        os.dup2(2, 1)
        broker = Broker(settings["num_workers"], limits, results)
        broker.start()
        results.write(READY_LINE)
        results.flush()
        broker.run(sys.stdin.buffer)


if __name__ == "__main__":
    main(sys.argv[1])
