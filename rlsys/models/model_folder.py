"""What a Hugging Face folder must be, to be loaded by the learner or by an engine. Imports no torch."""

import json
from pathlib import Path
from typing import Any

from rlsys.errors import RecipeError


def check_folder(folder: str | Path, trust_remote_code: bool) -> None:
    """Refuse what cannot be loaded safely, before anything is.

    Raises:
        RecipeError: naming the folder, and what to do.
    """
    path = Path(folder)
    config = read_config(path)
    if not any(path.glob("*.safetensors")):
        raise RecipeError(
            "the model folder has no safetensors, and pickled weights are never loaded",
            value=str(folder),
            fix="convert the weights with save_pretrained",
        )
    if not trust_remote_code and "auto_map" in config:
        raise RecipeError(
            "the model needs Python files of its own", value=str(folder), fix="read them, then set trust_remote_code"
        )


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's config.json.

    Raises:
        RecipeError: there is none, or it is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise RecipeError("not a Hugging Face model folder", value=str(folder), fix="give a folder with config.json")
    try:
        config = json.loads(file.read_text())
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise RecipeError("a damaged config.json", value=str(file), fix="copy the model's folder again")
    return config
