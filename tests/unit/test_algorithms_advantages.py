"""Baselines, per-token advantages, dynamic sampling and overlong shaping against hand-worked numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.algorithms.advantages import ADVANTAGES, should_whiten, token_advantages, token_rewards
from rlsys.algorithms.kl import per_token_rewards
from rlsys.algorithms.shaping import is_informative, overlong_penalty
from rlsys.recipe.algorithm import AlgorithmSettings

NAN = float("nan")
SCORES = torch.tensor([10.0, 0.0, 10.0, 0.0, 5.0, 5.0])
GROUPS = torch.tensor([0, 0, 0, 0, 1, 1])
ALL = torch.ones(6, dtype=torch.bool)


PAIR, BOTH = torch.tensor([0, 0]), torch.ones(2, dtype=torch.bool)
MASK = torch.tensor([[0.0, 1, 1, 1], [1, 1, 0, 0]])
KL = torch.tensor([[NAN, 1.0, 2, 4], [0, 1, NAN, NAN]])


def baseline(name: str, scores: torch.Tensor = SCORES, keep: torch.Tensor = ALL) -> list[float]:
    return ADVANTAGES[name].baseline(scores, GROUPS, keep).tolist()


def test_group_baselines_by_hand():
    """Group 0: mean 5, unbiased std sqrt(100 / 3); the others of a right one average 10 / 3. Group 1 is all equal."""
    std = math.sqrt(100 / 3)
    assert baseline("grpo") == pytest.approx([5 / std, -5 / std, 5 / std, -5 / std, 0, 0], rel=1e-7)
    assert baseline("dr_grpo") == [5, -5, 5, -5, 0, 0]
    rloo = 10 - 10 / 3
    assert baseline("rloo") == pytest.approx([rloo, -rloo, rloo, -rloo, 0, 0], rel=1e-7)
    assert baseline("reinforce_pp_baseline") == [5, -5, 5, -5, 0, 0]
    assert baseline("gae") == baseline("reinforce_pp") == SCORES.tolist()


def test_failed_verdicts_stay_out_of_every_baseline():
    """Sample 3 is masked: group 0 is 10 0 10, mean 20 / 3, unbiased variance 100 / 3, leave-one-out means 5 10 5."""
    scores, keep = SCORES.clone(), ALL.clone()
    scores[3], keep[3] = NAN, False
    std = math.sqrt(100 / 3)
    up, down = 10 / 3, -20 / 3
    assert baseline("grpo", scores, keep) == pytest.approx([up / std, down / std, up / std, 0, 0, 0], rel=1e-7)
    assert baseline("dr_grpo", scores, keep) == pytest.approx([up, down, up, 0, 0, 0], rel=1e-7)
    assert baseline("rloo", scores, keep) == pytest.approx([5, -10, 5, 0, 0, 0], rel=1e-7)
    assert baseline("gae", scores, keep) == [10, 0, 10, 0, 5, 5]


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_pp_baseline"])
def test_a_group_with_one_sample_left_says_nothing(name: str):
    keep = torch.tensor([False, True, False, False, False, False])
    scores = torch.where(keep, SCORES, NAN)
    assert baseline(name, scores, keep) == [0.0] * 6


@pytest.mark.parametrize("value", [0.1, 0.7, 1 / 3])
def test_equal_scores_give_exactly_zero_whatever_their_rounding(value: float):
    """Three times 0.1 over 3 is not 0.1: over a std of 1e-8 that would be an advantage out of nothing."""
    scores, groups = torch.full((3,), value, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    assert ADVANTAGES["grpo"].baseline(scores, groups, torch.ones(3, dtype=torch.bool)).tolist() == [0, 0, 0]


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, 1.0, 10.0, -10.0]), min_size=8, max_size=8),
    order=st.permutations(range(8)),
    name=st.sampled_from(sorted(ADVANTAGES)),
)
def test_baselines_do_not_depend_on_the_order(scores: list[float], order: list[int], name: str):
    values, groups = torch.tensor(scores), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    keep = torch.ones(8, dtype=torch.bool)
    straight = ADVANTAGES[name].baseline(values, groups, keep)
    shuffled = ADVANTAGES[name].baseline(values[order], groups[order], keep)
    torch.testing.assert_close(shuffled, straight[order], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["dr_grpo", "reinforce_pp_baseline", "reinforce_pp"])
def test_a_kl_in_the_reward_is_each_tokens_own_after_the_baseline(name: str):
    """Scores 3 and -1, mean 1: 2 and -2 at the last tokens, or the scores themselves."""
    settings = AlgorithmSettings(advantage=name, kl_in="reward", kl_beta=0.5)
    centred = [3.0, -1.0] if name == "reinforce_pp" else [2.0, -2.0]
    found = token_rewards(torch.tensor([3.0, -1.0]), MASK, settings, group_ids=PAIR, keep=BOTH, kl=KL)
    assert found.tolist() == [[0, -0.5, -1, centred[0] - 2], [0, centred[1] - 0.5, 0, 0]]


def test_rloo_takes_the_kl_of_the_whole_response_before_its_baseline():
    """Scores 3 and -1 less 0.5 x (7 and 1) are -0.5 and -1.5, each other's baselines: 1 and -1."""
    settings = AlgorithmSettings(advantage="rloo", kl_in="reward", kl_beta=0.5)
    groups = {"group_ids": PAIR, "keep": BOTH}
    found = token_rewards(torch.tensor([3.0, -1.0]), MASK, settings, kl=KL, **groups)
    assert found.tolist() == [[0, 0, 0, 1], [0, -1, 0, 0]]
    without = token_rewards(torch.tensor([3.0, -1.0]), MASK, settings, **groups)
    assert without.tolist() == [[0, 0, 0, 4], [0, -4, 0, 0]]
    advantages, _ = token_advantages(found, None, MASK, settings)
    assert advantages.tolist() == [[0, 1, 1, 1], [-1, -1, 0, 0]]
    young = MASK * torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1]])  # the others are too old to be trained on
    found = token_rewards(torch.tensor([3.0, -1.0]), young, settings, kl=KL, responses=MASK, **groups)
    assert found.tolist() == [[0, 0, 0, 1], [0, -1, 0, 0]]


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_no_responses_have_no_rewards(name: str):
    nothing = torch.zeros(0, 1)
    settings = AlgorithmSettings(advantage=name, kl_in="reward")
    groups = {"group_ids": torch.zeros(0, dtype=torch.int64), "keep": torch.zeros(0, dtype=torch.bool)}
    rewards = token_rewards(torch.zeros(0), nothing, settings, kl=nothing, **groups)
    advantages, _ = token_advantages(rewards, nothing if name == "gae" else None, nothing, settings)
    assert advantages.shape == (0, 1)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo", "reinforce_pp"])
