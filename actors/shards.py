"""Where experiences are: references that the driver passes on, and that the ranks turn into experiences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray

from rlsys.types import Experience


@dataclass(frozen=True, slots=True)
class GroupReference:
    """The experiences of one group: an object of the store that holds the groups of its chunk, and which one."""

    chunk: Any
    index: int
    rewards: tuple[float, ...] | None = None
    """In place of the experiences' own, by sample: for controls."""


@dataclass(frozen=True, slots=True)
class ShardReference:
    """The groups that one rank scores of a batch."""

    groups: tuple[GroupReference, ...]


def fetch_groups(groups: Sequence[GroupReference]) -> list[list[Experience]]:
    """The experiences of each group; a chunk that several share is read once. Arrays stay there and are mapped."""
    chunks = list({group.chunk: None for group in groups})
    values = dict(zip(chunks, ray.get(chunks), strict=True))
    return [_with_rewards(values[group.chunk][group.index], group.rewards) for group in groups]


def _with_rewards(group: Sequence[Experience], rewards: tuple[float, ...] | None) -> list[Experience]:
    if rewards is None:
        return list(group)
    return [replace(experience, reward=reward) for experience, reward in zip(group, rewards, strict=True)]
