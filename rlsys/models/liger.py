"""Liger's fused kernels (Hsu et al., arXiv 2410.10989) in a model's own layers, where there is a GPU."""

from importlib.util import find_spec
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers.integrations.liger import apply_liger_kernel

from rlsys.errors import RecipeError

KERNELS = {"rope": True, "rms_norm": True, "swiglu": True, "cross_entropy": False, "fused_linear_cross_entropy": False}
"""Not the losses: token logprobs in chunks take the head's place, and give entropies too."""


def use_liger(wanted: Literal["auto"] | bool, *, on_gpu: bool, is_installed: bool) -> bool:
    """Whether the kernels are used: `auto` is wherever they can be.

    Raises:
        RecipeError: they are wanted and cannot be.
    """
    if wanted is True and not on_gpu:
        raise RecipeError("Liger kernels run on GPUs alone", value="a CPU", fix="set learner.liger to 'auto'")
    if wanted is True and not is_installed:
        raise RecipeError(
            "Liger kernels are not installed", fix="pip install liger-kernel, or set learner.liger='auto'"
        )
    return wanted is not False and on_gpu and is_installed


def add_kernels(model: PreTrainedModel, wanted: Literal["auto"] | bool, device: torch.device) -> None:
    """Put the kernels into the model, which computes the same as before; collective only in that all ranks must.

    Raises:
        RecipeError: they are wanted and the machine, or the kind of model, cannot have them.
    """
    if not use_liger(wanted, on_gpu=device.type == "cuda", is_installed=find_spec("liger_kernel") is not None):
        return
    from liger_kernel.transformers.monkey_patch import (  # pyright: ignore[reportMissingImports]
        MODEL_TYPE_TO_APPLY_LIGER_FN,
    )

    if model.config.model_type in MODEL_TYPE_TO_APPLY_LIGER_FN:
        apply_liger_kernel(model, KERNELS)
    elif wanted is True:
        raise RecipeError(
            "there are no Liger kernels for this kind of model",
            value=model.config.model_type,
            fix="set learner.liger to 'auto'",
        )
