"""The ledger's invariants in random worlds: any order of events, deaths, crashes and resumes; and mutants that fail."""

import random
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ledger_world import World

from rlsys.errors import LedgerError
from rlsys.rollouts.ledger import Ledger, _Group
from rlsys.rollouts.ledger_records import LedgerSettings

PICK = st.integers(0, 10**6)


class LedgerMachine(RuleBasedStateMachine):
    """Hypothesis chooses the settings and every event; the world judges."""

    ledger_class: type[Ledger] = Ledger

    @initialize(
        batch_groups=st.integers(1, 4),
        max_staleness=st.integers(0, 3),
        total_batches=st.integers(1, 8),
        max_attempts=st.integers(1, 3),
        over_age=st.sampled_from(["drop", "mask"]),
        keep_partial=st.booleans(),
    )
    def start(self, keep_partial, **choices):
        self.world = World(self.ledger_class, LedgerSettings(**choices), keep_partial)

    @rule(limit=st.none() | st.integers(0, 5))
    def admit(self, limit):
        self.world.admit(limit)

    @precondition(lambda self: self.world.running)
    @rule(pick=PICK)
    def sample(self, pick):
        self.world.sample(chosen(self.world.running, pick))

    @precondition(lambda self: self.world.running)
    @rule(pick=PICK)
    def finish(self, pick):
        self.world.finish(chosen(self.world.running, pick))

    @precondition(lambda self: self.world.batch is None)
    @rule(num_turns=st.integers(1, 4), num_stragglers=st.integers(0, 2))
    def take_turns(self, num_turns, num_stragglers):
        for _ in range(num_turns):
            self.take_a_turn(num_stragglers)

    def take_a_turn(self, num_stragglers):
        """A whole step of a healthy run, but for its oldest groups: they only gain a token."""
        self.world.flip()
        self.world.publish()
        self.world.admit(None)
        for place, ordinal in enumerate(sorted(self.world.running)):
            self.world.sample(ordinal)
            if place >= num_stragglers:
                self.world.finish(ordinal)
        self.world.take_batch()
        if self.world.batch is not None:
            self.world.train()

    @precondition(lambda self: self.world.reportable())
    @rule(pick=PICK, kind=st.sampled_from(["filtered", "masked"]))
    def leave(self, pick, kind):
        self.world.leave(chosen(self.world.reportable(), pick), kind)

    @precondition(lambda self: self.world.reportable())
    @rule(pick=PICK)
    def fail(self, pick):
        self.world.fail(chosen(self.world.reportable(), pick))

    @precondition(lambda self: self.world.not_running())
    @rule(pick=PICK)
    def report_late(self, pick):
        self.world.report_late(chosen(self.world.not_running(), pick))

    @precondition(lambda self: self.world.batch is None)
    @rule()
    def take_batch(self):
        self.world.take_batch()

    @precondition(lambda self: self.world.batch is not None)
    @rule()
    def train(self):
        self.world.train()

    @rule()
    def flip(self):
        self.world.flip()

    @rule()
    def publish(self):
        self.world.publish()

    @rule()
    def commit(self):
        self.world.commit()

    @rule(committed_just_before=st.booleans())
    def crash(self, committed_just_before):
        if committed_just_before:
            self.world.commit()
        self.world.crash()

    @invariant()
    def holds(self):
        self.world.check()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.complete()


def chosen(ordinals, pick: int) -> int:
    return sorted(ordinals)[pick % len(ordinals)]


RANDOM_WORLDS = settings(
    max_examples=300,
    stateful_step_count=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)


def test_random_worlds_keep_every_invariant():
    run_state_machine_as_test(LedgerMachine, settings=RANDOM_WORLDS)


def newer_first(ordinals, rng: random.Random) -> int:
    """A running group, so that some of the old ones are left behind as stragglers."""
    return sorted(ordinals)[int(len(ordinals) * rng.random() ** 0.2)]


def run_long_world(ledger_class: type[Ledger], seed: int, *, crash_rate: float) -> World:
    """A run of thousands of events at the sizes of a real batch, driven by one seeded generator."""
    rng = random.Random(seed)
    world = World(
        ledger_class,
        LedgerSettings(
            batch_groups=rng.choice([8, 16, 32]),
            max_staleness=rng.choice([0, 1, 2, 5]),
            total_batches=rng.randint(30, 60),
            max_attempts=rng.choice([2, 3, 5]),
            over_age=rng.choice(["drop", "mask"]),
        ),
        keep_partial=rng.random() < 0.5,
    )
    events: list[tuple[float, Callable[[], object]]] = [
        (3, lambda: world.admit(rng.choice([None, 1, 8]))),
        (30, lambda: [world.sample(o) for o in world.running if rng.random() < 0.5]),
        (40, lambda: world.running and world.finish(newer_first(world.running, rng))),
        (2, lambda: world.reportable() and world.leave(rng.choice(world.reportable()), "filtered")),
        (2, lambda: world.reportable() and world.fail(rng.choice(world.reportable()))),
        (8, lambda: world.batch is None and world.take_batch()),
        (6, lambda: world.batch and world.train()),
        (3, world.flip),
        (3, world.publish),
        (1, world.commit),
        (crash_rate, world.crash),
    ]
    weights = [weight for weight, _ in events]
    for index in range(20_000):
        rng.choices(events, weights)[0][1]()
        if index % 16 == 0:
            world.check()
        if world.ledger.done:
            break
    world.complete()
    return world


