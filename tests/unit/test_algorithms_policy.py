"""Policy and value losses, lag correction and their metrics, by hand and under any split of the batch."""

import math
from itertools import pairwise

import pytest
import torch
from algorithm_oracle import Layout, make_sequences
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.algorithms.lag_correction import LAG_CORRECTIONS, lag_correction
from rlsys.algorithms.metric_sums import add_sums, finish_sums
from rlsys.algorithms.policy_loss import POLICY_LOSSES, PolicyBatch, policy_loss
from rlsys.algorithms.sequences import count_denominator, token_weights
from rlsys.algorithms.supervised_loss import supervised_loss
from rlsys.algorithms.value_loss import value_loss
from rlsys.recipe.algorithm import AlgorithmSettings, LagCorrectionSettings

NAN = float("nan")


def four_tokens() -> PolicyBatch:
    """Ratios 1.5, 1.5, 0.5, 0.5 with advantages +1, -1, +1, -1: of the four, the first and the last are clipped."""
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5]])
    return PolicyBatch(
        ratios.log().requires_grad_(), torch.zeros(1, 4), torch.tensor([[1.0, -1, 1, -1]]), torch.ones(1, 4)
    )


def test_ppo_by_hand():
    """max(-A rho, -A clip(rho)), clip .2: -1.2, 1.5, -.5, .8; clipped ones have no gradient, the others -A rho / 4."""
    batch = four_tokens()
    loss, sums = policy_loss(batch, AlgorithmSettings(kl_in="none"), denominator=4)
    loss.backward()
    assert loss.item() == pytest.approx((-1.2 + 1.5 - 0.5 + 0.8) / 4, rel=1e-6)
    assert batch.logprobs.grad is not None
    assert batch.logprobs.grad.tolist()[0] == pytest.approx([0, 1.5 / 4, -0.5 / 4, 0], rel=1e-6)
    metrics = finish_sums(sums)
    assert metrics["policy/clip_frac"] == 0.5
    assert metrics["policy/ratio/mean"] == pytest.approx(1.0)
    assert metrics["policy/ratio/std"] == pytest.approx(0.5)
    k3 = (2 * (0.5 - math.log(1.5)) + 2 * (-0.5 + math.log(2))) / 4
    assert metrics["policy/approx_kl"] == pytest.approx(k3, rel=1e-6)


def test_clip_higher_by_hand():
    """Upper clip .6 lets 1.5 through."""
    loss, sums = policy_loss(four_tokens(), AlgorithmSettings(kl_in="none", clip_high=0.6), denominator=4)
    assert loss.item() == pytest.approx((-1.5 + 1.5 - 0.5 + 0.8) / 4, rel=1e-6)
    assert finish_sums(sums)["policy/clip_frac"] == 0.25


def test_dual_clip_by_hand():
    """Bound 1.25 x |A| holds the second token, whose loss was 1.5."""
    loss, sums = policy_loss(four_tokens(), AlgorithmSettings(kl_in="none", dual_clip=1.25), denominator=4)
    assert loss.item() == pytest.approx((-1.2 + 1.25 - 0.5 + 0.8) / 4, rel=1e-6)
    assert finish_sums(sums)["policy/clip_frac"] == 0.75


def test_cispo_keeps_the_gradient_of_clipped_tokens():
    """-clip(rho) A / 4 for each token: 1.2, 1.2, .8, .8."""
    batch = four_tokens()
    loss, sums = policy_loss(batch, AlgorithmSettings(policy_loss="cispo", kl_in="none"), denominator=4)
    loss.backward()
    assert batch.logprobs.grad is not None
    assert batch.logprobs.grad.tolist()[0] == pytest.approx([-0.3, 0.3, -0.2, 0.2], rel=1e-6)
    assert finish_sums(sums)["policy/clip_frac"] == 1.0


