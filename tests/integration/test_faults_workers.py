"""Roster and pump with light actors in place of engines: kills, stops, failures, and what the driver hears of them."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from actor_processes import pid_of

from actors import pump as pump_module
from actors.begun_groups import BegunGroup, UnderWay
from actors.groups import Placement, RankGroup
from actors.pump import RolloutPump
from actors.pump_records import LostGroups, PumpSettings, RewardScoring, VerifiedGroup
from actors.reward_model import RewardModel
from actors.roster import Restarts, Roster
from rlsys.errors import ActorError
from rlsys.recipe.cluster import ClusterSettings
from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.partial_group import PartialGroup, PartialResponse
from rlsys.types import GroupSummary, Prompt, Rollout

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

CLUSTER = ClusterSettings(heartbeat_s=0.5, hang_timeout_s=4.0, start_timeout_s=120.0)


def partial_group(ordinal: int, versions: list[int]) -> PartialGroup:
    """One sample, of these versions so far."""
    tokens = np.arange(len(versions), dtype=np.int32)
    response = PartialResponse(0, tokens, -tokens.astype(np.float32), np.array(versions, np.int32))
    return PartialGroup(Prompt(ordinal, str(ordinal), (), np.array([5], np.int32)), (), (response,))


@ray.remote(num_cpus=0)
class Sampler:
    """Answers when it was released, with the prompts' ordinals as rollouts."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.aborted: list[int] = []
        self.stuck_s = 0.0
        self.begun_with: dict[tuple[int, ...], Any] = {}
        self.rollouts = False
        self.open = asyncio.Event()

    async def release(self) -> None:
        self.open.set()

    @ray.method(num_returns=2)
    async def generate(self, prompts: list[Prompt], *, begun: Any = None, **_: Any) -> tuple[None, list[Any]]:
        self.asked += [prompt.ordinal for prompt in prompts]
        self.begun_with[tuple(p.ordinal for p in prompts)] = begun and [each and await each for each in begun]
        await self.open.wait()
        tokens = np.arange(2, dtype=np.int32)
        rollouts = [[Rollout(p.ordinal, 0, tokens, -tokens.astype(np.float32), tokens + 5, "stop")] for p in prompts]
        return None, rollouts if self.rollouts else [prompt.ordinal for prompt in prompts]

    async def begun(self, *, tag: str) -> list[PartialGroup]:
        return [partial_group(ordinal, [3, 4]) for ordinal in self.asked]

    async def given(self) -> dict[tuple[int, ...], Any]:
        return self.begun_with

    async def abort(self, ordinals: list[int], *, tag: str) -> None:
        self.aborted += ordinals

    async def finish(self) -> None:
        """Opens, with rollouts in place of ordinals."""
        self.rollouts = True
        self.open.set()

    async def seen(self) -> tuple[list[int], list[int]]:
        return self.asked, self.aborted

    async def stall(self, seconds: float) -> None:
        self.stuck_s = seconds

    async def health(self) -> float:
        return self.stuck_s


@ray.remote(num_cpus=0, concurrency_groups={"health": 1})
class Verifier:
    """Verifies at once, or, `hold` given, never."""

    def __init__(self, hold: bool = False) -> None:
        self._hold = hold

    @ray.method(num_returns=2)
    def verify(
        self,
        prompts: list[Prompt],
        rollouts: list[int],
        reward_model_scores: list[list[float]] | None = None,
        reward_model_weight: float = 1.0,
    ) -> tuple[list[GroupSummary], list[int]]:
        while self._hold:
            time.sleep(0.05)
        scores = reward_model_scores or [[1.0]] * len(rollouts)
        rewards = [tuple(reward_model_weight * score for score in group) for group in scores]
        return [
            GroupSummary(o, (1,), 1, 0, 0, ("stop",), r, ((),)) for o, r in zip(rollouts, rewards, strict=True)
        ], rollouts

    @ray.method(concurrency_group="health")
    def health(self) -> float:
        return 0.0

    @ray.method(concurrency_group="health")
    def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0)
def fetch_under_way(under_way: UnderWay) -> list[PartialGroup]:
    return under_way.fetch()


