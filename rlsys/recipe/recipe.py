"""The whole recipe: only the launcher and the topologies see all of it."""

from pydantic import Field, NonNegativeInt

from rlsys.errors import RecipeError
from rlsys.recipe import stages
from rlsys.recipe.cluster import ClusterSettings
from rlsys.recipe.data import DataSettings
from rlsys.recipe.model import ModelSettings
from rlsys.recipe.rollout import RolloutSettings, context_length
from rlsys.recipe.section import Section
from rlsys.recipe.stages import AnyStage
from rlsys.recipe.tracking import TrackingSettings

STAGE_KINDS: dict[str, type[stages.Stage]] = {
    "world": stages.WorldStage,
    "sft": stages.SftStage,
    "preferences": stages.PreferencesStage,
    "judged_preferences": stages.JudgedPreferencesStage,
    "reward": stages.RewardStage,
    "dpo": stages.DpoStage,
    "rlvr": stages.RlvrStage,
    "evaluate": stages.EvaluateStage,
}
SHARED_SECTIONS = ("learner", "verifiers", "evaluation", "sampling", "decontamination", "checkpoint")
"""Top-level tables that every stage which has such a section starts from."""

STAGE_REFERENCE = "stage:"
HUB = "hf:"
PRODUCES = {
    "sft": "policy",
    "dpo": "policy",
    "rlvr": "policy",
    "preferences": "pairs",
    "judged_preferences": "pairs",
    "reward": "reward model",
}


class Recipe(Section):
    """One run: a model, a cluster and a list of stages."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's folder under `runs`."""
    seed: NonNegativeInt = 0
    """Every random choice of the run is drawn from it."""
    deterministic: bool = False
    """Fixed assignment of prompts to workers: the same seed gives the same weights, bit for bit, on CPU."""
    runs: str = "runs"
    """Where run folders are; on a cluster, a folder that all nodes share."""
    model: ModelSettings
    cluster: ClusterSettings = ClusterSettings()
    rollout: RolloutSettings = RolloutSettings()
    tracking: TrackingSettings = TrackingSettings()
    stage: tuple[AnyStage, ...] = Field(min_length=1)
    """Run in this order, each of one of the kinds below."""

    def stage_named(self, label: str) -> AnyStage:
        """The stage of that name; KeyError where there is none."""
        return {stage.label: stage for stage in self.stage}[label]

    def stage_number(self, label: str) -> int:
        """The place of the stage of that name, 1 for the first.

        Raises:
            RecipeError: there is none.
        """
        labels = [stage.label for stage in self.stage]
        if label not in labels:
            raise RecipeError("no such stage", value=label, fix=f"choose one of {', '.join(labels)}")
        return labels.index(label) + 1

    @property
    def trains_policy(self) -> bool:
        """Whether a learner holds the policy; without one, engines load it from its folder themselves."""
        return any("learner" in stages.learners_of(stage) for stage in self.stage)

    def canary_tolerance(self, *, use_gpus: bool) -> float:
        """`rollout.canary_tolerance`, decided: nats by which learner and engines may differ on average.

        In float32 it depends on the device: vLLM's attention on GPUs, in Triton, multiplies float32 as TF32, with 10
        bits of mantissa (`tl.dot` in `triton_unified_attention.py`).
        """
        named = self.rollout.canary_tolerance
        if named != "auto":
            return named
        on_device = "bfloat16" if use_gpus else "float32"
        policies = [groups["learner"].dtype for groups in map(stages.learners_of, self.stage) if "learner" in groups]
        dtypes = {on_device if dtype == "auto" else dtype for dtype in policies}
        if dtypes | {self.rollout.vllm.get("dtype", on_device)} != {"float32"}:
            return 0.05
        return 5e-3 if use_gpus else 1e-5

    def fitted(self, data: DataSettings, *, max_tokens: int) -> DataSettings:
        """The settings of prompts, with their longest one named: what the engines have room for beside a response.

        As they are where they name it, or where only the engines know.
        """
        length = context_length(self.rollout.vllm)
        if data.templating.max_prompt_length is not None or length is None:
            return data
        templating = data.templating.model_copy(update={"max_prompt_length": length - max_tokens})
        return data.model_copy(update={"templating": templating})
