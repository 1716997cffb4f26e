"""How an engine is built and what a request asks of it. Imports neither torch nor vLLM."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from rlsys.errors import RecipeError

KvOnUpdate: TypeAlias = Literal["keep", "recompute"]
UpdateMode: TypeAlias = Literal["drain", "in_flight", "abort_and_continue"]

RESERVED: Mapping[str, str] = {
    "model": "the stage's input decides it",
    "tokenizer": "prompts reach the engine as token ids",
    "skip_tokenizer_init": "prompts reach the engine as token ids",
    "load_format": "rollout.load_format decides it",
    "weight_transfer_config": "rollout.weight_transfer decides it",
    "logprobs_mode": "training needs the logprobs of the distribution that was sampled from",
    "async_scheduling": "a step that is in flight while the weights change would have tokens of no exact version",
    "data_parallel_size": "set rollout.num_workers: every worker has its own engine",
    "pipeline_parallel_size": "it keeps several steps in flight, so that tokens would have no exact version",
}
"""Engine settings that rlsys sets itself, and why."""


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """What is asked of every sample of a group.

    >>> SamplingSettings(max_tokens=64).temperature
    1.0
    """

    max_tokens: int
    """The longest response, its end token included."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    ignore_end: bool = False
    """Go on after an end token: for measurements of speed only."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"sampling needs max_tokens >= 1, temperature >= 0 and 0 < top_p <= 1; got {self}")


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything a worker needs to build its engine."""

    model: str
    """A Hugging Face folder; with `load_format` dummy only its configuration is read."""
    end_token_ids: tuple[int, ...]
    """Sampling stops at any of them; the one that was sampled is the response's last token."""
    max_model_len: int
    """The longest prompt with its response, in tokens."""
    load_format: Literal["auto", "dummy"] = "dummy"
    """`dummy`: random weights, for an engine that gets its weights by publication before it samples."""
    weight_transfer: Literal["gloo", "nccl", "ipc"] = "gloo"
    kv_on_update: KvOnUpdate = "keep"
    """What becomes of the keys and values of unfinished responses at an update: kept, or computed anew."""
    cpu_cores: str | None = None
    """For engines on CPU: the cores of the engine's threads, such as `0`, `0-3`, or `0|1` for two workers of tensor
    parallelism; None leaves the choice to the operating system."""
    seed: int = 0
    """Of the dummy weights."""
    vllm: Mapping[str, Any] = field(default_factory=dict)
    """Further engine settings under vLLM's names."""


CPU_DEFAULTS: Mapping[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 1 << 30,
    # A prefill that is split kills the engine where requests have seeds: "CPU Generator does not use offset".
    "enable_chunked_prefill": False,
}


def engine_environment(settings: EngineSettings, *, on_cpu: bool) -> dict[str, str]:
    """Environment variables that must be set in the process before vLLM is imported there."""
    variables = {
        # The process that steps the engine must be the one that holds it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CONFIGURE_LOGGING": "0",
    }
    if on_cpu:
        variables["VLLM_CPU_OMP_THREADS_BIND"] = settings.cpu_cores or "nobind"
    return variables


def engine_arguments(settings: EngineSettings, *, on_cpu: bool) -> dict[str, Any]:
    """Keyword arguments of vLLM's `EngineArgs`.

    Raises:
        RecipeError: `settings.vllm` holds a key that rlsys sets itself, or chunked prefill on CPU.
    """
    for key, why in RESERVED.items():
        if key in settings.vllm:
            raise RecipeError(f"rollout.vllm.{key} cannot be set: {why}", value=settings.vllm[key], fix="leave it out")
    if on_cpu and settings.vllm.get("enable_chunked_prefill"):
        raise RecipeError(
            "chunked prefill ends the engine on CPU when requests have seeds",
            value=True,
            fix="leave rollout.vllm.enable_chunked_prefill out",
        )
    arguments: dict[str, Any] = {
        "max_num_batched_tokens": max(8192, settings.max_model_len),
        "max_num_seqs": 256,
        **(CPU_DEFAULTS if on_cpu else {}),
        **settings.vllm,
        "model": settings.model,
        "max_model_len": settings.max_model_len,
        "skip_tokenizer_init": True,
        "load_format": settings.load_format,
        "logprobs_mode": "processed_logprobs",
        "async_scheduling": False,
        "weight_transfer_config": {"backend": "rlsys-" + settings.weight_transfer},
        "disable_log_stats": True,
        "seed": settings.seed,
    }
    if arguments["max_num_batched_tokens"] < settings.max_model_len:
        raise RecipeError(
            "rollout.vllm.max_num_batched_tokens must hold the longest prompt with its response",
            value=arguments["max_num_batched_tokens"],
            fix=f"set it to {settings.max_model_len} or more",
        )
    return arguments
