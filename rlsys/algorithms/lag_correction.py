"""Correction for tokens sampled by another policy than the one that is about to be trained.

The behaviour policy mu is what the engine sampled from: older weights, other kernels. The proximal policy pi_old is the
learner's at the start of the batch. A policy loss uses rho = pi / pi_old; its tokens are weighted by w(pi_old / mu).
With untruncated weights that is decoupled PPO (arXiv 2110.00641; AReaL, arXiv 2505.24298, eq. 5).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlsys.algorithms.metric_sums import MetricSums, count, masked_sum
from rlsys.algorithms.sequences import sequence_lengths, sequence_sums, spread
from rlsys.recipe.algorithm import LagCorrectionSettings


@dataclass(frozen=True, slots=True)
class Lag:
    """What a correction looks at, all `[R, L]`, one sequence a row, 0 where the mask is 0."""

    log_ratio: torch.Tensor
    """float32, log pi_old - log mu."""
    mask: torch.Tensor

    def sequence_ratio(self, *, geometric: bool = False) -> torch.Tensor:
        """`[R, L]`: the product of the ratios of each token's sequence, or their geometric mean."""
        log_ratios = sequence_sums(self.log_ratio, self.mask)
        if geometric:
            log_ratios = log_ratios / sequence_lengths(self.mask).clamp(min=1)
        return spread(log_ratios, self.mask).exp()


WeightsAndTouched = tuple[torch.Tensor, torch.Tensor]
"""Weights `[R, L]` float32, and `[R, L]` bool: where the bound changed the ratio."""


def none(lag: Lag, settings: LagCorrectionSettings) -> WeightsAndTouched:
    """Weights of 1: the difference is ignored, and still reported."""
    return torch.ones_like(lag.log_ratio), torch.zeros_like(lag.log_ratio, dtype=torch.bool)


def decoupled(lag: Lag, settings: LagCorrectionSettings) -> WeightsAndTouched:
    """The ratio itself: decoupled PPO (arXiv 2110.00641, eq. 5)."""
    return lag.log_ratio.exp(), torch.zeros_like(lag.log_ratio, dtype=torch.bool)


def truncated(lag: Lag, settings: LagCorrectionSettings) -> WeightsAndTouched:
    """Truncated importance sampling, per token: min(ratio, upper) (Yao et al., 2025, "off-policy RL", TIS)."""
    return _truncate(lag.log_ratio.exp(), settings)


def mask(lag: Lag, settings: LagCorrectionSettings) -> WeightsAndTouched:
    """IcePop (Ling Team, arXiv 2510.18855, eq. 2), per token: the ratio inside [lower, upper], 0 outside."""
    return _mask(lag.log_ratio.exp(), settings)


def sequence_truncated(lag: Lag, settings: LagCorrectionSettings) -> WeightsAndTouched:
    """Truncated, with the product of its tokens' ratios for a whole sequence: unbiased where it is not truncated."""
    return _truncate(lag.sequence_ratio(), settings)


def sequence_mask(lag: Lag, settings: LagCorrectionSettings) -> WeightsAndTouched:
    """Masked, with the product of its tokens' ratios for a whole sequence: set `lower` to 0, long products are
    small."""
    return _mask(lag.sequence_ratio(), settings)


def geometric_mask(lag: Lag, settings: LagCorrectionSettings) -> WeightsAndTouched:
    """Masked by the geometric mean of a sequence's ratios, which long and short responses share a scale in."""
    return _mask(lag.sequence_ratio(geometric=True), settings)


def _truncate(ratio: torch.Tensor, settings: LagCorrectionSettings) -> WeightsAndTouched:
    return ratio.clamp(max=settings.upper), ratio > settings.upper


def _mask(ratio: torch.Tensor, settings: LagCorrectionSettings) -> WeightsAndTouched:
    outside = (ratio < settings.lower) | (ratio > settings.upper)
    return torch.where(outside, 0.0, ratio), outside


LAG_CORRECTIONS: dict[str, Callable[[Lag, LagCorrectionSettings], WeightsAndTouched]] = {
    "none": none,
    "truncated": truncated,
    "mask": mask,
    "sequence_truncated": sequence_truncated,
    "sequence_mask": sequence_mask,
    "geometric_mask": geometric_mask,
    "decoupled": decoupled,
}


def lag_correction(
    proximal_logprobs: torch.Tensor,
    behaviour_logprobs: torch.Tensor,
    mask: torch.Tensor,
    settings: LagCorrectionSettings,
    *,
    lag_steps: torch.Tensor | None = None,
) -> tuple[torch.Tensor, MetricSums]:
    """Weights `[R, L]` float32 for the tokens' policy losses, 0 where the mask is 0; no gradient flows through them.

    A masked token stays in the loss's denominator: it is one token that says nothing, not a smaller batch.

    Args:
        proximal_logprobs: `[R, L]`, one sequence a row, the learner's at the start of the batch.
        behaviour_logprobs: `[R, L]`, the sampler's own, of the distribution it sampled from.
        mask: `[R, L]`, 1 at response tokens.
        lag_steps: `[R, L]` int, the learner's version minus the token's: splits the mismatch into what the engine's
            kernels do (0 steps: `policy/mismatch_kl`) and what older weights do (`policy/lag_kl`). Without it all is
            `mismatch_kl`.

    Returns:
        The weights, and sums: per fresh token `policy/{mismatch_kl,mismatch_abs}`, per stale token `policy/lag_kl`,
        per token `policy/lag_touched_frac`, `policy/lag_weight/{mean,sq}`. The KLs are KL(behaviour || proximal) by k3.
    """
    keep = mask != 0
    log_ratio = torch.where(keep, proximal_logprobs.detach().float() - behaviour_logprobs.detach().float(), 0.0)
    weights, touched = LAG_CORRECTIONS[settings.name](Lag(log_ratio, mask), settings)
    weights = torch.where(keep, weights, 0.0)
    fresh = keep if lag_steps is None else keep & (lag_steps == 0)
    stale = keep & ~fresh
    kl = torch.expm1(log_ratio) - log_ratio
    return weights, {
        "policy/mismatch_kl@fresh_tokens": masked_sum(kl, fresh),
        "policy/mismatch_abs@fresh_tokens": masked_sum(log_ratio.abs(), fresh),
        "@fresh_tokens": count(fresh),
        "policy/lag_kl@stale_tokens": masked_sum(kl, stale),
        "@stale_tokens": count(stale),
        "policy/lag_touched_frac@tokens": masked_sum(touched.float(), mask),
        "policy/lag_weight/mean@tokens": masked_sum(weights, mask),
        "policy/lag_weight/sq@tokens": masked_sum(weights.double() ** 2, mask),
        "@tokens": count(mask),
    }
