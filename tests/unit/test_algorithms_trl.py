"""DPO, length-normalised DPO, cDPO, IPO, SimPO, the reward model and GRPO's family equal TRL's code on the same batch.

TRL's loss methods are called unbound, with a stand-in for the trainer that holds the settings they read and a model
that returns the batch's logprobs: the arithmetic is all theirs.
"""

import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

from rlsys.algorithms.advantages import ADVANTAGES, token_advantages, token_rewards
from rlsys.algorithms.kl import KL_ESTIMATORS
from rlsys.algorithms.lag_correction import lag_correction
from rlsys.algorithms.policy_loss import PolicyBatch, policy_loss
from rlsys.algorithms.preference_loss import PairLogprobs, preference_loss, reward_model_loss
from rlsys.algorithms.sequences import count_denominator
from rlsys.recipe.algorithm import AlgorithmSettings, LagCorrectionSettings, PreferenceLossSettings


@pytest.fixture(scope="module")
def trainers() -> SimpleNamespace:
    """TRL's classes; imported late, for it takes 15 seconds that a collection should not pay."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL names the vllm versions that it knows
        pytest.importorskip("trl")
        from trl.experimental.cpo import CPOTrainer
        from trl.trainer.dpo_trainer import DPOTrainer
        from trl.trainer.grpo_trainer import GRPOTrainer
        from trl.trainer.reward_trainer import RewardTrainer
        from trl.trainer.utils import nanstd
    return SimpleNamespace(cpo=CPOTrainer, dpo=DPOTrainer, grpo=GRPOTrainer, reward=RewardTrainer, nanstd=nanstd)


def identity(x, **_):
    return x


ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"), gather=identity, gather_for_metrics=identity, reduce=identity, num_processes=1
)


def stand_in(**settings) -> SimpleNamespace:
    return SimpleNamespace(
        accelerator=ACCELERATOR,
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **settings,
    )


def assert_same(ours: torch.Tensor, theirs: torch.Tensor, leaf: torch.Tensor):
    """Values and gradients with respect to `leaf`, to 1e-6 relative."""
    assert theirs.isfinite() and theirs != 0
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    (mine,) = torch.autograd.grad(ours, leaf)
    (other,) = torch.autograd.grad(theirs, leaf)
    assert other.abs().max() > 0
    assert (mine - other).abs().max() <= 1e-6 * other.abs().max()


NUM_PAIRS, RESPONSE = 4, 9


@pytest.fixture
def pair_batch():
    """Chosen then rejected, `[2 N, T]`: logprobs of the policy (a leaf) and the reference, and their mask."""
    generator = torch.Generator().manual_seed(1)
    shape = (2 * NUM_PAIRS, RESPONSE)
    lengths = torch.randint(2, RESPONSE + 1, (2 * NUM_PAIRS,), generator=generator)
    mask = (torch.arange(RESPONSE) < lengths[:, None]).long()
    policy = (-2 * torch.rand(shape, generator=generator)).requires_grad_()
    reference = -2 * torch.rand(shape, generator=generator)
    return policy, reference * mask, mask


def our_pairs(policy: torch.Tensor, reference: torch.Tensor, mask: torch.Tensor) -> PairLogprobs:
    chosen, rejected = (policy * mask).sum(1).chunk(2)
    reference_chosen, reference_rejected = reference.sum(1).chunk(2)
    chosen_tokens, rejected_tokens = mask.sum(1).chunk(2)
    return PairLogprobs(chosen, rejected, chosen_tokens, rejected_tokens, reference_chosen, reference_rejected)


@pytest.mark.parametrize(("name", "theirs"), [("dpo", "sigmoid"), ("dpo_norm", "sigmoid_norm"), ("ipo", "ipo")])
@pytest.mark.parametrize("beta", [0.1, 5.0])
def test_dpo_and_ipo_equal_trl(trainers, pair_batch, name: str, theirs: str, beta: float):
    policy, reference, mask = pair_batch
    shape = mask.shape

    def model(**_) -> SimpleNamespace:
        """Their fused head gives 0 outside the labels, one column for each position but the first."""
        zeros = torch.zeros(shape)
        return SimpleNamespace(log_probs=policy * mask, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    trainer = stand_in(
        beta=beta, loss_types=[theirs], loss_weights=[1.0], label_smoothing=0.0, ld_alpha=None, use_weighting=False,
        precompute_ref_logps=True, f_divergence_type="reverse_kl",
    )  # fmt: skip
    with_prompt = torch.cat([torch.zeros(2 * NUM_PAIRS, 1, dtype=torch.long), mask], 1)
    reference_chosen, reference_rejected = reference.sum(1).chunk(2)
    inputs = {
        "input_ids": torch.zeros_like(with_prompt),
        "attention_mask": torch.ones_like(with_prompt),
        "completion_mask": with_prompt,
        "ref_chosen_logps": reference_chosen,
        "ref_rejected_logps": reference_rejected,
    }
    wanted = trainers.dpo._compute_loss(trainer, model, inputs, False)
    ours, _ = preference_loss(
        our_pairs(policy, reference, mask), PreferenceLossSettings(name=name, beta=beta), denominator=NUM_PAIRS
    )
    assert_same(ours, wanted, policy)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_simpo_equals_trl(trainers, pair_batch, label_smoothing: float):
    policy, reference, mask = pair_batch
    trainer = stand_in(loss_type="simpo", beta=2.0, simpo_gamma=0.8, alpha=0.0, label_smoothing=label_smoothing)
    means = ((policy * mask).sum(1) / mask.sum(1)).chunk(2)
    losses, chosen_rewards, _ = trainers.cpo.cpo_loss(trainer, *means)
    settings = PreferenceLossSettings(name="simpo", beta=2.0, simpo_margin=0.8, label_smoothing=label_smoothing)
    ours, sums = preference_loss(our_pairs(policy, reference, mask), settings, denominator=NUM_PAIRS)
    assert_same(ours, losses.mean(), policy)
    assert sums["preference/chosen_reward@pairs"].item() == pytest.approx(chosen_rewards.sum().item(), rel=1e-6)


def test_cdpo_equals_trl(trainers, pair_batch):
    """TRL smooths labels in its CPO loss, which is DPO's of logprobs in place of log ratios."""
    policy, reference, mask = pair_batch
    trainer = stand_in(loss_type="sigmoid", beta=0.5, alpha=0.0, label_smoothing=0.1)
    log_ratios = ((policy * mask) - reference).sum(1).chunk(2)
    losses, _, _ = trainers.cpo.cpo_loss(trainer, *log_ratios)
    settings = PreferenceLossSettings(name="dpo", beta=0.5, label_smoothing=0.1)
    ours, _ = preference_loss(our_pairs(policy, reference, mask), settings, denominator=NUM_PAIRS)
    assert_same(ours, losses.mean(), policy)


