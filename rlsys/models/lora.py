"""Low-rank adapters: put into a model, and merged again on the way out."""

from torch import Tensor, nn
from transformers import PreTrainedModel

from rlsys.errors import RecipeError
from rlsys.models.loading import draw
from rlsys.recipe.learner import LoraSettings

_ADAPTER = "default"


def add_adapters(model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
    """Freeze the model and put adapters beside its linear layers; a scalar head stays trainable as it is.

    The adapters' first factors are drawn from the seed, alike on every rank; the second ones are 0, so that the model's
    outputs do not change.

    Raises:
        RecipeError: peft is not installed, or no layer has one of the names.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise RecipeError("learner.lora needs the package peft", fix="pip install peft==0.21.2") from None
    targets = settings.target_modules
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType]
        lora_dropout=settings.dropout,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=["score", "lm_head"],
        init_lora_weights=True,
    )
    try:
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    except ValueError as error:
        raise RecipeError(f"learner.lora.target_modules: {error}", value=settings.target_modules) from error
    for name, module in model.named_modules():
        if ".lora_A." in name:
            assert isinstance(module, nn.Linear)
            # As wide as peft's own, a uniform draw of this deviation: learning rates that others publish mean the same.
            draw(module.weight, (3 * module.in_features) ** -0.5, f"{seed}/{name}.weight")
    for name, parameter in model.named_parameters():
        if name.startswith("score."):
            parameter.requires_grad_(True)


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def adapted_layer(model: nn.Module, name: str) -> tuple[str, nn.Module | None]:
    """The checkpoint's name of a parameter, and the layer whose adapters belong to it, if it has any."""
    if not name.endswith(".base_layer.weight"):
        return name.replace(".base_layer.", "."), None
    layer = name.removesuffix(".base_layer.weight")
    return f"{layer}.weight", model.get_submodule(layer)


def adapter_parameters(layer: nn.Module) -> list[nn.Parameter]:
    """Both factors."""
    return [layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight]  # pyright: ignore


def merged(weight: Tensor, layer: nn.Module) -> Tensor:
    """The weight with its adapters' product added, in the weight's type; all of them gathered."""
    return (weight.float() + layer.get_delta_weight(_ADAPTER).float()).to(weight.dtype)  # pyright: ignore
