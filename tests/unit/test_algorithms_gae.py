"""GAE, rewards and whitening: hand-worked tables, brute-force sums, and any split of the batch."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.algorithms.gae import decoupled_gae, gae
from rlsys.algorithms.kl import KL_ESTIMATORS, per_token_rewards
from rlsys.algorithms.whitening import combine_moments, moments, whiten

NAN = float("nan")


def test_gae_equals_the_hand_worked_table():
    """gamma .5, lambda .5 (product .25); rewards 0 0 8; values 2 4 6.

    delta_2 = 8 - 6 = 2;            A_2 = 2
    delta_1 = 0 + .5 x 6 - 4 = -1;  A_1 = -1 + .25 x 2 = -.5
    delta_0 = 0 + .5 x 4 - 2 = 0;   A_0 = 0 + .25 x -.5 = -.125
    """
    rewards, values = torch.tensor([0.0, 0, 8]), torch.tensor([2.0, 4, 6])
    advantages, returns = gae(rewards, values, torch.ones(3), 0.5, 0.5)
    assert advantages.tolist() == [-0.125, -0.5, 2.0]
    assert returns.tolist() == [1.875, 3.5, 8.0]
    assert advantages.dtype == returns.dtype == torch.float32


def test_padding_prompt_and_masked_tokens_are_passed_over():
    """The table again with a prompt, a masked token (a tool's output) inside and padding, NaN in all of them."""
    mask = torch.tensor([[0.0, 1, 0, 1, 1, 0]])
    rewards = torch.tensor([[NAN, 0, NAN, 0, 8, NAN]])
    values = torch.tensor([[NAN, 2, NAN, 4, 6, NAN]])
    advantages, returns = gae(rewards, values, mask, 0.5, 0.5)
    assert advantages.tolist() == [[0, -0.125, 0, -0.5, 2.0, 0]]
    assert returns.tolist() == [[0, 1.875, 0, 3.5, 8.0, 0]]


def brute_force(rewards: np.ndarray, values: np.ndarray, gamma: float, lam: float) -> np.ndarray:
    """A_t as the lambda-weighted mean of all n-step advantages (arXiv 1506.02438, eq. 15), for a finite sequence."""
    size = len(rewards)
    advantages = np.zeros(size)
    for t in range(size):
        n_step = []
        for n in range(1, size - t + 1):
            total = sum(gamma**i * rewards[t + i] for i in range(n))
            n_step.append(total + (gamma**n * values[t + n] if t + n < size else 0) - values[t])
        steps = len(n_step)
        advantages[t] = sum((1 - lam) * lam ** (n - 1) * n_step[n - 1] for n in range(1, steps))
        advantages[t] += lam ** (steps - 1) * n_step[-1]
    return advantages


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    gamma=st.sampled_from([1.0, 0.99, 0.5, 0.0]),
    lam=st.sampled_from([1.0, 0.95, 0.3, 0.0]),
)
def test_gae_equals_the_brute_force_sum(seed: int, lengths: list[int], gamma: float, lam: float):
    rng = np.random.default_rng(seed)
    shape = (len(lengths), max(lengths))
    rewards, values = rng.normal(size=(2, *shape)).astype(np.float32)
    mask = torch.tensor([[float(t < size) for t in range(shape[1])] for size in lengths])
    advantages, returns = gae(torch.from_numpy(rewards), torch.from_numpy(values), mask, gamma, lam)
    for row, size in enumerate(lengths):
        wanted = brute_force(rewards[row, :size].astype(float), values[row, :size].astype(float), gamma, lam)
        np.testing.assert_allclose(advantages[row, :size].numpy(), wanted, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(returns[row, :size].numpy(), wanted + values[row, :size], rtol=1e-5, atol=1e-5)
        assert not advantages[row, size:].any() and not returns[row, size:].any()


def test_decoupled_lambdas_give_each_its_own():
    """Value lambda 1, gamma 1: a return is the whole reward to come. Policy lambda 0: advantages are the deltas."""
    rewards, values = torch.tensor([[1.0, 2, 8]]), torch.tensor([[2.0, 4, 6]])
    advantages, returns = decoupled_gae(rewards, values, torch.ones(1, 3), gamma=1.0, lam=0.0, value_lam=1.0)
    assert advantages.tolist() == [[1 + 4 - 2, 2 + 6 - 4, 8 - 6]]
    assert returns.tolist() == [[11, 10, 8]]


def test_gae_of_constant_zero_values_is_the_reward_to_go():
    advantages, _ = gae(torch.tensor([1.0, 2, 8]), torch.zeros(3), torch.ones(3), 1.0, 1.0)
    assert advantages.tolist() == [11, 10, 8]


def test_kl_estimators_by_hand():
    """Policy 1/2 and reference 1/4: log ratio -log 2. k1 = log 2, k2 = (log 2)^2 / 2, k3 = 1/2 - 1 + log 2."""
    policy, reference = torch.tensor(0.5).log(), torch.tensor(0.25).log()
    found = {name: estimator(policy, reference).item() for name, estimator in KL_ESTIMATORS.items()}
    log2 = math.log(2)
    assert found == pytest.approx({"k1": log2, "k2": log2**2 / 2, "k3": 0.5 - 1 + log2}, rel=1e-6)


def test_what_the_estimators_estimate_and_where_their_gradients_lead():
    """Exact expectations over a distribution of four outcomes, no sampling."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    log_p = torch.log_softmax(logits, 0)
    log_q = torch.log_softmax(torch.tensor([0.0, 0.5, 0.2, -0.7], dtype=torch.float64), 0)
    p = log_p.exp().detach()
    kl = (log_p.exp() * (log_p - log_q)).sum()
    for name in ("k1", "k3"):
        assert (p * KL_ESTIMATORS[name](log_p, log_q)).sum().item() == pytest.approx(kl.item(), rel=1e-12)
    (wanted,) = torch.autograd.grad(kl, logits, retain_graph=True)
    (found,) = torch.autograd.grad((p * KL_ESTIMATORS["k2"](log_p, log_q)).sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, wanted)
    other_way = (log_q.exp() * (log_q - log_p)).sum()
    (wanted,) = torch.autograd.grad(other_way, logits, retain_graph=True)
    (found,) = torch.autograd.grad((p * KL_ESTIMATORS["k3"](log_p, log_q)).sum(), logits, retain_graph=True)
    torch.testing.assert_close(found, wanted)
    (nothing,) = torch.autograd.grad((p * KL_ESTIMATORS["k1"](log_p, log_q)).sum(), logits)
    assert nothing.abs().max() < 1e-12  # why the recipe refuses k1 as a loss


def test_rewards_put_the_score_on_the_last_token():
    """Row 0: prompt, three tokens, the last is EOS. Row 1: cut, no EOS: the last token. Row 2: masked, score NaN."""
    mask = torch.tensor([[0.0, 1, 1, 1, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    kl = torch.tensor([[NAN, 1.0, 2, 3, NAN], [NAN, 0, 0, 4, 8], [NAN] * 5])
    rewards = per_token_rewards(torch.tensor([10.0, -10.0, NAN]), kl, mask, beta=0.5)
    assert rewards.tolist() == [[0, -0.5, -1, 8.5, 0], [0, 0, 0, -2, -14], [0] * 5]


def test_whitening_by_hand():
    """1, 3, 5: mean 3, unbiased variance 4; NaN where masked."""
    x, mask = torch.tensor([1.0, 3, 5, NAN]), torch.tensor([1.0, 1, 1, 0])
    found = moments(x, mask)
    assert [value.item() for value in found] == [3, 3, 8]
    assert whiten(x, found, mask).tolist() == pytest.approx([-1, 0, 1, 0], rel=1e-7)


def test_whitening_of_equal_or_single_values_is_zero_not_nan():
    for values in ([2.5, 2.5, 2.5], [7.0]):
        x, mask = torch.tensor(values), torch.ones(len(values))
        assert whiten(x, moments(x, mask), mask).tolist() == [0.0] * len(values)


def test_moments_of_nothing():
    nothing = moments(torch.tensor([NAN]), torch.zeros(1))
    some = moments(torch.tensor([1.0, 3.0]), torch.ones(2))
    assert [value.item() for value in nothing] == [0, 0, 0]
    for parts in ([nothing, some], [some, nothing], [nothing, some, nothing]):
        assert [value.item() for value in combine_moments(parts)] == [2, 2, 2]
    with pytest.raises(ValueError, match="at least one part"):
        combine_moments([])


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_moments_combine_over_any_ranks(values: list[float], cuts: list[int]):
    x = torch.tensor(values)
    edges = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [moments(x[a:b], torch.ones(b - a)) for a, b in pairwise(edges)]
    combined = combine_moments(parts)
    exact = np.array(values, np.float64)
    assert combined.num.item() == len(values)
    assert combined.mean.item() == pytest.approx(exact.mean(), rel=1e-9, abs=1e-9)
    variance = exact.var(ddof=1) if len(values) > 1 else 0.0
    assert combined.variance.item() == pytest.approx(variance, rel=1e-9, abs=1e-6)
