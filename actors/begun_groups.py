"""Groups that are under way at a checkpoint: where their tokens are, and what the driver may know of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from rlsys.rollouts.partial_group import PartialGroup

FETCH_DEADLINE_S = 60.0
"""To read what the workers have under way; what is later is sampled again after a resume."""


@dataclass(frozen=True, slots=True)
class BegunGroup:
    """A group of a checkpoint that a rollout worker can go on from."""

    reference: Any
    """To its `PartialGroup`."""
    num_responses: int
    """Those with at least one token."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """References to everything that was started and has no verdict."""

    not_started: tuple[Any, ...] = ()
    """Each to a `PartialGroup`, of the checkpoint before."""
    sampled: tuple[Any, ...] = ()
    """Each to the `PartialGroup`s of a worker."""
    unverified: tuple[tuple[Any, Any], ...] = ()
    """Each to prompts, and to their rollouts."""

    def fetch(self) -> list[PartialGroup]:
        """The groups that have a token, by ordinal. What died with its worker is left out: it is sampled again."""
        refs = [*self.not_started, *self.sampled, *(ref for pair in self.unverified for ref in pair)]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=FETCH_DEADLINE_S)
        groups: list[PartialGroup] = [group for ref in self.not_started for (group,) in _found(ref)]
        groups += [group for ref in self.sampled for (of_worker,) in _found(ref) for group in of_worker]
        for pair in self.unverified:
            for prompts, rollouts in _found(*pair):
                groups += [PartialGroup(p, tuple(r), ()) for p, r in zip(prompts, rollouts, strict=True)]
        by_ordinal = {group.prompt.ordinal: group for group in groups if group.num_begun}
        return [by_ordinal[ordinal] for ordinal in sorted(by_ordinal)]


def _found(*refs: Any) -> Iterator[list[Any]]:
    """The objects, once; nothing if one is lost or late."""
    try:
        yield ray.get(list(refs), timeout=0)
    except ray.exceptions.RayError as error:
        print(f"groups under way are left out of the checkpoint: {error!r}", flush=True)
