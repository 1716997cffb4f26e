"""Metrics of a batch from its groups' summaries: what the driver can say without touching a token."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from rlsys.algorithms.shaping import is_informative
from rlsys.telemetry.names import name_part
from rlsys.types import GroupSummary, PolicyVersion


def rollout_metrics(groups: Sequence[GroupSummary]) -> dict[str, float]:
    """Rewards and lengths of verified groups, by the names of `rlsys.telemetry.names`.

    Args:
        groups: at least one; samples with a masked verdict are left out of rewards.
    """
    rewards = np.array([reward for group in groups for reward in group.rewards], np.float64)
    kept = rewards[~np.isnan(rewards)]
    lengths = np.array([length for group in groups for length in group.lengths], np.float64)
    truncated = np.mean([reason == "length" for group in groups for reason in group.finish_reasons])
    informative = [is_informative(group.rewards) for group in groups]
    metrics = {
        "rollout/length/mean": float(lengths.mean()),
        "rollout/length/max": float(lengths.max()),
        "rollout/truncated_frac": float(truncated),
        "rollout/informative_groups_frac": float(np.mean(informative)),
    }
    if len(kept):
        metrics |= {
            "reward/mean": float(kept.mean()),
            "reward/std": float(kept.std()),
            "reward/min": float(kept.min()),
            "reward/max": float(kept.max()),
        }
    scores = np.array([score for group in groups for score in group.reward_model_scores], np.float64)
    if len(scores):
        metrics |= {"reward/reward_model/mean": float(scores.mean()), "reward/reward_model/std": float(scores.std())}
    return metrics


def verdict_metrics(groups: Iterable[GroupSummary]) -> dict[str, float]:
    """For each verifier: the share of every outcome, the mean score of what it did judge, and latencies."""
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    scores: dict[str, list[float]] = defaultdict(list)
    seconds: list[float] = []
    for group in groups:
        for verdict in (verdict for sample in group.verdicts for verdict in sample):
            name = name_part(verdict.verifier)
            outcomes[name][verdict.outcome] += 1
            seconds.append(verdict.seconds)
            if not verdict.masked:
                scores[name].append(verdict.score)
    metrics: dict[str, float] = {}
    for name, counts in outcomes.items():
        for outcome in ("correct", "wrong", "unparsable", "timeout", "error"):
            metrics[f"verifier/{name}/{outcome}_frac"] = counts[outcome] / counts.total()
        if scores[name]:
            metrics[f"reward/{name}/mean"] = float(np.mean(scores[name]))
    if seconds:
        metrics["verifier/latency_s/p50"] = float(np.quantile(seconds, 0.5))
        metrics["verifier/latency_s/p99"] = float(np.quantile(seconds, 0.99))
    return metrics


def staleness_metrics(groups: Iterable[GroupSummary], version: PolicyVersion, *, num_dropped: int) -> dict[str, float]:
    """How old the oldest token of each group is when it is trained on, in versions.

    Args:
        groups: of one batch.
        version: at which the batch is trained.
        num_dropped: groups dropped for their age since the start of the stage.
    """
    ages = [version - group.oldest_version for group in groups]
    return {
        "staleness/mean_steps": float(np.mean(ages)),
        "staleness/max_steps": float(max(ages)),
        "staleness/dropped": float(num_dropped),
    }
