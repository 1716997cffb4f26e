"""Trackers: what a killed, resumed or unlucky run finds in its files."""

import json
import os
import resource
import struct
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from rlsys.errors import CheckpointError, RlsysError
from rlsys.telemetry.console import ConsoleTracker
from rlsys.telemetry.tracker import JsonlTracker, MultiTracker, read_metrics
from rlsys.telemetry.wandb_tracker import WandbTracker


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


def test_a_line_holds_stage_step_time_and_metrics(tmp_path: Path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl", stage="04-rlvr")
    tracker.log(3, {"reward/mean": 0.5, "loss/policy": float("nan"), "optim/grad_norm": float("inf"), "perf/mfu": 1})
    (text,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    line = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert line.pop("time") > 1.6e9
    assert line == {
        "stage": "04-rlvr", "step": 3, "reward/mean": 0.5, "loss/policy": None, "optim/grad_norm": None, "perf/mfu": 1.0
    }  # fmt: skip


def test_a_wrong_name_is_refused_and_nothing_is_written(tmp_path: Path):
    tracker = JsonlTracker(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match="did you mean 'reward'"):
        tracker.log(1, {"loss/policy": 1.0, "rewards/mean": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_full_disk_is_told_and_half_a_line_is_cut_off_later(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(1, {"loss/policy": 1.0})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, limits[1]))
    try:
        with pytest.raises(RlsysError, match=r"metrics.jsonl cannot be written; got 'File too large'; make room"):
            tracker.log(2, {"loss/policy": 2.0})
        tracker.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    tracker = JsonlTracker(path)
    tracker.log(2, {"loss/policy": 3.0})
    assert [line["loss/policy"] for line in read_metrics(path)] == [1.0, 3.0]


def test_resume_takes_back_the_steps_after_the_checkpoint(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    first = JsonlTracker(path, stage="a")
    for step in (1, 2):
        first.log(step, {"loss/policy": step})
    position = json.loads(json.dumps(first.position()))
    for step in (3, 4):
        first.log(step, {"loss/policy": -1.0})
    first.close()
    first.close()
    resumed = JsonlTracker(path, stage="a")
    resumed.restore(position)
    assert steps(path) == [1, 2]
    resumed.log(3, {"loss/policy": 30.0})
    assert [line["loss/policy"] for line in read_metrics(path)] == [1.0, 2.0, 30.0]


def test_a_torn_line_is_not_glued_to_the_next(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"stage": "", "step": 1}\n{"stage": "", "st')
    assert steps(path) == [1]
    JsonlTracker(path).log(2, {})
    assert steps(path) == [1, 2]


def test_a_position_that_the_file_does_not_have_is_an_error(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(1, {"loss/policy": 1.0})
    size = path.stat().st_size
    with pytest.raises(CheckpointError, match="is shorter than the checkpoint says"):
        tracker.restore({"bytes": size + 1})
    with pytest.raises(CheckpointError, match="was changed since the checkpoint"):
        tracker.restore({"bytes": size - 1})
    assert steps(path) == [1]
    tracker.restore({"bytes": 0})
    assert steps(path) == []


def test_a_killed_process_loses_no_logged_step(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    code = (
        "import os, signal, sys\n"
        "from rlsys.telemetry.tracker import JsonlTracker\n"
        "tracker = JsonlTracker(sys.argv[1])\n"
        "for step in range(5): tracker.log(step, {'loss/policy': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60).returncode == -9
    assert steps(path) == [0, 1, 2, 3, 4]


def test_several_trackers_keep_their_own_positions(tmp_path: Path):
    def open_both() -> MultiTracker:
        return MultiTracker([JsonlTracker(tmp_path / "a"), JsonlTracker(tmp_path / "b", stage="longer")])

    both = open_both()
    both.log(1, {"loss/policy": 1.0})
    position = json.loads(json.dumps(both.position()))
    both.log(2, {"loss/policy": 2.0})
    both.close()
    resumed = open_both()
    resumed.restore(position)
    resumed.close()
    assert steps(tmp_path / "a") == steps(tmp_path / "b") == [1]


def test_console_prints_a_line_of_what_matters():
    screen = StringIO()
    tracker = ConsoleTracker(stage="rlvr", total_steps=100, console=Console(file=screen, width=200, highlight=False))
    tracker.log(7, {"time/step_s": 1.234, "reward/mean": 0.5, "policy/mismatch_abs": 9.0, "eval/test/accuracy": 0.875})
    tracker.log(8, {"loss/policy": -0.01, "skipped/all_masked": 2.0, "skipped/loss_not_finite": 1.0})
    first, second = screen.getvalue().splitlines()
    assert first == "rlvr   7/100  reward 0.500  s 1.23  eval/test/accuracy 0.875"
    assert second == "rlvr   8/100  policy -0.0100  skipped 3"


def read_wandb(folder: Path) -> list[dict[str, float]]:
    """The history of an offline run, as the bytes on disk have it: a LevelDB log of wandb's protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, place, rows = path.read_bytes(), 7, []
    assert data.startswith(b":W&B") and len(data) < 32768  # one block: every record is whole
    while place + 7 <= len(data):
        (size,) = struct.unpack("<H", data[place + 4 : place + 6])
        record = Record.FromString(data[place + 7 : place + 7 + size])
        place += 7 + size
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            rows.append({key: value for key, value in items.items() if not key.startswith("_")})
    return rows


def test_wandb_is_offline_when_nobody_is_logged_in(tmp_path: Path):
    """In a process of its own: wandb's service may write the last bytes after `finish`, not after the process."""
    code = (
        "from rlsys.telemetry.wandb_tracker import WandbTracker\n"
        "tracker = WandbTracker('.', project='rlsys', name='test', config={'learner': {'lr': 1e-5}})\n"
        "for step in (1, 2, 2):  # a resumed run repeats a step\n"
        "    tracker.log(step, {'reward/mean': step / 4, 'verifier/math/correct_frac': 0.5})\n"
        "tracker.close()\n"
        "print(dict(tracker.problems), tracker.position()['run_id'])\n"
    )
    nobody = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    nobody |= {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=nobody, capture_output=True, text=True, timeout=120, check=True)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    assert done.stdout.split() == ["{}", folder.name.split("-")[-1]]
    rows = read_wandb(tmp_path)
    assert rows == [{"step": step, "reward/mean": step / 4, "verifier/math/correct_frac": 0.5} for step in (1, 2, 2)]


def test_wandb_failures_reach_no_step_and_are_told_in_one_line_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    tracker = WandbTracker(tmp_path, project="no/such:project", name="test", mode="offline")
    for step in range(3):
        tracker.log(step, {"reward/mean": 0.0})
    tracker.close()
    assert tracker.problems["dropped"] == 3
    assert sum(tracker.problems.values()) == 4
    tracker.close()
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("wandb did not"))
    assert line.startswith(
        "wandb did not get everything: dropped 3, UsageError 1; first UsageError: Invalid project name"
    )
    assert line.endswith("; metrics.jsonl has it all")


def test_a_stage_that_goes_back_stays_in_its_wandb_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Though the position that it goes back to is of a time before wandb had begun one."""
    nothing = lambda *_, **__: None  # noqa: E731
    run = SimpleNamespace(id="abc123", log=nothing, finish=nothing, define_metric=nothing)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **_: run, Settings=dict))
    tracker = WandbTracker(tmp_path, project="rlsys", name="test", mode="offline")
    beginning = tracker.position()
    tracker.log(1, {"reward/mean": 0.0})
    deadline = time.monotonic() + 30.0
    while not tracker.run_id and time.monotonic() < deadline:
        time.sleep(0.01)
    tracker.restore(beginning)
    tracker.log(1, {"reward/mean": 0.0})
    assert tracker.position() == {"run_id": "abc123"}
    tracker.close()


def test_a_wandb_that_hangs_blocks_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    answer = threading.Event()

    def init(**_):
        answer.wait(30)
        raise ConnectionError("no route\nto the host")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=dict))
    tracker = WandbTracker(tmp_path, project="rlsys", name="test", mode="online", queue_length=2)
    for step in range(5):
        tracker.log(step, {"reward/mean": 0.0})
    assert tracker.problems["dropped"] == 3
    answer.set()
    tracker.close()
    assert tracker.problems["ConnectionError"] == 1
    assert capsys.readouterr().out == (
        "wandb did not get everything: dropped 5, ConnectionError 1; first ConnectionError: no route; "
        "metrics.jsonl has it all\n"
    )


def test_a_tracker_that_was_turned_on_at_a_resume_begins_anew(tmp_path: Path):
    before = MultiTracker([JsonlTracker(tmp_path / "metrics.jsonl")])
    position = before.position()
    before.log(1, {"reward/mean": 0.0})
    before.close()
    added = JsonlTracker(tmp_path / "metrics.jsonl"), JsonlTracker(tmp_path / "other.jsonl")
    added[1].log(1, {"reward/mean": 0.0})
    MultiTracker(added).restore(position)
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == []
    assert len(list(read_metrics(tmp_path / "other.jsonl"))) == 1
