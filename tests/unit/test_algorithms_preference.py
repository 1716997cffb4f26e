"""Losses over pairs, of reward models and of answers, by hand: logits of log 3, whose sigmoid is 3/4."""

from typing import Any

import pytest
import torch

from rlsys.algorithms.metric_sums import finish_sums
from rlsys.algorithms.preference_loss import PairLogprobs, preference_loss, reward_model_loss
from rlsys.algorithms.supervised_loss import supervised_loss
from rlsys.recipe.algorithm import PreferenceLossSettings

LOG_3, LOG_4_3 = 1.0986122886681098, 0.2876820724517809
"""log 3, and -log sigma(log 3) = log 4/3."""


def one_pair() -> PairLogprobs:
    """h = log(policy / reference): 2 over 4 tokens chosen, -1 over 2 tokens rejected; a token's mean: 0.5 and -0.5."""
    return PairLogprobs(
        chosen=torch.tensor([-6.0], requires_grad=True),
        rejected=torch.tensor([-5.0], requires_grad=True),
        chosen_tokens=torch.tensor([4.0]),
        rejected_tokens=torch.tensor([2.0]),
        reference_chosen=torch.tensor([-8.0]),
        reference_rejected=torch.tensor([-4.0]),
    )


@pytest.mark.parametrize(
    ("settings", "loss", "gradients"),
    [
        # beta (0.5 - -0.5) = log 3; d/d chosen = -(1 - 3/4) beta / 4 tokens
        ({"beta": LOG_3}, LOG_4_3, (-0.25 * LOG_3 / 4, 0.25 * LOG_3 / 2)),
        # Tülu 3's beta: -log sigma(5)
        ({}, 0.006715348489118068, (-0.006692850924284856 * 5 / 4, 0.006692850924284856 * 5 / 2)),
        # one label in ten is flipped: 0.9 log 4/3 + 0.1 log 4; slope 3/4 - 0.9
        (
            {"beta": LOG_3, "label_smoothing": 0.1},
            0.9 * LOG_4_3 + 0.1 * 1.3862943611198906,
            (-0.15 * LOG_3 / 4, 0.15 * LOG_3 / 2),
        ),
        # beta (2 - -1) = log 3
        ({"name": "dpo", "beta": LOG_3 / 3}, LOG_4_3, (-0.25 * LOG_3 / 3, 0.25 * LOG_3 / 3)),
        # (1 - 1 / (2 x 0.25))^2 = 1; slope 2 x -1
        ({"name": "ipo", "beta": 0.25}, 1.0, (-2.0 / 4, 2.0 / 2)),
        # without a reference: 2 (-6 / 4 - -5 / 2) - (2 - log 3) = log 3
        ({"name": "simpo", "beta": 2.0, "simpo_margin": 2 - LOG_3}, LOG_4_3, (-0.25 * 2 / 4, 0.25 * 2 / 2)),
    ],
)
def test_a_pair_by_hand(settings: dict[str, Any], loss: float, gradients: tuple[float, float]):
    pair = one_pair()
    found, _ = preference_loss(pair, PreferenceLossSettings(**settings), denominator=1)
    found.backward()
    assert found.item() == pytest.approx(loss, rel=1e-5)
    assert pair.chosen.grad is not None and pair.rejected.grad is not None
    assert (pair.chosen.grad.item(), pair.rejected.grad.item()) == pytest.approx(gradients, rel=1e-5)


def test_implicit_rewards_by_hand():
    """Length-normalised: 5 x 0.5 and 5 x -0.5."""
    _, sums = preference_loss(one_pair(), PreferenceLossSettings(), denominator=1)
    metrics = finish_sums(sums)
    names = ("accuracy", "chosen_reward", "rejected_reward", "margin")
    assert [metrics[f"preference/{name}"] for name in names] == [1.0, 2.5, -2.5, 5.0]


def test_reward_model_by_hand():
    """Scores that differ by log 3, and equal ones: (log 4/3 + log 2) / 2; centring adds 0.5 x (1 + 1 + log 3)^2 / 2."""
    chosen, rejected = torch.tensor([1 + LOG_3, 0.0], requires_grad=True), torch.tensor([1.0, 0.0])
    loss, sums = reward_model_loss(chosen, rejected, denominator=2)
    loss.backward()
    assert loss.item() == pytest.approx((LOG_4_3 + 0.6931471805599453) / 2, rel=1e-6)
    assert chosen.grad is not None
    assert chosen.grad.tolist() == pytest.approx([-0.25 / 2, -0.5 / 2], rel=1e-6)
    assert finish_sums(sums)["reward_model/accuracy"] == 0.5
    centred, _ = reward_model_loss(chosen, rejected, denominator=2, center_coef=0.5)
    assert (centred - loss).item() == pytest.approx(0.25 * (2 + LOG_3) ** 2, rel=1e-6)


def test_a_margin_by_hand():
    """3 - 1 - (2 - log 3) = log 3."""
    loss, _ = reward_model_loss(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([2 - LOG_3]), denominator=1)
    assert loss.item() == pytest.approx(LOG_4_3, rel=1e-6)


def test_answers_by_hand():
    """Probabilities 1/2 and 1/4 at weights 1 and 0.5, a prompt's token at 0: (log 2 + 0.5 log 4) / 4."""
    logprobs = torch.tensor([[float("nan"), 0.5, 0.25]]).log().requires_grad_()
    loss, sums = supervised_loss(logprobs, torch.tensor([[0.0, 1.0, 0.5]]), denominator=4)
    loss.backward()
    assert loss.item() == pytest.approx(1.3862943611198906 / 4, rel=1e-6)
    assert logprobs.grad is not None and logprobs.grad.tolist() == [[0.0, -0.25, -0.125]]
    assert finish_sums(sums)["supervised/nll"] == pytest.approx(1.3862943611198906 / 1.5, rel=1e-6)
