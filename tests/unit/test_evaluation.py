"""What an evaluation says of its groups, and that it says it whatever becomes of its record."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from actors.pump_records import VerifiedGroup
from actors.shards import GroupReference
from launch import evaluation as evaluation_module
from launch.evaluation import EvaluationSet, evaluate
from rlsys.errors import ActorError
from rlsys.recipe.evaluation import EvaluationSettings
from rlsys.telemetry.names import check_name
from rlsys.types import GroupSummary, Prompt, Verdict

RIGHT, WRONG = Verdict("math", "correct", 1.0, 0.1), Verdict("math", "wrong", 0.0, 0.1)
FAILED = Verdict("math", "timeout", 0.0, 0.1)


def group(ordinal: int, *samples: tuple[Verdict, ...]) -> VerifiedGroup:
    n = len(samples)
    summary = GroupSummary(ordinal, (1,) * n, 1, 0, 0, ("stop",) * n, (0.0,) * n, samples)
    return VerifiedGroup(summary, GroupReference(None, ordinal), 0.1)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the task that writes is given."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(evaluation_module, "write_rollouts", SimpleNamespace(remote=lambda *args: calls.append(args)))
    groups = [group(0, (RIGHT,), (RIGHT, WRONG)), group(1, (RIGHT, RIGHT), (FAILED,)), group(2, (WRONG,), (WRONG,))]
    monkeypatch.setattr(evaluation_module, "_sample", lambda *_: groups)
    return calls


PROMPTS = tuple(
    Prompt(ordinal, str(ordinal), (), np.array([5], np.int32), source=source)
    for ordinal, source in enumerate(("sums", "ai2-adapt-dev/words", "ai2-adapt-dev/words"))
)


def run(record: Path | None, *, fails: bool) -> dict[str, float]:
    def result(task: Any, *, what: str) -> None:
        if fails:
            raise ActorError(f"{what} failed: no space left")

    context: Any = SimpleNamespace(model=SimpleNamespace(folder="model"), result=result)
    settings = EvaluationSettings(temperatures=(1.0,))
    return evaluate(context, [EvaluationSet("dev", PROMPTS)], settings, record=record)


ACCURACIES = {
    "eval/dev/accuracy@T1": 2 / 5,  # of six responses one could not be judged
    "eval/dev/sums@T1": 1 / 2,
    "eval/dev/ai2-adapt-dev_words@T1": 1 / 3,
    "eval/dev/failed@T1": 1 / 6,
}


def test_accuracies_by_hand_under_names_that_metrics_may_have(written: list[Any], tmp_path: Path):
    metrics = run(tmp_path, fails=False)
    assert metrics == pytest.approx(ACCURACIES)
    assert [check_name(name) for name in metrics] == list(metrics)
    ((references, path, tokenizer, step),) = written
    assert [reference.index for reference in references] == [0, 1, 2]
    assert (path, tokenizer, step) == (str(tmp_path / "dev@T1.parquet"), "model", None)


def test_a_record_that_cannot_be_written_is_told_and_takes_nothing_away(
    written: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(tmp_path, fails=True) == pytest.approx(ACCURACIES)
    assert "the responses of an evaluation were not written: writing" in capsys.readouterr().out


def test_development_sets_leave_no_record(written: list[Any]):
    run(None, fails=True)
    assert written == []
