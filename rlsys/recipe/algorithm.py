"""What is optimised: losses, advantages, KL, lag correction, schedules and the safety of a step.

The names here are literals so that a recipe is checked without importing torch; a test holds them equal to the
registries of `rlsys.algorithms`.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from rlsys.recipe.section import Section

PolicyLossName = Literal["ppo_clip", "cispo", "gspo", "reinforce"]
AdvantageName = Literal["gae", "grpo", "dr_grpo", "rloo", "reinforce_pp", "reinforce_pp_baseline"]
KlEstimator = Literal["k1", "k2", "k3"]
Aggregation = Literal["token", "sequence", "fixed_length"]
LagCorrectionName = Literal[
    "none", "truncated", "mask", "sequence_truncated", "sequence_mask", "geometric_mask", "decoupled"
]
PreferenceLossName = Literal["dpo_norm", "dpo", "ipo", "simpo"]
ScheduleKind = Literal["constant", "linear", "cosine"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Probability = Annotated[float, Field(ge=0, lt=1)]


class LagCorrectionSettings(Section):
    """How the difference between the policy that sampled (behaviour) and the learner's (proximal) is corrected."""

    name: LagCorrectionName = "truncated"
    """`none`; `truncated`: weights min(ratio, upper); `mask` (IcePop): the ratio inside [lower, upper], 0 outside;
    `sequence_*`: the same with the product over the whole response; `geometric_mask`: with its geometric mean;
    `decoupled`: the ratio itself."""
    upper: Positive = 2.0
    """Bound of the ratio."""
    lower: NonNegative = 0.5
    """Only the `*mask` kinds have a lower bound."""

    def _faults(self) -> Iterator[str]:
        if self.lower >= self.upper:
            yield f"lag_correction.lower must be below upper; got {self.lower} and {self.upper}"


class OverlongSettings(Section):
    """DAPO's soft punishment of long responses; off while `buffer_tokens` is 0."""

    buffer_tokens: Annotated[int, Field(ge=0)] = 0
    """The punishment grows over the last so many tokens before the longest response allowed."""
    penalty: NonNegative = 1.0
    """Subtracted from the score of a response of the longest length."""


class SafetySettings(Section):
    """What happens to a step that would poison the weights: it is skipped, counted and named."""

    max_skipped_in_a_row: Annotated[int, Field(ge=1)] = 5
    """The run stops with an error when one model was left as it is so often in a row: by optimizer steps of a
    supervised stage, by whole batches of RLVR."""


class ScheduleSettings(Section):
    """Learning rate as a function of the optimizer step."""

    kind: ScheduleKind = "linear"
    """The shape after warm-up: constant, or a decay to the end of the stage."""
    warmup_fraction: Probability = 0.0
    """Of all optimizer steps; rounded up."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Instead of the fraction."""
    final_fraction: Fraction = 0.0
    """Of the peak, reached at the end of a decay."""

    def _faults(self) -> Iterator[str]:
        if self.warmup_steps is not None and self.warmup_fraction:
            yield "set warmup_fraction or warmup_steps, not both"


