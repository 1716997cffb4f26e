"""What learner, engines and publisher tell one another of a transfer, and how the two sides are compared.

Imports neither torch nor vLLM: the driver reads these.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

DigestName: TypeAlias = Literal["fold64", "sha256"]


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where a group meets. Every publication group has its own; it is never used twice."""

    host: str
    port: int
    world_size: int
    """1 + engines x tensor-parallel size."""
    deadline_s: float
    """The longest that any one wait in the group may last."""


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """A checkpoint-format tensor as one side saw it."""

    name: str
    dtype: str
    """torch's name without the prefix, such as `bfloat16`."""
    shape: tuple[int, ...]
    digest: str
    """Hexadecimal, of the tensor's bytes in row-major order."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the sender sent in one transfer."""

    transfer: int
    tensors: tuple[TensorDigest, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Of one worker process of one engine."""

    tensors: tuple[TensorDigest, ...]
    """As received, in order of arrival."""
    problems: tuple[str, ...]
    """What could not be loaded, or was not sent; empty when all is well."""


def first_difference(sent: Sequence[TensorDigest], received: Sequence[TensorDigest]) -> str | None:
    """The first way in which what arrived is not what was sent, naming the tensor; None when they agree.

    >>> a, b = TensorDigest("a", "float32", (2,), "00"), TensorDigest("b", "float32", (2,), "00")
    >>> first_difference([a, b], [a])
    'tensor b was sent and did not arrive'
    """
    arrived = {tensor.name: tensor for tensor in received}
    for tensor in sent:
        other = arrived.pop(tensor.name, None)
        if other is None:
            return f"tensor {tensor.name} was sent and did not arrive"
        for field in ("dtype", "shape", "digest"):
            ours, theirs = getattr(tensor, field), getattr(other, field)
            if ours != theirs:
                return f"tensor {tensor.name} was sent with {field} {ours} and arrived with {theirs}"
    if arrived:
        return f"tensor {next(iter(arrived))} arrived and was not sent"
    return None
