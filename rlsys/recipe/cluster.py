"""`[cluster]`: how many of each actor, and what each holds."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from rlsys.recipe.section import Section


class ClusterSettings(Section):
    """The actors of a recipe; the same for all its stages, so that processes stay up from one to the next."""

    address: str = "local"
    """`local` starts a Ray cluster on this machine; `auto` attaches to a running one; or `host:port`."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """`auto`: GPUs where the cluster has any."""
    learner_ranks: PositiveInt = 1
    """Processes that train the policy together, one GPU each."""
    value_ranks: PositiveInt = 1
    """Of the value model, which are also those of the reward model in training."""
    reference_ranks: PositiveInt = 1
    """Of the frozen reference model."""
    reward_ranks: PositiveInt = 1
    """Of the frozen reward model, where an RLVR stage has one."""
    rollout_workers: PositiveInt = 1
    """Ray actors with a vLLM engine each; an engine takes as many GPUs as its tensor-parallel size."""
    verifier_workers: PositiveInt = 1
    """Ray actors, each with a pool of `verifiers.workers` processes."""
    colocate: tuple[Literal["value", "reference", "reward"], ...] = ("value", "reference", "reward")
    """Groups that share the learner's GPUs rank by rank; the others get GPUs of their own."""
    cpus_per_rank: PositiveFloat = 1.0
    """What Ray reserves for each rank; `learner.num_threads` is what it uses."""
    cpus_per_rollout_worker: PositiveFloat = 1.0
    """What Ray reserves for each engine."""
    cpus_per_verifier_worker: PositiveFloat = 1.0
    """What Ray reserves for each verifier worker with its processes."""
    oversubscribe_cpus: bool = False
    """Lets the actors share cores: all of them on a laptop's two. Placement then counts only memory and GPUs."""
    start_timeout_s: PositiveFloat = 600.0
    """Deadline for placing and starting every actor."""
    operation_timeout_s: PositiveFloat = 1800.0
    """Deadline for one training, scoring or checkpoint call on a group."""
    heartbeat_s: PositiveFloat = Field(default=10.0, le=20.0)
    """Interval at which actors are asked whether they live; a death is noticed within three of them."""
    hang_timeout_s: PositiveFloat = 120.0
    """A worker that answers no heartbeat, or makes no progress, for this long is killed and replaced."""
    max_restarts: NonNegativeInt = 20
    """How often actors of one kind (`rollout`, `verifier`, `judge`, `learner`, `value`, `reference`, `reward`) are
    started again in a run; learner and value model go back to the last checkpoint together. After that a death ends the
    run, or, while other workers of the kind live, goes unreplaced."""

    @property
    def ranks(self) -> dict[str, int]:
        """How many each group of ranks has, the learner's first."""
        return {
            "learner": self.learner_ranks,
            "value": self.value_ranks,
            "reference": self.reference_ranks,
            "reward": self.reward_ranks,
        }

    @field_validator("address")
    @classmethod
    def _is_no_client(cls, address: str) -> str:
        if address.startswith("ray://"):
            raise ValueError(
                f"address is {address}, and a driver of Ray Client has no part in the cluster; give auto or host:port "
                "on one of its nodes, or use `rlsys submit`"
            )
        return address

    def _faults(self) -> Iterator[str]:
        for group, ranks in self.ranks.items():
            if group in self.colocate and ranks > self.learner_ranks:
                yield (
                    f"{group}_ranks is {ranks} but only {self.learner_ranks} learner ranks can be shared; "
                    f"lower {group}_ranks or take '{group}' out of colocate"
                )
