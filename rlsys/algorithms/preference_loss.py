"""Losses over pairs of a chosen and a rejected response, and of reward models.

Shapes: N pairs. All losses are divided by a global denominator: the pairs of the whole optimizer step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from rlsys.algorithms.metric_sums import MetricSums
from rlsys.recipe.algorithm import PreferenceLossSettings


@dataclass(frozen=True, slots=True)
class PairLogprobs:
    """Logprobs of N pairs, each summed over the response's tokens (its end token included)."""

    chosen: torch.Tensor
    """`[N]` float32, under the policy, differentiable; so is `rejected`."""
    rejected: torch.Tensor
    chosen_tokens: torch.Tensor
    """`[N]`, the sum of the loss mask: |y|. A response of no tokens has a sum of 0, and is divided by 1."""
    rejected_tokens: torch.Tensor
    reference_chosen: torch.Tensor | None = None
    """`[N]` float32, under the reference model; not needed by SimPO."""
    reference_rejected: torch.Tensor | None = None

    def log_ratios(self) -> tuple[torch.Tensor, torch.Tensor]:
        """log(policy / reference) of chosen and rejected, each `[N]`."""
        assert self.reference_chosen is not None and self.reference_rejected is not None, "no reference logprobs"
        return self.chosen - self.reference_chosen, self.rejected - self.reference_rejected


PairTerms = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Loss `[N]`, implicit reward of chosen `[N]` and of rejected `[N]`."""


def dpo(pairs: PairLogprobs, settings: PreferenceLossSettings) -> PairTerms:
    """DPO (arXiv 2305.18290, eq. 7): -log sigma(beta [h_chosen - h_rejected]), h = log(policy / reference)."""
    chosen, rejected = (settings.beta * h for h in pairs.log_ratios())
    return _smoothed(chosen - rejected, settings), chosen, rejected


def dpo_norm(pairs: PairLogprobs, settings: PreferenceLossSettings) -> PairTerms:
    """Length-normalised DPO (Tülu 3, arXiv 2411.15124, eq. 6): DPO with h / |y|."""
    chosen, rejected = pairs.log_ratios()
    chosen = settings.beta * chosen / pairs.chosen_tokens.clamp(min=1)
    rejected = settings.beta * rejected / pairs.rejected_tokens.clamp(min=1)
    return _smoothed(chosen - rejected, settings), chosen, rejected


def ipo(pairs: PairLogprobs, settings: PreferenceLossSettings) -> PairTerms:
    """IPO (arXiv 2310.12036, eq. 17): (h_chosen / |y| - h_rejected / |y| - 1 / (2 beta))^2.

    The paper does not say whether h is a sum or a mean over tokens; its authors mean the mean, as does TRL.
    """
    chosen, rejected = pairs.log_ratios()
    chosen, rejected = chosen / pairs.chosen_tokens.clamp(min=1), rejected / pairs.rejected_tokens.clamp(min=1)
    loss = (chosen - rejected - 1 / (2 * settings.beta)) ** 2
    return loss, settings.beta * chosen, settings.beta * rejected


def simpo(pairs: PairLogprobs, settings: PreferenceLossSettings) -> PairTerms:
    """SimPO (arXiv 2405.14734, eq. 6): -log sigma(beta log p_chosen / |y| - beta log p_rejected / |y| - gamma)."""
    chosen = settings.beta * pairs.chosen / pairs.chosen_tokens.clamp(min=1)
    rejected = settings.beta * pairs.rejected / pairs.rejected_tokens.clamp(min=1)
    return _smoothed(chosen - rejected - settings.simpo_margin, settings), chosen, rejected


def _smoothed(logits: torch.Tensor, settings: PreferenceLossSettings) -> torch.Tensor:
    """cDPO (Mitchell, "A note on DPO with noisy preferences", eq. 3); label smoothing 0 is the plain loss."""
    flipped = settings.label_smoothing
    return -(1 - flipped) * logsigmoid(logits) - flipped * logsigmoid(-logits)


PREFERENCE_LOSSES: dict[str, Callable[[PairLogprobs, PreferenceLossSettings], PairTerms]] = {
    "dpo_norm": dpo_norm,
    "dpo": dpo,
    "ipo": ipo,
    "simpo": simpo,
}


def preference_loss(
    pairs: PairLogprobs, settings: PreferenceLossSettings, *, denominator: float | torch.Tensor
) -> tuple[torch.Tensor, MetricSums]:
    """The loss that the recipe names, summed over pairs and divided by the step's number of pairs.

    Returns:
        The loss, and sums: `loss/preference`; per pair `preference/{accuracy,margin,chosen_reward,rejected_reward}`.
    """
    losses, chosen, rejected = PREFERENCE_LOSSES[settings.name](pairs, settings)
    loss = (losses.sum() / denominator).float()
    return loss, {"loss/preference": loss.detach().double()} | _pair_sums("preference", chosen, rejected)


def reward_model_loss(
    chosen_scores: torch.Tensor,
    rejected_scores: torch.Tensor,
    margins: torch.Tensor | None = None,
    *,
    denominator: float | torch.Tensor,
    center_coef: float = 0.0,
) -> tuple[torch.Tensor, MetricSums]:
    """Bradley-Terry: -log sigma(r_chosen - r_rejected - margin) (Llama 2, arXiv 2307.09288, eq. 2).

    `center_coef` adds coef (r_chosen + r_rejected)^2 (arXiv 2312.09244), which keeps scores around zero.

    Args:
        chosen_scores: `[N]` float32, the scalar head at the last token.
        rejected_scores: `[N]`.
        margins: `[N]`, how much better the chosen one was judged to be.
        denominator: pairs of the whole optimizer step.

    Returns:
        The loss, and sums: `loss/reward`; per pair `reward_model/{accuracy,margin,chosen_reward,rejected_reward}`.
    """
    gaps = chosen_scores - rejected_scores
    losses = -logsigmoid(gaps if margins is None else gaps - margins)
    losses = losses + center_coef * (chosen_scores + rejected_scores) ** 2
    loss = (losses.sum() / denominator).float()
    sums = _pair_sums("reward_model", chosen_scores, rejected_scores)
    return loss, {"loss/reward": loss.detach().double()} | sums


def _pair_sums(namespace: str, chosen: torch.Tensor, rejected: torch.Tensor) -> MetricSums:
    chosen, rejected = chosen.detach().double(), rejected.detach().double()
    return {
        f"{namespace}/accuracy@pairs": (chosen > rejected).double().sum(),
        f"{namespace}/margin@pairs": (chosen - rejected).sum(),
        f"{namespace}/chosen_reward@pairs": chosen.sum(),
        f"{namespace}/rejected_reward@pairs": rejected.sum(),
        "@pairs": torch.tensor(chosen.numel(), dtype=torch.float64, device=chosen.device),
    }
