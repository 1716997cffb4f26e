"""Groups that are under way at a checkpoint: where their tokens are, and what the driver may know of them."""

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
        found = _fetch(refs)
        groups: list[PartialGroup] = [found[ref] for ref in self.not_started if ref in found]
        groups += [group for ref in self.sampled for group in found.get(ref, ())]
        for prompts, rollouts in self.unverified:
            if prompts in found and rollouts in found:
                pairs = zip(found[prompts], found[rollouts], strict=True)
                groups += [PartialGroup(prompt, tuple(of_prompt), ()) for prompt, of_prompt in pairs]
        by_ordinal = {group.prompt.ordinal: group for group in groups if group.num_begun}
        return [by_ordinal[ordinal] for ordinal in sorted(by_ordinal)]


def _fetch(refs: list[Any]) -> dict[Any, Any]:
    """The objects by reference, without those that are lost or late."""
    here, late = ray.wait(refs, num_returns=len(refs), timeout=FETCH_DEADLINE_S) if refs else ([], [])
    found, lost = {}, len(late)
    for ref in here:
        try:
            found[ref] = ray.get(ref, timeout=FETCH_DEADLINE_S)
        except ray.exceptions.RayError:
            lost += 1
    if lost:
        print(f"groups under way are left out of the checkpoint: {lost} of {len(refs)} objects are lost", flush=True)
    return found
