"""The loop around an engine: when it steps, what it holds back, and who hears of a failure.

The engine here samples one token a step for each group, so that every test says exactly what ran when.
"""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from rlsys.errors import ActorError, WeightTransferError
from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.open_group import FinishedGroup
from rlsys.rollouts.partial_group import PartialResponse, Response
from rlsys.rollouts.sampling_engine import PromptRefused
from rlsys.rollouts.sampling_engine_loop import EngineLoop, GroupRequest
from rlsys.types import Rollout

WAIT_S = 10.0
BROKEN = (0,)
"""A prompt that the engine itself fails on."""


class CountingEngine:
    """Group with ordinal n is finished after n steps; a gate can hold a step back."""

    def __init__(self, *, updating: bool = False) -> None:
        self.version = 0
        self.updating = updating
        self.num_tokens = 0
        self.restarted = 0
        self.closed = False
        self.gate = threading.Event()
        self.gate.set()
        self.stepping = threading.Event()
        self.fail_at: int | None = None
        self._open: dict[int, tuple[int, list[int]]] = {}
        self._next = 0

    @property
    def has_work(self) -> bool:
        return bool(self._open)

    @property
    def num_unfinished(self) -> int:
        return len(self._open)

    def add_group(self, prompt_ids, *, ordinal: int, seeds, num_samples: int, sampling, begun=()) -> int:
        if not prompt_ids:
            raise PromptRefused("no prompt")
        if prompt_ids == BROKEN:
            raise ValueError("no such parameter")
        self._open[self._next] = (ordinal, [version for response in begun for version in response.versions.tolist()])
        self._next += 1
        return self._next - 1

    def step(self) -> list[FinishedGroup]:
        assert not self.updating, "stepped during an update"
        self.stepping.set()
        assert self.gate.wait(WAIT_S)
        finished = []
        for key, (ordinal, versions) in list(self._open.items()):
            versions.append(self.version)
            self.num_tokens += 1
            if self.num_tokens == self.fail_at:
                raise RuntimeError("out of memory")
            if len(versions) == ordinal:
                del self._open[key]
                rollout = Rollout(ordinal, 0, *tokens(versions), "length")
                finished.append(FinishedGroup(key, (rollout,)))
        return finished

    def begun(self) -> dict[int, tuple[Response, ...]]:
        return {key: (PartialResponse(0, *tokens(versions)),) for key, (_, versions) in self._open.items()}

    def abort_groups(self, keys) -> None:
        self._open = {key: group for key, group in self._open.items() if key not in keys}

    def commit_version(self, version: int) -> None:
        self.version, self.updating = version, False

    def restart_requests(self) -> int:
        self.restarted += len(self._open)
        return len(self._open)

    def close(self) -> None:
        self.closed = True


