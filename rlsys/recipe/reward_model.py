"""`[stage.reward_model]`: a trained reward model as a verifier of an RLVR stage."""

from typing import Literal

from rlsys.recipe.algorithm import Positive
from rlsys.recipe.section import PREVIOUS, Section


class RewardModelSettings(Section):
    """A frozen reward model scores every response, at its last token. The table's presence turns it on."""

    path: str = PREVIOUS
    """`previous`: of the newest reward stage; or `stage:NAME`, a folder, `hf:owner/name`."""
    use: Literal["added", "alone"] = "added"
    """`added`: reward_scale x verified + weight x score. `alone`: weight x score; verifiers are not asked, and prompts
    need no ground truth."""
    weight: Positive = 1.0
    """Reward of one unit of the model's score."""

    @property
    def is_alone(self) -> bool:
        """Whether nothing but the reward model decides."""
        return self.use == "alone"
