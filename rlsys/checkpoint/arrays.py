"""Named numpy arrays in one safetensors file: reading it runs no code, whatever it holds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from rlsys.errors import CheckpointError

METADATA = "json"


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, Any] | None = None) -> None:
    """Writes arrays and a JSON tree beside them; a transaction makes it durable.

    Args:
        path: of the new file.
        arrays: of numbers or booleans, of any shape, empty ones included; not of objects.
        metadata: JSON values without NaN.

    Raises:
        OSError: the disk is full, say.
        ValueError: an array of objects, or metadata that are no JSON values.
    """
    if objects := [name for name, array in arrays.items() if array.dtype.hasobject]:
        raise ValueError(f"arrays of objects cannot be stored without pickling; got {objects}; convert them first")
    header = {METADATA: json.dumps(metadata or {}, allow_nan=False)}
    try:
        save_file({name: np.asarray(array, order="C") for name, array in arrays.items()}, path, metadata=header)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def load_arrays(path: Path) -> tuple[dict[str, np.ndarray], Any]:
    """The arrays and the metadata of `save_arrays`.

    Raises:
        CheckpointError: it is no safetensors file, a pickle for example; it is refused unopened.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as stream:
            header = stream.metadata() or {}
        return load_file(path), json.loads(header.get(METADATA, "{}"))
    except SafetensorError as error:
        raise CheckpointError(
            "not a safetensors file", value=str(path), fix="pickled arrays are not read; save them as safetensors"
        ) from error
