"""What one engine worker says of a transfer. Imports nothing of vLLM, so that the publisher can read it."""

from dataclasses import dataclass

from rlsys.weights.digest import TensorDigest


@dataclass(frozen=True, slots=True)
class Receipt:
    """Of one worker process of one engine."""

    tensors: tuple[TensorDigest, ...]
    """As received, in order of arrival."""
    problems: tuple[str, ...]
    """What could not be loaded, or was not sent; empty when all is well."""
    num_bytes: int
    seconds: float
    """From the first wait for a bucket to the last tensor loaded."""
