"""What an RLVR stage says of its verdicts and its pace, and which checkpoints it goes on from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import rlvr_checkpoint
from launch import rlvr_run as rlvr_run_module
from launch.rlvr_run import RlvrRun
from rlsys.errors import CheckpointError
from rlsys.recipe.evaluation import EvaluationSettings
from rlsys.types import GroupSummary, Verdict


def judged(verifier: str, outcomes: dict[Any, int]) -> list[GroupSummary]:
    verdicts = [Verdict(verifier, outcome, 0.0, 0.1) for outcome, count in outcomes.items() for _ in range(count)]
    return [
        GroupSummary(ordinal, (1,), 1, 0, 0, ("stop",), (0.0,), ((verdict,),))
        for ordinal, verdict in enumerate(verdicts)
    ]


def test_the_alarm_is_of_each_verifier_by_itself(capsys: pytest.CaptureFixture):
    """Eight time-outs are a fifth of IFEval's verdicts and 0.8 % of all."""
    run: Any = object.__new__(RlvrRun)
    run.settings = SimpleNamespace(verifiers=SimpleNamespace(alarm_failed_frac=0.01))
    run.judged_groups = judged("gsm8k", {"wrong": 960}) + judged("ifeval", {"wrong": 32, "timeout": 5, "error": 3})
    assert run._verdict_metrics()["verifier/alarm"] == 1.0
    assert "ALARM: 20.0% of the verdicts of ifeval timed out or failed" in capsys.readouterr().out
    run.judged_groups = judged("gsm8k", {"wrong": 991, "timeout": 9}) + judged("ifeval", {"correct": 1})
    assert run._verdict_metrics()["verifier/alarm"] == 0.0
    assert capsys.readouterr().out == ""
    assert run._verdict_metrics() == {}, "a reward model alone gives no verdicts"


def test_throughput_counts_what_lies_between_two_batches(monkeypatch: pytest.MonkeyPatch):
    """Evaluations and checkpoints among it: samples are drawn meanwhile."""
    run: Any = object.__new__(RlvrRun)
    run.step_started, run.counted_at = 100.0, 0.0
    times = iter((110.0, 180.0))
    monkeypatch.setattr(rlvr_run_module.time, "perf_counter", lambda: next(times))
    assert run._since_last_batch_s() == 10.0
    run.step_started = 170.0  # after an evaluation of 60 s
    assert run._since_last_batch_s() == 70.0


def resumed(metadata: dict[str, Any], evaluation: EvaluationSettings) -> Any:
    """A run that has begun to go on from a checkpoint with this metadata."""
    run: Any = object.__new__(RlvrRun)
    run.prompts_digest, run.stage = "prompts", SimpleNamespace(seed=7, tracker=SimpleNamespace(restore=lambda _: None))
    algorithm = SimpleNamespace(needs_values=False)
    run.settings = SimpleNamespace(label="rlvr", evaluation=evaluation, algorithm=algorithm)
    pending = SimpleNamespace(get=lambda: None)
    run.context = SimpleNamespace(crew=SimpleNamespace(learner=SimpleNamespace(restore=lambda _: pending)))
    run.ledger = SimpleNamespace(settings=None)
    run.guard = SimpleNamespace(restore=lambda _: None)
    run.chain, run.exports = SimpleNamespace(rewind=lambda _: None), SimpleNamespace(holds=lambda _: True)
    checkpoint: Any = SimpleNamespace(path=Path("step_000004"), manifest=SimpleNamespace(metadata=metadata))
    rlvr_checkpoint._restore(run, checkpoint)
    return run


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of a checkpoint whose best policy scored 0.9."""
    monkeypatch.setattr(rlvr_checkpoint, "Ledger", SimpleNamespace(from_state_dict=lambda *_: None))
    monkeypatch.setattr(rlvr_checkpoint, "_restore_buffer", lambda *_: None)
    of: Any = SimpleNamespace(settings=SimpleNamespace(evaluation=EvaluationSettings(development={"dev": "easy"})))
    decides = rlvr_checkpoint._what_decides(of)
    return {
        "prompts": "prompts", "seed": 7, "best": [0.9, 4], "development": decides, "ledger": {}, "guard": {},
        "tracker": {}, "chain": 0, "begun": [],
    }  # fmt: skip


@pytest.mark.parametrize("changed", ["prompts", "seed"])
def test_other_prompts_or_another_order_are_refused(metadata: dict[str, Any], changed: str):
    with pytest.raises(CheckpointError, match=f"{changed}: not as when .* --from rlvr"):
        resumed(metadata | {changed: "other"}, EvaluationSettings())


def test_the_best_policy_is_forgotten_where_others_decide_now(metadata: dict[str, Any]):
    same = resumed(metadata, EvaluationSettings(development={"dev": "easy"}, every=5, test={"test": "rows"}))
    assert (same.best_score, same.best_step, same.saved_best_step) == (0.9, 4, 4)
    other = resumed(metadata, EvaluationSettings(development={"dev": "hard"}))
    assert (other.best_score, other.best_step) == (RlvrRun.best_score, 0)
