"""The value model's regression."""

import torch

from rlsys.algorithms.metric_sums import MetricSums, count, masked_sum


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    *,
    clip: float,
    denominator: float | torch.Tensor,
) -> tuple[torch.Tensor, MetricSums]:
    """1/2 max((V - R)^2, (V_clipped - R)^2), V_clipped = V_old + clamp(V - V_old, -clip, clip) (PPO's released code).

    Args:
        values: `[R, L]` float32, differentiable, the estimate before each token.
        old_values: `[R, L]`, the estimates that the advantages were computed with.
        returns: `[R, L]`, advantages before whitening + old values.
        mask: `[R, L]`, 1 at response tokens.
        clip: 0 turns clipping off.
        denominator: tokens of the whole optimizer step over all ranks and accumulation.

    Returns:
        The loss (without `value_coef`), and sums: `loss/value`; per token `value/clip_frac` and
        `value/{return,residual}/{mean,sq}`, of which `finish_sums` makes `value/explained_variance`; residuals are
        those of `old_values`.
    """
    keep = mask != 0
    values, old_values, returns = (torch.where(keep, x.float(), 0.0) for x in (values, old_values, returns))
    squared = (values - returns) ** 2
    was_clipped = torch.zeros_like(keep)
    if clip:
        clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns) ** 2
        was_clipped = clipped > squared
        squared = torch.maximum(squared, clipped)
    loss = (0.5 * squared.sum() / denominator).float()
    residual = returns.double() - old_values.double()
    per_token = {
        "value/clip_frac": was_clipped.float(),
        "value/return/mean": returns,
        "value/return/sq": returns.double() ** 2,
        "value/residual/mean": residual,
        "value/residual/sq": residual**2,
    }
    sums = {f"{name}@tokens": masked_sum(x, mask) for name, x in per_token.items()}
    return loss, {"loss/value": loss.detach().double(), "@tokens": count(mask)} | sums
