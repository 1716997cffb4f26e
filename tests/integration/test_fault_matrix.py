"""The published matrix: fault x component x moment -> outcome. `make faults` runs it; docs/faults.md has it as a table.

Every cell injects one fault into a run of four batches on one shared cluster, and says how the run must end: whole,
with the restarts that it names and no others, or with one error that names what happened. A cell that waits in silence
fails by its time limit.
"""

import contextlib
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from fault_lab import (
    Faults,
    assert_same_weights,
    assert_whole,
    fault_context,
    newest_checkpoint,
    pid_of,
    raise_in_steps,
    raise_in_training,
    raise_in_verifying,
    read_ends,
    slow_down,
    start_driver,
    steps_of,
    train,
)

from actors.groups import ModelGroup
from actors.learner import Learner
from actors.publication import RayEngine
from actors.pump import RolloutPump
from launch.context import RunContext
from launch.rlvr_run import RlvrRun
from launch.rlvr_update import Update
from rlsys.errors import RlsysError

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(600)]

MOMENTS: dict[str, tuple[type, str, str, int]] = {
    "idle": (RlvrRun, "flush_trace", "after", 2),
    "sampling": (RolloutPump, "poll", "before", 3),
    "scoring": (Update, "_submit_scores", "after", 2),
    "update": (Learner, "train_policy", "after", 2),
    "publication": (RayEngine, "receive_weights", "after", 3),  # two engines: the first of version 1
    "checkpoint": (ModelGroup, "save", "after", 1),
}
"""Where the fault is injected: around which call of the driver. What is called there is under way after it."""
SLOWED = {"rollout": ("step", 0.3), "verifier": ("verify_many", 1.0), "learner": ("train_step", 3.0)}
"""Which call takes how many more seconds, about a hundred times its own."""


@dataclass(frozen=True)
class Cell:
    """One fault."""

    fault: str
    component: str
    moment: str
    restarts: str = ""
    """Kinds of actors that are started again, once each; none in a run that shrugs the fault off."""
    error: str = ""
    """Pattern of the error that ends the run, where it cannot go on."""
    prepared: str = ""
    """The moment before, at which what then fails or is slow is put in."""

    @property
    def name(self) -> str:
        """Of the test."""
        return f"{self.fault}-{self.component}-{self.moment}".replace(" ", "_")

    @property
    def outcome(self) -> str:
        """In the table's words."""
        if self.error:
            return "stopped with an error"
        if not self.restarts:
            return "goes on"
        ranks = {"learner", "value"} & set(self.restarts.split())
        return f"back to the last checkpoint, {self.restarts} restarted" if ranks else f"{self.restarts} replaced"


