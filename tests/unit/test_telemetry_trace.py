"""Names, spans and the report."""

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.algorithms.lag_correction import lag_correction
from rlsys.algorithms.metric_sums import add_sums, finish_sums
from rlsys.algorithms.policy_loss import PolicyBatch, policy_loss
from rlsys.algorithms.preference_loss import PairLogprobs, preference_loss, reward_model_loss
from rlsys.algorithms.supervised_loss import supervised_loss
from rlsys.algorithms.value_loss import value_loss
from rlsys.recipe.algorithm import AlgorithmSettings, LagCorrectionSettings, PreferenceLossSettings
from rlsys.telemetry.names import check_name, describe, prometheus_name
from rlsys.telemetry.report import write_report
from rlsys.telemetry.trace import Span, SpanRecorder, TraceFile, busy_seconds, overlap_seconds, read_trace
from rlsys.telemetry.tracker import JsonlTracker


@pytest.mark.parametrize(
    "name", ["reward/mean", "reward/gsm8k/mean", "verifier/latency_s/p99", "eval/math-500/pass@1", "time/step_s"]
)
def test_good_names(name: str):
    assert check_name(name) == name
    assert describe(name)


@pytest.mark.parametrize("name", ["mean", "reward/", "Reward/mean", "reward/a/b/c", "reward/a b", "rewrd/mean", ""])
def test_bad_names(name: str):
    with pytest.raises(ValueError, match="namespace"):
        check_name(name)


def test_prometheus_names_keep_what_tells_them_apart():
    assert prometheus_name("eval/math-500/pass@1") == "rlsys_eval_math_500_pass_1"


def test_every_metric_of_the_losses_is_in_the_table():
    ones = torch.ones(1, 4)
    x = torch.tensor([[1.0, 2, 3, 4]])
    pair = PairLogprobs(x[0], -x[0], x[0], x[0], x[0] / 2, x[0] / 3)
    batch = PolicyBatch(-x, -x, x, ones, reference_logprobs=-x, entropy=x)
    lag_steps = torch.tensor([[0, 1, 0, 1]])
    sums = add_sums(
        [
            supervised_loss(-x, ones, denominator=4)[1],
            preference_loss(pair, PreferenceLossSettings(), denominator=4)[1],
            reward_model_loss(x[0], -x[0], denominator=4)[1],
            policy_loss(batch, AlgorithmSettings(), denominator=4)[1],
            value_loss(x, x, x, ones, clip=0.2, denominator=4)[1],
            lag_correction(-x, -x, ones, LagCorrectionSettings(), lag_steps=lag_steps)[1],
        ]
    )
    names = finish_sums(sums)
    assert len(names) > 25
    assert {name for name in names if not describe(check_name(name))} == set()


def test_recorder_times_blocks_that_raise_too():
    recorder = SpanRecorder("learner/0")
    with pytest.raises(KeyError), recorder.span("update"):
        raise KeyError
    recorder.add("publish", 5.0, 6.5)
    update, publish = recorder.drain()
    assert (update.actor, update.name) == ("learner/0", "update")
    assert 0 <= update.seconds < 5
    assert publish == Span("learner/0", "publish", 5.0, 6.5)
    assert recorder.drain() == []


def test_trace_file_round_trip_over_a_restart_and_a_torn_line(tmp_path: Path):
    path = tmp_path / "trace.json"
    spans = [Span("rollout/0", "sample", 1.7e9, 1.7e9 + 2.5), Span("learner/0", "update", 1.7e9 + 1, 1.7e9 + 1.25)]
    first = TraceFile(path)
    first.append(spans)
    first.close()
    with path.open("a") as file:
        file.write('{"name": "upd')
    assert read_trace(path) == spans
    again = TraceFile(path)
    later = Span("learner/0", "update", 1.7e9 + 4, 1.7e9 + 5)
    again.append([later, Span("value/0", "values", 1.7e9 + 4, 1.7e9 + 5)])
    again.close()
    assert read_trace(path) == [*spans, later, Span("value/0", "values", 1.7e9 + 4, 1.7e9 + 5)]
    events = json.loads(path.read_text().rstrip().rstrip(",") + "]")  # what a viewer does with the open end
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names == {0: "rollout/0", 1: "learner/0", 2: "value/0"}
    assert [event["dur"] for event in events if event["ph"] == "X"] == [2_500_000, 250_000, 1_000_000, 1_000_000]