def test_without_a_value_model_every_token_gets_its_sequence_number(name: str):
    """...minus beta x the KL still to come, where the KL is in the tokens' rewards."""
    settings = AlgorithmSettings(advantage=name, gamma=1.0, lam=0.95, kl_in="none")
    scores = torch.tensor([3.0, -2.0])
    rewards = per_token_rewards(scores, None, MASK)
    advantages, _ = token_advantages(rewards, None, MASK, settings)
    assert advantages.tolist() == [[0, 3, 3, 3], [-2, -2, 0, 0]]
    advantages, _ = token_advantages(per_token_rewards(scores, KL, MASK, beta=0.5), None, MASK, settings)
    assert advantages.tolist() == [[0, 3 - 3.5, 3 - 3.0, 3 - 2.0], [-2.5, -2.5, 0, 0]]


def test_gae_uses_the_settings_of_the_recipe():
    settings = AlgorithmSettings(gamma=0.5, lam=0.5, value_lam=0.0)
    rewards, values = torch.tensor([[0.0, 0, 8]]), torch.tensor([[2.0, 4, 6]])
    advantages, returns = token_advantages(rewards, values, torch.ones(1, 3), settings)
    assert advantages.tolist() == [[-0.125, -0.5, 2.0]]
    assert returns.tolist() == [[2.0, 3.0, 8.0]]  # one-step targets: r + gamma x the next value


def test_whitening_is_the_estimators_habit_unless_the_recipe_says_otherwise():
    habits = {name: should_whiten(AlgorithmSettings(advantage=name)) for name in ADVANTAGES}
    assert {name for name, whitened in habits.items() if whitened} == {"gae", "reinforce_pp", "reinforce_pp_baseline"}
    assert not should_whiten(AlgorithmSettings(advantage="gae", whiten=False))
    assert should_whiten(AlgorithmSettings(advantage="grpo", whiten=True))


def test_dynamic_sampling_keeps_groups_that_differ():
    assert is_informative((0.0, 0.0, 10.0))
    assert not is_informative((10.0, 10.0, 10.0))
    assert is_informative((NAN, 0.0, 10.0))
    assert not is_informative((NAN, 10.0, 10.0))
    assert not is_informative((NAN, NAN))
    assert not is_informative(())


def test_overlong_penalty_by_hand():
    """Longest 100, buffer 20: free up to 80, half at 90, all at 100 and beyond."""
    found = [overlong_penalty(n, max_tokens=100, buffer_tokens=20, penalty=4.0) for n in (1, 80, 81, 90, 100, 130)]
    assert found == pytest.approx([0, 0, -0.2, -2, -4, -4])
    assert overlong_penalty(100, max_tokens=100, buffer_tokens=0) == 0
    with pytest.raises(ValueError, match=r"0..max_tokens = 100; got 101"):
        overlong_penalty(1, max_tokens=100, buffer_tokens=101)
