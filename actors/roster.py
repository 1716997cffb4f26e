"""Actors of one kind that work alone and are replaced when they die or hang: rollout workers, verifier workers.

    starting --built--> joining --weights--> serving --fewer places--> leaving --work done--> ended
       ^                   |                    |
       '----- another ---- dead, failed or hung <'          a bounded number of times, in the same place

Only serving members are given work.

Whoever waits for these actors' work calls `beat` meanwhile; between two heartbeats that costs microseconds. A death is
noticed when a heartbeat or a piece of work fails (seconds), a hang when a heartbeat stays away for `hang_timeout_s`.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

import ray
import ray.exceptions

from actors.cluster import require_node
from actors.deaths import DEATHS, end_of
from rlsys.errors import ActorError
from rlsys.recipe.cluster import ClusterSettings

MAX_FAILED_STARTS = 2
"""Starts in a row that may fail in one place before nothing is started there any more."""


class Restarts:
    """How often actors of each kind were started again, and how often they may be."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.counts: Counter[str] = Counter()

    def spend(self, kind: str) -> bool:
        """Counts one more; False, without counting, when there are none left."""
        if self.counts[kind] >= self.limit:
            return False
        self.counts[kind] += 1
        return True


@dataclass(eq=False, slots=True)
class Member:
    """One place of a roster and the actor that is there now."""

    name: str
    slot: int
    handle: Any
    ready: Any
    """Reference that is there when the actor is built."""
    since: float
    """When the actor was created."""
    state: Literal["starting", "joining", "serving", "leaving"] = "starting"
    load: int = 0
    """Groups under way there; whoever gives and takes back work counts them."""
    failed_starts: int = 0
    heartbeat: Any = None
    """Reference of the heartbeat that was asked for, None while none is under way."""
    asked_at: float = 0.0