@pytest.mark.parametrize("margins", [None, torch.tensor([0.0, 0.5, 1.0, 2.0])], ids=["", "margins"])
@pytest.mark.parametrize("center_coef", [None, 0.01])
def test_reward_model_equals_trl(trainers, margins: torch.Tensor | None, center_coef: float | None):
    scores = torch.tensor([1.0, -0.5, 2.0, 0.3, 0.2, 0.4, -1.0, 0.9], requires_grad=True)
    trainer = stand_in(args=SimpleNamespace(center_rewards_coefficient=center_coef))
    inputs = {"attention_mask": torch.ones(8, 3)} | ({} if margins is None else {"margin": margins})
    wanted = trainers.reward.compute_loss(trainer, lambda **_: SimpleNamespace(logits=scores[:, None]), inputs)
    chosen, rejected = scores.chunk(2)
    ours, sums = reward_model_loss(chosen, rejected, margins, denominator=4, center_coef=center_coef or 0.0)
    assert_same(ours, wanted, scores)
    assert sums["reward_model/accuracy@pairs"].item() / 4 == trainer._metrics["train"]["accuracy"][0]


OURS = {
    "grpo": {"aggregation": "sequence"},
    "dapo": {"aggregation": "token", "clip_high": 0.28},
    "dr_grpo": {"aggregation": "fixed_length"},
    "gspo": {"aggregation": "sequence", "policy_loss": "gspo"},
    "cispo": {"aggregation": "token", "policy_loss": "cispo", "clip": 1.0, "clip_high": 0.3},
    "two_sided": {"aggregation": "sequence", "dual_clip": 1.4},
    "kl": {"aggregation": "sequence", "kl_in": "loss", "kl_estimator": "k3", "kl_beta": 0.04},
    "entropy": {"aggregation": "token", "entropy_coef": 0.1},
}
THEIRS = {
    "grpo": {"loss_type": "grpo"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dr_grpo": {"loss_type": "dr_grpo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "cispo": {"loss_type": "cispo", "epsilon_high": 1.3},
    "two_sided": {"loss_type": "grpo", "delta": 1.4},
    "kl": {"loss_type": "grpo", "beta": 0.04},
    "entropy": {"loss_type": "bnpo", "entropy_coef": 0.1},
}


def trl_grpo_loss(trainers, batch: PolicyBatch, advantages: torch.Tensor, settings: dict) -> torch.Tensor:
    settings = {"epsilon_high": 0.2, "beta": 0.0, "entropy_coef": 0.0, "delta": None, **settings}
    trainer = stand_in(
        **{"importance_sampling_level": "token", **settings},
        epsilon_low=0.2,
        args=SimpleNamespace(delta=settings["delta"], use_bias_correction_kl=False, steps_per_generation=1),
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=batch.lag_weights is not None,
        vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1,
        max_completion_length=16,
        _entropy_bonus_enabled=settings["entropy_coef"] > 0,
        use_adaptive_entropy=False,
        _get_per_token_logps_and_entropies=lambda *_, **__: (batch.logprobs, batch.entropy, None),
    )
    trainer.accelerator = SimpleNamespace(**vars(ACCELERATOR), sync_gradients=True)
    ids = torch.zeros(batch.mask.shape, dtype=torch.long)
    inputs = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": batch.mask,
        "advantages": advantages,
        "old_per_token_logps": batch.old_logprobs,
        "ref_per_token_logps": batch.reference_logprobs,
        "num_items_in_batch": batch.mask.sum(),
        "importance_sampling_ratio": batch.lag_weights,
    }
    return trainers.grpo._compute_loss(trainer, None, inputs)


