"""A trained reward model on one rank: scores of sampled responses. Collective."""

from collections.abc import Sequence

import numpy as np

from rlsys.models.engine import TrainEngine
from rlsys.models.experience_rows import response_rows
from rlsys.models.row_order import balanced_parts
from rlsys.types import Experience, Prompt, Rollout


def response_scores(
    engine: TrainEngine, prompts: Sequence[Prompt], groups: Sequence[Sequence[Rollout]]
) -> list[list[float]]:
    """The score of each response, the head at its last token: `[prompt][sample]`, the same on every rank.

    Args:
        engine: of a scalar model.
        prompts: one per group.
        groups: `[prompt][sample]`; every rank is given all of them, and scores a part of like length.
    """
    pairs = [(prompt, rollout) for prompt, group in zip(prompts, groups, strict=True) for rollout in group]
    lengths = np.array([len(prompt.token_ids) + len(rollout.response_ids) for prompt, rollout in pairs], np.int64)
    mine = np.array(balanced_parts(lengths, engine.group.world_size)[engine.group.rank], np.int64)
    my_pairs = [pairs[index] for index in mine]
    scores = engine.scores(response_rows([Experience(prompt, rollout, (), 0.0) for prompt, rollout in my_pairs]))
    whole = np.zeros(len(pairs), np.float32)
    for indices, values in engine.group.gather((mine, scores)):
        whole[indices] = values
    scored = iter(whole.tolist())
    return [[next(scored) for _ in group] for group in groups]
