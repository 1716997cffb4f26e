"""Counts and latency histograms of verdicts, by verifier."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import get_args

from rlsys.types import MASKED_OUTCOMES, Outcome, Verdict

_BUCKETS_PER_DECADE = 20
_SHORTEST_S, _DECADES = 1e-6, 9


class LatencyHistogram:
    """A histogram with buckets of equal ratio (12 %) from a microsecond to 1,000 s: flat memory, mergeable."""

    def __init__(self) -> None:
        self._counts = [0] * (_BUCKETS_PER_DECADE * _DECADES + 1)

    def add(self, seconds: float) -> None:
        """Counts one duration."""
        place = math.ceil(_BUCKETS_PER_DECADE * math.log10(max(seconds, _SHORTEST_S) / _SHORTEST_S))
        self._counts[min(place, len(self._counts) - 1)] += 1

    def merge(self, other: "LatencyHistogram") -> None:
        """Adds what another histogram counted."""
        self._counts = [mine + theirs for mine, theirs in zip(self._counts, other._counts, strict=True)]

    def quantile(self, q: float) -> float:
        """The least bucket bound that a share `q` of the durations does not exceed, in seconds; NaN when empty."""
        total, seen = sum(self._counts), 0
        for place, count in enumerate(self._counts):
            seen += count
            if total and seen >= q * total and count:
                return _SHORTEST_S * 10 ** (place / _BUCKETS_PER_DECADE)
        return math.nan


@dataclass(slots=True)
class VerifierStats:
    """What one verifier's verdicts came to."""

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)
    score_sum: float = 0.0

    def add(self, verdict: Verdict) -> None:
        """Counts one verdict."""
        self.outcomes[verdict.outcome] += 1
        self.latency.add(verdict.seconds)
        self.score_sum += verdict.score

    @property
    def num_verdicts(self) -> int:
        """Verdicts counted."""
        return self.outcomes.total()

    @property
    def failed_frac(self) -> float:
        """The share of verdicts that are masked."""
        return sum(self.outcomes[outcome] for outcome in MASKED_OUTCOMES) / max(1, self.num_verdicts)


def verdict_metrics(verdicts: Iterable[Verdict], *, alarm_failed_frac: float) -> dict[str, float]:
    """The metrics of a set of verdicts, under the names of the run folder's `metrics.jsonl`.

    Returns:
        `verifier/<name>/<outcome>_frac`, `verifier/<name>/num_verdicts`, `verifier/latency_s/{p50,p99}` over all and
        `verifier/<name>/latency_s/{p50,p99}`, `reward/<name>/mean` (the scores that are not masked), and
        `verifier/alarm`: 1 where the share of timeouts and errors of any verifier exceeds `alarm_failed_frac`.
    """
    stats: dict[str, VerifierStats] = {}
    for verdict in verdicts:
        stats.setdefault(verdict.verifier, VerifierStats()).add(verdict)
    return stats_metrics(stats, alarm_failed_frac=alarm_failed_frac)


def stats_metrics(stats: dict[str, VerifierStats], *, alarm_failed_frac: float) -> dict[str, float]:
    """As `verdict_metrics`, of statistics by verifier."""
    metrics: dict[str, float] = {}
    overall = LatencyHistogram()
    for name, one in sorted(stats.items()):
        overall.merge(one.latency)
        num_scored = one.num_verdicts - sum(one.outcomes[outcome] for outcome in MASKED_OUTCOMES)
        metrics[f"verifier/{name}/num_verdicts"] = float(one.num_verdicts)
        for outcome in get_args(Outcome):
            metrics[f"verifier/{name}/{outcome}_frac"] = one.outcomes[outcome] / one.num_verdicts
        metrics[f"reward/{name}/mean"] = one.score_sum / num_scored if num_scored else math.nan
        for label, q in (("p50", 0.5), ("p99", 0.99)):
            metrics[f"verifier/{name}/latency_s/{label}"] = one.latency.quantile(q)
    if stats:
        metrics |= {"verifier/latency_s/p50": overall.quantile(0.5), "verifier/latency_s/p99": overall.quantile(0.99)}
        metrics["verifier/alarm"] = float(any(one.failed_frac > alarm_failed_frac for one in stats.values()))
    return metrics
