"""Groups of ranks: who is taken for fallen, what a failed call leaves behind, and starts that are tried again."""

from concurrent.futures import Future
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from fake_ray import FakeRay, Handle, Ref, died, failed, install

from actors import crew as crew_module
from actors import groups as groups_module
from actors.crew import Crew
from actors.groups import ModelGroup, Placement, RankGroup
from actors.roster import MAX_FAILED_STARTS
from rlsys.errors import ActorError, TrainingError
from rlsys.recipe.cluster import ClusterSettings

CLUSTER = ClusterSettings(hang_timeout_s=10.0, start_timeout_s=60.0, operation_timeout_s=100.0, max_restarts=3)


class Group:
    """Ranks that answer pings, unless a test has them die or hang, and whose calls are references by rank."""

    def __init__(self, name: str, *, size: int = 2) -> None:
        self.calls: list[list[Ref]] = [[] for _ in range(size)]
        self.pings = [Ref().answer(0) for _ in range(size)]
        self.model = ModelGroup(
            RankGroup(Placement(name, operation_timeout_s=100.0), [self._handle(rank) for rank in range(size)])
        )

    def _handle(self, rank: int) -> Handle:
        def call(**_: Any) -> Ref:
            self.calls[rank].append(Ref())
            return self.calls[rank][-1]

        return Handle(ping=lambda: self.pings[rank], work=call)

    def work(self) -> Any:
        """A call under way on every rank."""
        return self.model.ranks.submit("work")


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return install(monkeypatch, crew_module, groups_module)


def crew_of(**groups: Group) -> Crew:
    crew: Any = crew_with(CLUSTER)
    for kind, group in groups.items():
        crew._started[kind] = Future()
        crew._started[kind].set_result(group.model)
    return crew


def crew_with(cluster: ClusterSettings) -> Crew:
    recipe: Any = SimpleNamespace(deterministic=False, cluster=cluster)
    bundle = SimpleNamespace(cpus=1.0, actors=["learner"])
    plan: Any = SimpleNamespace(
        bundle_index=lambda kind, rank: rank, training=[bundle], gpus_per_actor=lambda kind: 0.0, use_gpus=False
    )
    engine: Any = None
    return Crew(recipe, plan, engine=engine, tokenizer="")


def test_a_rank_that_works_has_not_fallen_however_long(fake: FakeRay):
    """An error of the pump, while an update goes on that lasts longer than `hang_timeout_s`."""
    learner, value = Group("learner"), Group("value")
    learner.work(), value.work()
    assert crew_of(learner=learner, value=value).fallen() == []
    assert fake.now == 0.0


def test_a_stopped_process_answers_no_ping(fake: FakeRay):
    learner, value = Group("learner"), Group("value")
    learner.pings[1] = Ref()
    assert crew_of(learner=learner, value=value).fallen() == ["learner"]
    assert fake.now == CLUSTER.hang_timeout_s


def test_a_dead_rank_is_told_before_those_that_hang(fake: FakeRay):
    learner, value = Group("learner"), Group("value")
    learner.pings[1], value.pings[0] = Ref(), Ref().fail(died())
    assert crew_of(learner=learner, value=value).fallen() == ["value"]
    assert fake.now < CLUSTER.hang_timeout_s


def test_a_rank_that_is_held_in_a_call_past_its_deadline_has_fallen(fake: FakeRay):
    """It lives: a collective that never ends."""
    learner, value = Group("learner"), Group("value")
    value.work()
    with pytest.raises(ActorError, match=r"learner\[0\] in work, .* did not answer within 100 s"):
        learner.work().get()
    assert crew_of(learner=learner, value=value).fallen() == ["learner"]


def test_a_rank_that_was_only_slow_has_not_fallen(fake: FakeRay):
    """Starting it again would end in the same error, until no restart is left."""
    learner = Group("learner")
    pending = learner.work()
    fake.at(103.0, lambda: [calls[0].answer() for calls in learner.calls])
    with pytest.raises(ActorError, match="did not answer within 100 s"):
        pending.get()
    assert crew_of(learner=learner).fallen() == []


@pytest.mark.parametrize("cause", [RuntimeError("injected"), TrainingError("no kernels")])
def test_the_peers_of_a_rank_that_failed_have_fallen_if_they_wait_for_it(fake: FakeRay, cause: Exception):
    learner = Group("learner")
    pending = learner.work()
    learner.calls[0][0].fail(failed(cause))
    with pytest.raises((ActorError, TrainingError)):
        pending.get()
    assert crew_of(learner=learner).fallen() == ["learner"]
    learner.calls[1][0].fail(failed(RuntimeError("connection closed by peer")))
    assert crew_of(learner=learner).fallen() == [], "it has ended the call"