@ray.remote(num_cpus=0)
class Scorer:
    """A rank of a reward model: scores a group by its ordinal, dies of it, or never answers."""

    def __init__(self, fault: str = "") -> None:
        self._fault = fault

    def scores(self, prompts: list[Prompt], groups: list[int]) -> list[list[float]]:
        if self._fault == "dies":
            os._exit(1)
        while self._fault == "hangs":
            time.sleep(0.05)
        return [[float(ordinal)] for ordinal in groups]


@ray.remote(num_cpus=0)
class Broken:
    """Cannot be built."""

    def __init__(self) -> None:
        raise RuntimeError("injected")

    def health(self) -> float:
        return 0.0


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(
        address="local", include_dashboard=False, num_cpus=2, log_to_driver=False, logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.getcwd()])}},
    )  # fmt: skip
    yield
    ray.shutdown()


def roster(kind: str, create: Callable[[int], Any], *, size: int = 1, join: bool = False, limit: int = 10) -> Roster:
    def start(slot: int) -> tuple[Any, Any]:
        handle = create(slot)
        return handle, handle.health.remote()

    made = Roster(
        kind, create=start, ask=lambda handle: handle.health.remote(), size=size, cluster=CLUSTER,
        restarts=Restarts(limit), join=join,
    )  # fmt: skip
    made.wait_for_all()
    return made


def make_pump(
    workers: Roster, verifiers: Roster, *, scoring: RewardScoring | None = None, **options: Any
) -> RolloutPump:
    def prompt(ordinal: int) -> Prompt:
        return Prompt(ordinal, str(ordinal), (), np.array([5], np.int32))

    settings = PumpSettings(num_samples=1, sampling=SamplingSettings(), seed=0, groups_per_worker=512, **options)
    return RolloutPump(workers, verifiers, settings, prompts=prompt, scoring=scoring)


def poll_for(pump: RolloutPump, count: int) -> list[VerifiedGroup | LostGroups]:
    found: list[VerifiedGroup | LostGroups] = []
    deadline = time.monotonic() + 60
    while len(found) < count:
        found += pump.poll(timeout_s=1.0)
        assert time.monotonic() < deadline, found
    return found


def release(workers: Roster) -> None:
    ray.get([handle.release.remote() for handle in workers])


def reward_model(fault: str = "") -> RewardModel:
    return RewardModel(RankGroup(Placement("reward"), [Scorer.remote(fault)]))


@pytest.mark.parametrize(("fault", "told"), [("dies", "The actor died"), ("hangs", "no answer within 2 s")])
def test_a_dead_reward_models_chunks_are_scored_by_its_successor(fault: str, told: str):
    workers = roster("rollout", lambda slot: Sampler.remote(), join=True)
    workers.serve(workers.built)
    verifiers = roster("verifier", lambda slot: Verifier.remote())
    models = [reward_model(fault), reward_model()]
    ray.get(models[1].score([], []), timeout=60)
    pump = make_pump(workers, verifiers, scoring=RewardScoring(lambda: models[0], weight=2.0, timeout_s=2.0))
    release(workers)
    pump.start([3, 4])
    while pump.reward_model_error is None:
        assert pump.poll(timeout_s=1.0) == []
    assert told in str(pump.reward_model_error)
    assert pump.num_running == 2
    models.pop(0).shutdown()
    found = poll_for(pump, 2)
    assert sorted((group.summary.ordinal, group.summary.rewards) for group in found) == [(3, (6.0,)), (4, (8.0,))]
    assert (pump.num_running, pump.reward_model_error, workers.built[0].load) == (0, None, 0)


def test_a_chunk_that_three_reward_models_die_of_is_given_up():
    workers = roster("rollout", lambda slot: Sampler.remote(), join=True)
    workers.serve(workers.built)
    verifiers = roster("verifier", lambda slot: Verifier.remote())
    models = [reward_model("dies") for _ in range(4)]
    pump = make_pump(workers, verifiers, scoring=RewardScoring(lambda: models[0], weight=1.0))
    release(workers)
    pump.start([5])
    lost: list[VerifiedGroup | LostGroups] = []
    while not lost:
        lost = pump.poll(timeout_s=1.0)
        if pump.reward_model_error is not None:
            del models[0]
    assert [(group.ordinals, group.reason) for group in lost] == [((5,), "reward_model_died")]
    assert (len(models), pump.num_running, workers.built[0].load) == (2, 0, 0)


