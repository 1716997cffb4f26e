"""From scores of responses to advantages of tokens.

Every algorithm takes the same four steps, so that no caller branches on a name:

1. `token_rewards`: `estimator.baseline(scores, group_ids, keep)` within groups of samples,
2. and by `kl.per_token_rewards` that number at each response's last token, minus beta KL where the KL is in the reward;
3. `token_advantages`: GAE with the values of a value model, or with zeros and lambda 1, which is the reward to go;
4. `whitening.whiten` with moments of the global batch, where `estimator.whiten`.

Shapes: N responses of the global batch, G groups; `keep [N]` bool is False where a verifier failed, and such a
response is left out of every baseline and gets advantage 0.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from rlsys.algorithms.gae import decoupled_gae
from rlsys.algorithms.kl import per_token_rewards
from rlsys.algorithms.sequences import sequence_sums
from rlsys.recipe.algorithm import AlgorithmSettings

Baseline = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class AdvantageEstimator:
    """One way from scores to advantages."""

    baseline: Baseline
    """`(scores [N], group_ids [N], keep [N]) -> [N]` float32."""
    whiten: bool = False
    kl_in_score: bool = False
    """A KL in the reward is subtracted from the whole response's score, before the baseline, and not token by token."""


def no_baseline(scores: torch.Tensor, group_ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """The scores themselves, 0 where not kept."""
    return torch.where(keep, scores.double(), 0.0).float()


def group_mean_baseline(scores: torch.Tensor, group_ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Dr. GRPO (arXiv 2503.20783, section 3.2): r - mean of its group."""
    centred, _ = _centre(scores, group_ids, keep)
    return centred.float()


def group_std_baseline(scores: torch.Tensor, group_ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """GRPO (arXiv 2402.03300, section 4.1.2): (r - mean) / (std + 1e-8) in its group, std unbiased as in the
    released code."""
    centred, counts = _centre(scores, group_ids, keep)
    squares = torch.zeros_like(counts).scatter_add(0, group_ids, centred**2)
    std = (squares / (counts - 1).clamp(min=1)).sqrt()
    return (centred / (std[group_ids] + 1e-8)).float()


def leave_one_out_baseline(scores: torch.Tensor, group_ids: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """RLOO (arXiv 2402.14740, eq. 8): R - mean of the others in its group = (R - mean) n / (n - 1); 0 for one alone.

    There a response is one action, and R = r - beta log(policy / reference) of all of it: hence `kl_in_score`.
    """
    centred, counts = _centre(scores, group_ids, keep)
    return (centred * (counts / (counts - 1).clamp(min=1))[group_ids]).float()


def _centre(scores: torch.Tensor, group_ids: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores minus their group's mean over what is kept, `[N]` float64, and how many are kept in each group, `[G]`.

    A group of equal scores centres to exactly 0: the mean of equal numbers can be one rounding away from them, and
    dividing that by std + 1e-8 would make an advantage out of nothing.
    """
    assert scores.shape == group_ids.shape == keep.shape and scores.ndim == 1, (scores.shape, keep.shape)
    num_groups = int(group_ids.max()) + 1 if len(group_ids) else 0
    clean = torch.where(keep, scores.double(), 0.0)
    zeros = clean.new_zeros(num_groups)
    counts = zeros.scatter_add(0, group_ids, keep.double())
    means = zeros.scatter_add(0, group_ids, clean) / counts.clamp(min=1)
    lowest = torch.full_like(zeros, torch.inf).scatter_reduce(
        0, group_ids, torch.where(keep, scores.double(), torch.inf), "amin"
    )
    highest = torch.full_like(zeros, -torch.inf).scatter_reduce(
        0, group_ids, torch.where(keep, scores.double(), -torch.inf), "amax"
    )
    varies = keep & (lowest < highest)[group_ids]
    return torch.where(varies, clean - means[group_ids], 0.0), counts


ADVANTAGES: dict[str, AdvantageEstimator] = {
    "gae": AdvantageEstimator(no_baseline, whiten=True),
    "grpo": AdvantageEstimator(group_std_baseline),
    "dr_grpo": AdvantageEstimator(group_mean_baseline),
    "rloo": AdvantageEstimator(leave_one_out_baseline, kl_in_score=True),
    "reinforce_pp": AdvantageEstimator(no_baseline, whiten=True),
    "reinforce_pp_baseline": AdvantageEstimator(group_mean_baseline, whiten=True),
}
"""`reinforce_pp` and its variant with a group baseline: REINFORCE++, arXiv 2501.03262."""


def token_rewards(
    scores: torch.Tensor,
    mask: torch.Tensor,
    settings: AlgorithmSettings,
    *,
    group_ids: torch.Tensor,
    keep: torch.Tensor,
    kl: torch.Tensor | None = None,
    responses: torch.Tensor | None = None,
) -> torch.Tensor:
    """Steps 1 and 2: each response's score less its baseline at its last token, and the KL penalty.

    Args:
        scores: `[N]`, NaN where not kept.
        mask: `[N, L]`, 1 at response tokens.
        group_ids: `[N]` int64, from 0: which prompt's.
        keep: `[N]` bool.
        kl: `[N, L]`, an estimate at each token, where the KL is in the reward.
        responses: `[N, L]`, 1 at all of their tokens, where the mask leaves some out: a response's KL is of all of it,
            as its score is.

    Returns:
        `[N, L]` float32, 0 where the mask is 0.
    """
    estimator = ADVANTAGES[settings.advantage]
    if kl is not None and estimator.kl_in_score:
        whole = mask if responses is None else responses
        scores, kl = scores - settings.kl_beta * sequence_sums(kl, whole), None
    return per_token_rewards(estimator.baseline(scores, group_ids, keep), kl, mask, beta=settings.kl_beta)


def token_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor | None,
    mask: torch.Tensor,
    settings: AlgorithmSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages of tokens before whitening, and the value model's targets (of use only where there is one).

    Args:
        rewards: `[N, L]` float32, from `token_rewards`.
        values: `[N, L]` float32, or None where the estimator has no value model: then the advantage is the reward to
            go.
        mask: `[N, L]`, 1 at response tokens.

    Returns:
        Advantages and returns, `[N, L]` float32, 0 where the mask is 0.
    """
    assert settings.needs_values == (values is not None), (
        f"advantage {settings.advantage!r} and a value model do not match"
    )
    return decoupled_gae(
        rewards,
        torch.zeros_like(rewards) if values is None else values,
        mask,
        gamma=settings.gamma,
        lam=settings.lam if settings.needs_values else 1.0,
        value_lam=settings.value_lam,
    )


def should_whiten(settings: AlgorithmSettings) -> bool:
    """Whether step 4 applies: the recipe's word, else the estimator's habit."""
    return ADVANTAGES[settings.advantage].whiten if settings.whiten is None else settings.whiten
