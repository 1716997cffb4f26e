"""A response of no tokens, which no engine gives today: masked as an experience, harmless in a pair."""

import numpy as np
import pytest
import torch

from actors.verifier_worker import summarize
from rlsys.algorithms.preference_loss import PREFERENCE_LOSSES, PairLogprobs, preference_loss
from rlsys.recipe.algorithm import PreferenceLossSettings
from rlsys.rollouts.staleness import version_range
from rlsys.types import Experience, Prompt, Rollout, Verdict

PROMPT = Prompt(3, "p/3", (), np.zeros(2, np.int32))


def experience(versions: list[int]) -> Experience:
    tokens = np.array(versions, np.int32)
    rollout = Rollout(3, 0, tokens, tokens.astype(np.float32), tokens, "length")
    return Experience(PROMPT, rollout, (Verdict("math", "unparsable", 0.0, 0.0),), -10.0)


def test_it_is_masked_and_has_no_part_in_the_versions_of_its_group():
    group = [experience([]), experience([5, 4])]
    summary = summarize(group)
    assert [member.masked for member in group] == [True, False]
    assert (summary.lengths, summary.num_masked) == ((0, 2), 1)
    assert (summary.oldest_version, summary.newest_version) == (4, 5)
    assert np.isnan(summary.rewards[0]) and summary.rewards[1] == -10.0
    alone = summarize(group[:1])
    assert (alone.num_masked, version_range([group[0].rollout])) == (1, (0, 0))


@pytest.mark.parametrize("name", sorted(PREFERENCE_LOSSES))
def test_a_pair_with_it_has_a_finite_loss_and_gradient(name: str):
    chosen = torch.tensor([-3.0], requires_grad=True)
    nothing = torch.zeros(1, requires_grad=True)
    pairs = PairLogprobs(chosen, nothing, torch.tensor([2.0]), torch.zeros(1), torch.tensor([-4.0]), torch.zeros(1))
    loss, sums = preference_loss(pairs, PreferenceLossSettings(name=name, beta=0.5), denominator=1)
    loss.backward()
    assert loss.isfinite() and chosen.grad.isfinite().all() and nothing.grad.isfinite().all()
    assert all(value.isfinite() for value in sums.values())