def policy_batch(lag_weights: torch.Tensor | None = None) -> tuple[PolicyBatch, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(9) < torch.tensor([[3], [9], [6], [1], [7]])).float()
    logprobs = -2 * torch.rand(5, 9, generator=generator)
    advantages = torch.tensor([1.2, -0.7, 0.4, -1.5, 0.6])
    batch = PolicyBatch(
        logprobs=logprobs.requires_grad_(),
        old_logprobs=logprobs.detach() + 0.4 * torch.randn(5, 9, generator=generator),
        advantages=advantages[:, None].expand(5, 9),
        mask=mask,
        reference_logprobs=logprobs.detach() + 0.4 * torch.randn(5, 9, generator=generator),
        entropy=torch.rand(5, 9, generator=generator),
        lag_weights=lag_weights,
    )
    return batch, advantages


@pytest.mark.parametrize("name", OURS)
def test_grpo_and_its_kin_equal_trl(trainers, name: str):
    batch, advantages = policy_batch()
    settings = AlgorithmSettings(**{"advantage": "grpo", "kl_in": "none", **OURS[name]})
    denominator = count_denominator(batch.mask, settings.aggregation)
    ours, _ = policy_loss(batch, settings, denominator=denominator, max_length=16)
    assert_same(ours, trl_grpo_loss(trainers, batch, advantages, THEIRS[name]), batch.logprobs)