def test_overlap_by_hand():
    """Sampling covers [0, 4] (two workers) and [6, 8]; updates cover [3, 7]: 1 s and 1 s."""
    trace = [
        Span("r0", "sample", 0, 3), Span("r1", "sample", 2, 4), Span("r0", "sample", 6, 8),
        Span("l0", "update", 3, 7), Span("l1", "update", 3, 5), Span("l0", "publish", 7, 8),
    ]  # fmt: skip
    assert overlap_seconds(trace, "sample", "update") == overlap_seconds(trace, "update", "sample") == 2
    assert busy_seconds(trace, "sample") == 6
    assert overlap_seconds(trace, "sample", "publish") == 1
    assert overlap_seconds(trace, "sample", "nothing") == 0


SPANS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 20), st.integers(0, 20)), max_size=12)


@given(SPANS)
def test_overlap_equals_counting_seconds(drawn: list[tuple[str, int, int]]):
    trace = [Span("x", name, min(start, end), max(start, end)) for name, start, end in drawn]
    covered = {
        name: {second for s in trace if s.name == name for second in range(int(s.start_s), int(s.end_s))}
        for name in "ab"
    }
    assert overlap_seconds(trace, "a", "b") == len(covered["a"] & covered["b"])
    assert busy_seconds(trace, "a") == len(covered["a"])


def write_run(folder: Path):
    sft = JsonlTracker(folder / "metrics.jsonl", stage="01-sft")
    for step, loss in ((0, 4.0), (5, 1.0), (10, 2.0)):
        sft.log(step, {"loss/supervised": loss})
    sft.close()
    rlvr = JsonlTracker(folder / "metrics.jsonl", stage="02-<rlvr>")
    for step in range(1000):
        rlvr.log(step, {"verifier/latency_s/p50": 0.1, "verifier/latency_s/p99": step, "loss/policy": float("nan")})
    rlvr.close()


def test_report_draws_the_numbers(tmp_path: Path):
    write_run(tmp_path)
    page = write_report(tmp_path, title="a & b").read_text()
    assert "<h1>a &amp; b</h1>" in page
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["01-sft", "02-&lt;rlvr&gt;"]
    assert "<script" not in page and "http" not in page
    charts = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page)]
    loss, latency = charts  # a metric that is never finite has no chart
    # 320 x 120 with margins of 8 left and right, 16 above and below: 4.0 is at the top, 1.0 at the bottom
    assert [line.get("points") for line in loss.findall("polyline")] == ["8.0,16.0 160.0,104.0 312.0,74.7"]
    assert [text.text for text in loss.findall("text")] == ["4", "1", "step 10"]
    p50, p99 = latency.findall("polyline")
    assert p99.findtext("title") == "p99 999 at step 999"
    assert len(p50.get("points", "").split()) == len(p99.get("points", "").split()) == 250


def test_report_shows_who_was_busy(tmp_path: Path):
    write_run(tmp_path)
    trace = TraceFile(tmp_path / "trace.json")
    trace.append([Span("learner/0", "update", 100, 102), Span("learner/0", "update", 103, 104)])
    trace.append([Span("rollout/0", "sample", 100, 110)])
    trace.close()
    page = write_report(tmp_path).read_text()
    assert "<td>learner/0</td><td>update</td><td>2</td><td>3.00</td><td>30.0 %</td>" in page
    assert "<td>rollout/0</td><td>sample</td><td>1</td><td>10.00</td><td>100.0 %</td>" in page
    assert page.count("<rect") == 3
