"""Heartbeats beside an actor's work; what waits for a rank's work, and what outlives the rank."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from tiny_recipe import start_python
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from actors.groups import Pending, Placement, RankGroup
from actors.rank import Rank, remote_rank
from actors.verifier_worker import VerifierWorker
from rlsys.errors import ActorError
from rlsys.recipe.verifiers import VerifierSettings
from rlsys.types import Check, Prompt, Rollout

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(300)]


@remote_rank
class Slow(Rank):
    """Notes the thread of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[int] = []
        self.calls: list[int] = []
        self.local = threading.local()

    def work(self, *, seconds: float = 0.0, number: int = 0) -> int:
        """Takes so long, as a collective does: without the interpreter's lock."""
        self.threads.append(threading.get_ident())
        self.local.last = number
        time.sleep(seconds)
        self.calls.append(number)
        return self.local.last

    def seen(self) -> tuple[list[int], set[int], int]:
        """Numbers in order, threads, and what the last call left in its thread."""
        return self.calls, set(self.threads), self.local.last

    def scores(self, *, shards: list[int]) -> tuple[Any, ...]:
        """None and a small and a large object a shard, one in the driver's memory and one in the store."""
        return None, *(bytes([shard]) * (10 if shard % 2 else 1_000_000) for shard in shards)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(address="local", include_dashboard=False, num_cpus=2, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture
def group() -> Iterator[RankGroup]:
    ranks = [Slow.options(num_cpus=0).remote() for _ in range(2)]
    group = RankGroup(Placement("slow", operation_timeout_s=60.0), ranks)
    ray.get(pings(group), timeout=60)
    yield group
    group.shutdown()


def pings(group: RankGroup) -> list[Any]:
    return [handle.ping.remote() for handle in group.handles]


def test_pings_are_answered_while_calls_run_in_order_in_one_thread(group: RankGroup):
    working = [group.submit("work", seconds=2.0 if number == 0 else 0.0, number=number) for number in range(50)]
    started = time.monotonic()
    resting = group.submit("rest")
    pids = ray.get(pings(group), timeout=60)
    assert time.monotonic() - started < 1.5
    assert len(set(pids)) == 2 and os.getpid() not in pids
    assert not resting.ready
    assert [pending.get() for pending in working] == [[number] * 2 for number in range(50)]
    assert resting.get() == [None, None]
    for calls, threads, last in group.submit("seen").get():
        assert calls == list(range(50)) and len(threads) == 1 and last == 49


def test_a_stopped_rank_answers_no_ping_and_one_that_is_held_ends_no_call(group: RankGroup):
    held: Pending[Any] = group.submit_each("work", [{"seconds": 8.0}, {}])
    with pytest.raises(ActorError, match=r"slow\[0\] in work, .* did not answer within 1 s"):
        held.get(1.0)
    assert len(ray.wait(pings(group), num_returns=2, timeout=5.0)[0]) == 2
    assert len(ray.wait(group.unanswered, num_returns=1, timeout=0.5)[0]) == 0
    pid = ray.get(group.handles[1].ping.remote())
    os.kill(pid, signal.SIGSTOP)
    answered, waiting = ray.wait(pings(group), num_returns=2, timeout=2.0)
    assert (len(answered), len(waiting)) == (1, 1)
    os.kill(pid, signal.SIGKILL)


def test_kept_results_outlive_the_ranks_that_made_them(group: RankGroup):
    processes = [psutil.Process(pid) for pid in ray.get(pings(group))]
    kept = group.submit_kept("scores", list(range(6))).get()
    group.shutdown()
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    values = ray.get(read.remote(kept), timeout=60)
    assert [(value[0], len(value)) for value in values] == [
        (shard, 10 if shard % 2 else 1_000_000) for shard in range(6)
    ]


def test_a_verifier_waits_for_no_rollouts_that_are_still_sampled(tmp_path: Path):
    """Its heartbeats, and the rollouts that are there; a call whose rollouts take long came first."""
    words = Tokenizer(models.WordLevel({"<unk>": 0, "yes": 1, "</s>": 2}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>").save_pretrained(tmp_path)
    verifier = VerifierWorker.options(num_cpus=0).remote(VerifierSettings(workers=1), str(tmp_path))
    ray.get(verifier.health.remote(), timeout=120)
    prompts = [Prompt(7, "p", (), np.array([1], np.int32), (Check("string", "yes"),))]
    rollouts = [[Rollout(7, 0, np.array([1, 2], np.int32), np.zeros(2, np.float32), np.zeros(2, np.int32), "stop")]]
    late, _ = verifier.verify.remote(prompts, after.remote(5.0, rollouts))
    started = time.monotonic()
    assert ray.get(verifier.health.remote(), timeout=60) == 0.0
    summaries, _ = verifier.verify.remote(prompts, rollouts)
    (summary,) = ray.get(summaries, timeout=60)
    assert time.monotonic() - started < 4.0
    assert [verdict.outcome for verdict in summary.verdicts[0]] == ["correct"]
    assert [each.rewards for each in ray.get(late, timeout=60)] == [summary.rewards]
    ray.get(verifier.close.remote(), timeout=60)


@ray.remote(num_cpus=0)
def after(seconds: float, value: Any) -> Any:
    time.sleep(seconds)
    return value


@ray.remote(num_cpus=0)
def read(refs: list[Any]) -> list[bytes]:
    return ray.get(refs)


def test_a_rank_that_rays_memory_monitor_ends_has_died():
    """That raises no `RayActorError`."""
    code = f"""
import os, time
import numpy as np
from ray._private.utils import get_system_memory, get_used_memory
os.environ["RAY_memory_usage_threshold"] = str((get_used_memory() + {1.5 * 2**30}) / get_system_memory())
os.environ["RAY_memory_monitor_refresh_ms"] = "100"
import ray
from actors.groups import Placement, RankGroup
from actors.rank import Rank, remote_rank
from rlsys.errors import ActorError

@remote_rank
class Hungry(Rank):
    def eat(self, *, gib):
        self.eaten = np.ones(gib << 27)
        time.sleep(60)

ray.init(address="local", include_dashboard=False, num_cpus=1, log_to_driver=False, logging_level="ERROR")
try:
    group = RankGroup.start(Hungry, Placement("hungry", start_timeout_s=60.0))
    group.submit("eat", gib=4).get(60.0)
except ActorError as error:
    print("TOLD", type(error.__cause__).__name__, error)
ray.shutdown()
"""
    output, _ = start_python(code).communicate(timeout=200)
    told = next((line for line in output.splitlines() if line.startswith("TOLD")), output)
    assert told.startswith("TOLD OutOfMemoryError hungry[0] in eat, ") and ", died: " in told
