"""Metrics that survive any split of a batch: sums, added over micro-batches and ranks and divided once.

A key is a metric's name, or `name@unit`: the sum of a quantity whose mean is taken over `unit`. The number of units
is the entry `@unit`. All values are float64 scalars, so one all-reduce of a stacked vector combines ranks:

    {"loss/policy": ., "policy/clip_frac@tokens": ., "@tokens": .}   ->   {"loss/policy": ., "policy/clip_frac": .}

Sums of different functions over the same tokens would count those tokens twice: finish each function's sums by itself.
"""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

import torch

MetricSums: TypeAlias = dict[str, torch.Tensor]


def masked_sum(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Sum of `x` where `mask` is not 0, as a detached float64 scalar; what lies elsewhere may be NaN."""
    return torch.where(mask != 0, x.detach(), torch.zeros_like(x)).sum(dtype=torch.float64)


def count(mask: torch.Tensor) -> torch.Tensor:
    """How many entries of `mask` are not 0, as a float64 scalar."""
    return (mask != 0).sum().to(torch.float64)


def add_sums(parts: Iterable[Mapping[str, torch.Tensor]]) -> MetricSums:
    """The sums of a whole step from those of its micro-batches or ranks. A key that a part lacks adds nothing."""
    total: MetricSums = {}
    for part in parts:
        for key, value in part.items():
            total[key] = total[key] + value if key in total else value
    return total


def finish_sums(sums: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
    """Sums of the whole step to metrics. A mean over no units is left out.

    `x/sq@unit` (a sum of squares) beside `x/mean@unit` gives `x/std`; returns and residuals of the value model give
    `value/explained_variance`: 1 - Var(returns - values) / Var(returns), left out where returns do not vary.
    """
    values = {key: float(value) for key, value in sums.items()}
    metrics = {key: value for key, value in values.items() if "@" not in key}
    for key, value in values.items():
        name, at, unit = key.partition("@")
        if at and name and values[f"@{unit}"]:
            metrics[name] = value / values[f"@{unit}"]
    for name in [name for name in metrics if name.endswith("/sq")]:
        stem, mean_of_squares = name.removesuffix("/sq"), metrics.pop(name)
        metrics[f"{stem}/std"] = max(mean_of_squares - metrics[f"{stem}/mean"] ** 2, 0.0) ** 0.5
    if metrics.get("value/return/std"):
        ratio = metrics["value/residual/std"] / metrics["value/return/std"]
        metrics["value/explained_variance"] = 1 - ratio**2
    return metrics
