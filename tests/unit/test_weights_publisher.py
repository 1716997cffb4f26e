"""Who does what in which order, and that nobody flips when anybody cannot."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from rlsys.errors import ActorError, WeightTransferError
from rlsys.recipe.rollout import UpdateMode
from rlsys.weights.publisher import (
    PublicationError,
    PublicationSettings,
    Reception,
    WeightPublisher,
    canary_gap,
)
from rlsys.weights.records import Manifest, Receipt, Rendezvous, TensorDigest

TENSORS = (TensorDigest("a", "float32", (2,), "aa"), TensorDigest("b", "float32", (3,), "bb"))
SETTINGS = PublicationSettings(
    mode="in_flight",
    transport="gloo",
    digest="fold64",
    cap_bytes=1 << 20,
    update_timeout_s=120.0,
    drain_timeout_s=600.0,
    canary_tolerance=1e-3,
)
LOGPROBS = -np.arange(13, dtype=np.float32) / 16
CANARY = [1, 2, 3]


class World:
    """One learner and its engines; every call is written down, and may be made to fail."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.faults: dict[str, Exception] = {}
        self.silent: set[str] = set()
        self.unanswered: dict[str, Future] = {}
        self.learner_logprobs = LOGPROBS

    def answer(self, call: str, value: Callable[[], object] = lambda: None) -> Future:
        self.calls.append(call)
        future: Future = Future()
        if call in self.faults:
            future.set_exception(self.faults.pop(call))
        elif call in self.silent:
            self.unanswered[call] = future
        else:
            future.set_result(value())
        return future


class ScriptedLearner:
    def __init__(self, world: World) -> None:
        self.world = world

    def open_group(self, *, num_receivers: int, deadline_s: float) -> Future:
        return self.world.answer(f"open {num_receivers}", lambda: Rendezvous("h", 1, 1 + num_receivers, deadline_s))

    def join_group(self) -> Future:
        return self.world.answer("join")

    def send_weights(self, *, transfer: int, cap_bytes: int) -> Future:
        return self.world.answer(f"send {transfer}", lambda: Manifest(transfer, TENSORS))

    def canary_logprobs(self, token_ids: Sequence[int]) -> Future:
        return self.world.answer("canary", lambda: self.world.learner_logprobs)

    def close_group(self) -> Future:
        return self.world.answer("close")


class ScriptedEngine:
    def __init__(self, world: World, name: str, num_ranks: int = 1) -> None:
        self.world, self.name, self.num_ranks = world, name, num_ranks
        self.version = 0
        self.tensors = [TENSORS] * num_ranks
        self.problems: tuple[str, ...] = ()
        self.logprobs = LOGPROBS

    def prepare_update(self, mode: UpdateMode) -> Future:
        return self.world.answer(f"{self.name} prepare {mode}")

    def connect_weights(self, rendezvous: Rendezvous, *, rank_offset: int, digest: str) -> Future:
        return self.world.answer(f"{self.name} connect {rank_offset} of {rendezvous.world_size} {digest}")

    def receive_weights(self, transfer: int, *, canary_ids: Sequence[int]) -> Future:
        receipts = tuple(Receipt(tensors, self.problems) for tensors in self.tensors)
        return self.world.answer(f"{self.name} receive {transfer}", lambda: Reception(receipts, self.logprobs))

    def commit_version(self, version: int) -> Future:
        self.version = version
        return self.world.answer(f"{self.name} commit {version}")

    def abandon_update(self) -> Future:
        return self.world.answer(f"{self.name} abandon")


def scene(*num_ranks: int, **settings) -> tuple[World, list[ScriptedEngine], WeightPublisher]:
    world = World()
    engines = [ScriptedEngine(world, f"rollout-{index}", ranks) for index, ranks in enumerate(num_ranks)]
    return world, engines, WeightPublisher(ScriptedLearner(world), engines, replace(SETTINGS, **settings))