class Roster:
    """The members of one kind. Iterating gives the handles of those that are built.

    Args:
        kind: `rollout`, `verifier`; in messages, metrics and members' names.
        create: makes the actor of a place; gives its handle and a reference that is there when it is built.
        ask: asks for a heartbeat: a reference to the seconds for which the actor has made no progress.
        size: how many places.
        cluster: intervals and deadlines.
        restarts: what is left to spend.
        join: whether a new member waits for weights before it serves.
        free: gives a place's resources back when it is taken away.
    """

    def __init__(
        self,
        kind: str,
        *,
        create: Callable[[int], tuple[Any, Any]],
        ask: Callable[[Any], Any],
        size: int,
        cluster: ClusterSettings,
        restarts: Restarts,
        join: bool,
        free: Callable[[int], None] = lambda slot: None,
    ) -> None:
        self.kind = kind
        self.size = size
        self._create, self._ask, self._free = create, ask, free
        self._cluster, self._restarts = cluster, restarts
        self._built_state: Literal["joining", "serving"] = "joining" if join else "serving"
        self._last_beat = time.monotonic()
        self._is_held = False
        self._last_loss = ""
        """Who was lost last, and why."""
        self._last_error: BaseException | None = None
        """Of a start, where that was the reason: with what the actor itself said."""
        self._members = [self._new(slot) for slot in range(size)]

    def __iter__(self) -> Iterator[Any]:
        return iter([member.handle for member in self.built])

    def __len__(self) -> int:
        return len(self.built)

    @property
    def built(self) -> list[Member]:
        """Members that can take weights."""
        return [member for member in self._members if member.state != "starting"]

    @property
    def serving(self) -> list[Member]:
        """Members that can be given work."""
        return [member for member in self._members if member.state == "serving"]

    @property
    def starting(self) -> list[Any]:
        """References for a caller that waits for something to happen: one becomes ready when a member is built."""
        return [member.ready for member in self._members if member.state == "starting"]

    @property
    def slots(self) -> set[int]:
        """Places in which there is a member, or another is being started."""
        return {member.slot for member in self._members}

    def __contains__(self, member: Member) -> bool:
        return member in self._members

    def serve(self, members: Sequence[Member]) -> None:
        """These have weights now."""
        for member in members:
            if member.state == "joining":
                member.state = "serving"

    def beat(self) -> None:
        """Takes note of members that were built, and asks for heartbeats when they are due.

        Raises:
            ActorError: no member is left, and none can be started; or no node is left to start one on.
        """
        if not self._members:  # said before, and not heard: another error was in the way
            raise self._nobody_left()
        now = time.monotonic()
        for member in [member for member in self._members if member.state == "starting"]:
            self._check_start(member, now)
        if not self._is_held:
            for member in [member for member in self._members if member.state == "leaving" and not member.load]:
                self._end(member)
        if now - self._last_beat < min(self._cluster.heartbeat_s, self._cluster.hang_timeout_s / 2):
            return
        self._last_beat = now
        if not self.built:
            require_node()
        for member in self.built:
            self._check_heartbeat(member, now)

    @contextmanager
    def held(self) -> Iterator[None]:
        """No member that is to leave does so in the block: all of them take part in something together."""
        self._is_held = True
        try:
            yield
        finally:
            self._is_held = False

    def resize(self, size: int) -> None:
        """Has as many places from now on: new members start, and the last ones leave when their work is done."""
        there = {member.slot: member for member in self._members}
        for slot in range(size):  # those that were given up among them
            if slot not in there:
                self._add(slot)
            elif there[slot].state == "leaving":
                there[slot].state = "serving"
        for member in [member for member in self._members if member.slot >= size]:
            if member.state == "serving":
                member.state = "leaving"
            elif member.state != "leaving":
                self._end(member)
        self.size = size

    def lost(self, member: Member, why: str, error: BaseException | None = None) -> None:
        """Ends a member that died, failed or hangs, and starts another in its place. Harmless for one replaced already.

        A place in which no other is started gives its resources back.

        Raises:
            ActorError: no member is left, and none can be started.
        """
        if member not in self._members:
            return
        if member.state == "leaving":
            print(f"{member.name} {why}; it was to leave", flush=True)
            self._end(member)
            return
        ray.kill(member.handle)
        self._members.remove(member)
        failed_starts = member.failed_starts + 1 if member.state == "starting" else 0
        replaced = failed_starts < MAX_FAILED_STARTS and self._restarts.spend(self.kind)
        action = "it is replaced" if replaced else "it is not replaced any more"
        self._last_loss, self._last_error = f"{member.name} {why}", error
        print(f"{self._last_loss}; {action}", flush=True)
        if replaced:
            self._add(member.slot).failed_starts = failed_starts
            return
        self._free(member.slot)
        if not self._members:
            raise self._nobody_left()

    def accuse(self, names: Sequence[str], *, timeout_s: float) -> list[str]:
        """Replaces those of the named members that do not answer a heartbeat now; gives their names."""
        asked = [(member, self._ask(member.handle)) for member in self.built if member.name in names]
        gone = []
        deadline = time.monotonic() + timeout_s
        for member, ref in asked:
            if (why := self._judge(ref, deadline - time.monotonic())) is not None:
                self.lost(member, why)
                gone.append(member.name)
        return gone

    def wait_for_all(self) -> None:
        """Returns when every member is built; one that dies or fails meanwhile is replaced as at any time.

        Raises:
            ActorError: one is not replaced any more, or they were not built before their deadline.
        """
        places, timeout_s = self.slots, self._cluster.start_timeout_s
        deadline = time.monotonic() + timeout_s
        while self.starting:
            self._wait_for_a_start(deadline - time.monotonic())
            if time.monotonic() >= deadline:
                message = f"the {self.kind} workers did not start"
                raise ActorError(message, value=f"{timeout_s:g} s", fix="see their logs")
            with suppress(ActorError):  # nobody is left: said below, with the reason at full length
                self.beat()
            if self.slots < places:
                reason = self._last_error or self._last_loss
                message = f"the {self.kind} workers could not start: {reason}"
                raise ActorError(message, fix="see their logs") from self._last_error

    def wait_for_one(self) -> None:
        """Returns when there is a member that can take weights (work, where none are needed).

        Raises:
            ActorError: none could be started before its deadline.
        """
        while not self.built:
            self.beat()
            self._wait_for_a_start(self._cluster.heartbeat_s)

    def close(self) -> None:
        """Ends all members."""
        for member in self._members:
            ray.kill(member.handle)
        self._members = []

    def _end(self, member: Member) -> None:
        ray.kill(member.handle)
        self._members.remove(member)
        self._free(member.slot)

    def _new(self, slot: int) -> Member:
        handle, ready = self._create(slot)
        return Member(f"{self.kind}-{slot}", slot, handle, ready, time.monotonic())

    def _add(self, slot: int) -> Member:
        """Starts a member in its place among the others."""
        member = self._new(slot)
        self._members.append(member)
        self._members.sort(key=lambda each: each.slot)
        return member

    def _nobody_left(self) -> ActorError:
        return ActorError(
            f"no {self.kind} worker is left: {self._last_loss}",
            value=f"{self._restarts.counts[self.kind]} restarts",
            fix="see the workers' logs; raise cluster.max_restarts if their deaths are the machines' fault",
        )

    def _wait_for_a_start(self, timeout_s: float) -> None:
        """Returns when one of those that start is built or failed, and soon enough for the next heartbeat."""
        if self.starting:
            timeout_s = max(min(timeout_s, self._cluster.heartbeat_s), 0.0)
            ray.wait(self.starting, num_returns=1, timeout=timeout_s, fetch_local=False)

    def _check_start(self, member: Member, now: float) -> None:
        if not ray.wait([member.ready], timeout=0, fetch_local=False)[0]:
            if now - member.since > self._cluster.start_timeout_s:
                self.lost(member, f"did not start within {self._cluster.start_timeout_s:g} s")
            return
        try:
            ray.get(member.ready)
        except ray.exceptions.RayError as error:
            self.lost(member, f"could not start ({_last_line(error)})", error)
            return
        member.state, member.failed_starts = self._built_state, 0

    def _check_heartbeat(self, member: Member, now: float) -> None:
        if member.heartbeat is None:
            member.heartbeat, member.asked_at = self._ask(member.handle), now
            return
        waited = now - member.asked_at
        left = self._cluster.hang_timeout_s - waited
        if left > 0 and not ray.wait([member.heartbeat], timeout=0)[0]:
            return
        if (why := self._judge(member.heartbeat, 0.0)) is not None:
            self.lost(member, why)
        else:
            member.heartbeat = None

    def _judge(self, heartbeat: Any, timeout_s: float) -> str | None:
        """What is wrong with a member, None when its heartbeat is good."""
        try:
            stuck_s: Any = ray.get(heartbeat, timeout=max(timeout_s, 0.0))
        except ray.exceptions.GetTimeoutError:
            return "does not answer its heartbeat"
        except DEATHS as error:
            return end_of(error)
        except ray.exceptions.RayError as error:
            return f"failed ({_last_line(error)})"
        limit = self._cluster.hang_timeout_s
        return f"made no progress for {stuck_s:.0f} s" if stuck_s > limit else None


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