def test_a_killed_workers_groups_are_lost_and_the_others_go_on():
    workers, verifiers = roster("rollout", lambda slot: Sampler.remote(), size=2, join=True), roster(
        "verifier", lambda slot: Verifier.remote()
    )  # fmt: skip
    workers.serve(workers.built)
    pump = make_pump(workers, verifiers)
    pump.start([0, 1, 2, 3])
    dead = workers.serving[0]
    os.kill(pid_of(dead.handle), signal.SIGKILL)
    lost = poll_for(pump, 2)
    assert sorted(group.ordinals for group in lost if isinstance(group, LostGroups)) == [(0,), (2,)]
    assert {group.reason for group in lost if isinstance(group, LostGroups)} == {"rollout_worker_died"}
    assert [member.slot for member in workers.serving] == [1]
    pump.start([0, 2])
    release(workers)
    done = poll_for(pump, 4)
    assert sorted(g.summary.ordinal for g in done if isinstance(g, VerifiedGroup)) == [0, 1, 2, 3]
    workers.wait_for_all()
    assert [member.state for member in workers.built] == ["joining", "serving"], "it has no weights yet"
    workers.serve(workers.built)
    assert [member.name for member in workers.serving] == ["rollout-0", "rollout-1"]
    assert pump.num_running == 0


def test_a_fixed_place_without_weights_is_told_of_and_one_that_stays_empty_is_an_error():
    """Ordinal o goes to place o % 2, whoever else serves."""
    workers, verifiers = roster("rollout", lambda slot: Sampler.remote(), size=2, join=True, limit=1), roster(
        "verifier", lambda slot: Verifier.remote()
    )  # fmt: skip
    workers.serve(workers.built)
    pump = make_pump(workers, verifiers, fixed=True)
    workers.lost(workers.serving[1], "was taken away")
    pump.start([4, 5])
    assert not pump.needs_weights, "the successor is not built"
    workers.wait_for_all()
    assert pump.needs_weights
    release(workers)
    (done,) = poll_for(pump, 1)
    assert isinstance(done, VerifiedGroup) and done.summary.ordinal == 4
    workers.serve(workers.built)
    (done,) = poll_for(pump, 1)
    assert isinstance(done, VerifiedGroup) and done.summary.ordinal == 5 and not pump.needs_weights
    workers.lost(workers.serving[1], "was taken away")
    with pytest.raises(ActorError, match="rollout worker 1 is not replaced any more"):
        pump.start([6, 7])


def test_verdicts_that_are_still_on_their_way_from_another_node_are_asked_for_again(monkeypatch):
    pump = make_pump(
        roster("rollout", lambda slot: Sampler.remote()), roster("verifier", lambda slot: Verifier.remote())
    )
    release(pump._workers)
    pump.start([3])
    get, late = ray.get, []

    def slow_get(refs: Any, *, timeout: float | None = None) -> Any:
        if timeout == pump_module.TRANSFER_WAIT_S and len(late) < 2:
            late.append(refs)
            raise ray.exceptions.GetTimeoutError
        return get(refs, timeout=timeout)

    monkeypatch.setattr(pump_module.ray, "get", slow_get)
    (done,) = poll_for(pump, 1)
    assert isinstance(done, VerifiedGroup) and done.summary.ordinal == 3
    assert len(late) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_rollouts_of_a_dead_or_hanging_verifier_are_verified_again_and_not_sampled_again(number: int):
    workers = roster("rollout", lambda slot: Sampler.remote())
    made: list[Any] = []

    def create(slot: int) -> Any:
        made.append(Verifier.remote(hold=not made))
        return made[-1]

    verifiers = roster("verifier", create)
    pump = make_pump(workers, verifiers)
    release(workers)
    pump.start([7])
    process = psutil.Process(ray.get(made[0].pid.remote()))
    process.send_signal(number)
    (group,) = poll_for(pump, 1)
    assert isinstance(group, VerifiedGroup) and group.summary.ordinal == 7
    assert ray.get(next(iter(workers)).seen.remote())[0] == [7]
    assert len(made) == 2
    assert psutil.wait_procs([process], timeout=30)[1] == [], "the process that hung was not killed"


def test_an_engine_without_progress_and_an_idle_death_are_noticed():
    workers = roster("rollout", lambda slot: Sampler.remote(), size=2)
    stuck, dead = workers.serving
    ray.get(stuck.handle.stall.remote(CLUSTER.hang_timeout_s + 1))
    started = time.monotonic()
    os.kill(pid_of(dead.handle), signal.SIGKILL)
    while stuck in workers or dead in workers:
        workers.beat()
        ray.wait(workers.starting or [ray.put(0)], timeout=0.1)
        assert time.monotonic() - started < 30
    workers.wait_for_all()
    assert [member.name for member in workers.serving] == ["rollout-0", "rollout-1"]


