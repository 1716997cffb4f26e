"""How old a token may be: the two places where the bound is held, and what is measured of it.

A batch of index b is trained at version b (the learner has consumed b batches), and with `max_staleness = k` it holds
no token sampled under a version below b - k.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.types import PolicyVersion


def free_places(
    *,
    batch_groups: int,
    max_staleness: int,
    version: PolicyVersion,
    num_trained_batches: int,
    num_batches_left: int,
    num_untrained: int,
) -> int:
    """Groups that may be started now; not positive when none may.

    With B = `batch_groups`, k = `max_staleness` and v = `version`, the published one, it is
    (k + v + 1)·B - (accepted + running), and no more than the run can still train on. As accepted = t·B + what is
    accepted and not trained on, with t = `num_trained_batches`, it is computed from the untrained groups alone: this
    stays right when a run is resumed with another B.

    Args:
        num_untrained: groups running, buffered or in the batch that is out.

    >>> at_version_2 = {"version": 2, "num_trained_batches": 3, "num_batches_left": 9}
    >>> free_places(batch_groups=4, max_staleness=1, num_untrained=3, **at_version_2)
    1
    """
    by_staleness = max_staleness + version + 1 - num_trained_batches
    return min(by_staleness, num_batches_left) * batch_groups - num_untrained


def oldest_trainable(batch_index: int, max_staleness: int) -> PolicyVersion:
    """The oldest version whose tokens the batch may hold.

    >>> oldest_trainable(5, 2), oldest_trainable(1, 2)
    (3, 0)
    """
    return max(0, batch_index - max_staleness)


def fresh_tokens(versions: np.ndarray, min_version: PolicyVersion) -> np.ndarray:
    """`[T]` bool: which tokens of a response may be trained on.

    Args:
        versions: `[T]` int32, the version that sampled each token.
        min_version: `Batch.min_version`.
    """
    return versions >= min_version


@dataclass(frozen=True, slots=True)
class StalenessMetrics:
    """Over the tokens of one batch, in batches of lag; logged as `staleness/*`."""

    mean_steps: float
    max_steps: int
    dropped: int
    """Groups dropped as over-age since the batch before."""
    masked_tokens: int


def measure_staleness(
    versions: Sequence[np.ndarray], *, batch_index: int, min_version: PolicyVersion, dropped: int
) -> StalenessMetrics:
    """The lag of the tokens that are trained on, masked ones excluded.

    Args:
        versions: for each response, `[T]` int32.
        batch_index: the version at which the batch is trained.

    >>> measure_staleness([np.array([1, 3])], batch_index=3, min_version=1, dropped=0).mean_steps
    1.0
    """
    flat = np.concatenate([np.zeros(0, np.int32), *versions])
    lags = batch_index - flat[fresh_tokens(flat, min_version)]
    return StalenessMetrics(
        mean_steps=float(lags.mean()) if lags.size else 0.0,
        max_steps=int(lags.max(initial=0)),
        dropped=dropped,
        masked_tokens=int(flat.size - lags.size),
    )
