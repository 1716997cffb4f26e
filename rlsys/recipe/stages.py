"""`[[stage]]`: what each stage of a recipe reads, optimises and leaves behind."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from rlsys.recipe.algorithm import (
    AlgorithmSettings,
    PreferenceLossSettings,
    RewardLossSettings,
    SafetySettings,
    SupervisedLossSettings,
)
from rlsys.recipe.data import DataSettings, TemplatingSettings
from rlsys.recipe.decontamination import Decontamination
from rlsys.recipe.evaluation import EvaluationSettings
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.preferences import JudgedPreferenceSettings
from rlsys.recipe.reward_model import RewardModelSettings
from rlsys.recipe.rollout import SamplingSettings
from rlsys.recipe.section import PREVIOUS, PolicyReference, Section
from rlsys.recipe.verifiers import VerifierSettings

FROM_POLICY = "policy"


class Stage(Section):
    """What every stage has."""

    name: str = Field(default="", pattern=r"^([A-Za-z0-9][A-Za-z0-9_-]*)?$")
    """How overrides, `stage:` references and the run folder call it, in letters, digits, - and _; its kind unless
    given."""

    @property
    def label(self) -> str:
        """The name, or the kind where none was given."""
        return self.name or self.kind  # pyright: ignore[reportAttributeAccessIssue]


class WorldStage(Stage):
    """Writes the tiny world of the quickstart: demonstrations.jsonl, prompts.jsonl, development.jsonl, test.jsonl."""

    kind: Literal["world"]
    demonstrations: PositiveInt = 24_000
    """Conversations for SFT, with the demonstrator's bad habits."""
    prompts: PositiveInt = 20_000
    """Prompts with checks, for preferences and RLVR."""
    held_out: PositiveInt = 1_000
    """Prompts of the test set, and of the development set."""


class CheckpointSettings(Section):
    """Transactional checkpoints within a stage."""

    every: NonNegativeInt = 0
    """Optimizer steps (supervised stages) or batches (RLVR) between checkpoints; 0 is only at the end of the stage."""
    keep: PositiveInt = 2
    """The newest so many stay."""
    keep_every: NonNegativeInt = 0
    """So do those whose step is a multiple of this; 0: none for its step's sake."""
    background: bool = True
    """Files, digests and the commit are written while training goes on."""


class SupervisedStage(Stage):
    """What the stages that read a fixed data set have in common."""

    learner: LearnerSettings
    batch_size: PositiveInt
    """Rows (pairs, for preference stages) of one optimizer step, over all ranks."""
    epochs: PositiveInt = 1
    """Passes over the data."""
    max_steps: PositiveInt | None = None
    """Ends the stage early; the learning-rate schedule is fitted to it."""
    safety: SafetySettings = SafetySettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    decontamination: Decontamination | None = None
    """A gate before the first step; of pairs that another stage makes, it is required of that stage."""


class SftStage(SupervisedStage):
    """Supervised fine-tuning, the loss on assistant tokens only."""

    kind: Literal["sft"]
    policy: PolicyReference = PREVIOUS
    data: DataSettings
    loss: SupervisedLossSettings = SupervisedLossSettings()
    evaluation: EvaluationSettings = EvaluationSettings()


class PreferencesStage(Stage):
    """On-policy pairs: several samples a prompt, decided by the verifiers."""

    kind: Literal["preferences"]
    policy: PolicyReference = PREVIOUS
    prompts: DataSettings
    num_prompts: PositiveInt | None = None
    """The first so many of the mixture; all of them when absent."""
    samples: PositiveInt = Field(default=4, ge=2)
    """Responses for each prompt."""
    sampling: SamplingSettings = SamplingSettings()
    verifiers: VerifierSettings = VerifierSettings()
    decontamination: Decontamination | None = None
    """A gate for the prompts, before they are sampled."""


class JudgedPreferencesStage(Stage, JudgedPreferenceSettings):
    """Pairs by a judge: responses of a pool of models, the stage's policy among them, rated and binarised."""

    kind: Literal["judged_preferences"]
    policy: PolicyReference = PREVIOUS
    sft: DataSettings = DataSettings()
    """Prompts that the policy was trained on; those of the newest earlier SFT stage unless given."""
    unused: DataSettings = DataSettings()
    """Where unused prompts come from."""
    personas: DataSettings = DataSettings()
    """Where persona prompts come from, such as the rows of `rlsys data personas`."""
    sampling: SamplingSettings = SamplingSettings()
    """Of the responses of the policy and of local models; an endpoint has settings of its own."""
    templating: TemplatingSettings = TemplatingSettings()
    """Of the pairs."""
    verifiers: VerifierSettings = VerifierSettings()
    """Of constraints."""
    decontamination: Decontamination | None = None
    """A gate for the prompts, before anybody is asked."""

    def _faults(self) -> Iterator[str]:
        yield from super()._faults()
        selection = self.selection
        if not selection.total:
            yield "no prompt is selected; set selection.reused or another of its counts"
        for kind in ("unused", "persona"):
            key = "personas" if kind == "persona" else kind
            if getattr(selection, kind) and not getattr(self, key).source:
                yield f"selection.{kind} needs prompts; give {key}.source"


