"""Which rows of a data set an optimizer step takes, and which rank takes which. Needs no torch: a driver asks too."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class PairSteps:
    """Which optimizer steps to take over a pair store."""

    first_step: int
    """Counted from 0 over all epochs."""
    lrs: Sequence[float]
    """Learning rate of each step."""
    batch_size: int
    """Pairs of a step over all ranks; the last step of an epoch takes what is left."""
    seed: int
    """Of the order of pairs."""


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Optimizer steps of one pass; the last one takes the rows that are left."""
    return -(-num_rows // batch_size)


def rows_of_step(num_rows: int, *, batch_size: int, step: int, seed: int) -> np.ndarray:
    """Row numbers of optimizer step `step`, counted from 0 over all epochs: a pure function of its arguments.

    Every epoch is a permutation of its own, so that each row is taken once an epoch.
    """
    epoch, within = divmod(step, steps_per_epoch(num_rows, batch_size))
    order = np.random.default_rng((seed, epoch)).permutation(num_rows)
    return order[within * batch_size : (within + 1) * batch_size]


def balanced_parts(lengths: Sequence[int] | np.ndarray, num_parts: int) -> list[list[int]]:
    """Indices of `lengths` dealt to parts of nearly equal total: the longest first, to the part with least so far."""
    totals = np.zeros(num_parts, np.int64)
    parts: list[list[int]] = [[] for _ in range(num_parts)]
    for index in np.argsort(-np.asarray(lengths), kind="stable"):
        part = int(totals.argmin())
        parts[part].append(int(index))
        totals[part] += lengths[index]
    return parts
