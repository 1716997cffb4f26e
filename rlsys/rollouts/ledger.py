"""The accounting of prompt groups: ordinals, admission, versions, drops, batches and resume, and nothing else.

A group is one prompt's samples, admitted and trained on whole. It lives in one of four places until it ends:

                    admit()             finished()             take_batch()            trained()
    stream ----> running -----------> buffered ------------> in the batch ----------> end: trained(step)
                  ^   |                 |  |
      admit(),    |   | failed()        |  |
      first these |   v    drop, failed |  |
               waiting <----------------'  '--- filtered(), masked() --> end: filtered(reason), masked(reason)
                  '--- too many attempts --> end: expired(attempts)

With v the published version, t the number of batches trained (the learner's own version; v <= t), B groups a batch
and k the staleness bound, these hold after every call, whatever its order:

1. Staleness. Batch t is trained at version t and no token of it was sampled under a version below t - k
   (`over_age="mask"`: the batch says which tokens to mask, and none of its groups consists of such tokens alone).
2. Bounded work. A group is started only while (k + v + 1)·B - (accepted + running) > 0, so that at most (k + 1)·B
   groups are in flight (waiting ones included). Fresh ordinals start only when none waits.
3. No deadlock. When nothing runs, no batch is out and v = t < total_batches, either a batch can be taken or
   `admit` starts something: a group that leaves before training frees its place at once.
4. One end each. Every ordinal below `low_water_mark` has exactly one end; every ordinal from there up to the newest
   admitted has one or is in flight. When the last batch is trained, nothing is in flight.
5. Small state. `state_dict()` holds what is in flight and a few counters. Which ordinals have ended needs no list:
   they are the admitted ones that are not in flight.

Pure: no clock, no I/O, no Ray. One object, called from one thread.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlsys.errors import LedgerError
from rlsys.rollouts.ledger_records import COUNTERS, Batch, End, EndKind, LedgerSettings
from rlsys.rollouts.staleness import free_places, oldest_trainable
from rlsys.types import PolicyVersion

STATE_FORMAT = 1


@dataclass(slots=True)
class _Group:
    failures: int = 0
    """Attempts that came to nothing."""
    oldest_version: int = -1
    newest_version: int = -1


class Ledger:
    """The state machine of the module's docstring.

    >>> ledger = Ledger(LedgerSettings(batch_groups=2, max_staleness=0, total_batches=1))
    >>> ledger.admit()
    [0, 1]
    >>> ledger.finished(1, oldest_version=0, newest_version=0), ledger.take_batch()
    (True, None)
    >>> ledger.filtered(0, "all samples equal"), ledger.admit()
    (True, [2])
    >>> _ = ledger.finished(2, oldest_version=0, newest_version=0)
    >>> batch = ledger.take_batch()
    >>> batch.ordinals
    (1, 2)
    >>> ledger.trained(batch, step=1)
    >>> ledger.done, ledger.low_water_mark, ledger.drain_ends()[0]
    (True, 3, (0, End(kind='filtered', detail='all samples equal')))
    """

    def __init__(self, settings: LedgerSettings) -> None:
        self.settings = settings
        self.version: PolicyVersion = 0
        """v: the version that all engines have; what is admitted now is sampled under it or a newer one."""
        self.num_trained_batches = 0
        """t: the learner's own version."""
        self.counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
        self._next_ordinal = 0
        self._waiting: dict[int, _Group] = {}
        self._running: dict[int, _Group] = {}
        self._buffered: dict[int, _Group] = {}
        self._in_batch: dict[int, _Group] = {}
        self._batch: Batch | None = None  # the one that is out
        self._buffer_age: PolicyVersion = 0
        """No buffered group is older: what makes asking for drops after every event cheap."""
        self._ends: list[tuple[int, End]] = []

    # --- what there is -----------------------------------------------------------------------------------------

    @property
    def running(self) -> tuple[int, ...]:
        """Ordinals being sampled or verified, ascending."""
        return tuple(sorted(self._running))

    @property
    def waiting(self) -> tuple[int, ...]:
        """Ordinals that `admit` will start again, ascending."""
        return tuple(sorted(self._waiting))

    @property
    def buffered(self) -> tuple[int, ...]:
        """Ordinals accepted and not yet in a batch, ascending."""
        return tuple(sorted(self._buffered))

    @property
    def accepted(self) -> int:
        """Groups trained on, in the batch that is out, or buffered; cumulative, restored at resume."""
        return self.counters["trained"] + len(self._in_batch) + len(self._buffered)

    @property
    def num_in_flight(self) -> int:
        """Groups started that have no end yet, the waiting ones included."""
        return len(self._waiting) + len(self._running) + len(self._buffered) + len(self._in_batch)

    @property
    def low_water_mark(self) -> int:
        """Every ordinal below has exactly one end."""
        in_flight = (min(groups) for groups in self._places() if groups)
        return min(in_flight, default=self._next_ordinal)

    @property
    def next_batch(self) -> int:
        """Index of the batch that `take_batch` gives next, which is the version at which it will be trained."""
        return self.num_trained_batches + (self._batch is not None)

    @property
    def min_version(self) -> PolicyVersion:
        """Tokens sampled under an older version can no longer be trained on: discard such partial rollouts."""
        return oldest_trainable(self.next_batch, self.settings.max_staleness)

    @property
    def done(self) -> bool:
        """Whether the last batch is trained on."""
        return self.num_trained_batches >= self.settings.total_batches

    # --- admission ---------------------------------------------------------------------------------------------

    def admit(self, limit: int | None = None) -> list[int]:
        """Ordinals to start now, at most `limit`: those to be started again first, both by ordinal."""
        self._drop_over_age()
        free = self._free_places()
        admitted = []
        for ordinal in sorted(self._waiting)[: max(0, free if limit is None else min(free, limit))]:
            self._running[ordinal] = self._waiting.pop(ordinal)
            self.counters["reissued"] += 1
            admitted.append(ordinal)
        while len(admitted) < free and (limit is None or len(admitted) < limit):
            self._running[self._next_ordinal] = _Group()
            admitted.append(self._next_ordinal)
            self._next_ordinal += 1
        self.counters["admitted"] += len(admitted)
        return admitted

    def _free_places(self) -> int:
        return free_places(
            batch_groups=self.settings.batch_groups,
            max_staleness=self.settings.max_staleness,
            version=self.version,
            num_trained_batches=self.num_trained_batches,
            num_batches_left=self.settings.total_batches - self.num_trained_batches,
            num_untrained=len(self._in_batch) + len(self._buffered) + len(self._running),
        )

    # --- what becomes of a running group -----------------------------------------------------------------------

    def finished(self, ordinal: int, oldest_version: PolicyVersion, newest_version: PolicyVersion) -> bool:
        """The group is sampled and verified. Buffers it.

        Returns:
            False if the ordinal was not running: a late report, to be thrown away.

        Raises:
            LedgerError: the ordinal was never admitted, or the versions are none that this learner made.
        """
        if not 0 <= oldest_version <= newest_version <= self.num_trained_batches:
            raise LedgerError(
                f"group {ordinal} reports tokens of versions that the learner, at version {self.num_trained_batches}, "
                "never published",
                value=(oldest_version, newest_version),
                fix="after a rollback, abort the engines' requests before the ledger is used again",
            )
        if self._is_late(ordinal, self._running):
            return False
        group = self._running.pop(ordinal)
        group.oldest_version, group.newest_version = oldest_version, newest_version
        self._buffered[ordinal] = group
        self._buffer_age = min(self._buffer_age, self._age(group))
        self.counters["finished"] += 1
        return True

    def filtered(self, ordinal: int, reason: str) -> bool:
        """The group, running or buffered, teaches nothing: its place is refilled at once. False for a late report."""
        return self._leave(ordinal, "filtered", reason)

    def masked(self, ordinal: int, reason: str) -> bool:
        """As `filtered`, for a group whose every verdict failed."""
        return self._leave(ordinal, "masked", reason)

    def failed(self, ordinal: int, reason: str) -> bool:
        """The group's worker died, its samples were lost, or it took too long: to be started again, or expired.

        Args:
            ordinal: a running group, or a buffered one whose samples were lost.
            reason: a short label; counted as `failed/<reason>`.

        Returns:
            False for a late report, which changes nothing.
        """
        if self._is_late(ordinal, self._running, self._buffered):
            return False
        self.counters["failed"] += 1
        self.counters[f"failed/{reason}"] += 1
        self._try_again(ordinal)
        return True

    # --- batches -----------------------------------------------------------------------------------------------

    def take_batch(self) -> Batch | None:
        """The next batch, or None while fewer than B groups are fit for it. Call it after every `finished`.

        This is where staleness is checked at consumption: a group that is too old never gets into a batch.

        Raises:
            LedgerError: the batch before is not trained.
        """
        if self._batch is not None:
            raise LedgerError(f"batch {self._batch.index} is still out", fix="report it with trained() first")
        self._drop_over_age()
        if self.done or len(self._buffered) < self.settings.batch_groups:
            return None
        by_age = sorted(self._buffered, key=lambda ordinal: (self._buffered[ordinal].oldest_version, ordinal))
        min_version = self.min_version
        self._in_batch = {ordinal: self._buffered.pop(ordinal) for ordinal in by_age[: self.settings.batch_groups]}
        self._batch = Batch(
            index=self.num_trained_batches,
            ordinals=tuple(self._in_batch),
            min_version=min_version,
            masked=tuple(o for o, group in self._in_batch.items() if group.oldest_version < min_version),
        )
        return self._batch

    def trained(self, batch: Batch, step: int) -> None:
        """The learner has consumed the batch (a skipped update counts too), in training step `step`.

        Raises:
            LedgerError: it is not the batch that is out.
        """
        if batch is not self._batch:
            raise LedgerError("a batch was reported that is not the one that is out", value=batch.index)
        self._batch = None
        for ordinal in batch.ordinals:
            self._end(ordinal, "trained", step)
        self._in_batch = {}
        self.counters["over_age_masked"] += len(batch.masked)
        self.num_trained_batches += 1

    def published(self, version: PolicyVersion) -> None:
        """Every engine has flipped to `version`.

        Raises:
            LedgerError: the version goes backwards, or the learner has not reached it.
        """
        if not self.version <= version <= self.num_trained_batches:
            raise LedgerError(
                f"published versions go from {self.version} up to the learner's {self.num_trained_batches}",
                value=version,
                fix="publish the learner's weights after trained()",
            )
        self.version = version

    # --- ends and state ----------------------------------------------------------------------------------------

    def drain_ends(self) -> list[tuple[int, End]]:
        """(ordinal, end) of every ordinal that ended since the last call, in the order in which they did."""
        ends, self._ends = self._ends, []
        return ends

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, as JSON values; its size is bounded by what is in flight.

        Running groups are recorded as waiting; a batch that is out counts as buffered, as the learner's weights
        saved with this state must be those before its update.

        Raises:
            LedgerError: ends were not drained: they belong into the chain file before the state that implies them.
        """
        if self._ends:
            raise LedgerError(
                "the ledger's state was asked for with ends not drained",
                value=len(self._ends),
                fix="write drain_ends() to the chain file first",
            )
        return {
            "format": STATE_FORMAT,
            "version": self.version,
            "num_trained_batches": self.num_trained_batches,
            "next_ordinal": self._next_ordinal,
            "waiting": [[o, g.failures] for o, g in sorted((self._waiting | self._running).items())],
            "buffered": [
                [o, g.failures, g.oldest_version, g.newest_version]
                for o, g in sorted((self._buffered | self._in_batch).items())
            ],
            "counters": dict(self.counters),
        }

    @classmethod
    def from_state_dict(cls, settings: LedgerSettings, state: Mapping[str, Any]) -> "Ledger":
        """The ledger as it was at the checkpoint, with nothing running and no batch out.

        Settings may differ from the ones saved. `admit` gives the groups that were running first; a caller that kept
        their partial rollouts goes on from those. Publish the learner's weights before that.

        Raises:
            LedgerError: the state is of another format.
        """
        if state.get("format") != STATE_FORMAT:
            raise LedgerError("the ledger's state has an unknown format", value=state.get("format"))
        ledger = cls(settings)
        ledger.version = state["version"]
        ledger.num_trained_batches = state["num_trained_batches"]
        ledger._next_ordinal = state["next_ordinal"]
        ledger._waiting = {ordinal: _Group(failures) for ordinal, failures in state["waiting"]}
        ledger._buffered = {ordinal: _Group(*group) for ordinal, *group in state["buffered"]}
        ledger.counters = Counter({**ledger.counters, **state["counters"]})
        return ledger

    # --- how it is done ----------------------------------------------------------------------------------------

    def _places(self) -> tuple[dict[int, _Group], ...]:
        return self._waiting, self._running, self._buffered, self._in_batch

    def _is_late(self, ordinal: int, *expected: dict[int, _Group]) -> bool:
        if any(ordinal in groups for groups in expected):
            return False
        if not 0 <= ordinal < self._next_ordinal:
            raise LedgerError("a group was reported that was never admitted", value=ordinal)
        self.counters["late"] += 1
        return True

    def _leave(self, ordinal: int, kind: EndKind, reason: str) -> bool:
        if self._is_late(ordinal, self._running, self._buffered):
            return False
        self._remove(ordinal)
        self._end(ordinal, kind, reason)
        return True

    def _remove(self, ordinal: int) -> _Group:
        return self._running.pop(ordinal) if ordinal in self._running else self._buffered.pop(ordinal)

    def _end(self, ordinal: int, kind: EndKind, detail: int | str) -> None:
        self._ends.append((ordinal, End(kind, detail)))
        self.counters[kind] += 1

    def _try_again(self, ordinal: int) -> None:
        failures = self._remove(ordinal).failures + 1
        if failures >= self.settings.max_attempts:
            self._end(ordinal, "expired", failures)
        else:
            self._waiting[ordinal] = _Group(failures)

    def _drop_over_age(self) -> None:
        """Takes back what the next batch could not hold: bounds only rise, so neither could any later one."""
        if self._buffer_age >= self.min_version:
            return
        for ordinal in self.buffered:
            if self._age(self._buffered[ordinal]) < self.min_version:
                self.counters["over_age_dropped"] += 1
                self._try_again(ordinal)
        ages = (self._age(group) for group in self._buffered.values())
        self._buffer_age = min(ages, default=self.num_trained_batches)

    def _age(self, group: _Group) -> PolicyVersion:
        """The version that must not be too old: masking needs one fresh token, dropping all of them."""
        return group.newest_version if self.settings.over_age == "mask" else group.oldest_version
