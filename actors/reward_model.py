"""The reward model as a verifier, on n ranks: weights that never change. Partitioned, without optimizer.

rollouts (by reference) --score--> scores (by reference) --> VerifierWorker.verify
"""

from typing import Any

from actors.groups import ModelGroup
from actors.rank import Rank, remote_rank
from rlsys.types import Prompt, Rollout


@remote_rank
class RewardModelRank(Rank):
    """One rank of the reward model."""

    kind = "scalar"
    trainable = False

    def scores(self, *, prompts: list[Prompt], groups: list[list[Rollout]]) -> list[list[float]]:
        """`rlsys.models.reward.response_scores`: `[prompt][sample]`."""
        from rlsys.models.reward import response_scores

        return response_scores(self.engine, prompts, groups)


class RewardModel(ModelGroup):
    """The driver's end of the group."""

    actor_class = RewardModelRank

    def score(self, prompts: Any, groups: Any) -> list[Any]:
        """References to the scores `[prompt][sample]` of what two references hold: a rank each, all of them equal.

        What the references hold must be there already: calls of a group run in the order of submission, so that one
        that waits for its rollouts would hold up all others.
        """
        return self.ranks.submit("scores", prompts=prompts, groups=groups).refs