CELLS = [
    *(
        Cell("SIGKILL", "rollout worker", moment, "rollout")
        for moment in ("idle", "sampling", "update", "publication", "checkpoint")
    ),
    Cell("slow 100x", "rollout worker", "sampling"),  # until the next cell replaces it
    Cell("SIGSTOP", "rollout worker", "sampling", "rollout"),
    Cell("SIGSTOP", "rollout worker", "publication", "rollout"),
    Cell("exception", "rollout worker", "sampling", "rollout"),
    *(
        Cell("SIGKILL", "verifier worker", moment, "verifier")
        for moment in ("idle", "sampling", "update", "publication")
    ),
    Cell("slow 100x", "verifier worker", "sampling"),  # until the next cell replaces it
    Cell("SIGSTOP", "verifier worker", "sampling", "verifier"),
    Cell("exception", "verifier worker", "sampling", "verifier"),
    Cell("SIGKILL", "verifier's pool", "sampling"),
    *(
        Cell("SIGKILL", f"learner rank {rank}", moment, "learner")
        for rank, moments in ((0, ("scoring", "update", "publication", "checkpoint")), (1, tuple(MOMENTS)))
        for moment in moments
    ),
    Cell("SIGSTOP", "learner rank 1", "update", "learner"),
    Cell("SIGSTOP", "learner rank 1", "checkpoint", "learner"),
    Cell("SIGSTOP", "learner rank 0", "publication", "learner"),
    Cell("exception", "learner rank 0", "update", "learner", prepared="scoring"),
    Cell("slow 100x", "learner rank 1", "update", prepared="scoring"),
    *(
        Cell("SIGKILL", "value rank", moment, "value")
        for moment in ("idle", "sampling", "scoring", "update", "publication", "checkpoint")
    ),
    Cell("SIGSTOP", "value rank", "update", "value"),
    Cell("exception", "value rank", "update", error=r"value\[0\] in train_value.*failed.*injected", prepared="scoring"),
    *(Cell("SIGKILL", "reference", moment, "reference") for moment in ("idle", "sampling", "scoring", "update")),
    Cell("SIGSTOP", "reference", "scoring", "reference"),
]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Iterator[RunContext]:
    folder = tmp_path_factory.mktemp("matrix")
    overrides = (
        "deterministic=false", "cluster.learner_ranks=2", "cluster.max_restarts=1000",
        "cluster.operation_timeout_s=60.0", "rlvr.max_staleness=1", "rlvr.batches=4",
    )  # fmt: skip
    with fault_context(folder, *overrides) as context:
        yield context


def handles_of(context: RunContext, component: str) -> list[Any]:
    """The actor that a fault is for."""
    crew = context.crew
    match component.split():
        case ["rollout", "worker"]:
            return [crew.workers.built[0].handle]
        case ["verifier", "worker"] | ["verifier's", "pool"]:
            return [crew.verifiers.built[0].handle]
        case ["learner", "rank", rank]:
            return [crew.learner.ranks.handles[int(rank)]]
        case ["value", "rank"]:
            return [crew.value.ranks.handles[0]]
        case _:
            return [crew.reference.ranks.handles[0]]


def injection(context: RunContext, cell: Cell, faults: Faults) -> Callable[[], None]:
    """Who is to be hit is asked before the run; at the moment itself an actor may be too busy to answer."""
    (handle,) = handles_of(context, cell.component)
    name = f"{cell.fault} {cell.component} {cell.moment}"
    if cell.fault in ("SIGKILL", "SIGSTOP"):
        process = psutil.Process(pid_of(handle))

        def send() -> None:
            pids = [process.pid]
            if cell.component == "verifier's pool":
                pids = [child.pid for child in process.children(recursive=True)]
                assert pids
            faults.signal(name, pids, signal.Signals[cell.fault])

        return send

    def spoil() -> None:
        kind = cell.component.split()[0]
        if cell.fault == "exception":
            {"verifier": raise_in_verifying, "rollout": raise_in_steps}.get(kind, raise_in_training)(handle)
        else:
            slow_down(handle, *SLOWED[kind])
        faults.injected.append(name)

    return spoil


