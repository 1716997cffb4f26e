"""The whole recipe: only the launcher and the topologies see all of it."""

import glob
from pathlib import Path

from pydantic import Field, NonNegativeInt

from rlsys.recipe import stages
from rlsys.recipe.cluster import ClusterSettings
from rlsys.recipe.model import ModelSettings
from rlsys.recipe.rollout import RolloutSettings
from rlsys.recipe.section import PREVIOUS, Section
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

    def stage_named(self, label: str) -> AnyStage:
        """The stage of that name; KeyError where there is none."""
        return {stage.label: stage for stage in self.stage}[label]

    @property
    def trains_policy(self) -> bool:
        """Whether a learner holds the policy; without one, engines load it from its folder themselves."""
        return any("learner" in stages.learners_of(stage) for stage in self.stage)

    def faults(self) -> list[str]:
        """What is wrong across sections, each with its fix; empty when the recipe can run."""
        found: list[str] = []
        if self.cluster.device == "cpu" and self.rollout.weight_transfer in ("nccl", "ipc"):
            found.append(
                f"rollout.weight_transfer is {self.rollout.weight_transfer}, which is between GPUs, and cluster.device "
                'is cpu; set weight_transfer = "auto"'
            )
        before: dict[str, str] = {}
        for stage in self.stage:
            if stage.label in before:
                found.append(f"{stage.label}: two stages have this name; give one of them another name")
            found += _missing_inputs(stage, before)
            found += self._sequence_faults(stage)
            if isinstance(stage, stages.RewardStage | stages.DpoStage) and not stage.data.source:
                found += self._ungated_pairs(stage, before)
            if isinstance(stage, stages.JudgedPreferencesStage):
                found += self._judged_faults(stage, before)
            samples = isinstance(stage, stages.PreferencesStage | stages.EvaluateStage)
            if samples and not self.trains_policy and self.model.path is None:
                found.append(f"{stage.label}: no stage trains a policy to sample from; set model.path to its folder")
            for key, path in stages.paths_read(stage):
                found += _path_faults(f"{stage.label}.{key}", path, before)
            before[stage.label] = stage.kind
        return found

    def canary_tolerance(self, *, use_gpus: bool) -> float:
        """`rollout.canary_tolerance`, decided: nats by which learner and engines may differ on average."""
        named = self.rollout.canary_tolerance
        if named != "auto":
            return named
        on_device = "bfloat16" if use_gpus else "float32"
        policies = [groups["learner"].dtype for groups in map(stages.learners_of, self.stage) if "learner" in groups]
        dtypes = {on_device if dtype == "auto" else dtype for dtype in policies}
        return 1e-5 if dtypes | {self.rollout.vllm.get("dtype", on_device)} == {"float32"} else 0.05

    def _sequence_faults(self, stage: AnyStage) -> list[str]:
        """Why ranks cannot share rows."""
        found = []
        groups = stages.learners_of(stage)
        for group, learner in groups.items():
            size, ranks = learner.sequence_parallel, self.cluster.ranks[group]
            if ranks % size:
                found.append(
                    f"{stage.label}: sequence_parallel is {size} but cluster.{group}_ranks is {ranks}; "
                    f"set {group}_ranks to a multiple of {size}"
                )
        for size in {learner.sequence_parallel for learner in groups.values()} - {1}:
            heads = self.model.configuration.get("num_attention_heads") or 0
            kv_heads = self.model.configuration.get("num_key_value_heads") or heads
            if heads % size or (kv_heads % size and size % kv_heads):
                found.append(
                    f"{stage.label}: sequence_parallel is {size} but the model has {heads} heads, {kv_heads} of keys; "
                    "choose a divisor of the heads that divides those of keys, or is a multiple of them"
                )
            if self.model.attention == "eager":
                found.append(
                    f"{stage.label}: sequence_parallel is {size} but attention is eager; set model.attention to sdpa"
                )
        return found

    def _ungated_pairs(self, stage: stages.RewardStage | stages.DpoStage, before: dict[str, str]) -> list[str]:
        """Pairs are token ids, which no gate can read: the stage that made them must have had it."""
        if stage.decontamination is None:
            return []
        makers = [label for label, kind in before.items() if PRODUCES.get(kind) == "pairs"]
        if stage.pairs != PREVIOUS:
            named = stage.pairs.removeprefix(STAGE_REFERENCE).split("/")[0]
            makers = [label for label in makers if label == named]
        if makers:
            maker = self.stage_named(makers[-1])
            assert isinstance(maker, stages.PreferencesStage | stages.JudgedPreferencesStage)
            if maker.decontamination == stage.decontamination:
                return []
        return [
            f"{stage.label}.decontamination: no gate like it is at {makers[-1] if makers else stage.pairs}, where the "
            "pairs are from; set [decontamination] for every stage, or name sources in data"
        ]

    def _judged_faults(self, stage: stages.JudgedPreferencesStage, before: dict[str, str]) -> list[str]:
        found = []
        if stage.selection.of_sft_prompts and not stage.sft.source and "sft" not in before.values():
            found.append(f"{stage.label}.selection: no earlier stage has SFT prompts; give sft.source")
        if stage.uses_policy and not self.trains_policy:
            found.append(f"{stage.label}.pool: no stage trains a policy; give the on_policy model a local_model")
        for model in stage.local_models:
            size = model.vllm.get("tensor_parallel_size", 1)
            if size > self.rollout.tensor_parallel_size:
                found.append(
                    f"{stage.label}: {model.local_model} wants tensor_parallel_size {size}, and a rollout worker has "
                    f"{self.rollout.tensor_parallel_size}; raise rollout.vllm.tensor_parallel_size"
                )
        return found


def _missing_inputs(stage: AnyStage, before: dict[str, str]) -> list[str]:
    made = {PRODUCES[kind] for kind in before.values() if kind in PRODUCES}
    wanted = []
    if isinstance(stage, stages.RewardStage | stages.DpoStage) and not stage.data.source:
        wanted.append(("pairs", stage.pairs, "pairs"))
    if isinstance(stage, stages.RlvrStage) and stage.algorithm.needs_values:
        wanted.append(("value_from", stage.value_from, "reward model"))
    if isinstance(stage, stages.RlvrStage) and stage.reward_model is not None:
        wanted.append(("reward_model.path", stage.reward_model.path, "reward model"))
    return [
        f"{stage.label}.{key}: no earlier stage makes a {product}; add such a stage, or give a folder"
        for key, reference, product in wanted
        if reference == PREVIOUS and product not in made
    ]


def _path_faults(key: str, path: str, before: dict[str, str]) -> list[str]:
    if path.startswith(STAGE_REFERENCE):
        label = path.removeprefix(STAGE_REFERENCE).split("/")[0]
        if label not in before:
            known = ", ".join(before) or "none"
            return [f"{key}: no earlier stage is called {label}; got '{path}'; stages before it: {known}"]
    elif not path.startswith(HUB) and not glob.glob(str(Path(path).expanduser())):
        return [f"{key}: no such file or folder; got '{path}'; mend the path, or download the data there"]
    return []