def test_gspo_takes_one_ratio_for_a_sequence():
    """Log ratios 0 and log 4: s = exp(log 4 / 2) = 2, clipped to 1.2 for A = 1, free for A = -1."""
    settings = AlgorithmSettings(policy_loss="gspo", aggregation="sequence", kl_in="none")
    for advantage, wanted, gradient in ((1.0, -1.2, 0.0), (-1.0, 2.0, 1.0)):
        logprobs = torch.tensor([[0.0, math.log(4)]], requires_grad=True)
        batch = PolicyBatch(logprobs, torch.zeros(1, 2), torch.full((1, 2), advantage), torch.ones(1, 2))
        loss, sums = policy_loss(batch, settings, denominator=1)
        loss.backward()
        assert loss.item() == pytest.approx(wanted, rel=1e-6)
        assert logprobs.grad is not None
        assert logprobs.grad.tolist()[0] == pytest.approx([gradient, gradient], rel=1e-6)
        assert finish_sums(sums)["policy/ratio/mean"] == pytest.approx(2.0, rel=1e-6)


def test_aggregations_weigh_tokens_as_they_say():
    mask = torch.tensor([[0.0, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    assert token_weights(mask, "token").tolist() == mask.tolist()
    assert token_weights(mask, "sequence").tolist() == [[0, 0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0, 0]]
    assert token_weights(mask, "fixed_length", max_length=8).sum().item() == 5 / 8
    assert [count_denominator(mask, name).item() for name in ("token", "sequence", "fixed_length")] == [5, 2, 2]
    with pytest.raises(ValueError, match="needs max_length; got None"):
        token_weights(mask, "fixed_length")
    with pytest.raises(ValueError, match="unknown aggregation 'mean'"):
        token_weights(mask, "mean")


def test_a_fully_masked_sequence_counts_in_no_denominator():
    assert count_denominator(torch.tensor([[0.0, 0], [1, 1]]), "sequence").item() == 1
    mask, ids = torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0, 0, 1, 1]])
    assert token_weights(mask, "sequence", sequence_ids=ids).tolist() == [[0, 0, 0.5, 0.5]]


def test_value_clipping_by_hand():
    """V_old 0, R 1, clip .2. V .5: clipped, .8^2 > .5^2. V -.1: inside, 1.1^2. V -.5: 1.5^2 > the clipped 1.2^2."""
    values = torch.tensor([[0.5, -0.1, -0.5]], requires_grad=True)
    zeros, ones = torch.zeros(1, 3), torch.ones(1, 3)
    loss, sums = value_loss(values, zeros, ones, ones, clip=0.2, denominator=2)
    loss.backward()
    assert loss.item() == pytest.approx(0.5 * (0.64 + 1.21 + 2.25) / 2, rel=1e-6)
    assert values.grad is not None
    assert values.grad.tolist()[0] == pytest.approx([0, -1.1 / 2, -1.5 / 2], rel=1e-6)
    assert sums["value/clip_frac@tokens"].item() == 1


def test_explained_variance_by_hand():
    """Returns 1 2 3 4 (variance 5/4), old values 1 2 3 3 (residuals 0 0 0 1, variance 3/16): 1 - 3/20."""
    returns, old = torch.tensor([[1.0, 2, 3, 4, NAN]]), torch.tensor([[1.0, 2, 3, 3, NAN]])
    mask = torch.tensor([[1.0, 1, 1, 1, 0]])
    halves = [value_loss(old[:, part], old[:, part], returns[:, part], mask[:, part], clip=0.2, denominator=4)[1]
              for part in (slice(0, 2), slice(2, 5))]  # fmt: skip
    assert finish_sums(add_sums(halves))["value/explained_variance"] == pytest.approx(0.85, rel=1e-9)
    constant = value_loss(old, old, torch.full((1, 5), 2.0), mask, clip=0.2, denominator=4)[1]
    assert "value/explained_variance" not in finish_sums(constant)