@pytest.mark.parametrize(
    "cell", CELLS, ids=lambda cell: f"{cell.fault}-{cell.component}-{cell.moment}".replace(" ", "_")
)
def test_the_outcome_is_the_published_one(context: RunContext, monkeypatch, cell: Cell):
    faults, crew = Faults(), context.crew
    crew.workers.wait_for_all()
    crew.verifiers.wait_for_all()
    hit = injection(context, cell, faults)
    owner, method, when, number = MOMENTS[cell.prepared or cell.moment]
    faults.around(monkeypatch, owner, method, **{when: lambda call: hit() if call == number else None})
    before = Counter(crew.restarts.counts)
    name = f"cell-{CELLS.index(cell)}"
    if cell.error:
        with pytest.raises(RlsysError) as stopped:
            train(context, name)
        assert re.search(cell.error, str(stopped.value), re.DOTALL), str(stopped.value)
    else:
        assert_whole(train(context, name))
    assert len(faults.injected) == 1
    assert Counter(crew.restarts.counts) - before == Counter(cell.restarts.split())


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(context: RunContext):
    """The stage's folder is a file system of its own, which has room for one checkpoint and not for two."""
    folder = context.folder / "full"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3500k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises(RlsysError, match=r"no space left for a checkpoint: it takes 2\.\d MiB"):
            train(context, "full")
        left = sorted(path.name for path in (folder / "checkpoints").iterdir() if not path.name.startswith("."))
        assert left == ["step_000002"]
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_damaged_checkpoint_is_passed_over_in_a_rollback(context: RunContext, monkeypatch, capsys):
    faults = Faults()
    process = psutil.Process(pid_of(context.crew.learner.ranks.handles[1]))
    folder = context.folder / "damaged" / "checkpoints" / "step_000004"

    def in_update(call: int) -> None:
        if call != 5:
            return
        deadline = time.monotonic() + 60
        while not folder.is_dir():
            assert time.monotonic() < deadline
        target = max(folder.rglob("*optim_states.pt"), key=lambda path: path.stat().st_size)
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
        faults.signal("a flipped bit in the newest checkpoint, then a killed rank", [process.pid])

    faults.around(monkeypatch, Learner, "train_policy", after=in_update)
    run = train(context, "damaged", batches=6)
    assert len(faults.injected) == 1
    assert_whole(run)
    printed = capsys.readouterr().out
    assert "passed over a damaged checkpoint: step_000004" in printed
    assert "resumed damaged after batch 2" in printed


# --- the driver and what it stands on --------------------------------------------------------------------------------

DRIVER_MOMENTS = ("sampling", "scoring", "update", "publication", "checkpoint")
INJECT = """
from actors.groups import ModelGroup
from actors.learner import Learner
from actors.publication import RayEngine
from actors.pump import RolloutPump
from launch.rlvr_run import RlvrRun
from launch.rlvr_update import Update
class Patch:
    setattr = staticmethod(setattr)
def hit(call):
    if call == {number}:
        print("injected", flush=True)
        {action}
Faults().around(Patch, {owner}, "{method}", {when}=hit)
"""
KILL_DRIVER = "os.kill(os.getpid(), signal.SIGKILL)"
KILL_RAYLET = (
    "[p.kill() for p in psutil.Process().children(recursive=True) if p.name() == 'raylet' or 'raylet/raylet' in "
    "' '.join(p.cmdline()[:1])]"
)


def injected_driver(folder: Path, moment: str, action: str) -> tuple[int, str]:
    """Runs a driver that does `action` at the moment; its exit status and what it printed."""
    owner, method, when, number = MOMENTS[moment]
    inject = INJECT.format(owner=owner.__name__, method=method, when=when, number=number + 2, action=action)
    driver = start_driver(folder, inject=inject)
    output, _ = driver.communicate(timeout=400)
    assert "injected" in output, output[-4000:]
    return driver.returncode, output


def resume(folder: Path, overrides: Sequence[str] = ()) -> str:
    folder.mkdir(exist_ok=True)
    driver = start_driver(folder, overrides=overrides)
    output, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    resume(folder)
    return folder / "faults" / "02-rlvr"


@pytest.mark.parametrize("moment", DRIVER_MOMENTS)
def test_a_driver_killed_resumes_to_the_same_bits(undisturbed: Path, tmp_path: Path, moment: str):
    status, _ = injected_driver(tmp_path, moment, KILL_DRIVER)
    assert status == -signal.SIGKILL
    resume(tmp_path)
    assert_same_weights(undisturbed, tmp_path / "faults" / "02-rlvr")


