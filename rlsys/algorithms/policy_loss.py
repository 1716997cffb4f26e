"""Policy-gradient losses. Shapes: R rows x L positions; a packed row may hold several sequences.

A policy loss is a small function `(batch, settings) -> per-token terms` in a registry. How
tokens are added up is `token_weights`' business, so every loss goes with every aggregation.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlsys.algorithms.kl import KL_ESTIMATORS
from rlsys.algorithms.metric_sums import MetricSums, count, masked_sum
from rlsys.algorithms.sequences import sequence_lengths, sequence_sums, spread, token_weights
from rlsys.recipe.algorithm import AlgorithmSettings


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """One micro-batch of responses. Every tensor is `[R, L]`; only `logprobs` and `entropy` are differentiated."""

    logprobs: torch.Tensor
    """float32, log pi of each token under the weights being trained."""
    old_logprobs: torch.Tensor
    """float32, under the proximal policy: the weights at the start of the batch (or the sampler's, if so
    configured)."""
    advantages: torch.Tensor
    """float32, whitened where the algorithm asks for it."""
    mask: torch.Tensor
    """1 at response tokens that are trained on."""
    reference_logprobs: torch.Tensor | None = None
    """float32; needed for a KL loss, else only for metrics."""
    entropy: torch.Tensor | None = None
    """float32, entropy of the policy's distribution at each token; needed for an entropy bonus, else only for
    metrics."""
    lag_weights: torch.Tensor | None = None
    """float32, from `lag_correction`; they multiply each token's policy loss."""
    sequence_ids: torch.Tensor | None = None
    """int64, see `sequences`; absent where each row is one sequence."""


@dataclass(frozen=True, slots=True)
class PolicyTerms:
    """What a policy loss says of each token, `[R, L]`; arbitrary where the mask is 0."""

    loss: torch.Tensor
    ratio: torch.Tensor
    clipped: torch.Tensor
    """bool: clipping took this token's gradient away (or, for CISPO, bounded its weight)."""


def _clip_range(settings: AlgorithmSettings) -> tuple[float, float]:
    high = settings.clip if settings.clip_high is None else settings.clip_high
    return 1 - settings.clip, 1 + high


def _clipped_surrogate(log_ratio: torch.Tensor, advantages: torch.Tensor, settings: AlgorithmSettings) -> PolicyTerms:
    low, high = _clip_range(settings)
    ratio = log_ratio.exp()
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(low, high)
    loss, was_clipped = torch.maximum(unclipped, clipped), clipped > unclipped
    if settings.dual_clip is not None:
        bound = -advantages * settings.dual_clip
        beyond = (advantages < 0) & (loss > bound)
        loss, was_clipped = torch.where(beyond, bound, loss), was_clipped | beyond
    return PolicyTerms(loss, ratio.detach(), was_clipped)


def ppo_clip(batch: PolicyBatch, settings: AlgorithmSettings) -> PolicyTerms:
    """PPO (arXiv 1707.06347, eq. 7): max(-A rho, -A clip(rho, 1 - clip, 1 + clip_high)), rho = pi / pi_old.

    `clip_high` is DAPO's clip-higher (arXiv 2503.14476, eq. 10). `dual_clip` c bounds the loss of a negative
    advantage by -c A (arXiv 1912.09729, eq. 5).
    """
    return _clipped_surrogate(batch.logprobs - batch.old_logprobs, batch.advantages, settings)


def gspo(batch: PolicyBatch, settings: AlgorithmSettings) -> PolicyTerms:
    """GSPO (arXiv 2507.18071, eq. 5 and 7): PPO's clip of s = exp(mean_t log rho_t), one ratio for a whole sequence."""
    log_ratio = batch.logprobs - batch.old_logprobs
    lengths = sequence_lengths(batch.mask, batch.sequence_ids).clamp(min=1)
    means = sequence_sums(log_ratio, batch.mask, batch.sequence_ids) / lengths
    return _clipped_surrogate(spread(means, batch.mask, batch.sequence_ids), batch.advantages, settings)


def cispo(batch: PolicyBatch, settings: AlgorithmSettings) -> PolicyTerms:
    """CISPO (MiniMax-M1, arXiv 2506.13585, eq. 4): -stop_gradient(clip(rho)) A log pi; no token loses its gradient."""
    low, high = _clip_range(settings)
    ratio = (batch.logprobs - batch.old_logprobs).exp().detach()
    bounded = ratio.clamp(low, high)
    return PolicyTerms(-bounded * batch.advantages * batch.logprobs, ratio, bounded != ratio)


