"""`[learner]`: how a group of ranks trains one model. The value model of RLVR has a section of the same kind."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from rlsys.recipe.algorithm import NonNegative, Positive, Probability, ScheduleSettings
from rlsys.recipe.section import Section

OWNED_BY_RLSYS = {
    "train_batch_size": "derived from the stage's batch",
    "train_micro_batch_size_per_gpu": "use learner.tokens_per_micro_batch",
    "gradient_accumulation_steps": "derived from the stage's batch",
    "gradient_clipping": "use learner.max_grad_norm",
    "scheduler": "use [learner.schedule]",
    "bf16": "use learner.dtype",
    "fp16": "use learner.dtype",
}
"""DeepSpeed settings that a recipe states elsewhere, and where."""


class LoraSettings(Section):
    """Low-rank adapters (peft) instead of all weights; what is published and exported has them merged."""

    rank: PositiveInt = 16
    """Inner dimension of an adapter."""
    alpha: Positive = 32.0
    """The adapters' product is scaled by alpha / rank."""
    dropout: Probability = 0.0
    """Of the adapters' inputs."""
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(strict=False)] = "all-linear"
    """Names of linear layers, such as ["q_proj", "v_proj"]; all but the head by default."""


class LearnerSettings(Section):
    """Optimizer, micro-batches and DeepSpeed settings of one trained model."""

    lr: NonNegative = 1e-6
    """Peak learning rate."""
    schedule: ScheduleSettings = ScheduleSettings()
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Of AdamW."""
    eps: Positive = 1e-8
    """Of AdamW."""
    weight_decay: NonNegative = 0.0
    """Of AdamW, on every weight."""
    max_grad_norm: NonNegative = 1.0
    """Global gradient norm above which gradients are scaled down; 0 is off."""

    tokens_per_micro_batch: PositiveInt = 8192
    """Positions of one forward and backward pass on one rank, padding included. Never changes the update."""
    tokens_per_forward: PositiveInt | None = None
    """The same for passes without gradients; four times as many when absent."""
    packing: Literal["packed", "bucketed"] = "packed"
    """`packed`: documents share a row and do not see each other; `bucketed`: one document a row, rows of like
    lengths together, padded. Never changes the update."""
    row_length: PositiveInt | None = None
    """Positions of a packed row; the longest document of the batch when absent."""
    logits_chunk: PositiveInt = 1 << 22
    """Elements of `[tokens, vocab]` that are kept for the backward pass; more is computed in blocks of half as many."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 weights and activations on GPUs, with float32 master weights and losses; float32 on CPU."""
    gradient_checkpointing: bool = False
    """Computes activations again in the backward pass instead of keeping them."""
    zero_stage: Literal[1, 2, 3] = 3
    """DeepSpeed's ZeRO stage; 3 partitions weights, gradients and optimizer over the ranks."""
    sequence_parallel: PositiveInt = 1
    """Neighbouring ranks that compute every micro-batch together, a slice of each row each (DeepSpeed Ulysses): for
    rows too long for one rank. Together they take as many times the positions. Never changes the update."""
    lora: LoraSettings | None = None
    """`[learner.lora]`: adapters of low rank (`rank`, `alpha`, `dropout`, `target_modules`) instead of all weights."""
    liger: Literal["auto"] | bool = "auto"
    """Liger's fused kernels (rope, RMSNorm, SwiGLU). `auto`: where there is a GPU, liger-kernel is installed and has
    kernels for the model; true refuses to go without."""
    num_threads: PositiveInt = 1
    """CPU threads of one rank."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """`[learner.deepspeed]`: native DeepSpeed settings, such as `zero_optimization.offload_optimizer`."""

    def _faults(self) -> Iterator[str]:
        for key in self.deepspeed.keys() & OWNED_BY_RLSYS.keys():
            yield f"[learner.deepspeed] may not set {key}; {OWNED_BY_RLSYS[key]}"
        zero = self.deepspeed.get("zero_optimization", {})
        if not isinstance(zero, Mapping):
            yield f"[learner.deepspeed] zero_optimization is {zero!r}; write it as a table"
        elif "stage" in zero:
            yield "[learner.deepspeed] may not set zero_optimization.stage; use learner.zero_stage"

    @property
    def forward_tokens(self) -> int:
        """Positions of one forward pass without gradients."""
        return self.tokens_per_forward or 4 * self.tokens_per_micro_batch