def tokens(versions: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.arange(len(versions), dtype=np.int32)
    return ids, -ids.astype(np.float32), np.array(versions, np.int32)


def request(num_steps: int, prompt: tuple[int, ...] = (5,), **begun) -> GroupRequest:
    return GroupRequest(prompt, num_steps, [0], SamplingSettings(max_tokens=99), **begun)


def versions_of(groups: list[tuple[Response, ...]]) -> list[list[list[int]]]:
    return [[response.versions.tolist() for response in group] for group in groups]


@pytest.fixture
def engine() -> CountingEngine:
    return CountingEngine()


@pytest.fixture
def loop(engine: CountingEngine) -> Iterator[EngineLoop]:
    loop = EngineLoop(lambda: engine, name="rollout-7")  # pyright: ignore[reportArgumentType]
    loop.ready.result(WAIT_S)
    yield loop
    engine.gate.set()
    loop.close(timeout_s=WAIT_S)
    assert engine.closed


def test_groups_resolve_one_by_one(loop: EngineLoop):
    short, long = loop.add([request(2), request(5)])
    assert short.result(WAIT_S)[0].versions.tolist() == [0, 0]
    assert long.result(WAIT_S)[0].versions.tolist() == [0] * 5
    stats = loop.stats()
    assert (stats.num_tokens, stats.num_steps, stats.num_groups, stats.num_unfinished) == (7, 5, 2, 0)


def test_a_bad_prompt_is_its_askers_error_alone(loop: EngineLoop):
    bad, good = loop.add([request(1, prompt=()), request(1)])
    with pytest.raises(PromptRefused, match="no prompt"):
        bad.result(WAIT_S)
    assert len(good.result(WAIT_S)) == 1


def test_what_the_engine_fails_on_is_told_to_those_who_asked_alone(loop: EngineLoop):
    """Among groups that were held during an update too: whoever is not answered would wait for ever."""
    broken, good = loop.add([request(1, prompt=BROKEN), request(1)])
    loop.prepare("in_flight").result(WAIT_S)
    held = loop.add([request(1), request(1, prompt=BROKEN), request(1)])
    loop.commit(1).result(WAIT_S)
    for future in (broken, held[1]):
        with pytest.raises(ValueError, match="no such parameter") as told:
            future.result(WAIT_S)
        assert not isinstance(told.value, PromptRefused)
    assert [len(future.result(WAIT_S)) for future in (good, held[0], held[2])] == [1, 1, 1]


def test_in_flight_update_flips_between_two_steps_and_goes_on(loop: EngineLoop, engine: CountingEngine):
    engine.gate.clear()
    (future,) = loop.add([request(4)])
    assert engine.stepping.wait(WAIT_S)
    prepared = loop.prepare("in_flight")  # asked during the first step
    engine.gate.set()
    prepared.result(WAIT_S)
    assert loop.stats().num_steps == 1 and not future.done()
    loop.commit(3).result(WAIT_S)
    assert future.result(WAIT_S)[0].versions.tolist() == [0, 3, 3, 3]
    assert loop.stats().update_s > 0 and loop.stats().num_restarted == 0


def test_an_engine_that_waits_for_weights_is_not_stuck(loop: EngineLoop, engine: CountingEngine):
    """However long another one keeps it waiting: its heartbeat counts only time at work."""
    (future,) = loop.add([request(4)])
    loop.prepare("in_flight").result(WAIT_S)
    time.sleep(0.3)
    stats = loop.stats()
    assert stats.num_unfinished == 1 and stats.beat_age_s == 0.0
    loop.commit(1).result(WAIT_S)
    future.result(WAIT_S)
    engine.gate.clear()
    loop.add([request(1)])
    assert engine.stepping.wait(WAIT_S)
    time.sleep(0.3)
    assert loop.stats().beat_age_s > 0.2, "a step that does not end is"
    engine.gate.set()


def test_drain_finishes_what_runs_and_holds_what_comes(loop: EngineLoop, engine: CountingEngine):
    engine.gate.clear()
    (running,) = loop.add([request(3)])
    assert engine.stepping.wait(WAIT_S)
    prepared = loop.prepare("drain")
    (held,) = loop.add([request(2)])
    engine.gate.set()
    prepared.result(WAIT_S)
    assert running.result(WAIT_S)[0].versions.tolist() == [0, 0, 0]
    assert not held.done() and engine.num_unfinished == 0
    loop.commit(1).result(WAIT_S)
    assert held.result(WAIT_S)[0].versions.tolist() == [1, 1]


def test_drain_of_an_idle_engine_is_at_once(loop: EngineLoop):
    loop.prepare("drain").result(WAIT_S)
    loop.commit(1).result(WAIT_S)


def test_abort_and_continue_restarts_what_is_unfinished(loop: EngineLoop, engine: CountingEngine):
    engine.gate.clear()
    futures = loop.add([request(3), request(4)])
    assert engine.stepping.wait(WAIT_S)
    prepared = loop.prepare("abort_and_continue")
    engine.gate.set()
    prepared.result(WAIT_S)
    loop.commit(1).result(WAIT_S)
    assert [len(future.result(WAIT_S)) for future in futures] == [1, 1]
    assert engine.restarted == loop.stats().num_restarted == 2


def test_abandon_goes_on_with_old_weights(loop: EngineLoop):
    loop.prepare("in_flight").result(WAIT_S)
    (future,) = loop.add([request(2)])
    assert not future.done()
    loop.abandon().result(WAIT_S)
    assert future.result(WAIT_S)[0].versions.tolist() == [0, 0]
    loop.prepare("in_flight").result(WAIT_S)  # another update may begin
    loop.commit(1).result(WAIT_S)


def test_abandon_leaves_an_engine_with_touched_weights_paused(loop: EngineLoop):
    loop.prepare("in_flight").result(WAIT_S)
    loop.call(lambda engine: setattr(engine, "updating", True)).result(WAIT_S)
    (future,) = loop.add([request(2)])
    loop.abandon().result(WAIT_S)
    loop.call(lambda engine: None).result(WAIT_S)
    assert not future.done() and loop.stats().num_steps == 0
    loop.prepare("in_flight").result(WAIT_S)
    loop.commit(2).result(WAIT_S)
    assert future.result(WAIT_S)[0].versions.tolist() == [2, 2]


def test_an_engine_without_weights_waits_for_them():
    loop = EngineLoop(lambda: CountingEngine(updating=True), name="new")  # pyright: ignore[reportArgumentType]
    (future,) = loop.add([request(1)])
    loop.prepare("drain").result(WAIT_S)
    assert not future.done()
    loop.commit(6).result(WAIT_S)
    assert future.result(WAIT_S)[0].versions.tolist() == [6]
    loop.close(timeout_s=WAIT_S)


def test_a_failing_step_reaches_everyone_who_waits(engine: CountingEngine, loop: EngineLoop):
    engine.fail_at = 3
    first, second = loop.add([request(5), request(5)])
    for future in (first, second):
        with pytest.raises(RuntimeError, match="out of memory"):
            future.result(WAIT_S)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.commit(1).result(WAIT_S)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.check()


def test_a_failing_call_is_its_callers_error_alone(loop: EngineLoop):
    def fail(_):
        raise KeyError("mine")

    with pytest.raises(KeyError):
        loop.call(fail).result(WAIT_S)
    loop.check()


def test_an_engine_that_cannot_be_built_says_so():
    def build():
        raise ActorError("no memory for the engine")

    loop = EngineLoop(build, name="x")
    with pytest.raises(ActorError, match="no memory"):
        loop.ready.result(WAIT_S)
    (future,) = loop.add([request(1)])
    with pytest.raises(ActorError, match="no memory"):
        future.result(WAIT_S)


def test_closing_fails_what_is_unfinished(engine: CountingEngine):
    loop = EngineLoop(lambda: engine, name="rollout-7")  # pyright: ignore[reportArgumentType]
    loop.prepare("in_flight").result(WAIT_S)
    (future,) = loop.add([request(1)])
    loop.close(timeout_s=WAIT_S)
    with pytest.raises(ActorError, match="engine of rollout-7 was closed"):
        future.result(WAIT_S)


def test_spans_cover_sampling_and_updates(loop: EngineLoop):
    (future,) = loop.add([request(2)])
    future.result(WAIT_S)
    loop.prepare("in_flight").result(WAIT_S)
    loop.commit(1).result(WAIT_S)
    spans = loop.drain_spans()
    assert [(span.actor, span.name) for span in spans] == [("rollout-7", "sampling"), ("rollout-7", "take weights")]
    assert all(span.seconds > 0 for span in spans) and spans[0].end_s <= spans[1].end_s
    assert loop.drain_spans() == []


def test_who_waits_cannot_cancel_what_the_engine_will_finish(loop: EngineLoop, engine: CountingEngine):
    engine.gate.clear()
    (future,) = loop.add([request(2)])
    assert engine.stepping.wait(WAIT_S)
    assert not future.cancel()
    engine.gate.set()
    assert len(future.result(WAIT_S)) == 1


def test_a_second_preparation_takes_the_place_of_the_first(loop: EngineLoop, engine: CountingEngine):
    engine.gate.clear()
    (future,) = loop.add([request(2)])
    assert engine.stepping.wait(WAIT_S)
    first, second = loop.prepare("drain"), loop.prepare("in_flight")
    engine.gate.set()
    second.result(WAIT_S)
    with pytest.raises(WeightTransferError, match="another update of rollout-7"):
        first.result(WAIT_S)
    loop.commit(1).result(WAIT_S)
    assert future.result(WAIT_S)[0].versions.tolist() == [0, 1]


def test_what_is_begun_is_told_between_two_steps_done_held_and_failed_groups_too(
    loop: EngineLoop, engine: CountingEngine
):
    engine.gate.clear()
    futures = loop.add([request(1), request(1, prompt=()), request(3)])
    assert engine.stepping.wait(WAIT_S)
    prepared = loop.prepare("in_flight")  # asked during the first step: there is no second one
    futures += loop.add([request(4, begun=(PartialResponse(0, *tokens([7, 7])),)), request(2)])
    begun = loop.begun(futures)
    engine.gate.set()
    prepared.result(WAIT_S)
    groups = begun.result(WAIT_S)
    assert versions_of(groups) == [[[0]], [], [[0]], [[7, 7]], []]
    assert [type(response).__name__ for group in groups for response in group] == [
        "Rollout", "PartialResponse", "PartialResponse",
    ]  # fmt: skip
    loop.commit(8).result(WAIT_S)
    assert futures[2].result(WAIT_S)[0].versions.tolist() == [0, 8, 8]
    assert futures[3].result(WAIT_S)[0].versions.tolist() == [7, 7, 8, 8]


def test_a_group_aborted_while_it_was_held_is_not_told_of(loop: EngineLoop):
    loop.prepare("in_flight").result(WAIT_S)
    (future,) = loop.add([request(2, begun=(PartialResponse(0, *tokens([3])),))])
    assert versions_of(loop.begun([future]).result(WAIT_S)) == [[[3]]]
    loop.abort([future]).result(WAIT_S)
    assert loop.begun([future]).result(WAIT_S) == [()]


def test_a_failed_engine_tells_nothing(loop: EngineLoop, engine: CountingEngine):
    engine.fail_at = 1
    (future,) = loop.add([request(2)])
    with pytest.raises(RuntimeError, match="out of memory"):
        future.result(WAIT_S)
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.begun([future]).result(WAIT_S)
