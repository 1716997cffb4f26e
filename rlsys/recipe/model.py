"""`[model]`: where the weights, the configuration and the tokenizer come from."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from rlsys.errors import RecipeError
from rlsys.models.model_folder import read_config
from rlsys.recipe.section import Section


class ModelSettings(Section):
    """A Hugging Face folder, or a configuration to initialise from scratch, with a tokenizer."""

    path: str | None = None
    """Folder with safetensors and `config.json`, or `hf:owner/name`."""
    config: dict[str, Any] | None = None
    """`[model.config]`: keys of the transformers configuration, `model_type` among them, for random initialisation."""
    init_std: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of random initialisation; the configuration's own `initializer_range` when absent."""
    init_seed: int = 0
    """Of random initialisation; the recipe's seed is added to it."""
    tokenizer: str | None = None
    """Folder of the tokenizer with its chat template, on this machine; `path` when absent."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    """Of the learner's models, by transformers' names; flash attention needs its package and GPUs. Engines choose
    their own."""
    trust_remote_code: bool = False
    """Runs Python files that come with the model. Off: a model that needs them is refused."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Keys of the transformers configuration; none where the folder is not on this machine."""
        if self.config is not None:
            return self.config
        with suppress(RecipeError):  # told where the folder itself is checked
            return read_config(Path(self.path or ""))
        return {}

    def _faults(self) -> Iterator[str]:
        if self.path is None and self.config is None:
            yield "no model is named; set model.path, or [model.config] to start from random weights"
        if self.path is not None and self.config is not None:
            yield "set model.path or [model.config], not both"
        if self.config is not None and "model_type" not in self.config:
            yield "[model.config] needs model_type, such as 'llama'"
        if self.config is not None and self.tokenizer is None:
            yield "[model.config] has no tokenizer of its own; set model.tokenizer to a folder"
        if self.config is None and self.init_std is not None:
            yield "init_std applies to [model.config] alone; remove it"
