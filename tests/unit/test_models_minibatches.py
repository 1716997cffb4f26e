"""Which samples make an optimizer step of RLVR, and which rank trains on which: whatever the shards and the ranks."""

from itertools import chain

import numpy as np
import pytest
import torch

from rlsys.models.experience_rows import Sample, samples_of
from rlsys.models.minibatches import minibatches
from rlsys.models.process_group import ProcessGroup
from rlsys.recipe.algorithm import AlgorithmSettings
from rlsys.rollouts.experience_buffer import balance
from rlsys.types import Experience, Prompt, Rollout, Verdict

SAMPLES = 4
SETTINGS = AlgorithmSettings(epochs_per_batch=2, minibatches=3)
LRS = [6.0, 5.0, 4.0, 3.0, 2.0, 1.0]

Group = list[Sample]


def make_groups(num_groups: int) -> list[Group]:
    """Groups from ordinal 5 on, of all lengths; the third sample of every other one is masked."""
    rng = np.random.default_rng(4)
    groups = []
    for ordinal in range(5, 5 + num_groups):
        prompt = Prompt(ordinal, "", (), np.zeros(rng.integers(1, 9), np.int32))
        experiences, mask = [], []
        for index, length in enumerate(rng.integers(1, 200, SAMPLES)):
            tokens = np.zeros(length, np.int32)
            rollout = Rollout(ordinal, index, tokens, tokens.astype(np.float32), tokens, "stop")
            experiences.append(Experience(prompt, rollout, (Verdict("math", "correct", 1.0, 0.0),), 1.0))
            mask.append(np.full(length, not (index == 2 and ordinal % 2), np.float32))
        groups.append(samples_of(experiences, {"mask": np.concatenate(mask)}))
    return groups


def dealt(groups: list[Group], num_shards: int) -> list[Sample]:
    """The samples in the order of the shards that `balance` makes."""
    lengths = [sum(sample.num_tokens for sample in group) for group in groups]
    return [sample for shard in balance(lengths, num_shards) for index in shard for sample in groups[index]]


def steps_of(samples: list[Sample], rank: int, num_ranks: int, seed: int = 3) -> list[Group]:
    group = ProcessGroup(rank, num_ranks, torch.device("cpu"))
    steps = minibatches(samples, LRS, SETTINGS, group, seed=seed)
    assert [lr for lr, _ in steps] == LRS
    return [members for _, members in steps]


def test_members_depend_on_the_seed_and_the_ordinals_alone():
    groups = make_groups(11)
    trained = [(o, i) for o in range(5, 16) for i in range(SAMPLES) if not (i == 2 and o % 2)]
    expected = []
    for epoch in range(2):
        order = np.random.default_rng((3, epoch)).permutation(len(trained))
        expected += [sorted(trained[i] for i in part) for part in np.array_split(order, 3)]
    for num_ranks in (1, 2, 4):
        samples = dealt(groups, num_ranks)
        by_rank = [steps_of(samples, rank, num_ranks) for rank in range(num_ranks)]
        found = [sorted(sample.place for sample in chain(*parts)) for parts in zip(*by_rank, strict=True)]
        assert found == expected, f"{num_ranks} ranks"
    assert [len(part) for part in expected] == [13, 13, 12] * 2
    assert sorted(chain(*expected[:3])) == sorted(chain(*expected[3:])) == trained
    other_seed = [sorted(sample.place for sample in step) for step in steps_of(dealt(groups, 1), 0, 1, seed=4)]
    assert other_seed != expected


@pytest.mark.parametrize(("num_groups", "num_ranks", "most"), [(56, 7, 1.02), (48, 16, 1.1), (2, 8, 8.0)])
def test_the_ranks_have_nearly_equal_tokens_in_every_step(num_groups: int, num_ranks: int, most: float):
    samples = dealt(make_groups(num_groups), num_ranks)
    by_rank = [steps_of(samples, rank, num_ranks) for rank in range(num_ranks)]
    for parts in zip(*by_rank, strict=True):
        tokens = [sum(sample.num_tokens for sample in part) for part in parts]
        assert max(tokens) <= most * sum(tokens) / num_ranks


def test_there_is_one_learning_rate_a_step():
    with pytest.raises(ValueError, match="expected 6 learning rates, one an optimizer step; got 5"):
        minibatches([], LRS[1:], SETTINGS, ProcessGroup(0, 1, torch.device("cpu")), seed=0)