def test_first_publication_connects_and_the_next_does_not():
    world, engines, publisher = scene(2, 1)
    first = publisher.publish(4, canary_ids=CANARY)
    assert world.calls == [
        "rollout-0 prepare in_flight",
        "rollout-1 prepare in_flight",
        "open 3",
        "join",
        "rollout-0 connect 1 of 4 fold64",
        "rollout-1 connect 3 of 4 fold64",
        "send 1",
        "rollout-0 receive 1",
        "rollout-1 receive 1",
        "canary",
        "rollout-0 commit 4",
        "rollout-1 commit 4",
    ]
    world.calls.clear()
    second = publisher.publish(5)
    assert [call for call in world.calls if "connect" in call or "open" in call or "canary" in call] == []
    assert [engine.version for engine in engines] == [5, 5]
    assert (first.new_group, second.new_group) == (True, False)
    assert first.canary_gap == 0.0 and np.isnan(second.canary_gap)


def corrupt(engine: ScriptedEngine) -> None:
    engine.tensors = [TENSORS] * (engine.num_ranks - 1) + [(TENSORS[0], TensorDigest("b", "float32", (3,), "xx"))]


def lose(engine: ScriptedEngine) -> None:
    engine.tensors = [TENSORS[:1]] * engine.num_ranks


def leave_unloaded(engine: ScriptedEngine) -> None:
    engine.problems = ("no weights arrived for model.norm (0 of 64 elements)",)


def compute_otherwise(engine: ScriptedEngine) -> None:
    engine.logprobs = LOGPROBS + np.float32(0.5)


def compute_once_otherwise(engine: ScriptedEngine) -> None:
    """Right on average, and yet too far off at one token."""
    engine.logprobs = LOGPROBS + np.array([*[0.0] * 12, 0.0117], np.float32)


def test_a_gap_is_relative_where_a_token_is_all_but_impossible():
    learner = np.array([-0.5, -2.0, -100.0], np.float32)
    engine = np.array([-0.5001, -2.0002, -100.01], np.float32)
    np.testing.assert_allclose(canary_gap(engine, learner), [1e-4, 1e-4, 1e-4], rtol=1e-2)
    world, engines, publisher = scene(1, canary_tolerance=1e-5)
    world.learner_logprobs = 100 * LOGPROBS - 1
    engines[0].logprobs = world.learner_logprobs * np.float32(1 + 1e-6)
    assert publisher.publish(1, canary_ids=CANARY).canary_gap == pytest.approx(1e-6, rel=0.1)


def compute_nothing(engine: ScriptedEngine) -> None:
    engine.logprobs = LOGPROBS * np.float32("nan")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (corrupt, "tensor b was sent with digest bb and arrived with xx"),
        (lose, "tensor b was sent and did not arrive"),
        (leave_unloaded, "no weights arrived for model.norm"),
        (compute_otherwise, "differ from the learner's by 0.5 on average and 0.5 at most, more than 0.001 and 0.01"),
        (
            compute_once_otherwise,
            "differ from the learner's by 0.0009 on average and 0.0117 at most, more than 0.001 and 0.01",
        ),
        (compute_nothing, "differ from the learner's by nan on average and nan at most"),
    ],
)
def test_a_wrong_engine_stops_the_flip_of_all(fault: Callable[[ScriptedEngine], None], said: str):
    world, engines, publisher = scene(1, 2)
    fault(engines[1])
    with pytest.raises(WeightTransferError, match=f"engine rollout-1 has wrong weights: .*{said}") as caught:
        publisher.publish(4, canary_ids=CANARY)
    assert isinstance(caught.value, PublicationError)
    assert (caught.value.phase, caught.value.engines) == ("compare", ("rollout-1",))
    assert [engine.version for engine in engines] == [0, 0]
    assert world.calls[-3:] == ["close", "rollout-0 abandon", "rollout-1 abandon"]
    engines[1].tensors, engines[1].problems, engines[1].logprobs = [TENSORS] * 2, (), LOGPROBS
    assert publisher.publish(4, canary_ids=CANARY).new_group
    assert [engine.version for engine in engines] == [4, 4]


