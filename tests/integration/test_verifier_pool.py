"""The killable pool against verifiers that hang, crash, eat memory and try to reach the world."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path

import pytest
from leftovers import shared_memory, unused_shared_memory

from rlsys.errors import DataError, VerifierError
from rlsys.types import Verdict
from rlsys.verifiers.pool import VerifierPool, VerifyRequest

pytestmark = [pytest.mark.integration, pytest.mark.alone]
CPU_LIMIT_S = 0.2
WALL_LIMIT_S = 90.0
"""Far beyond what a fifth of a second of CPU time takes on a machine that is shared with others."""


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    os.environ["RLSYS_TEST_SECRET"] = "token"
    with VerifierPool(
        2, cpu_limit_s=CPU_LIMIT_S, wall_limit_s=WALL_LIMIT_S, memory_limit_mib=768, modules=["rogue_verifiers"]
    ) as one:
        yield one
    del os.environ["RLSYS_TEST_SECRET"]


def living_processes(group: int) -> list[int]:
    """The processes of a process group, without those that ended and wait to be reaped."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def rogue(word: str, truth: object = "") -> VerifyRequest:
    return VerifyRequest("rogue_by_word", truth, word)


def good(number: int) -> VerifyRequest:
    return VerifyRequest("rogue_by_word", str(number), str(number))


def test_verdicts_come_back_in_input_order(pool: VerifierPool):
    requests = [VerifyRequest("gsm8k", str(n), f"#### {n + n % 2}") for n in range(500)]
    verdicts = pool.verify_many(requests)
    assert [v.outcome for v in verdicts] == ["correct" if n % 2 == 0 else "wrong" for n in range(500)]
    assert [v.score for v in verdicts] == [float(n % 2 == 0) for n in range(500)]
    assert {v.verifier for v in verdicts} == {"gsm8k"} and all(0 < v.seconds < CPU_LIMIT_S for v in verdicts)
    assert pool.verify_many([]) == []


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("not a number", "must return a Judgement, a bool or a score from 0 to 1"),
        ("not a number inside", "Out of range float values are not JSON compliant"),
        ("unknown outcome", "returned an unknown outcome; got 'right'"),
    ],
)
def test_a_judgement_that_is_none_is_an_error_and_harms_nobody(pool: VerifierPool, word: str, told: str):
    before, verdict, after = pool.verify_many([good(1), rogue(word), good(2)])
    assert (before.outcome, after.outcome) == ("correct", "correct")
    assert (verdict.outcome, verdict.score) == ("error", 0.0) and told in verdict.detail["error"]


@pytest.mark.parametrize("word", ["spin", "spin deaf"])
def test_a_hang_costs_its_cpu_time_and_is_masked(pool: VerifierPool, word: str):
    [verdict] = pool.verify_many([rogue(word)])
    assert verdict == Verdict("rogue_by_word", "timeout", 0.0, CPU_LIMIT_S, {"limit": "cpu"})
    assert verdict.masked


def test_a_verifier_that_only_waits_meets_the_wall_limit():
    with VerifierPool(1, cpu_limit_s=5.0, wall_limit_s=1.0, modules=["rogue_verifiers"]) as pool:
        asleep, after = pool.verify_many([rogue("sleep"), good(1)])
    assert asleep == Verdict("rogue_by_word", "timeout", 0.0, 1.0, {"limit": "wall"})
    assert after.outcome == "correct"


def test_a_crash_is_an_error_and_so_is_running_out_of_memory(pool: VerifierPool):
    died, memory, left, raised = pool.verify_many([rogue(word) for word in ("die", "eat memory", "leave", "raise")])
    assert {verdict.outcome for verdict in (died, memory, left, raised)} == {"error"}
    assert died.detail == {"error": "the scoring process died", "exit_code": -signal.SIGABRT}
    assert memory.detail["error"] == "out of memory"
    assert "gone" in left.detail["error"]
    assert raised.detail == {"error": "RuntimeError: broken verifier"}


