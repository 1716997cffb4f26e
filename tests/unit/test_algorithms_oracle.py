"""Every loss and its gradient against an independent float64 oracle, to 1e-6 relative."""

import numpy as np
import pytest
import torch
from algorithm_oracle import Layout, central_difference, make_sequences, policy_oracle, relative_error

from rlsys.algorithms.policy_loss import POLICY_LOSSES, PolicyBatch, policy_loss
from rlsys.algorithms.preference_loss import PREFERENCE_LOSSES, PairLogprobs, preference_loss, reward_model_loss
from rlsys.algorithms.sequences import count_denominator
from rlsys.algorithms.supervised_loss import supervised_loss
from rlsys.algorithms.value_loss import value_loss
from rlsys.recipe.algorithm import AlgorithmSettings, PreferenceLossSettings

LENGTHS = (3, 7, 5, 1, 6)
MAX_LENGTH = 11
NO_KL = {"kl_in": "none"}
VARIANTS = {
    "plain": NO_KL,
    "clip_higher": {**NO_KL, "clip": 0.2, "clip_high": 0.28},
    "kl_k2": {"kl_in": "loss", "kl_estimator": "k2", "kl_beta": 0.3},
    "kl_k3": {"kl_in": "loss", "kl_estimator": "k3", "kl_beta": 0.3},
    "entropy": {**NO_KL, "entropy_coef": 0.2},
}


