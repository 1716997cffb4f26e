"""Generalised advantage estimation over finished responses, and whitening over the global batch."""

import torch


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    gamma: float,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE (arXiv 1506.02438, eq. 16): A_t = delta_t + gamma lam A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t.

    Nothing is bootstrapped past the end of a sequence: V and A are 0 there. Positions where the mask is 0 are passed
    over, as if the sequence did not have them.

    Args:
        rewards: `[T]` or padded `[B, T]`, float32.
        values: the value model's estimate before each token, same shape.
        mask: same shape, 1 at response tokens.

    Returns:
        Advantages (not whitened) and returns = advantages + values; both float32, 0 where the mask is 0.
    """
    assert rewards.shape == values.shape == mask.shape, (rewards.shape, values.shape, mask.shape)
    keep = mask != 0
    rewards = torch.where(keep, rewards.float(), 0.0).detach()
    values = torch.where(keep, values.float(), 0.0).detach()
    advantages = torch.zeros_like(rewards)
    running, next_value = torch.zeros_like(rewards[..., 0]), torch.zeros_like(rewards[..., 0])
    for t in range(rewards.shape[-1] - 1, -1, -1):
        delta = rewards[..., t] + gamma * next_value - values[..., t]
        here = keep[..., t]
        running = torch.where(here, delta + gamma * lam * running, running)
        next_value = torch.where(here, values[..., t], next_value)
        advantages[..., t] = torch.where(here, running, 0.0)
    return advantages, advantages + values


def decoupled_gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    *,
    gamma: float,
    lam: float,
    value_lam: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """GAE with one lambda for the policy and another for the value targets (VAPO, arXiv 2504.05118, section 4.1).

    Returns:
        Advantages under `lam`, and returns = advantages under `value_lam` + values (`lam` again where it is None).
    """
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    if value_lam is not None and value_lam != lam:
        _, returns = gae(rewards, values, mask, gamma, value_lam)
    return advantages, returns
