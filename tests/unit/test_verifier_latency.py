"""Histograms and metrics of verdicts."""

import math

import pytest

from rlsys.types import Verdict
from rlsys.verifiers.latency import LatencyHistogram, verdict_metrics


def test_quantiles_are_within_a_bucket_of_the_truth():
    histogram = LatencyHistogram()
    for milliseconds in range(1, 1001):
        histogram.add(milliseconds / 1000)
    for q in (0.01, 0.5, 0.99, 1.0):
        assert q <= histogram.quantile(q) <= q * 1.13
    assert math.isnan(LatencyHistogram().quantile(0.5))


def test_histograms_add_up():
    one, other, both = LatencyHistogram(), LatencyHistogram(), LatencyHistogram()
    for index in range(200):
        (one if index % 3 else other).add(index / 7)
        both.add(index / 7)
    one.merge(other)
    assert [one.quantile(q / 10) for q in range(11)] == [both.quantile(q / 10) for q in range(11)]


def test_the_shortest_and_longest_are_counted_too():
    histogram = LatencyHistogram()
    histogram.add(0.0)
    histogram.add(1e9)
    assert histogram.quantile(0.5) == pytest.approx(1e-6)
    assert histogram.quantile(1.0) == pytest.approx(1000.0)


def test_metrics_by_verifier():
    verdicts = [
        Verdict("math", "correct", 1.0, 0.001),
        Verdict("math", "wrong", 0.0, 0.001),
        Verdict("math", "timeout", 0.0, 5.0),
        Verdict("math", "unparsable", 0.0, 0.001),
        Verdict("gsm8k", "correct", 1.0, 0.0001),
    ]
    metrics = verdict_metrics(verdicts, alarm_failed_frac=0.01)
    assert metrics["verifier/math/num_verdicts"] == 4.0
    assert metrics["verifier/math/correct_frac"] == 0.25
    assert metrics["verifier/math/timeout_frac"] == 0.25
    assert metrics["verifier/math/error_frac"] == 0.0
    assert metrics["verifier/gsm8k/correct_frac"] == 1.0
    assert metrics["reward/math/mean"] == pytest.approx(1 / 3)  # the masked verdict is no zero
    assert metrics["verifier/latency_s/p50"] == pytest.approx(0.001, rel=0.13)
    assert metrics["verifier/latency_s/p99"] == pytest.approx(5.0, rel=0.13)
    assert metrics["verifier/alarm"] == 1.0
    assert verdict_metrics(verdicts, alarm_failed_frac=0.25)["verifier/alarm"] == 0.0
    assert verdict_metrics([], alarm_failed_frac=0.01) == {}