@pytest.mark.parametrize(
    "call", ["rollout-0 prepare in_flight", "open 2", "join", "send 1", "rollout-0 receive 1", "canary"]
)
def test_whoever_fails_before_the_flip_stops_it(call: str):
    world, engines, publisher = scene(1, 1)
    world.faults[call] = ActorError("it died", fix="replace it")
    with pytest.raises(PublicationError, match="it died") as caught:
        publisher.publish(4, canary_ids=CANARY)
    assert caught.value.engines == (("rollout-0",) if call.startswith("rollout-0") else ())
    assert [engine.version for engine in engines] == [0, 0]
    assert publisher.publish(4, canary_ids=CANARY).new_group


def test_silence_is_an_error_at_the_deadline_that_names_who_was_silent():
    world, engines, publisher = scene(1, 1, update_timeout_s=0.05)
    world.silent = {"rollout-1 receive 1", "rollout-1 abandon"}
    with pytest.raises(PublicationError, match=r"engine rollout-1: no answer in 0.0625 s") as caught:
        publisher.publish(4)
    assert (caught.value.phase, caught.value.engines) == ("transfer", ("rollout-1",))
    assert [engine.version for engine in engines] == [0, 0]


def test_one_error_speaks_for_all_who_failed():
    world, _, publisher = scene(1, 1)
    world.faults = {"rollout-0 receive 1": ActorError("died"), "rollout-1 receive 1": WeightTransferError("was lost")}
    with pytest.raises(PublicationError, match="engine rollout-0: died; engine rollout-1: was lost") as caught:
        publisher.publish(4)
    assert caught.value.engines == ("rollout-0", "rollout-1")


def test_other_engines_get_a_new_group():
    world, engines, publisher = scene(1, 1)
    publisher.publish(1)
    publisher.set_engines([engines[0], replacement := ScriptedEngine(world, "rollout-2")])
    world.calls.clear()
    assert publisher.publish(2).new_group
    assert "rollout-2 connect 2 of 3 fold64" in world.calls and "rollout-1 commit 2" not in world.calls
    assert (engines[0].version, engines[1].version, replacement.version) == (2, 1, 2)


def test_draining_has_a_deadline_of_its_own():
    world, _, publisher = scene(1, mode="drain", update_timeout_s=60.0, drain_timeout_s=0.05)
    world.silent = {"rollout-0 prepare drain"}
    with pytest.raises(PublicationError, match=r"no answer in 0\.05 s") as caught:
        publisher.publish(1)
    assert caught.value.phase == "prepare"


def test_what_holds_up_a_drain_can_be_ended_meanwhile():
    world, engines, publisher = scene(1, 1, mode="drain", drain_timeout_s=30.0)
    world.silent = {"rollout-1 prepare drain"}
    calls = []

    def meanwhile() -> None:
        assert "open 2" not in world.calls, "nothing is sent before all have drained"
        calls.append(len(calls))
        if len(calls) == 2:
            world.unanswered["rollout-1 prepare drain"].set_result(None)

    publisher.publish(1, meanwhile=meanwhile)
    assert (calls, [engine.version for engine in engines]) == ([0, 1], [1, 1])


def test_an_error_met_meanwhile_is_no_engines_fault():
    world, engines, publisher = scene(1, 1, mode="drain", drain_timeout_s=30.0)
    world.silent = {"rollout-1 prepare drain"}

    def meanwhile() -> None:
        raise ActorError("no verifier worker is left")

    with pytest.raises(ActorError, match=r"^no verifier worker is left$"):
        publisher.publish(1, meanwhile=meanwhile)
    assert len([call for call in world.calls if "abandon" in call]) == len(engines)


def test_an_engine_that_dies_at_the_flip_is_named_and_the_others_have_flipped():
    world, engines, publisher = scene(1, 1)
    world.faults["rollout-1 commit 4"] = ActorError("died")
    with pytest.raises(PublicationError, match="engine rollout-1: died") as caught:
        publisher.publish(4)
    assert (caught.value.phase, engines[0].version) == ("commit", 4)
    assert not [call for call in world.calls if "abandon" in call]
    publisher.set_engines(engines[:1])
    assert publisher.publish(5).new_group


def test_no_engine_is_refused():
    with pytest.raises(ValueError, match="at least one engine"):
        scene()
