"""Log-probabilities of pairs under DPO's reference model, kept on disk: they are the same at every start of a stage."""

import hashlib
import io
from pathlib import Path

import numpy as np

from rlsys.checkpoint.durable_file import write_durably
from rlsys.checkpoint.seal import digest_files
from rlsys.data.token_store import PairStore
from rlsys.recipe.model import ModelSettings


class ReferenceLogprobs:
    """`<folder>/<key>.npy`, `[P, 2]` float32; its name is the SHA-256 of all that they depend on.

    Args:
        folder: made when something is written.
        pairs: folder of the pair store.
        model: `model_digest` of the reference.
        precision: in which it computes.
    """

    def __init__(self, folder: Path, *, pairs: Path, model: str, precision: str) -> None:
        key = hashlib.sha256("\n".join([PairStore(pairs).digest, model, precision]).encode()).hexdigest()
        self.path = folder / f"{key}.npy"

    def read(self) -> np.ndarray | None:
        """None where they were not computed yet."""
        return np.load(self.path) if self.path.exists() else None

    def write(self, logprobs: np.ndarray) -> None:
        """Keeps them, in one step."""
        content = io.BytesIO()
        np.save(content, logprobs)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(self.path, content.getvalue())


def model_digest(model: ModelSettings) -> str:
    """SHA-256 of what a model computes with: the content of its configuration and weights, or how they are drawn.

    Reads the whole folder, eight files at a time where there are cores: a task's work, not the driver's.
    """
    if model.path is None:
        about = [model.model_dump_json(exclude={"tokenizer"})]
    else:
        folder = Path(model.path).expanduser()
        own_code = folder.glob("*.py") if model.trust_remote_code else ()
        names = ["config.json", *sorted(path.name for path in (*folder.glob("*.safetensors"), *own_code))]
        about = [model.attention, *(f"{name} {file.sha256}" for name, file in digest_files(folder, names).items())]
    return hashlib.sha256("\n".join(about).encode()).hexdigest()
