"""The loop of SFT, DPO and the reward model around a model that is one number: skipped steps, and ranks that die."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import supervised
from launch.supervised import SupervisedRun, SupervisedWork, _supervise, _train
from rlsys.algorithms.step_guard import StepReport
from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.errors import ActorError, CheckpointError, DataError, TrainingError
from rlsys.recipe.stages import SftStage
from rlsys.telemetry.names import describe
from rlsys.telemetry.trace import SpanRecorder
from rlsys.telemetry.tracker import JsonlTracker, read_metrics

SFT: dict[str, Any] = {"kind": "sft", "data": {"source": ({"path": "rows"},)}, "learner": {}, "batch_size": 1}


class Answer:
    """Of a call that is over."""

    def __init__(self, value: Any = None) -> None:
        self._value = value

    def get(self) -> Any:
        return self._value


class Number:
    """A group of ranks whose weights are the sum of the numbers of its steps.

    Args:
        faults: by number of the step.
        deaths: steps whose call kills the ranks, once each.
    """

    def __init__(self, faults: dict[int, str], deaths: list[int]) -> None:
        self.faults, self.deaths = faults, deaths
        self.weights, self.is_dead = 0, False

    def train(self, first_step: int, lrs: list[float]) -> Answer:
        steps = range(first_step, first_step + len(lrs))
        if died := [step for step in steps if step in self.deaths]:
            self.deaths.remove(died[0])
            self.is_dead = True
            raise ActorError("learner[0] died")
        self.weights += sum(step for step in steps if step not in self.faults)
        return Answer([StepReport({"loss/supervised": float(step)}, self.faults.get(step)) for step in steps])

    def restore(self, folder: str) -> Answer:
        self.weights = int((Path(folder) / "w").read_text())
        return Answer()

    def export_hf(self, folder: str) -> Answer:
        """Nothing."""
        return Answer()


def write_states(groups: dict[str, Number], folder: Path, *, deadline_s: float) -> Any:
    """In place of `save_states`."""
    (folder / "model").mkdir()
    (folder / "model" / "w").write_text(str(groups["model"].weights))
    return lambda: None


class Ranks:
    """A crew of one group, which may be started again so often."""

    def __init__(self, model: Number, limit: int) -> None:
        self.model, self.limit = model, limit
        self.restarts = SimpleNamespace(counts={})

    def fallen(self) -> list[str]:
        return ["learner"] if self.model.is_dead else []

    def restart(self, kind: str) -> bool:
        self.restarts.counts[kind] = self.restarts.counts.get(kind, 0) + 1
        self.model.is_dead = False
        return self.restarts.counts[kind] <= self.limit


@pytest.fixture(autouse=True)
def states(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint holds the number."""
    monkeypatch.setattr(supervised, "save_states", write_states)


def run(
    folder: Path,
    *,
    faults: dict[int, str] | None = None,
    deaths: list[int] | None = None,
    limit: int = 20,
    every: int = 2,
    batch_size: int = 1,
    data: str = "digest",
    seed: int = 7,
) -> tuple[Number, list[dict[str, Any]]]:
    """A stage of one epoch; gives the model and the lines of metrics.jsonl, also when it raises."""
    safety, checkpoint = {"max_skipped_in_a_row": 3}, {"every": every, "background": False}
    settings = SftStage(**SFT | {"batch_size": batch_size}, safety=safety, checkpoint=checkpoint)
    model = Number(faults or {}, deaths or [])
    cluster = SimpleNamespace(operation_timeout_s=10.0)
    context: Any = SimpleNamespace(
        crew=Ranks(model, limit), recipe=SimpleNamespace(cluster=cluster), spans=SpanRecorder("driver"),
        flush_trace=lambda: None, forget_models=lambda: None,
    )  # fmt: skip
    tracker = JsonlTracker(folder / "metrics.jsonl", stage="sft")
    stage: Any = SimpleNamespace(
        stage=settings, seed=seed, folder=folder, tracker=tracker, checkpoints=CheckpointStore(folder / "checkpoints"),
        beginning={"bytes": 0},
    )  # fmt: skip

    def topology(of: SupervisedRun) -> dict[str, Any]:
        model.weights = 0  # as a load does
        group: Any = model
        return _train(of, SupervisedWork("policy", group, 8, data, model.train))  # pyright: ignore[reportArgumentType]

    _supervise(context, stage, topology)
    return model, list(read_metrics(folder / "metrics.jsonl"))


def test_skipped_steps_are_logged_before_the_run_stops(tmp_path: Path):
    faults = dict.fromkeys((1, 3, 4, 5), "loss_not_finite")
    with pytest.raises(TrainingError, match="3 updates of the policy in a row were skipped, the last one for loss_not"):
        run(tmp_path, faults=faults, every=0)
    rows = list(read_metrics(tmp_path / "metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6], "the message sends the user to the last of them"
    assert [row.get("skipped/loss_not_finite") for row in rows] == [None, 1, 1, 2, 3, 4]


def test_a_resume_goes_on_with_the_guards_row(tmp_path: Path):
    """Two skipped steps before the checkpoint and one after it are three in a row."""
    faults = {2: "all_masked", 3: "loss_not_finite", 4: "loss_not_finite"}
    with pytest.raises(ActorError):
        run(tmp_path, faults=faults, deaths=[4], limit=0)
    assert CheckpointStore(tmp_path / "checkpoints").steps == [2, 4]
    with pytest.raises(TrainingError, match=r"3 updates of the policy .*'all_masked': 1, 'loss_not_finite': 2"):
        run(tmp_path, faults=faults)
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"batch_size": 2}, "batch_size 1 -> 2"),
        ({"data": "other"}, "data digest -> other"),
        ({"seed": 8}, "seed 7 -> 8"),
    ],
)
def test_a_resume_whose_steps_would_stand_for_other_rows_is_refused(tmp_path: Path, changes: dict[str, Any], told: str):
    with pytest.raises(ActorError):
        run(tmp_path, deaths=[5], limit=0)
    with pytest.raises(CheckpointError, match=f"other rows in its steps.*{told}.*--from sft"):
        run(tmp_path, **changes)
    model, rows = run(tmp_path)
    assert model.weights == sum(range(8)) and [row["step"] for row in rows] == list(range(1, 9))


def test_dead_ranks_take_the_stage_back_to_its_last_checkpoint(tmp_path: Path):
    """The first time there is none, the next time it is that of step 4."""
    model, rows = run(tmp_path, deaths=[1, 5])
    assert model.weights == sum(range(8))
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert [row["loss/supervised"] for row in rows] == list(range(8))
    assert [row["perf/rollbacks"] for row in rows] == [1] * 4 + [2] * 4
    assert rows[-1]["perf/restarts/learner"] == 2
    assert all(describe(name) for name in rows[-1] if "/" in name)


def test_it_ends_when_the_restarts_are_spent(tmp_path: Path):
    with pytest.raises(ActorError, match=r"learner\[0\] died"):
        run(tmp_path, deaths=[1, 3, 5], limit=2)
    assert CheckpointStore(tmp_path / "checkpoints").steps == [2, 4]


def test_an_error_of_another_kind_starts_nothing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A model that is still being loaded answers no ping either: bad data must not look like its death."""
    monkeypatch.setattr(Ranks, "fallen", lambda self: pytest.fail("nobody may ask"))

    def bad_data(self: Number, folder: str) -> None:
        raise DataError("no rows")

    monkeypatch.setattr(Number, "export_hf", bad_data)
    with pytest.raises(DataError, match="no rows"):
        run(tmp_path)
