"""What runs in a process of the pool: scoring requests, each under its own clock.

The clock is the kernel's: two interval timers whose signals end the process, also inside C code and also where Python
code catches everything. CPU time is what counts, so that a busy machine fails nobody; wall time is the backstop for a
verifier that waits. The process then is replaced, and the broker knows from `progress` which request it was.
"""

import json
import os
import signal
import time
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass

from rlsys.verifiers import sandbox
from rlsys.verifiers.judgement import Judgement
from rlsys.verifiers.registry import get_verifier, load_verifier_modules

EXIT_OUT_OF_MEMORY = 77
LIMIT_SIGNALS = (signal.SIGPROF, signal.SIGALRM)
SLICE_S = 0.25
"""A batch goes back after so long; what it has not scored is scheduled again."""
IDLE = -1
_LONGEST_DETAIL_CHARS = 20_000
_LONGEST_ERROR_CHARS = 500


@dataclass(frozen=True, slots=True)
class ScoringLimits:
    """Limits of one request, and of the process."""

    cpu_limit_s: float
    wall_limit_s: float
    memory_limit_mib: int
    modules: tuple[str, ...] = ()


_limits = ScoringLimits(5.0, 20.0, 2048)
_progress: MutableSequence[int] = []


def initialize(limits: ScoringLimits, progress: MutableSequence[int]) -> None:
    """Prepares this process for scoring and locks it up.

    Args:
        progress: shared memory, an entry a batch slot: the index of the request being scored, `IDLE` if none.
    """
    global _limits, _progress
    _limits, _progress = limits, progress
    sandbox.die_with_parent()
    for number in LIMIT_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    load_verifier_modules(limits.modules)
    sandbox.limit_memory(limits.memory_limit_mib)
    sandbox.deny_outside_world()


def score_batch(slot: int, payloads: Sequence[bytes]) -> list[str]:
    """Scores requests in order until the slice of time is used up.

    Args:
        slot: where in `progress` this batch reports.
        payloads: JSON, each `[verifier, ground truth, response, mode]`.

    Returns:
        JSON, each `[outcome, score, seconds, detail]`, of at least the first payload.
    """
    started = time.perf_counter()
    results = []
    for index, payload in enumerate(payloads):
        _progress[slot] = index
        results.append(_score(payload))
        if time.perf_counter() - started > SLICE_S:
            break
    _progress[slot] = IDLE
    return results


def _score(payload: bytes) -> str:
    started = time.perf_counter()
    signal.setitimer(signal.ITIMER_PROF, _limits.cpu_limit_s)
    signal.setitimer(signal.ITIMER_REAL, _limits.wall_limit_s)
    try:
        name, ground_truth, response, mode = json.loads(payload)
        return _json_result(get_verifier(name).judge(response, ground_truth, mode), started)
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)
    except Exception as error:  # the isolation boundary of one verdict: counted as `error` by whoever asked
        message = f"{type(error).__name__}: {error}"[:_LONGEST_ERROR_CHARS]
        return _json_result(Judgement("error", 0.0, {"error": message}), started)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _json_result(judgement: Judgement, started: float) -> str:
    detail = json.dumps(dict(judgement.detail), allow_nan=False)
    if len(detail) > _LONGEST_DETAIL_CHARS:
        detail = json.dumps({"left_out": f"{len(detail)} characters of detail"})
    seconds = time.perf_counter() - started
    return f"[{json.dumps(judgement.outcome)},{float(judgement.score)!r},{seconds:.6f},{detail}]"