@pytest.mark.parametrize("lag", [False, True], ids=["", "lag"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed_length"])
@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_policy_loss_and_gradient(name: str, aggregation: str, variant: str, lag: bool):
    check_policy(AlgorithmSettings(policy_loss=name, aggregation=aggregation, **VARIANTS[variant]), lag=lag)


@pytest.mark.parametrize("name", ["ppo_clip", "gspo"])
def test_dual_clip_and_gradient(name: str):
    # a ratio of e^1.5 and more needs a wide spread for dual clip to bind
    check_policy(AlgorithmSettings(policy_loss=name, dual_clip=1.3, **NO_KL), lag=False, spread=1.2)


def check_policy(settings: AlgorithmSettings, *, lag: bool, spread: float = 0.4):
    layout, sequences = Layout(LENGTHS), make_sequences(11, LENGTHS, spread)
    logprobs = layout.put([s.logprobs for s in sequences], requires_grad=True)
    entropy = layout.put([s.entropy for s in sequences], requires_grad=True)
    batch = PolicyBatch(
        logprobs=logprobs,
        old_logprobs=layout.put([s.old for s in sequences]),
        advantages=layout.put([s.advantages for s in sequences]),
        mask=layout.mask(),
        reference_logprobs=layout.put([s.reference for s in sequences]),
        entropy=entropy,
        lag_weights=layout.put([s.lag for s in sequences]) if lag else None,
        sequence_ids=layout.sequence_ids(),
    )
    denominator = sum(count_denominator(torch.ones(1, length), settings.aggregation) for length in LENGTHS)
    loss, _ = policy_loss(batch, settings, denominator=denominator, max_length=MAX_LENGTH)
    loss.backward()

    def oracle(flat: np.ndarray) -> float:
        return policy_oracle(flat, sequences, settings, max_length=MAX_LENGTH, lag=lag)

    flat = np.concatenate([s.logprobs for s in sequences])
    assert relative_error(loss.item(), oracle(flat)) < 1e-6
    assert logprobs.grad is not None
    assert relative_error(layout.take(logprobs.grad), central_difference(oracle, flat)) < 1e-6
    outside = logprobs.grad[layout.mask() == 0]
    assert torch.equal(outside, torch.zeros_like(outside))
    if settings.entropy_coef:
        assert entropy.grad is not None
        wanted = np.concatenate(
            [np.full(size, weight) for size, weight in zip(LENGTHS, entropy_weights(settings), strict=True)]
        )
        assert relative_error(layout.take(entropy.grad), wanted) < 1e-6


def entropy_weights(settings: AlgorithmSettings) -> list[float]:
    """-coefficient x the weight of a token, by sequence."""
    per = {"token": lambda _: sum(LENGTHS), "sequence": lambda n: n * len(LENGTHS)}
    per["fixed_length"] = lambda _: MAX_LENGTH * len(LENGTHS)
    return [-settings.entropy_coef / per[settings.aggregation](size) for size in LENGTHS]


def test_supervised_loss_and_gradient():
    rng = np.random.default_rng(0)
    logprobs = torch.tensor(rng.normal(-2, 1, (3, 6)), dtype=torch.float32, requires_grad=True)
    weights = torch.tensor(rng.choice([0, 0, 1, 0.5, 2], (3, 6)), dtype=torch.float32)
    with torch.no_grad():
        logprobs[weights == 0] = float("nan")
    denominator = 17.0
    loss, sums = supervised_loss(logprobs, weights, denominator=denominator)
    loss.backward()
    p, w = logprobs.detach().double().numpy(), weights.double().numpy()
    wanted = sum(-w[i, j] * p[i, j] for i in range(3) for j in range(6) if w[i, j]) / denominator
    assert relative_error(loss.item(), wanted) < 1e-6
    assert logprobs.grad is not None
    assert relative_error(logprobs.grad.double().numpy(), -w / denominator) < 1e-6
    assert sums["supervised/nll@weight"].item() / sums["@weight"].item() == pytest.approx(
        wanted * 17 / w.sum(), rel=1e-6
    )


def pair_oracle(flat: np.ndarray, others: dict[str, np.ndarray], settings: PreferenceLossSettings) -> float:
    """Mean loss over pairs, with log(1 + exp) written out."""
    chosen, rejected = np.split(flat, 2)
    total = 0.0
    for i in range(len(chosen)):
        h_chosen = chosen[i] - others["reference_chosen"][i]
        h_rejected = rejected[i] - others["reference_rejected"][i]
        n_chosen, n_rejected = others["chosen_tokens"][i], others["rejected_tokens"][i]
        if settings.name == "ipo":
            total += (h_chosen / n_chosen - h_rejected / n_rejected - 0.5 / settings.beta) ** 2
            continue
        gap = {
            "dpo": h_chosen - h_rejected,
            "dpo_norm": h_chosen / n_chosen - h_rejected / n_rejected,
            "simpo": chosen[i] / n_chosen - rejected[i] / n_rejected - settings.simpo_margin / settings.beta,
        }[settings.name]
        logit, flip = settings.beta * gap, settings.label_smoothing
        total += (1 - flip) * np.log1p(np.exp(-logit)) + flip * np.log1p(np.exp(logit))
    return total / len(chosen)


@pytest.mark.parametrize(
    ("name", "label_smoothing"),
    [(name, flip) for name in PREFERENCE_LOSSES for flip in (0.0, 0.1) if not (name == "ipo" and flip)],
)
def test_preference_loss_and_gradient(name: str, label_smoothing: float):
    settings = PreferenceLossSettings(
        name=name, beta=0.1 if name == "dpo" else 2.0, label_smoothing=label_smoothing, simpo_margin=0.7
    )
    rng = np.random.default_rng(3)
    size = 6
    flat = rng.normal(-30, 8, 2 * size).astype(np.float32)
    others = {
        "reference_chosen": (flat[:size] + rng.normal(0, 6, size)).astype(np.float32),
        "reference_rejected": (flat[size:] + rng.normal(0, 6, size)).astype(np.float32),
        "chosen_tokens": rng.integers(5, 20, size).astype(np.float32),
        "rejected_tokens": rng.integers(5, 20, size).astype(np.float32),
    }
    chosen = torch.from_numpy(flat[:size]).requires_grad_()
    rejected = torch.from_numpy(flat[size:]).requires_grad_()
    pairs = PairLogprobs(chosen, rejected, **{key: torch.from_numpy(value) for key, value in others.items()})
    loss, _ = preference_loss(pairs, settings, denominator=size)
    loss.backward()
    exact = {key: value.astype(np.float64) for key, value in others.items()}
    at = flat.astype(np.float64)
    assert relative_error(loss.item(), pair_oracle(at, exact, settings)) < 1e-6
    assert chosen.grad is not None and rejected.grad is not None
    found = torch.cat([chosen.grad, rejected.grad]).double().numpy()
    wanted = central_difference(lambda x: pair_oracle(x, exact, settings), at, step=1e-5)
    assert relative_error(found, wanted) < 1e-6


@pytest.mark.parametrize("with_margins", [False, True])
def test_reward_model_loss_and_gradient(with_margins: bool):
    rng = np.random.default_rng(5)
    flat, margins = rng.normal(0, 2, 10).astype(np.float32), rng.uniform(0, 1, 5).astype(np.float32)
    chosen, rejected = (torch.from_numpy(half).requires_grad_() for half in np.split(flat, 2))
    loss, _ = reward_model_loss(
        chosen, rejected, torch.from_numpy(margins) if with_margins else None, denominator=5, center_coef=0.01
    )
    loss.backward()

    def oracle(x: np.ndarray) -> float:
        total = 0.0
        for good, bad, margin in zip(x[:5], x[5:], margins.astype(np.float64) * with_margins, strict=True):
            total += np.log1p(np.exp(-(good - bad - margin))) + 0.01 * (good + bad) ** 2
        return total / 5

    at = flat.astype(np.float64)
    assert chosen.grad is not None and rejected.grad is not None
    assert relative_error(loss.item(), oracle(at)) < 1e-6
    found = torch.cat([chosen.grad, rejected.grad]).double().numpy()
    assert relative_error(found, central_difference(oracle, at)) < 1e-6


@pytest.mark.parametrize("clip", [0.2, 0.0])
def test_value_loss_and_gradient(clip: float):
    layout, rng = Layout(LENGTHS), np.random.default_rng(7)
    draws = [[rng.normal(0, 1, size).astype(np.float32) for size in LENGTHS] for _ in range(3)]
    values, old, returns = (layout.put(draw) for draw in draws)
    values.requires_grad_()
    loss, sums = value_loss(values, old, returns, layout.mask(), clip=clip, denominator=sum(LENGTHS))
    loss.backward()
    flat, flat_old, flat_returns = (np.concatenate(draw).astype(np.float64) for draw in draws)

    def oracle(x: np.ndarray) -> float:
        total = 0.0
        for value, before, target in zip(x, flat_old, flat_returns, strict=True):
            error = (value - target) ** 2
            if clip:
                error = max(error, (before + min(max(value - before, -clip), clip) - target) ** 2)
            total += error / 2
        return total / len(x)

    assert values.grad is not None
    assert relative_error(loss.item(), oracle(flat)) < 1e-6
    assert relative_error(layout.take(values.grad), central_difference(oracle, flat)) < 1e-6
    held = (flat_old + np.clip(flat - flat_old, -clip, clip) - flat_returns) ** 2 > (flat - flat_returns) ** 2
    assert sums["value/clip_frac@tokens"].item() == (held.sum() if clip else 0)
