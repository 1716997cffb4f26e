"""A publication that fails: whether the learner is held in it, and how often it is tried."""

from typing import Any

import pytest
from fake_ray import FakeRay, Handle, Ref, install

from actors import groups as groups_module
from actors import roster as roster_module
from actors import roster_publisher as publisher_module
from actors.groups import Placement, RankGroup
from actors.roster import Restarts, Roster
from actors.roster_publisher import MAX_PUBLICATIONS, RosterPublisher
from rlsys.recipe.cluster import ClusterSettings
from rlsys.weights.publisher import PublicationError, PublicationSettings


class Lab:
    """A learner of two ranks and two workers; every publication fails with one error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, engines: tuple[str, ...], with_learner: bool) -> None:
        self.attempts = 0
        lab = self

        class Publisher:
            def __init__(self, *_: Any) -> None: ...

            def set_engines(self, engines: Any) -> None: ...

            def publish(self, *_: Any, **__: Any) -> Any:
                lab.attempts += 1
                raise PublicationError(
                    "no answer in 20 s", phase="transfer", engines=engines, with_learner=with_learner
                )

        monkeypatch.setattr(publisher_module, "WeightPublisher", Publisher)
        self.rests = [Ref().answer(), Ref().answer()]
        self.ranks = RankGroup(Placement("learner"), [Handle(rest=lambda rest=rest: rest) for rest in self.rests])
        workers = Roster(
            "rollout", create=lambda slot: (Handle(health=lambda: Ref().answer(0.0)), Ref().answer()),
            ask=lambda handle: handle.health.remote(), size=2, cluster=ClusterSettings(),
            restarts=Restarts(10), join=True,
        )  # fmt: skip
        workers.wait_for_all()
        settings = PublicationSettings(
            mode="in_flight", transport="gloo", digest="fold64", cap_bytes=1 << 20, update_timeout_s=20.0,
            drain_timeout_s=20.0, canary_tolerance=1e-3,
        )  # fmt: skip
        self.publisher = RosterPublisher(self.ranks, workers, settings=settings)

    def hold_rank_1(self) -> None:
        """It never ends what it is in."""
        self.ranks.handles[1] = Handle(rest=Ref)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return install(monkeypatch, groups_module, roster_module)


def test_a_learner_that_is_held_is_noted_and_not_published_from_again(monkeypatch):
    """All engines live: they have waited for it. `Crew.fallen` finds it by what it has not answered."""
    lab = Lab(monkeypatch, engines=("rollout-0", "rollout-1"), with_learner=True)
    lab.hold_rank_1()
    with pytest.raises(PublicationError):
        lab.publisher.publish(3)
    assert (lab.attempts, len(lab.ranks.unanswered)) == (1, 1)


def test_a_learner_that_is_held_alone_is_noted_too(monkeypatch):
    lab = Lab(monkeypatch, engines=(), with_learner=True)
    lab.hold_rank_1()
    with pytest.raises(PublicationError):
        lab.publisher.publish(3)
    assert (lab.attempts, len(lab.ranks.unanswered)) == (1, 1)


def test_a_publication_is_tried_again_while_the_learner_comes_to_rest(monkeypatch):
    lab = Lab(monkeypatch, engines=("rollout-0",), with_learner=True)
    with pytest.raises(PublicationError):
        lab.publisher.publish(3)
    assert (lab.attempts, lab.ranks.unanswered) == (MAX_PUBLICATIONS, [])


def test_a_learner_that_did_its_part_is_not_asked(monkeypatch):
    lab = Lab(monkeypatch, engines=("rollout-0",), with_learner=False)
    lab.hold_rank_1()
    with pytest.raises(PublicationError):
        lab.publisher.publish(3)
    assert (lab.attempts, lab.ranks.unanswered) == (MAX_PUBLICATIONS, [])
