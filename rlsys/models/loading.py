"""Causal language models and scalar models from Hugging Face folders, or from scratch.

Where ZeRO-3 is on (an `HfDeepSpeedConfig` is alive), transformers builds the model partitioned: no rank holds it whole.
"""

import functools
import hashlib
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
)

from rlsys.errors import RecipeError, TrainingError
from rlsys.models.model_folder import check_folder
from rlsys.recipe.model import ModelSettings

FLASH_PACKAGES = {
    "flash_attention_2": "flash-attn==2.8.3.post2 or kernels==0.17.2",
    "flash_attention_3": "kernels==0.17.2 or flash-attn-3, from source",
}
"""What transformers 5.19 takes each from: `kernels` (0.17 alone) where the package itself is not installed."""


def _needs_its_attention(load: Callable[..., PreTrainedModel]) -> Callable[..., PreTrainedModel]:
    """Flash attention that is not installed, or not for this machine, is a fault of the recipe: transformers looks for
    it while it builds the model, and raises an ImportError that names no setting.
    """

    @functools.wraps(load)
    def loaded(settings: ModelSettings, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        try:
            return load(settings, dtype)
        except ImportError as error:
            if not settings.attention.startswith("flash_attention"):
                raise
            raise RecipeError(
                f"model.attention cannot be used on this machine ({error})",
                value=settings.attention,
                fix=f"set it to 'sdpa', or on GPUs install {FLASH_PACKAGES[settings.attention]} (docs/learner.md)",
            ) from error

    return loaded


@_needs_its_attention
def load_causal_lm(settings: ModelSettings, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of `settings`, on CPU or wherever ZeRO-3 puts it, dropout off unless the configuration sets it.

    Raises:
        RecipeError: no folder, no safetensors in it, it needs code that is not trusted, or flash attention that is not
            there.
    """
    if settings.path is not None:
        check_folder(settings.path, settings.trust_remote_code)
        return AutoModelForCausalLM.from_pretrained(settings.path, **_load_arguments(settings, dtype))
    config = _scratch_config(settings)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=settings.attention)
    _draw_weights(model, config.initializer_range, settings.init_seed)
    model.generation_config = GenerationConfig.from_model_config(config)
    return model


@_needs_its_attention
def load_scalar_model(settings: ModelSettings, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A backbone with a linear head to one number: a reward or value model.

    The folder may hold a scalar model, whose head is kept, or a causal language model, whose head is replaced by one
    drawn with standard deviation 1 / sqrt(d + 1) (Tülu 3; Stiennon et al., arXiv 2009.01325).

    Raises:
        RecipeError: as `load_causal_lm`.
        TrainingError: the folder lacks weights of its own backbone.
    """
    if settings.path is None:
        config = _scratch_config(settings)
        config.num_labels = 1
        model = AutoModelForSequenceClassification.from_config(
            config, dtype=dtype, attn_implementation=settings.attention
        )
        _draw_weights(model, config.initializer_range, settings.init_seed)
        _draw_head(model.score, settings.init_seed)
        return model
    check_folder(settings.path, settings.trust_remote_code)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        settings.path, num_labels=1, output_loading_info=True, **_load_arguments(settings, dtype)
    )
    missing = set(info["missing_keys"])
    if missing - {"score.weight"}:
        raise TrainingError(f"{settings.path} lacks weights of its own backbone", value=sorted(missing)[:5])
    if not _has_weight(settings.path, "score.weight"):
        _draw_head(model.score, settings.init_seed)
    return model


class ScalarModel(nn.Module):
    """A backbone and head whose forward pass gives one float32 number for every position, `[R, L]`.

    The head computes in float32 whatever its weight's type: bfloat16 has steps of 1/16 at a score of 10. It does so as
    `forward` of the model's own head, so that ZeRO-3's hooks gather the weight as they do for any module.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        model.score.forward = MethodType(_head_in_float32, model.score)  # pyright: ignore

    def forward(self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """`input_ids` and `position_ids` `[R, L]`, positions restarting at each document, whence the mask if absent."""
        outputs = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        )
        return self.model.score(outputs.last_hidden_state)[..., 0]  # pyright: ignore[reportCallIssue]


def _head_in_float32(head: nn.Linear, hidden: Tensor) -> Tensor:
    bias = None if head.bias is None else head.bias.float()
    return nn.functional.linear(hidden.float(), head.weight.float(), bias)


def _load_arguments(settings: ModelSettings, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "attn_implementation": settings.attention,
        "trust_remote_code": settings.trust_remote_code,
        "use_safetensors": True,
    }


def _scratch_config(settings: ModelSettings) -> Any:
    if settings.config is None:
        raise RecipeError("no model is named", fix="set model.path, or [model.config] to start from random weights")
    keys = dict(settings.config)
    config = AutoConfig.for_model(keys.pop("model_type"), **keys)
    # A configuration class has token ids of the model it was written for; only what the recipe says is meant.
    for name in {"bos_token_id", "eos_token_id", "pad_token_id"} - keys.keys():
        setattr(config, name, None)
    if settings.init_std is not None:
        config.initializer_range = settings.init_std
    return config


def _has_weight(folder: str, name: str) -> bool:
    from safetensors import safe_open

    for file in Path(folder).glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (not a mapping)
                return True
    return False


def _draw_weights(model: nn.Module, std: float, seed: int) -> None:
    """Draw every linear and embedding weight from a generator of its own, N(0, std^2), and leave the rest as built.

    transformers draws in another order under ZeRO-3; this way the weights depend on the seed alone, for any number of
    ranks, any ZeRO stage and any type.
    """
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            draw(module.weight, std, f"{seed}/{module_name}")


def _draw_head(head: nn.Linear, seed: int) -> None:
    draw(head.weight, 1.0 / math.sqrt(head.in_features + 1), f"{seed}/head")


def draw(weight: Tensor, std: float, key: str) -> None:
    """Fill a weight, partitioned or not, with N(0, std^2): the same numbers for the same key on every rank."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) >> 1
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad(), whole([weight], modifier_rank=0):
        if weight.numel():
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)


def whole(parameters: Sequence[Tensor], *, modifier_rank: int | None = None) -> AbstractContextManager:
    """A context in which parameters that ZeRO-3 has partitioned are gathered; others are whole anyway.

    Args:
        parameters: all partitioned, or none.
        modifier_rank: whose changes every rank takes over; None where nothing is changed.
    """
    if not is_partitioned(parameters[0]):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=modifier_rank)


def is_partitioned(parameter: Tensor) -> bool:
    """Whether ZeRO-3 has taken the parameter over."""
    return hasattr(parameter, "ds_id")


def whole_size(parameter: nn.Parameter) -> int:
    """Elements of a weight, however it is partitioned."""
    return parameter.ds_numel if is_partitioned(parameter) else parameter.numel()  # pyright: ignore