def test_truncated_importance_sampling_equals_trl(trainers):
    """Theirs: exp of the difference of logprobs, clamped from above, times the loss of each token."""
    plain, advantages = policy_batch()
    behaviour = plain.old_logprobs + 0.5 * torch.randn(5, 9, generator=torch.Generator().manual_seed(3))
    lag = LagCorrectionSettings(name="truncated", upper=1.5)
    weights, _ = lag_correction(plain.old_logprobs, behaviour, plain.mask, lag)
    batch, _ = policy_batch(weights)
    settings = AlgorithmSettings(advantage="grpo", kl_in="none", aggregation="sequence")
    ours, _ = policy_loss(batch, settings, denominator=5)
    theirs, _ = policy_batch(torch.exp(plain.old_logprobs - behaviour).clamp(max=1.5))
    wanted = trl_grpo_loss(trainers, theirs, advantages, {"loss_type": "grpo"})
    assert ours.item() == pytest.approx(wanted.item(), rel=1e-6)
    unweighted = trl_grpo_loss(trainers, plain, advantages, {"loss_type": "grpo"})
    assert ours.item() != pytest.approx(unweighted.item(), rel=1e-2)


def test_grpo_advantages_equal_trl_with_failed_verdicts_left_out(trainers):
    """Their baseline is inside the method that generates; their NaN-aware std, which is what differs between libraries,
    is not. They add 1e-4 to it, Tülu and we 1e-8."""
    nan = float("nan")
    grouped = torch.tensor([[10.0, 0.0, nan, 0.0], [1.0, 2.0, 3.0, 7.0], [nan, nan, 4.0, 6.0]])
    wanted = (grouped - grouped.nanmean(1, keepdim=True)) / (trainers.nanstd(grouped, dim=1)[:, None] + 1e-8)
    scores, groups = grouped.flatten(), torch.arange(3).repeat_interleave(4)
    ours = ADVANTAGES["grpo"].baseline(scores, groups, ~scores.isnan())
    torch.testing.assert_close(ours, wanted.nan_to_num(0.0).flatten(), rtol=1e-6, atol=1e-7)


def test_rloo_advantages_equal_trl_with_the_kl_in_the_score_and_failed_verdicts_left_out():
    """TRL's lines (`RLOOTrainer._generate_and_score_completions`), which are inside the method that generates."""
    generator, beta = torch.Generator().manual_seed(5), 0.3
    old, reference = -2 * torch.rand(2, 8, 9, generator=generator)
    mask = (torch.arange(9) < torch.randint(1, 10, (8, 1), generator=generator)).float()
    scores = torch.tensor([10.0, 0.0, float("nan"), 0.0, 1.0, 2.0, 3.0, 7.0])
    rewards = scores - beta * ((old - reference) * mask).sum(-1)
    grouped = rewards.view(-1, 4)
    counts = (~torch.isnan(grouped)).sum(dim=1, keepdim=True)
    baselines = (torch.nansum(grouped, dim=1, keepdim=True) - grouped) / (counts - 1)
    wanted = torch.nan_to_num(rewards - baselines.view(-1), nan=0.0)

    settings = AlgorithmSettings(advantage="rloo", kl_in="reward", kl_beta=beta)
    ours = token_rewards(
        scores,
        mask,
        settings,
        group_ids=torch.arange(2).repeat_interleave(4),
        keep=~scores.isnan(),
        kl=KL_ESTIMATORS["k1"](old, reference),
    )
    advantages, _ = token_advantages(ours, None, mask, settings)
    torch.testing.assert_close(advantages, wanted[:, None] * mask, rtol=1e-6, atol=1e-6)