class RewardStage(SupervisedStage):
    """A reward model on pairs, from the policy's weights with a scalar head."""

    kind: Literal["reward"]
    policy: PolicyReference = PREVIOUS
    pairs: str = PREVIOUS
    """A folder of pairs that a stage of preferences wrote; not used where `data` names sources."""
    data: DataSettings = DataSettings()
    loss: RewardLossSettings = RewardLossSettings()


class DpoStage(SupervisedStage):
    """Direct preference optimisation, length-normalised unless the loss says otherwise."""

    kind: Literal["dpo"]
    policy: PolicyReference = PREVIOUS
    pairs: str = PREVIOUS
    """A folder of pairs that a stage of preferences wrote; not used where `data` names sources."""
    data: DataSettings = DataSettings()
    loss: PreferenceLossSettings = PreferenceLossSettings()
    evaluation: EvaluationSettings = EvaluationSettings()


class RlvrStage(Stage):
    """Reinforcement learning with verifiable rewards."""

    kind: Literal["rlvr"]
    policy: PolicyReference = PREVIOUS
    value_from: str = PREVIOUS
    """The reward model that the value model starts from; `policy` starts it from the policy with a new head."""
    prompts: DataSettings
    learner: LearnerSettings
    value: LearnerSettings | None = None
    """`[stage.value]`: the value model's learner settings; what it leaves out is as in `[stage.learner]`."""
    algorithm: AlgorithmSettings = AlgorithmSettings()
    verifiers: VerifierSettings = VerifierSettings()
    reward_model: RewardModelSettings | None = None
    """`[stage.reward_model]`: a reward model's score, added to what the verifiers pay or in their place."""
    sampling: SamplingSettings = SamplingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    decontamination: Decontamination | None = None
    batch_groups: PositiveInt
    """Prompts of one rollout batch."""
    samples: PositiveInt = 1
    """Responses for each prompt."""
    batches: PositiveInt
    """Rollout batches of the stage; episodes are batches x batch_groups x samples."""
    max_staleness: NonNegativeInt = 1
    """Versions that the policy may have advanced since a token was sampled, when it is trained on. 0 is
    synchronous; from 1 on the next batches are sampled while one is trained on."""
    over_age: Literal["drop", "mask"] = "drop"
    """What happens to a group, or to its tokens, sampled too long ago."""
    max_attempts: PositiveInt = 3
    """How often a prompt is sampled again after a dead worker or an over-age drop."""
    group_timeout_s: PositiveFloat | None = None
    """A straggler: a prompt whose samples and verdicts take longer is ended on its engine, counted under
    `rollout/lost/timeout`, and sampled again, `max_attempts` times in all. Else `cluster.operation_timeout_s`."""
    groups_per_call: PositiveInt = 1
    """Prompts handed to a rollout worker at a time; more of them cost less overhead and finish together."""
    shuffle_rewards: bool = False
    """Control experiment: rewards are permuted over the batch, so that nothing can be learned from them."""
    save_rollouts_every: NonNegativeInt = 1
    """Batches between rollout files; 0 writes none."""

    def _faults(self) -> Iterator[str]:
        if self.algorithm.needs_groups and self.samples < 2:
            yield (
                f"advantage '{self.algorithm.advantage}' needs several samples of a prompt; set samples to 2 or more"
            )
        if self.algorithm.minibatches > self.batch_groups * self.samples:
            yield (
                f"{self.algorithm.minibatches} minibatches of {self.batch_groups * self.samples} responses "
                "would be empty; lower algorithm.minibatches"
            )
        if self.algorithm.value_warmup_batches >= self.batches:
            yield (
                f"{self.algorithm.value_warmup_batches} batches of warm-up leave none of {self.batches} to the policy; "
                "lower algorithm.value_warmup_batches"
            )
        if not self.sampling.temperature:
            yield (
                "sampling.temperature is 0, by which the learner divides, so that its logprobs are no numbers; set "
                "sampling.temperature above 0, such as 1.0"
            )
        if self.sampling.top_p != 1:
            yield (
                f"sampling.top_p is {self.sampling.top_p}, with which an engine's logprobs are over the tokens that it "
                "leaves, the learner's over all of them, and their ratio is wrong; set sampling.top_p to 1.0"
            )
        if self.algorithm.overlong.buffer_tokens > self.sampling.max_tokens:
            yield (
                f"algorithm.overlong.buffer_tokens is {self.algorithm.overlong.buffer_tokens}, of responses of at most "
                f"{self.sampling.max_tokens} tokens; set it to sampling.max_tokens or less"
            )

    @property
    def value_learner(self) -> LearnerSettings:
        """The value model's settings."""
        return self.value or self.learner