@pytest.mark.parametrize("moment", ["sampling", "update"])
def test_a_lost_raylet_ends_the_run_in_its_deadline_and_it_resumes(undisturbed: Path, tmp_path: Path, moment: str):
    """With the raylet go the object store and every actor of the node: on one node there is nothing to go on with."""
    status, output = injected_driver(tmp_path, moment, KILL_RAYLET)
    assert status != 0
    # Whoever had work under way there is named, with the call and the cause.
    assert re.search(r"(rollout|verifier|learner|value|reference)\S* .*(died|is not replaced|is left)", output), output
    resume(tmp_path)
    assert_same_weights(undisturbed, tmp_path / "faults" / "02-rlvr")


NUM_KILLS, BATCHES = 20, 60


@pytest.mark.timeout(2400)
def test_twenty_kills_of_everything_lose_and_repeat_nothing(undisturbed: Path, tmp_path: Path):
    """kill -9 of the driver and all its processes: one in four while they start, else at any moment of training."""
    generator = random.Random(20)
    folder, overrides, newest, trained_to = tmp_path / "faults" / "02-rlvr", (f"rlvr.batches={BATCHES}",), [0], []
    for _ in range(NUM_KILLS):
        driver = start_driver(tmp_path, overrides=overrides)
        if generator.random() < 0.25:
            wait_while_running(driver, until=lambda: False, timeout_s=generator.uniform(1.0, 12.0))
        else:
            step = max(steps_of(tmp_path / "faults"), default=0) + generator.randint(1, 3)
            assert wait_while_running(
                driver, until=lambda step=step: max(steps_of(tmp_path / "faults"), default=0) >= step, timeout_s=600.0
            )
            wait_while_running(driver, until=lambda: False, timeout_s=generator.uniform(0.0, 1.5))
        for process in [psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        driver.communicate(timeout=60)
        trained_to.append(max(steps_of(tmp_path / "faults"), default=0))
        newest.append(newest_checkpoint(tmp_path / "faults"))
        assert newest[-1] >= newest[-2]
    resume(tmp_path, overrides)
    trained = [ordinal for ordinal, kind, _ in read_ends(folder) if kind == "trained"]
    assert sorted(trained) == list(range(BATCHES * 8))
    assert steps_of(tmp_path / "faults") == list(range(1, BATCHES + 1))
    resume(tmp_path / "straight", overrides)
    assert_same_weights(tmp_path / "straight" / "faults" / "02-rlvr", folder)
    print(f"{NUM_KILLS} kills, after the steps {trained_to}; newest checkpoint after each: {newest[1:]}")


def wait_while_running(driver: subprocess.Popen, *, until: Callable[[], bool], timeout_s: float) -> bool:
    """Whether `until` came true in time; a driver that ends meanwhile is an error."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert driver.poll() is None, driver.communicate()[0][-4000:]
        if until():
            return True
        time.sleep(0.02)
    return False


# --- engines of more than one process --------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_an_engine_core_that_falls_costs_its_rollout_worker(tmp_path: Path, monkeypatch, number: signal.Signals):
    """A tensor-parallel engine has a process for each part; the worker that owns them ends with any of them."""
    first, second = sorted(os.sched_getaffinity(0))[:2]
    overrides = (
        "rollout.vllm.tensor_parallel_size=2", f'rollout.cpu_cores="{first}|{second}"', "cluster.rollout_workers=1",
        "deterministic=false", "rlvr.batches=3",
    )  # fmt: skip
    faults = Faults()
    with fault_context(tmp_path, *overrides) as context:
        context.crew.workers.wait_for_all()
        worker = psutil.Process(pid_of(context.crew.workers.built[0].handle))
        cores = worker.children(recursive=True)
        assert len(cores) >= 2
        faults.around(
            monkeypatch, RolloutPump, "poll",
            before=lambda call: faults.signal("engine core", [cores[-1].pid], number) if call == 3 else None,
        )  # fmt: skip
        assert_whole(train(context, "cores"))
        assert faults.injected == ["engine core"]
        assert Counter(context.crew.restarts.counts) == {"rollout": 1}
        _, alive = psutil.wait_procs([worker, *cores], timeout=60)
        assert alive == []
