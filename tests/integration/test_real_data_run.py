"""SFT and RLVR on the real GSM8K and IFEval files: killed with -9 in RLVR, run again, finished."""

import json
import math
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
from leftovers import Traces, assert_nothing_left, shared_memory
from tiny_recipe import sampling_and_update

from rlsys.telemetry.tracker import read_metrics

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
pytestmark = [
    pytest.mark.integration,
    pytest.mark.alone,
    pytest.mark.real_data,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not DATA.is_dir(), reason="the real data is not at ../shared/data"),
]
SHORT = ("sft.max_steps=2", "sampling.max_tokens=32", "evaluation.test={}", "tracking.console=false", "rlvr.batches=6")
GROUPS, BATCHES = 16, 6


def start(runs: Path) -> subprocess.Popen:
    """`rlsys run` in a process group of its own, so that all of it can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "run", "configs/gsm8k-ifeval-cpu.toml", *SHORT, f'runs="{runs}"'],
        cwd=ROOT,
        env=os.environ | {"WANDB_MODE": "offline"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_run_on_real_data_killed_with_9_goes_on_after_its_last_checkpoint(tmp_path: Path):
    shared_before = shared_memory()
    process = start(tmp_path)
    folder = tmp_path / "gsm8k-ifeval-cpu"
    checkpoints = folder / "02-rlvr" / "checkpoints"
    deadline = time.monotonic() + 500
    while not (checkpoints / "step_000002").is_dir():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline, "no checkpoint was committed"
        time.sleep(0.2)
    family = psutil.Process(process.pid).children(recursive=True)
    titles = ""
    for member in family:
        with suppress(psutil.NoSuchProcess):
            titles += " ".join(member.cmdline())
    expected = ("raylet", "gcs_server", "ray::LearnerRank", "ray::RolloutWorker", "rlsys.verifiers.broker")
    assert all(part in titles for part in expected)
    traces = Traces.of(process.pid)
    process.kill()
    process.wait(timeout=30)
    committed = max(int(path.name[5:]) for path in checkpoints.glob("step_*"))
    assert 2 <= committed < BATCHES
    output, _ = (again := start(tmp_path)).communicate(timeout=600)
    assert again.returncode == 0, output[-4000:]
    assert_nothing_left(traces, shared_before)
    assert f"resumed rlvr after batch {committed}" in output
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["stage"] == "rlvr"]
    assert [row["step"] for row in rows] == list(range(1, BATCHES + 1)), "one line for each committed step, no other"
    for row in rows:
        assert row["verifier/gsm8k/wrong_frac"] + row["verifier/gsm8k/correct_frac"] > 0.0
        assert all(math.isfinite(row[name]) for name in ("policy/reference_kl", "loss/value", "value/return/std"))
        assert row["policy/canary_gap"] < 1e-4
    assert any("verifier/ifeval/correct_frac" in row for row in rows)
    assert any(row["policy/reference_kl"] > 0.0 for row in rows[1:]), "it has learned something"
    ends = [json.loads(line) for line in (folder / "02-rlvr" / "ends.jsonl").read_text().splitlines()]
    trained = sorted(ordinal for ordinal, kind, _ in ends if kind == "trained")
    assert len(trained) == len(set(trained)) == GROUPS * BATCHES
    assert np.all(np.diff(trained) == 1), "no prompt was skipped"
    card = json.loads((folder / "02-rlvr" / "data_card.json").read_text())
    assert {source["name"] for source in card["sources"]} == {"gsm8k", "ifeval"}
    for stage in ("01-sft", "02-rlvr"):
        report = json.loads((folder / stage / "decontamination.json").read_text())
        assert "gsm8k" in json.dumps(report), "the gate has compared with the test set"
    assert (folder / "02-rlvr" / "hf" / "model.safetensors").is_file()
    sampling, update, both = sampling_and_update(folder, "rlvr")
    assert both >= 0.5 * min(sampling, update) > 0.0, "at staleness 1 the next batch is sampled meanwhile"
