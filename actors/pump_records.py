"""What the pump holds and hands out: chunks under way, and groups that came through or were lost."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from actors.reward_model import RewardModel
from actors.roster import Member
from actors.shards import GroupReference
from rlsys.errors import ActorError
from rlsys.recipe.rollout import SamplingSettings
from rlsys.types import GroupSummary

LossReason = Literal[
    "rollout_worker_died", "rollout_worker_failed", "reward_model_died", "verifier_died", "rollouts_lost", "timeout"
]


@dataclass(frozen=True, slots=True)
class PumpSettings:
    """How prompts are sampled and handed out."""

    num_samples: int
    """Responses to each prompt."""
    sampling: SamplingSettings
    """Of all of them."""
    seed: int
    """Of the sampling."""
    groups_per_worker: int
    """A worker that has so many under way is given no more before it is done with some: what it would only keep
    waiting would be lost with it, and count as late."""
    groups_per_call: int = 1
    """Prompts in one call."""
    group_timeout_s: float = 1800.0
    """A chunk that a worker has for longer is lost."""
    tag: str = "train"
    """Of the calls: `train`, `eval` or `preferences`."""
    mode: Literal["eval", "reward"] | None = None
    """Of the verifiers; their own setting when absent."""
    overlong: Mapping[str, float] | None = None
    """Arguments of `overlong_penalty`, which is added to each reward."""
    fixed: bool = False
    """Ordinal o goes to the worker in place o % n, all that is started at once in one call to each worker."""


@dataclass(frozen=True, slots=True)
class RewardScoring:
    """A reward model that scores what is sampled."""

    model: Callable[[], RewardModel]
    """The group that is there now: another one after it died."""
    weight: float
    timeout_s: float = 1800.0
    """A model that takes longer over a chunk, those before it included, is taken for dead."""


@dataclass(frozen=True, slots=True)
class VerifiedGroup:
    """A group that came through."""

    summary: GroupSummary
    reference: GroupReference
    seconds: float
    """From its start to its verdict, a reward model's scoring apart."""


@dataclass(frozen=True, slots=True)
class LostGroups:
    """Groups whose worker or verifier failed."""

    ordinals: tuple[int, ...]
    reason: LossReason
    error: Exception


@dataclass(slots=True)
class Chunk:
    """Prompts of one generate call, and how far they are."""

    ordinals: tuple[int, ...]
    worker: Member
    prompts: Any
    generated: Any
    rollouts: Any
    started: float
    scorer: RewardModel | None = None
    scored: Any = None
    scored_beside: list[Any] = field(default_factory=list)
    """The answers of the model's other ranks, equal to it."""
    num_scorings: int = 0
    scoring_since: float | None = None
    """While it is being scored."""
    scoring_error: ActorError | None = None
    verifier: Member | None = None
    verified: Any = None
    experiences: Any = None
    num_verifications: int = 0

    @property
    def awaited(self) -> Any:
        """The reference that is there when the step under way is done."""
        return self.verified or self.scored or self.generated

    def unload(self) -> None:
        """The work that its members were given for it is over, however it ended."""
        for member in filter(None, (self.worker, self.verifier)):
            member.load -= len(self.ordinals)
