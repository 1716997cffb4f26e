"""Digests of tensors."""

import hashlib
from collections.abc import Callable

import torch

from rlsys.weights.records import DigestName, TensorDigest

CHUNK_WORDS = 1 << 22
"""Words digested at once: bounds the extra memory of `fold64` to about 100 MB beside any tensor."""
# Odd 64-bit constants of splitmix64, as signed integers.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIX = 0xBF58476D1CE4E5B9 - (1 << 64)


def digest_tensor(name: str, tensor: torch.Tensor, *, kind: DigestName = "fold64") -> TensorDigest:
    """Digests one tensor; `fold64` is computed on the tensor's device, `sha256` on the CPU."""
    return TensorDigest(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), DIGESTS[kind](tensor))


def fold64(tensor: torch.Tensor) -> str:
    """A 64-bit digest of a tensor's bytes, in integer arithmetic on its own device.

    The sum, modulo 2^64, over 32-bit words w at place i, of mix(w + i * golden), where mix is a bijection taken from
    splitmix64. Any change of one word changes it for certain; other changes, swaps among them, go unseen with a chance
    of about 2^-64. It is no protection against a forger.
    """
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    words = flat.view(torch.int32) if flat.numel() % 4 == 0 else flat
    total = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start in range(0, words.numel(), CHUNK_WORDS):
        chunk = words[start : start + CHUNK_WORDS].to(torch.int64)
        place = torch.arange(start, start + chunk.numel(), dtype=torch.int64, device=flat.device)
        mixed = chunk.add_(place.mul_(GOLDEN))
        mixed.bitwise_xor_(mixed >> 29).mul_(MIX)
        total += mixed.bitwise_xor_(mixed >> 32).sum()
    return f"{int(total) % (1 << 64):016x}"


def sha256(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's bytes: copies the tensor to the CPU, so it is meant for tests and small models."""
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(flat.numpy().data).hexdigest()


DIGESTS: dict[DigestName, Callable[[torch.Tensor], str]] = {"fold64": fold64, "sha256": sha256}
