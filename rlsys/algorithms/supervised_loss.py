"""Negative log-likelihood of target tokens."""

import torch

from rlsys.algorithms.metric_sums import MetricSums, count, masked_sum


def supervised_loss(
    logprobs: torch.Tensor, loss_weights: torch.Tensor, *, denominator: float | torch.Tensor
) -> tuple[torch.Tensor, MetricSums]:
    """Cross entropy with a global denominator: -sum_t w_t log p_t / denominator.

    A mean of per-device means weighs tokens unequally (Tülu 3, arXiv 2411.15124, section 4.3.2), so the caller
    passes the sum of weights of the whole optimizer step, over all ranks and accumulation, or 1 for a sum loss.

    Args:
        logprobs: `[R, L]` float32, log p of each target token.
        loss_weights: `[R, L]`, 0 where a token is no target, else its message's weight.
        denominator: global; the losses of all micro-batches and ranks ADD to the loss of the step.

    Returns:
        The loss, and sums: `loss/supervised`, `supervised/nll@weight` and the counts `@weight`, `@tokens`.
    """
    assert logprobs.shape == loss_weights.shape, (logprobs.shape, loss_weights.shape)
    weights = loss_weights.to(torch.float32)
    targets = weights != 0
    nll = -torch.where(targets, logprobs.float(), torch.zeros_like(weights)) * weights
    loss = (nll.sum() / denominator).float()
    return loss, {
        "loss/supervised": loss.detach().double(),
        "supervised/nll@weight": masked_sum(nll, targets),
        "@weight": masked_sum(weights, targets),
        "@tokens": count(targets),
    }