@pytest.mark.parametrize("seed", range(12))
def test_long_worlds_keep_every_invariant(seed: int):
    world = run_long_world(Ledger, seed, crash_rate=0.3)
    assert world.num_crashes >= 3
    assert world.ledger.counters["reissued"] > 0 and world.ledger.counters["filtered"] > 0


def test_long_worlds_meet_what_they_are_about():
    counters = [run_long_world(Ledger, seed, crash_rate=0.05).ledger.counters for seed in range(12)]
    for name in ("over_age_dropped", "over_age_masked", "expired", "failed", "reissued"):
        assert sum(counter[name] for counter in counters) > 10, name


def test_the_state_does_not_grow_with_the_run():
    sizes = []
    for total_batches in (5, 500):
        ledger = Ledger(LedgerSettings(batch_groups=4, max_staleness=1, total_batches=total_batches))
        for step in range(total_batches):
            for ordinal in ledger.admit():
                ledger.finished(ordinal, ledger.version, ledger.version)
            batch = ledger.take_batch()
            assert batch is not None
            ledger.trained(batch, step)
            ledger.published(step + 1)
            ledger.drain_ends()
        sizes.append(len(str(ledger.state_dict())))
    assert sizes[1] - sizes[0] < 20  # more digits only


# --- mutants: each breaks one rule, and the same property must notice -------------------------------------------


class AdmitsOneTooMany(Ledger):
    def _free_places(self) -> int:
        return super()._free_places() + 1


class AdmitsOneTooFew(Ledger):
    def _free_places(self) -> int:
        return super()._free_places() - 1


class TrainsTokensOneVersionTooOld(Ledger):
    @property
    def min_version(self) -> int:
        return max(0, super().min_version - 1)


class NeverDrops(Ledger):
    def _drop_over_age(self) -> None:
        pass


class ForgetsRunningGroupsAtResume(Ledger):
    def state_dict(self):
        state = super().state_dict()
        return state | {"waiting": [[o, f] for o, f in state["waiting"] if o not in self._running]}


class LosesBufferedGroupsAtResume(Ledger):
    def state_dict(self):
        return super().state_dict() | {"buffered": []}


class AcceptsLateResults(Ledger):
    def finished(self, ordinal, oldest_version, newest_version):
        if ordinal not in self._running and ordinal < self._next_ordinal:
            self._waiting.pop(ordinal, None)
            self._running[ordinal] = self._buffered.pop(ordinal, None) or _Group()
        return super().finished(ordinal, oldest_version, newest_version)


class KeepsThePlaceOfAFilteredGroup(Ledger):
    def _free_places(self) -> int:
        return super()._free_places() - self.counters["filtered"]


class NeverExpires(Ledger):
    def _try_again(self, ordinal: int) -> None:
        group = self._remove(ordinal)
        group.failures += 1
        self._waiting[ordinal] = group


class CountsAResumeAsAnAttempt(Ledger):
    def state_dict(self):
        state = super().state_dict()
        return state | {"waiting": [[o, f + 1] for o, f in state["waiting"]]}


class EndsTwice(Ledger):
    def filtered(self, ordinal, reason):
        filtered = super().filtered(ordinal, reason)
        self._ends += self._ends[-1:]
        return filtered


class TakesTheNewestFirst(Ledger):
    def take_batch(self):
        for group in self._buffered.values():
            group.oldest_version = -group.oldest_version
        try:
            return super().take_batch()
        finally:
            for group in (*self._buffered.values(), *self._in_batch.values()):
                group.oldest_version = -group.oldest_version


MUTANTS = [
    AdmitsOneTooMany,
    AdmitsOneTooFew,
    TrainsTokensOneVersionTooOld,
    NeverDrops,
    ForgetsRunningGroupsAtResume,
    LosesBufferedGroupsAtResume,
    AcceptsLateResults,
    KeepsThePlaceOfAFilteredGroup,
    NeverExpires,
    CountsAResumeAsAnAttempt,
    EndsTwice,
    TakesTheNewestFirst,
]


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_ledger_is_caught(mutant: type[Ledger]):
    machine = type("MutantMachine", (LedgerMachine,), {"ledger_class": mutant})
    without_shrinking = settings(
        RANDOM_WORLDS, max_examples=3000, phases=[Phase.generate], print_blob=False, database=None
    )
    with pytest.raises((AssertionError, LedgerError, KeyError)):
        run_state_machine_as_test(machine, settings=without_shrinking)
