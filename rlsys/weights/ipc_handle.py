"""CUDA IPC handles as JSON, so that no pickle travels from the learner to the engines."""

from typing import Any

import torch

TYPES: dict[str, type] = {
    "Tensor": torch.Tensor,
    "Parameter": torch.nn.Parameter,
    "UntypedStorage": torch.UntypedStorage,
    "TypedStorage": torch.storage.TypedStorage,
}


def to_json(value: Any) -> Any:
    """The arguments of torch's `rebuild_cuda_tensor`, or a part of them, as JSON values.

    Raises:
        TypeError: torch has come to use a type that is not known here.
    """
    if isinstance(value, tuple | list):
        return [to_json(part) for part in value]
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, type) and TYPES.get(value.__name__) is value:
        return {"type": value.__name__}
    if value is None or isinstance(value, bool | int):
        return value
    raise TypeError(f"a CUDA IPC handle holds a {type(value).__name__}, which rlsys cannot write: {value!r}")


def from_json(value: Any) -> Any:
    """The inverse of `to_json`; sequences become tuples."""
    if isinstance(value, list):
        return tuple(from_json(part) for part in value)
    if isinstance(value, dict):
        ((kind, name),) = value.items()
        if kind == "bytes":
            return bytes.fromhex(name)
        return TYPES[name] if kind == "type" else getattr(torch, name)
    return value