def test_a_call_that_failed_on_the_only_rank_leaves_nobody_behind(fake: FakeRay):
    value = Group("value", size=1)
    pending = value.work()
    value.calls[0][0].fail(failed(RuntimeError("injected")))
    with pytest.raises(ActorError, match=r"value\[0\] in work, .* failed: RuntimeError\('injected'\)"):
        pending.get()
    assert crew_of(value=value).fallen() == []


def test_an_answer_belongs_to_the_ranks_that_were_asked():
    before, after = Group("reference"), Group("reference")
    pending = before.work()
    assert pending.asked(before.model) and pending.map(len).asked(before.model)
    assert not pending.asked(after.model)


def test_kept_results_are_in_the_order_of_their_shards():
    def logprobs(*, num_returns: int, shards: list[int], temperature: float) -> list[Ref]:
        assert num_returns == 1 + len(shards)
        return [Ref().answer(), *(Ref().answer(shard * temperature) for shard in shards)]

    group = RankGroup(Placement("reference"), [Handle(logprobs=logprobs) for _ in range(2)])
    kept = group.submit_kept("logprobs", [1, 2, 3, 4, 5], temperature=10.0).get()
    assert [ref.get() for ref in kept] == [10.0, 20.0, 30.0, 40.0, 50.0]


class Starts:
    """In place of `Learner.start`: fails as a test says, at its n-th call."""

    def __init__(self, fake: FakeRay, *errors: ActorError, seconds: float = 5.0) -> None:
        self.fake, self.errors, self.seconds = fake, list(errors), seconds
        self.timeouts: list[float] = []

    def start(self, placement: Placement, *, use_gpu: bool) -> ModelGroup:
        self.timeouts.append(placement.start_timeout_s)
        self.fake.now += self.seconds
        if self.errors:
            raise self.errors.pop(0)
        return Group("learner").model


def start_with(monkeypatch: pytest.MonkeyPatch, starts: Starts, *, max_restarts: int = 3) -> Crew:
    monkeypatch.setitem(crew_module.RANKED, "learner", starts)
    crew = crew_with(CLUSTER.model_copy(update={"max_restarts": max_restarts}))
    crew._started["learner"] = crew._pool.submit(crew._start_ranks, "learner")
    return crew


TAKEN = ActorError("learner[0] in join failed: the port is taken")


def test_a_first_start_that_fails_once_is_tried_again(fake: FakeRay, monkeypatch):
    starts = Starts(fake, TAKEN)
    crew = start_with(monkeypatch, starts)
    assert crew.learner.ranks.num_ranks == 2
    assert crew.restarts.counts == {"learner": 1}
    assert starts.timeouts == [60.0, 55.0], "the deadline is of both"


def test_a_start_that_fails_again_and_again_is_told(fake: FakeRay, monkeypatch):
    starts = Starts(fake, *[TAKEN] * 3)
    with pytest.raises(ActorError, match="the port is taken"):
        assert start_with(monkeypatch, starts).learner
    assert len(starts.timeouts) == MAX_FAILED_STARTS


def test_a_start_that_took_all_its_time_is_not_tried_again(fake: FakeRay, monkeypatch):
    starts = Starts(fake, TAKEN, seconds=61.0)
    with pytest.raises(ActorError, match="the port is taken"):
        assert start_with(monkeypatch, starts).learner
    assert len(starts.timeouts) == 1


def test_a_restart_is_bounded(fake: FakeRay, monkeypatch):
    crew = start_with(monkeypatch, Starts(fake), max_restarts=1)
    ranks = crew.learner.ranks
    assert crew.restart("learner")
    assert all(handle.killed for handle in ranks.handles)
    assert crew.learner.ranks is not ranks
    assert not crew.restart("learner")


@pytest.mark.parametrize(("shares_gpu", "first"), [(True, "rollout"), (False, "learner")])
def test_an_engine_that_shares_the_gpu_is_built_before_anything_else_starts(monkeypatch, shares_gpu: bool, first: str):
    """It measures what is free there to decide how much it takes."""
    crew = crew_with(CLUSTER)
    bundles = [SimpleNamespace(actors=kinds) for kinds in (("learner", "value"), ("rollout",), ("verifier",))]
    monkeypatch.setattr(crew, "_plan", SimpleNamespace(shares_gpu=shares_gpu, bundles=bundles))
    monkeypatch.setattr(crew_module, "reserve", lambda plan, timeout_s: (None, []))
    order: list[str] = []
    released = Event()

    def start_workers(size: int | None = None) -> None:
        if not shares_gpu:
            released.wait(30)  # the others come first, if they may
        order.append("rollout")

    def start_ranks(kind: str) -> None:
        order.append(kind)
        released.set()

    monkeypatch.setattr(crew, "_start_workers", start_workers)
    monkeypatch.setattr(crew, "_start_ranks", start_ranks)
    monkeypatch.setattr(crew, "_start_verifiers", lambda: None)
    crew.start()
    for started in crew._started.values():
        started.result(30)
    assert order[0] == first and sorted(order) == ["learner", "rollout", "value"]
