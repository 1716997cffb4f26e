"""Mean and variance of a batch that lies on several ranks, and whitening with them."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

_EPS = 1e-8
"""Added to the variance."""


class Moments(NamedTuple):
    """Number, mean and M2 = sum (x - mean)^2, float64 scalars. `torch.stack(moments)` is what ranks exchange."""

    num: torch.Tensor
    mean: torch.Tensor
    m2: torch.Tensor

    @property
    def variance(self) -> torch.Tensor:
        """The unbiased variance, M2 / (count - 1); 0 for fewer than two elements."""
        return self.m2 / (self.num - 1).clamp(min=1)


def moments(x: torch.Tensor, mask: torch.Tensor) -> Moments:
    """The moments of `x` where `mask` is not 0, both of any one shape. Nothing counted gives zeros."""
    values = x.detach()[mask != 0].double()
    count = torch.tensor(values.numel(), dtype=torch.float64, device=x.device)
    mean = values.sum() / count.clamp(min=1)
    return Moments(count, mean, ((values - mean) ** 2).sum())


def combine_moments(parts: Iterable[Moments]) -> Moments:
    """The moments of the union of disjoint parts (Chan, Golub and LeVeque, 1979, eq. 2.1).

    Raises:
        ValueError: no parts.
    """
    combined: Moments | None = None
    for part in parts:
        if combined is None:
            combined = part
            continue
        count = combined.num + part.num
        delta = part.mean - combined.mean
        share = part.num / count.clamp(min=1)
        m2 = combined.m2 + part.m2 + delta**2 * combined.num * share
        combined = Moments(count, combined.mean + delta * share, m2)
    if combined is None:
        raise ValueError("combine_moments needs at least one part; got none")
    return combined


def whiten(x: torch.Tensor, global_moments: Moments, mask: torch.Tensor) -> torch.Tensor:
    """(x - mean) / sqrt(unbiased variance + 1e-8), float32, 0 where `mask` is 0 (Tülu 3's released code)."""
    whitened = (x.double() - global_moments.mean) / (global_moments.variance + _EPS).sqrt()
    return torch.where(mask != 0, whitened.float(), 0.0)
