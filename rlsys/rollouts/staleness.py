"""How old a token may be: the two places where the bound is held.

A batch of index b is trained at version b (the learner has consumed b batches), and with `max_staleness = k` it holds
no token sampled under a version below b - k.
"""

from collections.abc import Iterable

import numpy as np

from rlsys.types import PolicyVersion, Rollout


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


def version_range(rollouts: Iterable[Rollout]) -> tuple[PolicyVersion, PolicyVersion]:
    """The versions of a group's oldest and newest token; (0, 0) where it has none, and all of it is masked."""
    versions = np.concatenate([np.zeros(0, np.int32), *(rollout.versions for rollout in rollouts)])
    return (int(versions.min()), int(versions.max())) if len(versions) else (0, 0)