class AlgorithmSettings(Section):
    """The policy-gradient algorithm of an RLVR stage. The defaults are Tülu 3's PPO."""

    policy_loss: PolicyLossName = "ppo_clip"
    """By its name in `docs/algorithms.md`, which has the formulas."""
    advantage: AdvantageName = "gae"
    """How a response's tokens are credited: `gae` by a value model, `reinforce_pp` by the batch, the others by a
    prompt's group."""
    aggregation: Aggregation = "token"
    """`token`: every token of the step weighs the same; `sequence`: every response does; `fixed_length` (Dr. GRPO):
    tokens divided by the longest length allowed, then by the number of responses."""

    gamma: Fraction = 1.0
    """Discount from token to token."""
    lam: Fraction = 0.95
    """GAE's lambda."""
    value_lam: Fraction | None = None
    """Another lambda for the targets of the value model (decoupled GAE); the same one when absent."""
    whiten: bool | None = None
    """Whether advantages are whitened over the global batch; the advantage's own habit when absent."""

    clip: Positive = 0.2
    """The ratio to the policy before the batch counts within 1 - clip and 1 + clip."""
    clip_high: Positive | None = None
    """Upper clip (DAPO's clip-higher); `clip` when absent."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bound of the loss of a negative advantage, as a multiple of it (usually 3); off when absent."""
    entropy_coef: NonNegative = 0.0
    """Of the entropy of the policy's distribution, which is added to the objective."""

    kl_in: Literal["none", "reward", "loss"] = "reward"
    """Where the divergence from the reference goes: subtracted from each token's reward, or added to the loss."""
    kl_estimator: KlEstimator = "k1"
    """Of a token's divergence, with r = reference / policy: `k1` -log r, `k2` (log r)^2 / 2, `k3` r - 1 - log r."""
    kl_beta: NonNegative = 0.05
    """Coefficient of the divergence."""

    value_clip: NonNegative = 0.2
    """0 turns it off."""
    value_coef: Positive = 0.1
    """Coefficient of the value model's loss."""
    value_warmup_batches: Annotated[int, Field(ge=0)] = 0
    """Rollout batches at the start of the stage that train the value model alone; the policy's learning-rate schedule
    begins after them."""

    epochs_per_batch: Annotated[int, Field(ge=1)] = 4
    """Passes over each rollout batch."""
    minibatches: Annotated[int, Field(ge=1)] = 1
    """Optimizer steps in one pass."""

    filter_equal_groups: bool = False
    """DAPO's dynamic sampling: a group whose rewards, before `overlong`, are all equal is dropped and replaced."""
    overlong: OverlongSettings = OverlongSettings()
    lag_correction: LagCorrectionSettings = LagCorrectionSettings()
    safety: SafetySettings = SafetySettings()

    def _faults(self) -> Iterator[str]:
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            yield "k1 as a loss has a gradient of mean zero; set kl_estimator to 'k2' or 'k3'"
        if self.kl_in != "none" and self.kl_beta == 0:
            yield f"kl_in = {self.kl_in!r} with kl_beta = 0 does nothing; set kl_in to 'none'"
        if self.clip >= 1 and self.policy_loss != "cispo":
            yield f"clip must be below 1; got {self.clip}"
        if self.dual_clip is not None and self.policy_loss not in ("ppo_clip", "gspo"):
            yield f"policy_loss = {self.policy_loss!r} has no dual clip; remove dual_clip"
        if self.value_lam is not None and not self.needs_values:
            yield f"advantage = {self.advantage!r} has no value model; remove value_lam"
        if self.value_warmup_batches and not self.needs_values:
            yield f"advantage = {self.advantage!r} has no value model; remove value_warmup_batches"
        if self.filter_equal_groups and self.advantage in ("gae", "reinforce_pp"):
            yield f"advantage = {self.advantage!r} has no groups; remove filter_equal_groups"

    @property
    def needs_values(self) -> bool:
        """Whether a value model is trained beside the policy."""
        return self.advantage == "gae"

    @property
    def needs_reference(self) -> bool:
        """Whether reference logprobs are computed for every batch."""
        return self.kl_in != "none"

    @property
    def needs_groups(self) -> bool:
        """Whether the baseline is a mean over several samples of one prompt."""
        return self.advantage in ("grpo", "dr_grpo", "rloo", "reinforce_pp_baseline")


class SupervisedLossSettings(Section):
    """The loss over target tokens."""

    reduction: Literal["tokens", "sum"] = "tokens"
    """`tokens`: the mean over all target tokens of the optimizer step; `sum`: their sum, which gives a step with more
    tokens a larger gradient (set learner.max_grad_norm to match). Neither depends on ranks or accumulation."""


class PreferenceLossSettings(Section):
    """The loss over pairs of a chosen and a rejected response. The defaults are Tülu 3's."""

    name: PreferenceLossName = "dpo_norm"
    """`dpo_norm`: DPO with each log-probability divided by its response's tokens; `dpo`, `ipo`, `simpo`: as
    published."""
    beta: Positive = 5.0
    """5 suits length-normalised losses; plain `dpo` uses about 0.1."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """cDPO: the probability that a label is flipped."""
    simpo_margin: NonNegative = 0.5
    """SimPO's gamma."""

    def _faults(self) -> Iterator[str]:
        if self.name == "ipo" and self.label_smoothing:
            yield "ipo has no label smoothing; remove label_smoothing"

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with a reference model."""
        return self.name != "simpo"


class RewardLossSettings(Section):
    """The Bradley-Terry loss of a reward model."""

    use_margins: bool = False
    """Subtract the pair's margin (difference of the judges' ratings) from the difference of scores."""
    center_coef: NonNegative = 0.0
    """Coefficient of (chosen + rejected)^2, which keeps scores around zero."""
