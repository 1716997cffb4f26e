"""How an engine is built. Imports neither torch nor vLLM."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rlsys.errors import RecipeError
from rlsys.models.model_folder import check_folder
from rlsys.recipe.rollout import MAX_NUM_SEQS, RESERVED, KvOnUpdate, WeightTransfer


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Everything a worker needs to build its engine."""

    model: str
    """A Hugging Face folder; with `load_format` dummy only its configuration is read."""
    end_token_ids: tuple[int, ...]
    """Sampling stops at any of them; the one that was sampled is the response's last token."""
    load_format: Literal["safetensors", "dummy"] = "dummy"
    """`safetensors`: the folder's own. `dummy`: random, for an engine that samples only after a publication."""
    weight_transfer: WeightTransfer = "gloo"
    kv_on_update: KvOnUpdate = "keep"
    """What becomes of the keys and values of unfinished responses at an update: kept, or computed anew."""
    cpu_cores: str | None = None
    """For engines on CPU: the cores of the engine's threads, such as `0`, `0-3`, or `0|1` for two workers of tensor
    parallelism; None leaves the choice to the operating system."""
    seed: int = 0
    """Of the dummy weights."""
    vllm: Mapping[str, Any] = field(default_factory=dict)
    """Further engine settings under vLLM's names, such as `max_model_len`."""

    @property
    def awaits_weights(self) -> bool:
        """Whether an engine samples only after a publication."""
        return self.load_format == "dummy"


CPU_DEFAULTS: Mapping[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "kv_cache_memory_bytes": 512 << 20,
    # A prefill that is split kills the engine where requests have seeds: "CPU Generator does not use offset".
    "enable_chunked_prefill": False,
}


def engine_environment(settings: EngineSettings, *, on_cpu: bool) -> dict[str, str]:
    """Environment variables that must be set in the process before vLLM is imported there."""
    variables = {
        # The process that steps the engine must be the one that holds it.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # The engine lives in a thread beside others: a fork would copy their locks.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        # V2, the choice on GPUs, keeps a slot for every unfinished request, so that a canary beside `max_num_seqs` of
        # them has none ("No free indices"). V1 is also what runs on CPU, where V2 needs a Triton for CPUs.
        "VLLM_USE_V2_MODEL_RUNNER": "0",
        "VLLM_NO_USAGE_STATS": "1",
    }
    if on_cpu:
        variables["VLLM_CPU_OMP_THREADS_BIND"] = settings.cpu_cores or "nobind"
        if settings.vllm.get("enforce_eager", CPU_DEFAULTS["enforce_eager"]):
            # One helper of vLLM's sampler is compiled all the same, at the first token: 4 to 18 s for nothing.
            variables["TORCHDYNAMO_DISABLE"] = "1"
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
    if not settings.awaits_weights:
        check_folder(settings.model, settings.vllm.get("trust_remote_code", False))
    arguments: dict[str, Any] = {
        "max_num_seqs": MAX_NUM_SEQS,
        **(CPU_DEFAULTS if on_cpu else {}),
        # In an actor vLLM would ask Ray for a place for each part, though the actor's own bundle is that of all parts.
        **({"distributed_executor_backend": "mp"} if settings.vllm.get("tensor_parallel_size", 1) > 1 else {}),
        **settings.vllm,
        "model": settings.model,
        "skip_tokenizer_init": True,
        "load_format": settings.load_format,
        "logprobs_mode": "processed_logprobs",
        "async_scheduling": False,
        "weight_transfer_config": {"backend": "rlsys-" + settings.weight_transfer},
        "disable_log_stats": True,
        "seed": settings.seed,
    }
    return arguments
