"""The killable pool: verdicts on model text, from processes with hard limits on CPU time, wall time and memory."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Self

from rlsys.errors import DataError, VerifierError
from rlsys.types import Verdict
from rlsys.verifiers.broker import BACKSTOP_GRACE_S, READY_LINE, broker_arguments
from rlsys.verifiers.judgement import VerifyMode
from rlsys.verifiers.scoring import SLICE_S, ScoringLimits

START_LIMIT_S = 120.0
STOP_LIMIT_S = 5.0
MAX_RESTARTS = 3
"""How often in a row, without a verdict in between, the broker is started again before requests are given up."""
_KEPT_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH")
_FIXED_ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@dataclass(frozen=True, slots=True)
class VerifyRequest:
    """One response to be judged by one verifier.

    >>> VerifyRequest("gsm8k", "72", "#### 72").mode
    'reward'
    """

    verifier: str
    ground_truth: Any
    """JSON value."""
    response: str
    mode: VerifyMode = "reward"


@dataclass(slots=True)
class _Asked:
    verifier: str
    line: bytes
    future: Future[Verdict] = field(default_factory=Future)


class VerifierPool:
    """Scores requests in processes that can be killed. To be used as a context manager; every method is thread-safe.

    The scoring processes see nothing of this process: no environment variable but the path, no network, no `__main__`.
    Their hash seed is fixed, so that a verdict depends on the request alone.

    Args:
        num_workers: scoring processes.
        wall_limit_s: backstop on one verdict, wall time.
        cpu_limit_s: limit of one verdict, CPU time from when its scoring starts.
        memory_limit_mib: address space of a scoring process, libraries included.
        modules: dotted names of modules that register verifiers.

    Raises:
        VerifierError: the processes do not start.
    """

    def __init__(
        self,
        num_workers: int = 2,
        *,
        wall_limit_s: float = 20.0,
        cpu_limit_s: float = 5.0,
        memory_limit_mib: int = 2048,
        modules: Sequence[str] = (),
    ) -> None:
        self._limits = ScoringLimits(cpu_limit_s, wall_limit_s, memory_limit_mib, tuple(modules))
        self._arguments = broker_arguments(num_workers, self._limits)
        self._lock = threading.RLock()
        self._asked: dict[int, _Asked] = {}
        self._next_id = 0
        self._restarts = 0
        self._closed = False
        self.last_sign_of_life = time.monotonic()
        """When the processes last gave a verdict, were started, or were asked while they had nothing to do."""
        self.stall_limit_s = wall_limit_s + SLICE_S + 3 * BACKSTOP_GRACE_S
        """Without a sign of life for so long, processes that have been asked are started anew."""
        self._broker = self._start_broker()
        self._reader = threading.Thread(target=self._read_results, name="verifier-pool", daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def broker_pid(self) -> int:
        """The process, and the process group, that everything this pool started belongs to."""
        return self._broker.pid

    def submit(self, requests: Sequence[VerifyRequest]) -> list[Future[Verdict]]:
        """Starts scoring, and returns a future for each request; each of them ends, none with an exception.

        Raises:
            VerifierError: the pool is closed.
            DataError: a ground truth is no JSON value.
        """
        payloads = [_encode(request) for request in requests]
        futures: list[Future[Verdict]] = []
        with self._lock:
            if self._closed:
                raise VerifierError("the verifier pool is closed", fix="ask before leaving its `with` block")
            if not self._asked:
                self.last_sign_of_life = time.monotonic()
            lines = []
            for request, payload in zip(requests, payloads, strict=True):
                one = _Asked(request.verifier, b"%d %s\n" % (self._next_id, payload))
                one.future.set_running_or_notify_cancel()
                self._asked[self._next_id] = one
                self._next_id += 1
                lines.append(one.line)
                futures.append(one.future)
            self._send(lines)
        return futures

    def verify_many(self, requests: Sequence[VerifyRequest]) -> list[Verdict]:
        """The verdicts, in the order of the requests. Never raises for what a model wrote."""
        return [future.result() for future in self.submit(requests)]

    def close(self) -> None:
        """Ends all processes. Requests that are still open become errors."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            broker = self._broker
        _stop(broker)
        self._reader.join(STOP_LIMIT_S)
        self._give_up("the pool was closed")

    def _send(self, lines: Sequence[bytes]) -> None:
        """Writes to the broker. If it is dead, the reader notices and sends everything that is open again."""
        assert self._broker.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._broker.stdin.write(b"".join(lines))
            self._broker.stdin.flush()

    def _start_broker(self) -> subprocess.Popen[bytes]:
        environment = {name: os.environ[name] for name in _KEPT_ENVIRONMENT if name in os.environ}
        environment |= _FIXED_ENVIRONMENT
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        command = [sys.executable, "-P", "-s", "-m", "rlsys.verifiers.broker", self._arguments]
        broker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        assert broker.stdout is not None
        if _read_line(broker.stdout.fileno(), START_LIMIT_S) != READY_LINE:
            _stop(broker)
            raise VerifierError(
                "the verifier pool does not start",
                value=broker.returncode,
                fix="its message is on standard error; check `verifiers.modules` and `memory_limit_mib`",
            )
        self.last_sign_of_life = time.monotonic()
        return broker

    def _read_results(self) -> None:
        """The reader thread: settles requests as results arrive, and replaces a broker that died or stalled."""
        while True:
            self._read_until_end(self._broker)
            with self._lock:
                if self._closed:
                    return
                try:
                    self._restart_broker()
                except VerifierError as error:
                    self._closed = True
                    reason = str(error)
                    break
        self._give_up(reason)

    def _restart_broker(self) -> None:
        _stop(self._broker)
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            raise VerifierError("the verifier pool died too often", value=self._restarts)
        self._broker = self._start_broker()
        self._send([asked.line for asked in self._asked.values()])

    def _read_until_end(self, broker: subprocess.Popen[bytes]) -> None:
        assert broker.stdout is not None
        unfinished = b""
        with selectors.DefaultSelector() as selector:
            selector.register(broker.stdout, selectors.EVENT_READ)
            while True:
                if selector.select(timeout=1.0):
                    received = os.read(broker.stdout.fileno(), 1 << 16)
                    if not received:
                        return
                    self.last_sign_of_life = time.monotonic()
                    *lines, unfinished = (unfinished + received).split(b"\n")
                    self._settle(lines)
                elif self._asked and time.monotonic() - self.last_sign_of_life > self.stall_limit_s:
                    broker.kill()

    def _settle(self, lines: Sequence[bytes]) -> None:
        settled = []
        with self._lock:
            self._restarts = 0
            for line in lines:
                request_id, _, result = line.partition(b" ")
                asked = self._asked.pop(int(request_id), None)
                if asked is not None:
                    outcome, score, seconds, detail = json.loads(result)
                    verdict = Verdict(asked.verifier, outcome, score, seconds, detail)
                    settled.append((asked.future, verdict))
        for future, verdict in settled:
            future.set_result(verdict)

    def _give_up(self, reason: str) -> None:
        with self._lock:
            abandoned, self._asked = list(self._asked.values()), {}
        for asked in abandoned:
            asked.future.set_result(Verdict(asked.verifier, "error", 0.0, 0.0, {"error": reason}))


def _encode(request: VerifyRequest) -> bytes:
    try:
        payload = [request.verifier, request.ground_truth, request.response, request.mode]
        return json.dumps(payload).encode("ascii")
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a ground truth is no JSON value ({error})",
            value=request.ground_truth,
            fix="use strings, numbers, lists and tables",
        ) from error


def _read_line(descriptor: int, limit_s: float) -> bytes:
    """Up to one line, or what there is of it at the end of the stream or of the time."""
    deadline, line = time.monotonic() + limit_s, b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while not line.endswith(b"\n") and selector.select(timeout=max(0.0, deadline - time.monotonic())):
            received = os.read(descriptor, 1)
            if not received:
                break
            line += received
    return line


def _stop(broker: subprocess.Popen[bytes]) -> None:
    """Ends a broker and everything it started: by the end of its input, else by force."""
    assert broker.stdin is not None and broker.stdout is not None
    with contextlib.suppress(BrokenPipeError):
        broker.stdin.close()
    try:
        broker.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        broker.kill()
        broker.wait()
    deadline = time.monotonic() + STOP_LIMIT_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(broker.pid, signal.SIGKILL)
            time.sleep(0.01)