LAG_RATIOS = torch.tensor([[0.25, 1.0, 3.0, NAN], [2.0, 2.0, NAN, NAN]])
LAG_MASK = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 0]])


@pytest.mark.parametrize(
    ("name", "wanted", "touched"),
    [
        ("none", [[1, 1, 1, 0], [1, 1, 0, 0]], 0),
        ("decoupled", [[0.25, 1, 3, 0], [2, 2, 0, 0]], 0),
        ("truncated", [[0.25, 1, 2.5, 0], [2, 2, 0, 0]], 1),
        ("mask", [[0, 1, 0, 0], [2, 2, 0, 0]], 2),
        ("sequence_truncated", [[0.75, 0.75, 0.75, 0], [2.5, 2.5, 0, 0]], 2),  # products .75 and 4
        ("sequence_mask", [[0.75, 0.75, 0.75, 0], [0, 0, 0, 0]], 2),
        ("geometric_mask", [[0.75 ** (1 / 3)] * 3 + [0], [2, 2, 0, 0]], 0),
    ],
)
def test_lag_weights_by_hand(name: str, wanted: list[list[float]], touched: int):
    settings = LagCorrectionSettings(name=name, lower=0.5, upper=2.5)
    proximal = LAG_RATIOS.log().requires_grad_()
    weights, sums = lag_correction(proximal, torch.zeros(2, 4), LAG_MASK, settings)
    assert not weights.requires_grad
    torch.testing.assert_close(weights, torch.tensor(wanted, dtype=torch.float32), rtol=1e-6, atol=0)
    assert sums["policy/lag_touched_frac@tokens"].item() == touched
    assert finish_sums(sums)["policy/lag_weight/mean"] == pytest.approx(sum(map(sum, wanted)) / 5, rel=1e-6)


def test_mismatch_is_told_from_lag_by_the_versions():
    lag_steps = torch.tensor([[0, 1, 2, 0], [0, 0, 0, 0]])
    settings = LagCorrectionSettings(name="none")
    _, sums = lag_correction(LAG_RATIOS.log(), torch.zeros(2, 4), LAG_MASK, settings, lag_steps=lag_steps)
    metrics = finish_sums(sums)

    def k3(*ratios: float) -> float:
        return sum(ratio - 1 - math.log(ratio) for ratio in ratios) / len(ratios)

    assert metrics["policy/mismatch_kl"] == pytest.approx(k3(0.25, 2, 2), rel=1e-6)
    assert metrics["policy/lag_kl"] == pytest.approx(k3(1, 3), rel=1e-6)
    assert metrics["policy/mismatch_abs"] == pytest.approx((math.log(4) + 2 * math.log(2)) / 3, rel=1e-6)
    fresh = finish_sums(lag_correction(LAG_RATIOS.log(), torch.zeros(2, 4), LAG_MASK, settings)[1])
    assert "policy/lag_kl" not in fresh


def test_no_lag_is_no_correction():
    logprobs = torch.tensor([[-1.0, -2.0, -0.5]])
    for name in LAG_CORRECTIONS:
        weights, sums = lag_correction(logprobs, logprobs, torch.ones(1, 3), LagCorrectionSettings(name=name))
        assert weights.tolist() == [[1.0, 1.0, 1.0]]
        assert sums["policy/mismatch_kl@fresh_tokens"].item() == 0


def test_decoupled_ppo_on_the_first_pass_has_the_gradient_of_importance_sampling():
    """With pi = pi_old, w d(rho) = (pi_old / mu) d log pi: what an off-policy estimator should have."""
    mu, pi = torch.tensor([[-1.0, -3.0]]), torch.tensor([[-1.5, -2.0]], requires_grad=True)
    weights, _ = lag_correction(pi.detach(), mu, torch.ones(1, 2), LagCorrectionSettings(name="decoupled"))
    batch = PolicyBatch(pi, pi.detach(), torch.tensor([[2.0, -1.0]]), torch.ones(1, 2), lag_weights=weights)
    policy_loss(batch, AlgorithmSettings(kl_in="none"), denominator=2)[0].backward()
    assert pi.grad is not None
    assert pi.grad.tolist()[0] == pytest.approx([-math.exp(-0.5), 0.5 * math.exp(1.0)], rel=1e-6)


