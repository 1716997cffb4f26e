"""Tokenizers from their folders, in a fifth of the time that the Auto class takes where it is not needed."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rlsys.errors import RecipeError
from rlsys.recipe.model import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_CLASSES = {"PreTrainedTokenizerFast", "TokenizersBackend"}
"""Names, before and since transformers 5, of the class that is its `tokenizer.json` and nothing else."""


def load_tokenizer(folder: str | Path, *, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """As `AutoTokenizer.from_pretrained` of a folder.

    Importing the Auto class imports all that transformers generates text with: 9 s of CPU, against 2 s for the plain
    class, in each of a run's processes that reads or writes text.

    Raises:
        OSError: the folder holds no tokenizer.
    """
    if _is_plain(Path(folder)):
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(folder)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def tokenizer_of(model: ModelSettings) -> "PreTrainedTokenizerBase":
    """A recipe's tokenizer with its chat template.

    Raises:
        RecipeError: there is no folder.
    """
    folder = model.tokenizer or model.path
    if folder is None or not Path(folder).is_dir():
        raise RecipeError("no tokenizer folder", value=folder, fix="set model.tokenizer to a folder with a tokenizer")
    return load_tokenizer(folder, trust_remote_code=model.trust_remote_code)


def _is_plain(folder: Path) -> bool:
    try:
        config = json.loads((folder / "tokenizer_config.json").read_bytes())
    except (OSError, ValueError):  # a name on the hub, or an old folder: the Auto class knows
        return False
    return (
        config.get("tokenizer_class") in PLAIN_CLASSES
        and "auto_map" not in config
        and (folder / "tokenizer.json").is_file()
    )
