"""From the verdicts on one response to its reward."""

import math
from collections.abc import Sequence

from rlsys.recipe.verifiers import VerifierSettings
from rlsys.types import Check, FinishReason, Verdict


def response_reward(
    verdicts: Sequence[Verdict],
    checks: Sequence[Check],
    finish_reason: FinishReason,
    settings: VerifierSettings,
    *,
    reward_model_score: float | None = None,
) -> float:
    """The reward of a whole response, as in Tülu 3 (arXiv 2411.15124, section 6).

        reward = reward_scale * sum(weight * score) / sum(weight) + reward_model_score

    A response that was cut (`finish_reason` is "length") gets `no_end_token_reward` whatever its answer, unless that
    is "none" (Tülu 3.1 has no such penalty).

    Args:
        verdicts: one per check, in the same order.
        checks: what the response was verified for, each with its weight.
        reward_model_score: times its weight; added as it is, and without checks the reward alone.

    Returns:
        NaN where a verifier failed: the response is masked from training, never scored as wrong.

    Raises:
        ValueError: verdicts do not belong to the checks, there is nothing to reward by, or the reward model's score is
            not finite.
    """
    if reward_model_score is not None and not math.isfinite(reward_model_score):
        raise ValueError(f"the reward model's score is {reward_model_score}: its weights or its precision are broken")
    if [verdict.verifier for verdict in verdicts] != [check.verifier for check in checks]:
        raise ValueError(
            f"{len(verdicts)} verdicts do not belong to {len(checks)} checks: give one per check, in order"
        )
    if any(verdict.masked for verdict in verdicts):
        return math.nan
    if finish_reason == "length" and settings.no_end_token_reward != "none":
        return settings.no_end_token_reward
    if not checks and reward_model_score is None:
        raise ValueError("a response without checks has no reward: give its prompt a check or a reward model")
    return settings.reward_scale * _weighted_mean(verdicts, checks) + (reward_model_score or 0.0)


def _weighted_mean(verdicts: Sequence[Verdict], checks: Sequence[Check]) -> float:
    if not checks:
        return 0.0
    total = sum(check.weight for check in checks)
    if not total > 0:
        raise ValueError(f"the weights of a prompt's checks sum to {total}: at least one must be positive")
    return sum(check.weight * verdict.score for check, verdict in zip(checks, verdicts, strict=True)) / total
