"""`[model]`: where the weights, the configuration and the tokenizer come from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from rlsys.recipe.section import Section


class ModelSettings(Section):
    """A Hugging Face folder, or a configuration to initialise from scratch, with a tokenizer."""

    path: str | None = None
    """Folder with safetensors and `config.json`."""
    config: dict[str, Any] | None = None
    """`[model.config]`: keys of the transformers configuration, `model_type` among them, for random initialisation."""
    init_std: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of random initialisation; the configuration's own `initializer_range` when absent."""
    init_seed: int = 0
    """Of random initialisation; the recipe's seed is added to it."""
    tokenizer: str | None = None
    """Folder of the tokenizer with its chat template; `path` when absent."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3"] = "sdpa"
    trust_remote_code: bool = False
    """Runs Python files that come with the model. Off: a model that needs them is refused."""

    @property
    def configuration(self) -> Mapping[str, Any]:
        """Keys of the transformers configuration; none where the folder is not on this machine."""
        if self.config is not None:
            return self.config
        file = Path(self.path or "").expanduser() / "config.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.config is not None:
            raise ValueError("set model.path or [model.config], not both")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("[model.config] needs model_type, such as 'llama'")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("[model.config] has no tokenizer of its own; set model.tokenizer to a folder")
        if self.config is None and self.init_std is not None:
            raise ValueError("init_std applies to [model.config] alone; remove it")
        return self
