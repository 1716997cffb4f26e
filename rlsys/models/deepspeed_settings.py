"""From `[learner]` to the configuration that DeepSpeed reads."""

from collections.abc import Mapping
from typing import Any

import torch

from rlsys.recipe.learner import LearnerSettings


def compute_dtype(settings: LearnerSettings, device: torch.device) -> torch.dtype:
    """The type of weights and activations in forward and backward passes."""
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[settings.dtype]


def deepspeed_settings(settings: LearnerSettings, device: torch.device, *, trainable: bool = True) -> dict[str, Any]:
    """DeepSpeed's configuration; `settings.deepspeed` is merged over it, table by table.

    Accumulation is ours (`set_gradient_accumulation_boundary`), so its own count stays 1.
    """
    on_gpu = device.type == "cuda"
    bf16 = compute_dtype(settings, device) == torch.bfloat16
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.max_grad_norm,
        "steps_per_print": 1 << 62,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": bf16},
        "zero_optimization": {
            "stage": settings.zero_stage,
            "overlap_comm": on_gpu,
            "contiguous_gradients": True,
            "reduce_scatter": on_gpu,
            "reduce_bucket_size": 50_000_000,
        },
    }
    if bf16:
        config["bf16"]["check_grad_overflow"] = True
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if trainable:
        config["optimizer"] = {
            "type": "AdamW",
            "params": {
                "lr": settings.lr,
                "betas": list(settings.betas),
                "eps": settings.eps,
                "weight_decay": settings.weight_decay,
                "torch_adam": True,
                "fused": on_gpu,
            },
        }
    return _merged(config, settings.deepspeed)


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merged(merged.get(key, {}), value) if isinstance(value, Mapping) else value
    return merged
