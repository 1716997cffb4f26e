"""`make soak`: half an hour of training, and an actor killed 60 to 120 s after each recovery, every kind in turn.

The committed step never goes down, every ordinal ends once, and memory, open files and Ray objects of the driver, and
memory, open files and number of all processes together, stay flat: the last third of the run has at most a tenth more
than the one before. A rollout worker that was killed serves again within two minutes.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from actor_processes import holds
from fault_lab import newest_checkpoint, read_ends, start_driver, steps_of

from rlsys.telemetry.tracker import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.soak, pytest.mark.timeout(3600)]

MINUTES = float(os.environ.get("RLSYS_SOAK_MINUTES", "30"))
VICTIMS = ("RolloutWorker", "VerifierWorker", "LearnerRank", "ValueModelRank", "ReferenceModelRank")
RECOVERY_S = 300.0
NUM_WORKERS = 2
FLAT = ("perf/driver_rss_gib", "perf/driver_open_files", "perf/driver_objects")


def assert_runs(driver: subprocess.Popen, log: Path) -> None:
    assert driver.poll() is None, log.read_text()[-4000:]


def wait_for_step(run: Path, driver: subprocess.Popen, log: Path, step: int) -> float:
    """Seconds until the step is there."""
    started = time.monotonic()
    while max(steps_of(run), default=0) < step:
        assert_runs(driver, log)
        assert time.monotonic() - started < RECOVERY_S, f"no step {step} after {RECOVERY_S:g} s"
        time.sleep(0.2)
    return time.monotonic() - started


def wait_for_worker(run: Path, driver: subprocess.Popen, log: Path, *, restarts: float) -> float:
    """Seconds until one more rollout worker was started again than before, and all serve."""
    started = time.monotonic()
    while not (last := last_row(run))["perf/restarts/rollout"] > restarts or last["perf/rollout_workers"] < NUM_WORKERS:
        assert_runs(driver, log)
        assert time.monotonic() - started < RECOVERY_S, f"no worker serves in its place after {RECOVERY_S:g} s"
        time.sleep(0.2)
    return time.monotonic() - started


def last_row(run: Path) -> dict[str, float]:
    """Of RLVR."""
    last = [row for row in read_metrics(run / "metrics.jsonl") if row["stage"] == "rlvr"][-1]
    return {"perf/restarts/rollout": 0.0, **last}


def usage_of(driver: subprocess.Popen) -> dict[str, float]:
    """Of the driver and all its processes: resident memory in GiB, open files, processes."""
    rss, files, count = 0, 0, 0
    for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            rss += process.memory_info().rss
            files += process.num_fds()
            count += 1
    return {"all_rss_gib": rss / 2**30, "all_open_files": float(files), "processes": float(count)}


def test_half_an_hour_of_kills(tmp_path: Path):
    overrides = (
        "deterministic=false", "rlvr.batches=1000000", "rlvr.max_staleness=1", "rlvr.checkpoint.every=5",
        "cluster.learner_ranks=2", "cluster.max_restarts=1000", "rlvr.learner.lr=1e-4",
    )  # fmt: skip
    generator, kills, recoveries, usage = random.Random(7), Counter(), [], []
    kinds: list[str] = []
    run = tmp_path / "faults"
    log = tmp_path / "driver.log"
    with log.open("w") as output:
        driver = start_driver(tmp_path, overrides=overrides, output=output)
    try:
        wait_for_step(run, driver, log, 10)
        ends_at, committed = time.monotonic() + MINUTES * 60, [0]
        while time.monotonic() < ends_at:
            kinds = kinds or generator.sample(VICTIMS, len(VICTIMS))
            deadline = time.monotonic() + generator.uniform(60.0, 120.0)
            while time.monotonic() < min(deadline, ends_at):
                assert_runs(driver, log)
                committed.append(newest_checkpoint(run))
                assert committed[-1] >= committed[-2]
                usage.append(usage_of(driver))
                time.sleep(1.0)
            kind = kinds.pop()
            victims = [each for each in psutil.Process(driver.pid).children(recursive=True) if holds(each, kind)]
            step, restarts = max(steps_of(run)), last_row(run)["perf/restarts/rollout"]
            generator.choice(victims).kill()
            kills[kind] += 1
            seconds = wait_for_step(run, driver, log, step + 2)
            if kind == "RolloutWorker":
                seconds += wait_for_worker(run, driver, log, restarts=restarts)
            recoveries.append((kind, seconds))
    finally:
        driver.send_signal(signal.SIGTERM)
        driver.wait(timeout=120)
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["stage"] == "rlvr"]
    ordinals = [ordinal for ordinal, _, _ in read_ends(run / "02-rlvr")]
    assert sum(kills.values()) >= MINUTES / 5, kills
    assert set(kills) == set(VICTIMS) or MINUTES < 15, kills
    assert committed[-1] > 100
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), "steps are committed once, in order"
    assert len(ordinals) == len(set(ordinals)), "an ordinal ended twice"
    slowest = {kind: max((s for k, s in recoveries if k == kind), default=0.0) for kind in VICTIMS}
    drift = {}
    for name in FLAT:
        thirds = np.array_split([row[name] for row in rows], 3)
        drift[name] = float(np.median(thirds[2]) / np.median(thirds[1]))
    for name in usage[0]:
        thirds = np.array_split([used[name] for used in usage], 3)
        drift[name] = float(np.median(thirds[2]) / np.median(thirds[1]))
    print(json.dumps({"kills": kills, "steps": len(rows), "slowest_recovery_s": slowest, "drift": drift}, indent=1))
    assert slowest["RolloutWorker"] < 120
    assert all(ratio < 1.1 for ratio in drift.values()), drift
