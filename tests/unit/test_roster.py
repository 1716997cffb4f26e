"""Workers that die, fail or hang: who is replaced, what that costs, and which error ends it."""

from collections.abc import Callable
from typing import Any

import pytest
from fake_ray import FakeRay, Handle, Ref, died, failed, install

from actors import roster as roster_module
from actors.roster import Restarts, Roster
from rlsys.errors import ActorError
from rlsys.recipe.cluster import ClusterSettings

CLUSTER = ClusterSettings(heartbeat_s=1.0, hang_timeout_s=10.0, start_timeout_s=60.0)


class Lab:
    """A roster whose actors are built as a test says: `start(n, ready)` is asked of the n-th actor, from 0."""

    def __init__(self, fake: FakeRay, start: Callable[[int, Ref], Any], *, size: int = 1, limit: int = 10) -> None:
        self.fake, self.handles, self.freed = fake, [], []
        self.restarts = Restarts(limit)
        self._start = start
        self.roster = Roster(
            "rollout", create=self._create, ask=lambda handle: handle.health.remote(), size=size, cluster=CLUSTER,
            restarts=self.restarts, join=False, free=self.freed.append,
        )  # fmt: skip

    def _create(self, slot: int) -> tuple[Handle, Ref]:
        ready, handle = Ref(), Handle(health=lambda: Ref().answer(0.0))
        self._start(len(self.handles), ready)
        self.handles.append(handle)
        return handle, ready


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return install(monkeypatch, roster_module)


def build(number: int, ready: Ref) -> None:
    ready.answer()


def test_a_worker_killed_while_it_first_starts_is_replaced(fake: FakeRay):
    lab = Lab(fake, lambda n, ready: fake.at(5.0 * n + 5, lambda: ready.fail(died()) if n == 1 else ready.answer()))
    lab.roster.resize(2)
    lab.roster.wait_for_all()
    assert [member.name for member in lab.roster.serving] == ["rollout-0", "rollout-1"]
    assert lab.restarts.counts == {"rollout": 1}
    assert [handle.killed for handle in lab.handles] == [False, True, False]
    assert lab.freed == []


def test_a_place_where_starts_fail_is_told_at_once_in_the_actors_own_words(fake: FakeRay):
    """However many other workers are there: what fails twice will fail again."""

    def start(number: int, ready: Ref) -> None:
        if number == 0:
            ready.answer()
        else:
            ready.fail(failed(ValueError("no such attention\nsee the list")))

    lab = Lab(fake, start, size=2)
    with pytest.raises(ActorError, match=r"the rollout workers could not start: (.|\n)*no such attention"):
        lab.roster.wait_for_all()
    assert len(lab.handles) == 3
    assert lab.restarts.counts == {"rollout": 1}
    assert fake.now < CLUSTER.start_timeout_s


def test_the_only_place_where_starts_fail_is_told_in_the_same_words(fake: FakeRay):
    lab = Lab(fake, lambda n, ready: ready.fail(failed(ValueError("no such attention"))), limit=0)
    with pytest.raises(ActorError, match=r"the rollout workers could not start: (.|\n)*no such attention"):
        lab.roster.wait_for_all()
    assert len(lab.handles) == 1


def test_workers_that_are_not_built_in_time_are_an_error(fake: FakeRay):
    lab = Lab(fake, lambda n, ready: ready.answer() if n == 0 else None, size=2)
    with pytest.raises(ActorError, match="the rollout workers did not start; got '60 s'"):
        lab.roster.wait_for_all()


def test_nobody_left_is_an_error_however_often_it_is_asked(fake: FakeRay):
    """Another error may have been in the way of the first: a learner that died together with the last worker."""
    lab = Lab(fake, build, limit=0)
    lab.roster.wait_for_all()
    told = "no rollout worker is left: rollout-0 died; got '0 restarts'"
    with pytest.raises(ActorError, match=told):
        lab.roster.lost(lab.roster.serving[0], "died")
    with pytest.raises(ActorError, match=told):
        lab.roster.wait_for_one()
    with pytest.raises(ActorError, match=told):
        lab.roster.beat()


def test_the_last_worker_that_leaves_after_the_others_died_is_an_error(fake: FakeRay):
    lab = Lab(fake, build, size=2, limit=0)
    lab.roster.wait_for_all()
    first, second = lab.roster.serving
    second.load = 1
    lab.roster.resize(1)
    lab.roster.lost(first, "died")
    lab.roster.beat()
    second.load = 0
    lab.roster.beat()
    with pytest.raises(ActorError, match="no rollout worker is left: rollout-0 died"):
        lab.roster.wait_for_one()


def test_a_place_that_is_given_up_gives_its_resources_back(fake: FakeRay):
    lab = Lab(fake, build, size=3, limit=1)
    lab.roster.wait_for_all()
    lab.roster.lost(lab.roster.serving[2], "died")
    lab.roster.wait_for_all()
    assert lab.freed == [], "another is there"
    lab.roster.lost(lab.roster.serving[2], "died")
    assert lab.freed == [2]
    lab.roster.resize(1)
    lab.roster.beat()
    assert lab.freed == [2, 1]
    assert lab.roster.slots == {0}


def test_a_worker_without_a_heartbeat_is_replaced(fake: FakeRay):
    lab = Lab(fake, build)
    lab.roster.wait_for_all()
    lab.handles[0]._answers["health"] = Ref
    while len(lab.handles) == 1:
        lab.roster.beat()
        fake.now += 1.0
        assert fake.now < 20
    assert fake.now > CLUSTER.hang_timeout_s
    assert lab.handles[0].killed and lab.restarts.counts == {"rollout": 1}


def test_a_place_that_was_given_up_is_filled_when_it_is_asked_for(fake: FakeRay):
    lab = Lab(fake, build, size=2, limit=0)
    lab.roster.wait_for_all()
    lab.roster.lost(lab.roster.serving[0], "died")
    assert lab.roster.slots == {1}
    lab.roster.resize(3)
    lab.roster.wait_for_all()
    assert [member.name for member in lab.roster.serving] == ["rollout-0", "rollout-1", "rollout-2"]


def test_who_takes_part_in_a_publication_leaves_after_it(fake: FakeRay):
    lab = Lab(fake, build, size=2)
    lab.roster.wait_for_all()
    lab.roster.resize(1)
    with lab.roster.held():
        lab.roster.beat()
        assert len(lab.roster.built) == 2
    lab.roster.beat()
    assert [handle.killed for handle in lab.handles] == [False, True]


def test_a_cluster_without_a_node_is_not_waited_for(fake: FakeRay, monkeypatch: pytest.MonkeyPatch):
    def require_node() -> None:
        raise ActorError("no node of the cluster is left")

    monkeypatch.setattr(roster_module, "require_node", require_node)
    lab = Lab(fake, lambda number, ready: None)
    with pytest.raises(ActorError, match="no node of the cluster is left"):
        lab.roster.wait_for_one()
    assert fake.now < 0.2 * CLUSTER.start_timeout_s