EVERYTHING = {"kl_in": "loss", "kl_estimator": "k3", "kl_beta": 0.1, "entropy_coef": 0.05}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 6), min_size=2, max_size=8).map(tuple),
    cuts=st.lists(st.integers(0, 8), max_size=3),
    name=st.sampled_from(sorted(POLICY_LOSSES)),
    aggregation=st.sampled_from(["token", "sequence", "fixed_length"]),
)
def test_any_split_into_micro_batches_and_any_packing_give_the_same_step(
    seed: int, lengths: tuple[int, ...], cuts: list[int], name: str, aggregation: str
):
    """Losses and sums of the parts add up to those of the whole; gradients are equal; parts are packed anew."""
    settings = AlgorithmSettings(policy_loss=name, aggregation=aggregation, **EVERYTHING)
    sequences = make_sequences(seed, lengths)
    parts = [(0, len(lengths))]
    edges = sorted({0, *(min(cut, len(lengths)) for cut in cuts), len(lengths)})
    splits = [parts, list(pairwise(edges))]
    batches = [[packed(sequences[a:b]) for a, b in split] for split in splits]
    denominator = sum(count_denominator(torch.ones(1, length), aggregation) for length in lengths)
    results = []
    for micro_batches in batches:
        outputs = [policy_loss(b, settings, denominator=denominator, max_length=9) for b, _ in micro_batches]
        total = sum(loss for loss, _ in outputs)
        assert isinstance(total, torch.Tensor)
        total.backward()
        gradient = [layout.take(b.logprobs.grad) for b, layout in micro_batches if b.logprobs.grad is not None]
        results.append(
            (total.item(), torch.cat([torch.from_numpy(g) for g in gradient]), add_sums(s for _, s in outputs))
        )
    (loss, gradient, sums), (other_loss, other_gradient, other_sums) = results
    assert other_loss == pytest.approx(loss, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(other_gradient, gradient, rtol=1e-5, atol=1e-7)
    assert other_sums.keys() == sums.keys()
    for key in sums:
        assert other_sums[key].item() == pytest.approx(sums[key].item(), rel=1e-5, abs=1e-5), key


def packed(sequences) -> tuple[PolicyBatch, Layout]:
    layout = Layout(tuple(s.length for s in sequences))
    batch = PolicyBatch(
        logprobs=layout.put([s.logprobs for s in sequences], requires_grad=True),
        old_logprobs=layout.put([s.old for s in sequences]),
        advantages=layout.put([s.advantages for s in sequences]),
        mask=layout.mask(),
        reference_logprobs=layout.put([s.reference for s in sequences]),
        entropy=layout.put([s.entropy for s in sequences]),
        lag_weights=layout.put([s.lag for s in sequences]),
        sequence_ids=layout.sequence_ids(),
    )
    return batch, layout


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 6))
def test_supervised_loss_is_the_same_in_any_split(seed: int, cut: int):
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(6, 5, generator=generator) - 2
    weights = torch.randint(0, 3, (6, 5), generator=generator).float()
    whole, sums = supervised_loss(logprobs, weights, denominator=31)
    parts = [supervised_loss(logprobs[p], weights[p], denominator=31) for p in (slice(0, cut), slice(cut, 6))]
    assert sum(loss.item() for loss, _ in parts) == pytest.approx(whole.item(), rel=1e-6, abs=1e-7)
    together = finish_sums(add_sums(part for _, part in parts))
    assert together == pytest.approx(finish_sums(sums), rel=1e-6)
