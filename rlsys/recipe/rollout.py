"""`[rollout]`: the engines that sample, and how they get new weights; and `[sampling]`, what is asked of them."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlsys.recipe.section import Section


class SamplingSettings(Section):
    """How responses are drawn."""

    max_tokens: PositiveInt = 2048
    """The longest response, its end token included."""
    temperature: float = Field(default=1.0, ge=0.0)
    """0 is greedy. Logprobs are always those of the distribution that was sampled from."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)


class RolloutSettings(Section):
    """One engine a rollout worker; the same engines serve every stage of a run."""

    update: Literal["drain", "in_flight", "abort_and_continue"] = "in_flight"
    """What running responses do when new weights come: finish first (Tülu 3's one-step lag with max_staleness = 1), pause
    and go on with the new weights, or be asked for anew from where they are."""
    kv_on_update: Literal["keep", "recompute"] = "keep"
    """Keys and values of running responses after an update: kept, or computed again with the new weights."""
    transfer: Literal["auto", "gloo", "nccl", "ipc"] = "auto"
    """`auto`: gloo on CPU, nccl between GPUs, ipc where learner and engine share one GPU."""
    bucket_mib: PositiveInt = 256
    """The most memory that weights gathered for a publication take at a time."""
    digest: Literal["fold64", "sha256"] = "fold64"
    """Checksum of every tensor sent, computed on the device."""
    canary_tolerance: PositiveFloat | None = None
    """Largest difference of token logprobs between engine and learner after a publication: 1e-4 in float32, 0.1 in bfloat16
    unless given."""
    publish_timeout_s: PositiveFloat = 120.0
    """Deadline of each phase of a publication."""
    drain_timeout_s: PositiveFloat = 600.0
    """Deadline for running responses to finish before an update."""
    cpu_cores: str | None = None
    """CPU engines: the cores of the engine's threads, such as '0', or '0|1' for tensor parallelism of two."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """`[rollout.vllm]`: engine settings under vLLM's names."""

    @model_validator(mode="after")
    def _has_model_length(self) -> Self:
        if not isinstance(self.vllm.get("max_model_len", 4096), int):
            raise ValueError("rollout.vllm.max_model_len is a number of tokens; write it as an integer")
        return self

    @property
    def max_model_len(self) -> int:
        """The longest prompt with its response, in tokens."""
        return self.vllm.get("max_model_len", 4096)

    @property
    def tensor_parallel_size(self) -> int:
        """GPUs of one engine."""
        return self.vllm.get("tensor_parallel_size", 1)
