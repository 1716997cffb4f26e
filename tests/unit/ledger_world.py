"""A simulated run around a ledger: engines, workers, learner and disk as plain data, with its own bookkeeping.

The world never asks the ledger what is right. It keeps every token's version, every end and every training of a sample
by itself, predicts what the ledger must answer, and asserts it. Each method is one event that can happen in a real
run, in any order; `complete` then lets nothing go wrong any more and requires the run to end.
"""

import copy
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rlsys.rollouts.ledger import Ledger
from rlsys.rollouts.ledger_records import Batch, End, EndKind, LedgerSettings

SAMPLES = 2
Tokens = list[list[int]]
"""For each sample of a group, the version that sampled each token."""


@dataclass
class Disk:
    """The last committed checkpoint, and the chain file that goes with it."""

    ledger: dict[str, Any]
    learner_version: int = 0
    buffered: dict[int, Tokens] = field(default_factory=dict)
    partial: dict[int, Tokens] = field(default_factory=dict)
    attempts: Counter[int] = field(default_factory=Counter)
    ends: dict[int, str] = field(default_factory=dict)
    num_ends: int = 0
    num_trained: int = 0


class World:
    """Args: keep_partial: whether checkpoints hold the tokens of running groups, which then go on after a resume."""

    def __init__(self, ledger_class: type[Ledger], settings: LedgerSettings, keep_partial: bool) -> None:
        self.ledger_class, self.settings, self.keep_partial = ledger_class, settings, keep_partial
        self.ledger = ledger_class(settings)
        self.learner_version = self.engine_version = 0
        self.running: dict[int, Tokens] = {}
        self.buffered: dict[int, Tokens] = {}
        """Accepted and not yet trained on, those of the batch that is out included."""
        self.partial: dict[int, Tokens] = {}
        self.attempts: Counter[int] = Counter()
        """Attempts that failed, by ordinal."""
        self.batch: Batch | None = None
        self.ends: dict[int, str] = {}
        """How each ordinal must have ended, in the world's own opinion."""
        self.chain: list[tuple[int, End]] = []
        """How the ledger says that they ended: the chain file of committed checkpoints, and what came since."""
        self.trained_samples: list[tuple[int, int]] = []
        self.num_crashes = 0
        self.disk = Disk(self._ledger_state())

    # --- events of a run ---------------------------------------------------------------------------------------

    def admit(self, limit: int | None) -> None:
        self._expect_drops()
        waiting = self._waiting()
        next_fresh = self._next_ordinal()
        admitted = self.ledger.admit(limit)
        untrained = len(self.running) + len(self.buffered)
        places = self.settings.max_staleness + self.ledger.version + 1 - self.learner_version
        free = min(places, self.settings.total_batches - self.learner_version) * self.settings.batch_groups - untrained
        expected_count = max(0, free if limit is None else min(free, limit))
        num_fresh = max(0, expected_count - len(waiting))
        assert admitted == waiting[:expected_count] + list(range(next_fresh, next_fresh + num_fresh)), "admission"
        for ordinal in admitted:
            self.running[ordinal] = self.partial.pop(ordinal, [[] for _ in range(SAMPLES)])

    def sample(self, ordinal: int) -> None:
        """Every sample of a running group gains a token under the engines' version."""
        for sample in self.running[ordinal]:
            sample.append(self.engine_version)

    def finish(self, ordinal: int) -> None:
        if not all(self.running[ordinal]):
            self.sample(ordinal)
        tokens = self.running.pop(ordinal)
        versions = [version for sample in tokens for version in sample]
        assert self.ledger.finished(ordinal, min(versions), max(versions)), "a running group's result was refused"
        self.buffered[ordinal] = tokens

    def leave(self, ordinal: int, kind: EndKind) -> None:
        """The group is filtered or masked."""
        self._forget(ordinal)
        self.ends[ordinal] = kind
        assert (self.ledger.filtered if kind == "filtered" else self.ledger.masked)(ordinal, "because")

    def fail(self, ordinal: int) -> None:
        """The group's worker dies, or its finished samples are lost."""
        self._forget(ordinal)
        self._count_attempt(ordinal)
        assert self.ledger.failed(ordinal, "died")

    def report_late(self, ordinal: int) -> None:
        before = self._ledger_state()
        assert not self.ledger.finished(ordinal, 0, 0), "a group that was not running was accepted"
        before["counters"]["late"] += 1
        assert self._ledger_state() == before, "a late report changed something"

    def take_batch(self) -> None:
        self._expect_drops()
        oldest = {o: min(version for sample in tokens for version in sample) for o, tokens in self.buffered.items()}
        expected = sorted(oldest, key=lambda ordinal: (oldest[ordinal], ordinal))[: self.settings.batch_groups]
        batch = self.ledger.take_batch()
        if len(expected) < self.settings.batch_groups or self.ledger.done:
            assert batch is None
            return
        assert batch is not None and batch.ordinals == tuple(expected) and batch.index == self.learner_version
        self.batch = batch

    def train(self) -> None:
        batch = self._pop_batch()
        for ordinal in batch.ordinals:
            tokens = self.buffered.pop(ordinal)
            fresh = [[v for v in sample if v >= batch.min_version] for sample in tokens]
            for version in (version for sample in fresh for version in sample):
                assert version >= self.learner_version - self.settings.max_staleness, "a token older than the bound"
            assert any(fresh), "a group without one trainable token"
            assert (fresh != tokens) == (ordinal in batch.masked), "masking not announced"
            assert fresh == tokens or self.settings.over_age == "mask"
            self.ends[ordinal] = "trained"
            self.trained_samples += [(ordinal, index) for index in range(SAMPLES)]
        self.learner_version += 1
        self.ledger.trained(batch, step=self.learner_version)

    def flip(self) -> None:
        """The engines take the learner's weights; the ledger has not been told yet."""
        self.engine_version = self.learner_version

    def publish(self) -> None:
        self.ledger.published(self.engine_version)

    def commit(self) -> None:
        self._drain()
        self.disk = Disk(
            self._ledger_state(),
            self.learner_version,
            copy.deepcopy(self.buffered),
            copy.deepcopy(self.running | self.partial) if self.keep_partial else {},
            self.attempts.copy(),
            self.ends.copy(),
            len(self.chain),
            len(self.trained_samples),
        )

    def crash(self) -> None:
        """Everything is killed and resumed from the last commit: what came after it never happened."""
        saved = copy.deepcopy(self.disk)
        self.num_crashes += 1
        self.ledger = self.ledger_class.from_state_dict(self.settings, json.loads(json.dumps(saved.ledger)))
        self.learner_version = self.engine_version = saved.learner_version
        self.running, self.buffered, self.partial = {}, saved.buffered, saved.partial
        self.attempts, self.ends, self.batch = saved.attempts, saved.ends, None
        del self.chain[saved.num_ends :], self.trained_samples[saved.num_trained :]
        self.ledger.published(self.learner_version)

    # --- what must hold ----------------------------------------------------------------------------------------

    def check(self) -> None:
        """After every event."""
        ledger, settings = self.ledger, self.settings
        in_batch = self.batch.ordinals if self.batch else ()
        assert ledger.running == tuple(sorted(self.running))
        assert ledger.buffered == tuple(sorted(self.buffered.keys() - set(in_batch)))
        assert ledger.accepted == len(self.trained_samples) // SAMPLES + len(self.buffered)
        assert ledger.num_in_flight <= (settings.max_staleness + 1) * settings.batch_groups, "work is unbounded"
        self._drain()
        assert len(self.chain) == len(self.ends), "an ordinal ended twice, or not at all"
        assert {ordinal: end.kind for ordinal, end in self.chain} == self.ends, "an ordinal ended otherwise"
        in_flight = set(range(self._next_ordinal())) - self.ends.keys()
        assert len(in_flight) == ledger.num_in_flight and in_flight >= self.running.keys() | self.buffered.keys()
        assert ledger.low_water_mark == min(in_flight, default=self._next_ordinal())
        assert max(Counter(self.trained_samples).values(), default=1) == 1, "a sample was trained on twice"
        if settings.max_staleness == 0 and not self.keep_partial:
            assert ledger.counters["over_age_dropped"] == 0, "synchronous admission lets nothing grow old"

    def complete(self) -> None:
        """From here on everything works: the run must end, within the steps that a fair schedule needs."""
        for _ in range(3 * self.settings.total_batches + 3):
            if self.batch is not None:
                self.train()
            self.flip()
            self.publish()
            self.admit(None)
            for ordinal in tuple(self.running):
                self.finish(ordinal)
            self.take_batch()
            self.check()
        assert self.ledger.done and self.learner_version == self.settings.total_batches, "deadlock"
        assert self.ledger.num_in_flight == 0
        assert sorted(self.ends) == list(range(self.ledger.low_water_mark)), "an ordinal was skipped"
        trained = sorted(ordinal for ordinal, kind in self.ends.items() if kind == "trained")
        assert len(trained) == self.settings.total_batches * self.settings.batch_groups
        assert sorted(self.trained_samples) == [(ordinal, i) for ordinal in trained for i in range(SAMPLES)]

    # --- the world's own bookkeeping ---------------------------------------------------------------------------

    def reportable(self) -> list[int]:
        """Groups that can still be filtered or lost."""
        return sorted(self.running.keys() | (self.buffered.keys() - set(self.batch.ordinals if self.batch else ())))

    def not_running(self) -> list[int]:
        return [ordinal for ordinal in range(self._next_ordinal()) if ordinal not in self.running]

    def _next_ordinal(self) -> int:
        return self.ledger.counters["admitted"] - self.ledger.counters["reissued"]

    def _waiting(self) -> list[int]:
        present = self.ends.keys() | self.running.keys() | self.buffered.keys()
        return [ordinal for ordinal in range(self._next_ordinal()) if ordinal not in present]

    def _expect_drops(self) -> None:
        """Applies the staleness rule to the world's own tokens: what no batch can hold any more must be given back."""
        bound = self.learner_version + (self.batch is not None) - self.settings.max_staleness
        newest_counts = self.settings.over_age == "mask"
        for ordinal in sorted(self.buffered.keys() - set(self.batch.ordinals if self.batch else ())):
            versions = [version for sample in self.buffered[ordinal] for version in sample]
            if (max(versions) if newest_counts else min(versions)) < bound:
                del self.buffered[ordinal]
                self._count_attempt(ordinal)

    def _count_attempt(self, ordinal: int) -> None:
        self.attempts[ordinal] += 1
        if self.attempts[ordinal] >= self.settings.max_attempts:
            self.ends[ordinal] = "expired"

    def _forget(self, ordinal: int) -> None:
        self.running.pop(ordinal, None)
        self.buffered.pop(ordinal, None)

    def _pop_batch(self) -> Batch:
        assert self.batch is not None
        batch, self.batch = self.batch, None
        return batch

    def _drain(self) -> None:
        self.chain += self.ledger.drain_ends()

    def _ledger_state(self) -> dict[str, Any]:
        self._drain()
        return json.loads(json.dumps(self.ledger.state_dict()))