def reinforce(batch: PolicyBatch, settings: AlgorithmSettings) -> PolicyTerms:
    """REINFORCE (Williams, 1992): -A log pi."""
    ratio = (batch.logprobs - batch.old_logprobs).exp().detach()
    return PolicyTerms(-batch.advantages * batch.logprobs, ratio, torch.zeros_like(ratio, dtype=torch.bool))


POLICY_LOSSES: dict[str, Callable[[PolicyBatch, AlgorithmSettings], PolicyTerms]] = {
    "ppo_clip": ppo_clip,
    "cispo": cispo,
    "gspo": gspo,
    "reinforce": reinforce,
}


def policy_loss(
    batch: PolicyBatch,
    settings: AlgorithmSettings,
    *,
    denominator: float | torch.Tensor,
    max_length: int | None = None,
) -> tuple[torch.Tensor, MetricSums]:
    """The policy's whole loss: policy gradient + kl_beta KL (where `kl_in` is `loss`) - entropy_coef entropy.

    sum_t w_t (lag_t l_t + kl_beta KL_t - entropy_coef H_t) / denominator, with w from `token_weights`.

    Args:
        denominator: of the whole optimizer step over all ranks and accumulation: the sum of `count_denominator`. The
            losses of all micro-batches and ranks ADD to the loss of the step.
        max_length: the longest response allowed, tokens; for `aggregation = "fixed_length"`.

    Returns:
        The loss, and sums: `loss/policy` (the whole loss); per token
        `policy/{clip_frac,approx_kl,entropy,reference_kl}` and `policy/{ratio,advantage}/{mean,sq}`, as far as the
        batch has what they need; the count `@tokens`.
    """
    keep = batch.mask != 0
    batch = _zero_outside_mask(batch, keep)
    terms = POLICY_LOSSES[settings.policy_loss](batch, settings)
    per_token = terms.loss if batch.lag_weights is None else terms.loss * batch.lag_weights
    if settings.kl_in == "loss":
        assert batch.reference_logprobs is not None, "kl_in = 'loss' needs reference logprobs"
        kl = KL_ESTIMATORS[settings.kl_estimator](batch.logprobs, batch.reference_logprobs)
        per_token = per_token + settings.kl_beta * kl
    if settings.entropy_coef:
        assert batch.entropy is not None, "entropy_coef needs the policy's entropy"
        per_token = per_token - settings.entropy_coef * batch.entropy
    weights = token_weights(batch.mask, settings.aggregation, sequence_ids=batch.sequence_ids, max_length=max_length)
    loss = ((weights * per_token).sum() / denominator).float()
    return loss, {"loss/policy": loss.detach().double()} | _policy_sums(batch, terms)


def _zero_outside_mask(batch: PolicyBatch, keep: torch.Tensor) -> PolicyBatch:
    """Padding may hold anything, NaN included: zero before any arithmetic, so that no gradient is NaN x 0."""

    def clean(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else torch.where(keep, x.float(), 0.0)

    return PolicyBatch(
        logprobs=torch.where(keep, batch.logprobs.float(), 0.0),
        old_logprobs=torch.where(keep, batch.old_logprobs.float(), 0.0),
        advantages=torch.where(keep, batch.advantages.float(), 0.0),
        mask=batch.mask,
        reference_logprobs=clean(batch.reference_logprobs),
        entropy=clean(batch.entropy),
        lag_weights=clean(batch.lag_weights),
        sequence_ids=batch.sequence_ids,
    )


def _policy_sums(batch: PolicyBatch, terms: PolicyTerms) -> MetricSums:
    """`approx_kl` is KL(old || new) by k3, never negative: mean of rho - 1 - log rho over tokens of the old policy."""
    log_ratio = (batch.logprobs - batch.old_logprobs).detach()
    per_token = {
        "policy/clip_frac": terms.clipped.float(),
        "policy/approx_kl": torch.expm1(log_ratio) - log_ratio,
        "policy/ratio/mean": terms.ratio,
        "policy/ratio/sq": terms.ratio.double() ** 2,
        "policy/advantage/mean": batch.advantages,
        "policy/advantage/sq": batch.advantages.double() ** 2,
    }
    if batch.entropy is not None:
        per_token["policy/entropy"] = batch.entropy
    if batch.reference_logprobs is not None:
        per_token["policy/reference_kl"] = KL_ESTIMATORS["k3"](batch.logprobs, batch.reference_logprobs)
    sums = {f"{name}@tokens": masked_sum(values, batch.mask) for name, values in per_token.items()}
    return sums | {"@tokens": count(batch.mask)}
