"""Which samples of a rollout batch make each optimizer step, and which rank trains on which of them.

Every rank knows all samples of the batch and computes both by itself, so that the ranks need not talk.
"""

from collections.abc import Sequence

import numpy as np

from rlsys.models.experience_rows import Sample
from rlsys.models.process_group import ProcessGroup
from rlsys.models.row_order import balanced_parts
from rlsys.recipe.algorithm import AlgorithmSettings


def minibatches(
    samples: Sequence[Sample], lrs: Sequence[float], settings: AlgorithmSettings, group: ProcessGroup, *, seed: int
) -> list[tuple[float, list[Sample]]]:
    """For each optimizer step its learning rate, and this rank's samples in it.

    `epochs_per_batch` passes, each a fresh permutation of all samples cut in `minibatches` steps of nearly equal size.
    The samples of a step are a function of the seed and of their ordinals and indices alone: not of how many ranks
    there are, nor of which rank scored what. Within a step the ranks have nearly equal tokens.

    Args:
        samples: of the whole batch, in any order; those without a token to train on are left out.
        lrs: one an optimizer step.
        settings: the algorithm's.
        group: the ranks.
        seed: another one for every batch.

    Raises:
        ValueError: not one learning rate an optimizer step.
    """
    num_steps = settings.epochs_per_batch * settings.minibatches
    if len(lrs) != num_steps:
        raise ValueError(f"expected {num_steps} learning rates, one an optimizer step; got {len(lrs)}")
    trained = sorted((sample for sample in samples if sample.fields["mask"].any()), key=lambda sample: sample.place)
    steps = []
    for epoch in range(settings.epochs_per_batch):
        order = np.random.default_rng((seed, epoch)).permutation(len(trained))
        for members in np.array_split(order, settings.minibatches):
            parts = balanced_parts([trained[i].num_tokens for i in members], group.world_size)
            steps.append([trained[members[i]] for i in parts[group.rank]])
    return list(zip(lrs, steps, strict=True))