def test_a_thousand_requests_of_which_one_in_twenty_hangs(pool: VerifierPool):
    """No right answer loses its reward, the hung ones cost their limit and no more, and the pool is whole again."""
    requests = [rogue("spin") if n % 20 == 7 else good(n) for n in range(1000)]
    started = time.monotonic()
    verdicts = pool.verify_many(requests)
    elapsed = time.monotonic() - started
    crowd = max(1.0, 2 * os.getloadavg()[0] / os.cpu_count())  # pyright: ignore[reportOptionalOperand]
    outcomes = Counter((n % 20 == 7, verdict.outcome) for n, verdict in enumerate(verdicts))
    assert outcomes == {(True, "timeout"): 50, (False, "correct"): 950}
    assert {v.seconds for v in verdicts if v.masked} == {CPU_LIMIT_S}
    assert elapsed < crowd * (50 * CPU_LIMIT_S / 2 + 10)

    started = time.monotonic()
    assert all(v.outcome == "correct" for v in pool.verify_many([good(n) for n in range(1000)]))
    assert time.monotonic() - started < crowd * 10


def test_every_kind_of_misbehaviour_at_once(pool: VerifierPool):
    words = ["spin", "die", "eat memory", "raise", "leave", "print", "spin deaf"]
    requests = [rogue(words[n // 16], "print") if n % 16 == 3 else good(n) for n in range(16 * len(words))]
    verdicts = pool.verify_many(requests)
    expected = {"spin": "timeout", "spin deaf": "timeout", "print": "correct"}
    for n, verdict in enumerate(verdicts):
        want = expected.get(words[n // 16], "error") if n % 16 == 3 else "correct"
        assert verdict.outcome == want, (n, verdict)


@pytest.mark.parametrize("word", ["open socket", "run program", "main module"])
def test_scoring_processes_are_cut_off_from_the_world(pool: VerifierPool, word: str):
    assert pool.verify_many([rogue(word)])[0].outcome == "correct"


def test_scoring_processes_write_no_files_and_see_no_secrets(pool: VerifierPool, tmp_path: Path):
    target = tmp_path / "written"
    written, environment = pool.verify_many(
        [rogue("write file", str(target)), rogue("environment", "RLSYS_TEST_SECRET")]
    )
    assert (written.outcome, environment.outcome) == ("correct", "correct")
    assert not target.exists()


def test_what_cannot_be_asked_is_an_error_verdict_or_refused(pool: VerifierPool):
    unknown, bad_truth = pool.verify_many([VerifyRequest("gsmk8", "1", "1"), VerifyRequest("gsm8k", "many", "1")])
    assert unknown.outcome == bad_truth.outcome == "error"
    assert "did you mean 'gsm8k'" in unknown.detail["error"] and "ground truth of gsm8k" in bad_truth.detail["error"]
    with pytest.raises(DataError, match="no JSON value"):
        pool.verify_many([VerifyRequest("gsm8k", {1, 2}, "1")])


def test_results_are_there_as_they_are_ready(pool: VerifierPool):
    hung, *others = pool.submit([rogue("spin"), *(good(n) for n in range(40))])
    *first, last = as_completed([hung, *others])
    assert last is hung and len(first) == 40
    assert all(future.result().outcome == "correct" for future in first)


def test_many_threads_share_a_pool(pool: VerifierPool):
    found: dict[int, list[str]] = {}

    def ask(thread: int) -> None:
        requests = [VerifyRequest("gsm8k", str(n), f"#### {n if (n + thread) % 3 else -n - 1}") for n in range(60)]
        found[thread] = [verdict.outcome for verdict in pool.verify_many(requests)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        assert found[number] == ["correct" if (n + number) % 3 else "wrong" for n in range(60)]


def test_a_killed_broker_is_replaced_and_nothing_is_lost():
    with VerifierPool(1, cpu_limit_s=5.0, modules=["rogue_verifiers"]) as pool:
        futures = pool.submit([VerifyRequest("gsm8k", str(n), f"#### {n}") for n in range(3000)])
        futures[0].result()
        os.kill(pool.broker_pid, signal.SIGKILL)
        assert Counter(future.result().outcome for future in futures) == {"correct": 3000}
        assert pool.verify_many([good(1)])[0].outcome == "correct"


def test_processes_killed_all_at_once_leave_no_shared_memory():
    """Nobody is left who could take a name away: there must be none."""
    before = shared_memory()
    with VerifierPool(2, cpu_limit_s=5.0, modules=["rogue_verifiers"]) as pool:
        assert pool.verify_many([good(1)])[0].outcome == "correct"
        os.killpg(pool.broker_pid, signal.SIGKILL)
        assert pool.verify_many([good(1)])[0].outcome == "correct", "by others in their place"
        os.killpg(pool.broker_pid, signal.SIGKILL)
    assert unused_shared_memory(before) == set()


def test_closing_ends_every_process_and_settles_what_is_open():
    pool = VerifierPool(2, cpu_limit_s=60.0, wall_limit_s=60.0, modules=["rogue_verifiers"])
    group = pool.broker_pid
    futures = pool.submit([rogue("spin") for _ in range(5)])
    pool.close()
    assert [future.result().outcome for future in futures] == ["error"] * 5
    assert living_processes(group) == []
    with pytest.raises(VerifierError, match="closed"):
        pool.verify_many([good(1)])


def test_processes_die_with_the_one_that_uses_them():
    """Also when it is killed, and while a verifier spins."""
    script = (
        "import sys; from rlsys.verifiers.pool import *\n"
        "pool = VerifierPool(2, cpu_limit_s=60.0, modules=['rogue_verifiers'])\n"
        "pool.submit([VerifyRequest('rogue_by_word', '', 'spin')] * 2)\n"
        "print(pool.broker_pid, flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    user = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert user.stdout is not None
    group = int(user.stdout.readline())
    assert living_processes(group)
    user.kill()
    user.wait()
    deadline = time.monotonic() + 60
    while living_processes(group) and time.monotonic() < deadline:
        os.sched_yield()
    assert living_processes(group) == []


def test_a_pool_that_cannot_start_says_so():
    with pytest.raises(VerifierError, match="does not start"):
        VerifierPool(1, modules=["no_such_module"])


REPEATED = [
    ("math", r"\frac12", r"\boxed{0.5}"),
    ("math", r"\{1,2,3\}", r"\boxed{3, 1, 2}"),
    ("math", "x^2-1", r"\boxed{(x-1)(x+1)}"),
    ("math", "4", r"\boxed{((((3!)!)!)!)!}"),
    ("math", r"\text{B}", r"\boxed{A, B}"),
    ("math", r"\sum_{k=1}^{4} k", r"\boxed{10}"),
    ("gsm8k", "18", "#### 18.0"),
    ("gsm8k", "18", "18 apples in 2 days"),
    ("string", {"any_of": ["a", "b"]}, "b."),
    ("r1", "4", "<think>x</think><answer>5</answer>"),
    ("rogue_by_word", "", "hash seed"),
]


def verdicts_of_repeated(num_workers: int) -> list[tuple]:
    with VerifierPool(num_workers, modules=["rogue_verifiers"]) as pool:
        verdicts = pool.verify_many([VerifyRequest(*one) for one in REPEATED * 5])
    return [(v.verifier, v.outcome, v.score, dict(v.detail)) for v in verdicts]


def test_verdicts_are_the_same_everywhere():
    """In another process with another hash seed, from a thread, with other numbers of workers."""
    here = verdicts_of_repeated(2)
    assert here[: len(REPEATED)] * 5 == here
    from_thread: list[list[tuple]] = []
    thread = threading.Thread(target=lambda: from_thread.append(verdicts_of_repeated(1)))
    thread.start()
    thread.join()

    script = "import json, test_verifier_pool as t; print(json.dumps(t.verdicts_of_repeated(1)))"
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        output = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, check=True, text=True
        )
        assert [tuple(one) for one in json.loads(output.stdout)] == here
    assert from_thread == [here]
