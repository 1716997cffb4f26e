"""Which policy RLVR exports: the best on the development sets, measured every N batches and at the end."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import rlvr_run as rlvr_run_module
from launch.context import RunContext
from launch.rlvr_run import RlvrRun
from rlsys.checkpoint.policy_exports import PolicyExports
from rlsys.telemetry.trace import SpanRecorder


class Learner:
    """Exports the step that it is at."""

    step = 0

    def export_hf(self, folder: str) -> Any:
        Path(folder).mkdir()
        (Path(folder) / "weights").write_text(str(self.step))
        return SimpleNamespace(get=lambda: None)


def exported(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    scores: dict[int, tuple[float, ...]],
    *,
    every: int,
    batches: int = 5,
) -> int:
    """The step whose weights are in hf/, of a run whose development sets score so at each evaluated step."""
    learner = Learner()
    run: Any = object.__new__(RlvrRun)
    run.context = object.__new__(RunContext)
    run.context.spans, run.context.crew = SpanRecorder("driver"), SimpleNamespace(learner=learner)
    evaluation = SimpleNamespace(every=every, temperatures=(1.0, 0.0))
    run.settings = SimpleNamespace(batches=batches, evaluation=evaluation, checkpoint=SimpleNamespace(every=0))
    names = ("sums", "writing")[: max(map(len, scores.values()), default=0)]
    run.development = [SimpleNamespace(name=name) for name in names]
    run.exports, run.best_score, run.best_step = PolicyExports(folder), -float("inf"), 0
    measured: list[int] = []

    def evaluate(context: Any, sets: Any, settings: Any) -> dict[str, float]:
        measured.append(learner.step)
        found = zip(names, scores[learner.step], strict=True)
        # What is measured at other temperatures chooses nothing.
        return {f"eval/{name}/accuracy@T1": score for name, score in found} | {
            f"eval/{name}/accuracy@T0": float(learner.step) for name in names
        }

    monkeypatch.setattr(rlvr_run_module, "evaluate", evaluate)
    for learner.step in range(1, batches + 1):
        seconds: dict[str, float] = {}
        metrics = run.evaluate_if_due(learner.step, seconds)
        assert list(seconds) == ["time/evaluate_s"] * bool(metrics)
        assert [metrics[f"eval/{name}/accuracy@T1"] for name in names if metrics] == list(scores.get(learner.step, ()))
    assert measured == list(scores)
    run.finish_exports()
    assert sorted(path.name for path in folder.iterdir()) == ["exported.json", "hf"]
    return int((folder / "hf" / "weights").read_text())


def test_the_best_on_the_development_set_is_exported_and_not_the_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert exported(monkeypatch, tmp_path, {2: (0.3,), 4: (0.6,), 5: (0.5,)}, every=2) == 4


def test_of_equals_the_first_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert exported(monkeypatch, tmp_path, {1: (0.2,), 2: (0.4,), 3: (0.4,)}, every=1, batches=3) == 2


def test_several_sets_count_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Means of 0.5, 0.55 and 0.45, though the first set alone would choose the last step."""
    scores = {2: (0.5, 0.5), 4: (0.4, 0.7), 5: (0.8, 0.1)}
    assert exported(monkeypatch, tmp_path, scores, every=2) == 4


def test_the_end_alone_is_measured_where_no_step_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert exported(monkeypatch, tmp_path, {5: (0.1,)}, every=0) == 5


def test_without_development_sets_the_last_policy_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    assert exported(monkeypatch, tmp_path, {}, every=2) == 5