class EvaluateStage(Stage):
    """Held-out accuracy of the newest policy."""

    kind: Literal["evaluate"]
    policy: PolicyReference = PREVIOUS
    evaluation: EvaluationSettings
    verifiers: VerifierSettings = VerifierSettings()


AnyStage = Annotated[
    WorldStage
    | SftStage
    | PreferencesStage
    | JudgedPreferencesStage
    | RewardStage
    | DpoStage
    | RlvrStage
    | EvaluateStage,
    Field(discriminator="kind"),
]


def learners_of(stage: AnyStage) -> dict[str, LearnerSettings]:
    """The groups of ranks that the stage uses, and the settings with which each loads its model."""
    if isinstance(stage, RewardStage):
        return {"value": stage.learner}
    if isinstance(stage, SftStage):
        return {"learner": stage.learner}
    if isinstance(stage, DpoStage):
        return {"learner": stage.learner} | ({"reference": stage.learner} if stage.loss.needs_reference else {})
    if not isinstance(stage, RlvrStage):
        return {}
    groups = {"learner": stage.learner}
    groups |= {"value": stage.value_learner} if stage.algorithm.needs_values else {}
    groups |= {"reference": stage.learner} if stage.algorithm.needs_reference else {}
    return groups | ({"reward": stage.value_learner} if stage.reward_model is not None else {})


def verifiers_of(stage: AnyStage) -> VerifierSettings | None:
    """The stage's verifier section, if its kind has one."""
    if isinstance(stage, PreferencesStage | JudgedPreferencesStage | RlvrStage | EvaluateStage):
        return stage.verifiers
    return None


def evaluation_of(stage: AnyStage) -> EvaluationSettings | None:
    """The stage's evaluation section, if its kind has one."""
    return stage.evaluation if isinstance(stage, SftStage | DpoStage | RlvrStage | EvaluateStage) else None


def data_of(stage: AnyStage) -> DataSettings | None:
    """What the stage reads, if its kind reads data."""
    if isinstance(stage, SftStage | RewardStage | DpoStage):
        return stage.data
    if isinstance(stage, JudgedPreferencesStage):
        return stage.sft
    return stage.prompts if isinstance(stage, PreferencesStage | RlvrStage) else None


class EngineRequest(NamedTuple):
    """How long what a stage samples may be, and where its recipe says so."""

    section: str
    max_tokens: int
    prompt_key: str = ""
    max_prompt_length: int | None = None
    vllm: Mapping[str, Any] = MappingProxyType({})
    """Settings of the engines, over those of `rollout.vllm`."""


def engine_requests(stage: AnyStage) -> Iterator[EngineRequest]:
    """Everything that the stage asks of engines, its evaluation among it."""
    if isinstance(stage, PreferencesStage | RlvrStage):
        longest = stage.prompts.templating.max_prompt_length
        yield EngineRequest("sampling", stage.sampling.max_tokens, "prompts.templating.max_prompt_length", longest)
    if isinstance(stage, JudgedPreferencesStage):
        for model in stage.pool:
            if model.endpoint is None:
                yield EngineRequest("sampling", stage.sampling.max_tokens, vllm=model.vllm)
        if stage.judge.local_model is not None:
            yield EngineRequest("judge.sampling", stage.judge.sampling.max_tokens, vllm=stage.judge.vllm)
    evaluation = evaluation_of(stage)
    if evaluation is not None and (evaluation.test or evaluation.development):
        longest = evaluation.max_prompt_length
        yield EngineRequest("evaluation", evaluation.max_tokens, "evaluation.max_prompt_length", longest)


def paths_read(stage: AnyStage) -> list[tuple[str, str]]:
    """Every file or folder that the stage reads from outside the run, and `stage:` references, by key."""
    fields = {key: getattr(stage, key) for key in type(stage).model_fields}
    paths = [
        (key, fields[key])
        for key in ("policy", "pairs", "value_from")
        if fields.get(key) not in (None, PREVIOUS) and (key, fields[key]) != ("value_from", FROM_POLICY)
    ]
    for key, settings in fields.items():
        if isinstance(settings, DataSettings):
            paths += [(f"{key}.source.{source.label}", source.path) for source in settings.source]
        elif isinstance(settings, EvaluationSettings):
            paths += [(f"{key}.test.{name}", path) for name, path in settings.test.items()]
            paths += [(f"{key}.development.{name}", path) for name, path in settings.development.items()]
        elif isinstance(settings, RewardModelSettings) and settings.path != PREVIOUS:
            paths.append((f"{key}.path", settings.path))
        elif isinstance(settings, Decontamination):
            paths += [(f"{key}.evals", path) for path in settings.evals]
    if isinstance(stage, JudgedPreferencesStage):
        models = [(f"pool.{model.name}", model.local_model) for model in stage.pool]
        models.append(("judge", stage.judge.local_model))
        paths += [(f"{key}.local_model", path) for key, path in models if path is not None]
    return paths
