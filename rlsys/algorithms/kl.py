"""Estimators of KL(policy || reference) from the tokens that the policy sampled, and rewards with a KL penalty.

Source: J. Schulman, "Approximating KL divergence" (2020). With r = reference / policy at the sampled token:
k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r. k1 and k3 are unbiased, k3 is never negative.
"""

from collections.abc import Callable

import torch

from rlsys.algorithms.sequences import last_positions


def kl_k1(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """log policy - log reference, elementwise."""
    return logprobs - reference_logprobs


def kl_k2(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """(log policy - log reference)^2 / 2, elementwise. Its gradient is that of the true KL, on policy."""
    return 0.5 * (logprobs - reference_logprobs) ** 2


def kl_k3(logprobs: torch.Tensor, reference_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(log reference - log policy) - 1 - (log reference - log policy), elementwise.

    Its gradient is, on policy, that of the KL the other way round, KL(reference || policy).
    """
    log_ratio = reference_logprobs - logprobs
    return torch.expm1(log_ratio) - log_ratio


KL_ESTIMATORS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
}


def per_token_rewards(
    scores: torch.Tensor,
    kl: torch.Tensor | None,
    mask: torch.Tensor,
    *,
    beta: float = 0.0,
) -> torch.Tensor:
    """-beta KL at every token, plus the score at the last one (Tülu 3, arXiv 2411.15124, section 6).

    The response includes its end token; where it has none, the score lands on the last token.

    Args:
        scores: `[N]`, one for each row; where all of a row is masked it may be NaN.
        kl: `[N, L]`, an estimate at each token, or None for no penalty.
        mask: `[N, L]`, 1 at response tokens.

    Returns:
        `[N, L]` float32, 0 where the mask is 0.
    """
    rewards = torch.where(last_positions(mask), scores.float()[:, None], 0.0)
    if kl is None:
        return rewards
    return rewards - beta * torch.where(mask != 0, kl.float(), 0.0)