def test_late_groups_are_aborted_by_ordinal():
    workers, verifiers = (
        roster("rollout", lambda slot: Sampler.remote()),
        roster("verifier", lambda slot: Verifier.remote()),
    )
    pump = make_pump(workers, verifiers, group_timeout_s=0.5, groups_per_call=2)
    pump.start([3, 4])
    worker = next(iter(workers))
    while ray.get(worker.seen.remote())[0] != [3, 4]:
        assert pump.num_running == 2
    (late,) = poll_for(pump, 1)
    assert isinstance(late, LostGroups)
    assert (late.ordinals, late.reason, pump.num_running) == ((3, 4), "timeout", 0)
    deadline = time.monotonic() + 60  # calls of an asyncio actor may overtake each other
    while ray.get(worker.seen.remote())[1] != [3, 4]:
        assert time.monotonic() < deadline


def test_what_a_checkpoint_had_of_a_group_goes_to_its_worker_once():
    workers = roster("rollout", lambda slot: Sampler.remote())
    pump = make_pump(workers, roster("verifier", lambda slot: Verifier.remote()), groups_per_call=2)
    pump.give({6: BegunGroup(ray.put("six"), 3), 8: BegunGroup(ray.put("eight"), 2)})
    pump.start([5, 6])
    pump.start([6])
    assert pump.num_continued == 3
    worker = next(iter(workers))
    ray.get(worker.release.remote())
    poll_for(pump, 3)
    assert ray.get(worker.given.remote()) == {(5, 6): [None, "six"], (6,): None}
    assert [ray.get(ref) for ref in pump.under_way().not_started] == ["eight"]
    pump.abort()
    assert pump.under_way() == UnderWay()


def test_what_is_under_way_is_told_by_those_who_live(monkeypatch):
    """Of four workers one has sampled, one samples, one is dead and one hangs: none is waited for beyond a deadline."""
    workers = roster("rollout", lambda slot: Sampler.remote(), size=4)
    pump = make_pump(workers, roster("verifier", lambda slot: Verifier.remote(hold=True)))
    pump.give({9: BegunGroup(ray.put(partial_group(9, [2])), 1), 1: BegunGroup(ray.put(partial_group(1, [0])), 1)})
    pump.start([0, 1, 2, 3])
    first, second, dead, hanging = workers.serving
    ray.get(first.handle.finish.remote())
    ray.get(second.handle.seen.remote())
    os.kill(pid_of(dead.handle), signal.SIGKILL)
    hanging_pid = pid_of(hanging.handle)
    os.kill(hanging_pid, signal.SIGSTOP)
    monkeypatch.setattr(pump_module, "SNAPSHOT_DEADLINE_S", 3.0)
    started = time.monotonic()
    under_way = pump.under_way()
    assert time.monotonic() - started < 20
    groups = ray.get(fetch_under_way.remote(under_way), timeout=60)
    assert [(g.prompt.ordinal, len(g.finished), g.oldest_version) for g in groups] == [(0, 1, 5), (1, 0, 3), (9, 0, 2)]
    os.kill(hanging_pid, signal.SIGKILL)


def test_a_place_where_starts_fail_is_given_up():
    made = 0

    def create(slot: int) -> Any:
        nonlocal made
        made += 1
        return Sampler.remote() if made == 1 else Broken.remote()

    workers = roster("rollout", create)
    workers.lost(workers.serving[0], "died")
    with pytest.raises(ActorError, match="no rollout worker is left: rollout-0 could not start"):
        workers.wait_for_one()
    assert made == 3


def test_fixed_places_take_their_ordinals_in_one_call_each():
    workers = roster("rollout", lambda slot: Sampler.remote(), size=2)
    pump = make_pump(workers, roster("verifier", lambda slot: Verifier.remote()), fixed=True)
    pump.start([0, 1, 2, 3, 5])
    release(workers)
    done = poll_for(pump, 5)
    assert len(done) == 5
    assert [set(ray.get(handle.given.remote())) for handle in workers] == [{(0, 2)}, {(1, 3, 5)}]
