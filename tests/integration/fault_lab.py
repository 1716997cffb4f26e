"""A small RLVR run to break: its recipe, and the faults."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import numpy as np
import psutil
import ray
from actor_processes import pid_of as pid_of
from actor_processes import pids_of as pids_of
from safetensors.numpy import load_file
from tiny_recipe import ROOT as ROOT
from tiny_recipe import start_python, tiny_sections

from launch.context import RunContext
from launch.recipe import run_world, running, stage_context
from launch.rlvr import run_rlvr
from rlsys.recipe.load import load_recipe
from rlsys.recipe.recipe import Recipe
from rlsys.telemetry.tracker import read_metrics

RECIPE = f"""
name = "faults"
deterministic = true
[cluster]
oversubscribe_cpus = true
rollout_workers = 2
heartbeat_s = 1.0
hang_timeout_s = 15.0
[rollout]
update_timeout_s = 20.0
digest = "sha256"
[rollout.vllm]
max_model_len = 96
max_num_seqs = 32
kv_cache_memory_bytes = 33554432
{tiny_sections(context_length=128)}
[[stage]]
kind = "world"
demonstrations = 8
prompts = 64
held_out = 8
[[stage]]
kind = "rlvr"
batch_groups = 8
groups_per_call = 2
batches = 6
max_staleness = 0
value_from = "policy"
max_attempts = 10
prompts = {{ source = [{{ path = "stage:world/prompts.jsonl" }}] }}
learner = {{ lr = 3e-3, eps = 1e-5, tokens_per_micro_batch = 2048 }}
checkpoint = {{ every = 2 }}
"""


def fault_recipe(folder: Path, *overrides: str) -> Recipe:
    """The recipe with its run folder under `folder`."""
    path = folder / "faults.toml"
    path.write_text(RECIPE)
    return load_recipe(path, [f'runs="{folder}"', *overrides])


@contextmanager
def fault_context(folder: Path, *overrides: str) -> Iterator[RunContext]:
    """The recipe's cluster and actors, its tiny world written."""
    recipe = fault_recipe(folder, *overrides)
    with running(recipe, folder / "run") as context:
        world = recipe.stage[0]
        with stage_context(context, world, context.folder / "01-world", 1) as stage:
            run_world(context, stage)
        context.done(world, context.folder / "01-world")
        yield context


def train(context: RunContext, name: str, **changes: Any) -> SimpleNamespace:
    """Runs the RLVR stage in a folder of its own."""
    settings = context.recipe.stage[1].model_copy(update={"name": name, **changes})
    folder = context.folder / name
    folder.mkdir(exist_ok=True)
    with stage_context(context, settings, folder, 2) as stage:
        summary = run_rlvr(context, stage)
    rows = [row for row in read_metrics(context.folder / "metrics.jsonl") if row["stage"] == name]
    return SimpleNamespace(summary=summary, rows=rows, ends=read_ends(folder), folder=folder, settings=settings)


def read_ends(folder: Path) -> list[Any]:
    """How ordinals ended: `[ordinal, kind, detail]`."""
    return [json.loads(line) for line in (folder / "ends.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[int]:
    """Steps of RLVR that a run has written down."""
    path = run / "metrics.jsonl"
    return [row["step"] for row in read_metrics(path) if row["stage"] == "rlvr"] if path.exists() else []


def newest_checkpoint(run: Path) -> int:
    """Its step; 0 when there is none."""
    return max((int(path.name[5:]) for path in run.glob("02-rlvr/checkpoints/step_??????")), default=0)


def assert_whole(run: SimpleNamespace) -> None:
    """Every step once, and every ordinal below the batches' count trained on once."""
    assert [row["step"] for row in run.rows] == list(range(1, run.settings.batches + 1))
    trained = [ordinal for ordinal, kind, _ in run.ends if kind == "trained"]
    assert len(trained) == len(set(trained)) == run.settings.batches * run.settings.batch_groups
    assert {kind for _, kind, _ in run.ends} == {"trained"}
    assert max(row["policy/canary_gap"] for row in run.rows) < 1e-4


def assert_same_weights(one: Path, other: Path) -> None:
    """The exported models of two stages, bit for bit."""
    first, second = load_file(one / "hf" / "model.safetensors"), load_file(other / "hf" / "model.safetensors")
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def start_driver(
    folder: Path, *, inject: str = "", overrides: Sequence[str] = (), output: IO[str] | int = subprocess.PIPE
) -> subprocess.Popen:
    """A driver of its own that runs the whole recipe in `folder`.

    Args:
        folder: of the runs.
        inject: statements executed first, with everything of this module at hand.
        overrides: of the recipe.
        output: a file, for a driver that prints more than a pipe holds before anyone reads it.
    """
    code = (
        "import sys\nfrom pathlib import Path\nfrom fault_lab import *\nfrom launch.recipe import run_recipe\n"
        f"{inject}\nrun_recipe(fault_recipe(Path(sys.argv[1]), *sys.argv[2:]))"
    )
    return start_python(code, folder, *overrides, output=output)


def raise_in_steps(worker: Any) -> None:
    """From now on the worker's engine fails at every step."""

    def spoil(self: Any) -> None:
        def step() -> None:
            raise RuntimeError("injected into the engine's step")

        self._loop._engine.step = step

    ray.get(worker.__ray_call__.remote(spoil), timeout=60)


def raise_in_training(rank: Any) -> None:
    """From now on each of the rank's optimizer steps fails, until another model is loaded."""

    def spoil(self: Any) -> None:
        def train_step(*_: Any, **__: Any) -> None:
            raise RuntimeError("injected")

        self.engine.train_step = train_step

    ray.get(rank.__ray_call__.remote(spoil), timeout=60)


def raise_in_verifying(verifier: Any) -> None:
    """From now on the verifier worker fails at every call, as one whose pool cannot be kept up."""

    def spoil(self: Any) -> None:
        def verify_many(requests: Any) -> None:
            raise OSError("injected into the pool")

        self._verifying._pool.verify_many = verify_many

    ray.get(verifier.__ray_call__.remote(spoil), timeout=60)


def skip_steps(rank: Any, fault: str) -> None:
    """From now on none of the rank's optimizer steps is applied, until another model is loaded."""

    def spoil(self: Any, fault: str) -> None:
        from rlsys.algorithms.step_guard import StepReport

        self.engine.train_step = lambda *_, **__: StepReport({"optim/skipped": 1.0}, fault)

    ray.get(rank.__ray_call__.remote(spoil, fault), timeout=60)


def slow_down(actor: Any, method: str, seconds: float) -> None:
    """From now on each such call takes so much longer of a worker's or rank's engine, or of a verifier's pool."""

    def spoil(self: Any, method: str, seconds: float) -> None:
        if hasattr(self, "_loop"):
            slowed = self._loop._engine
        else:
            slowed = self._verifying._pool if hasattr(self, "_verifying") else self.engine
        original = getattr(slowed, method)

        def slow(*args: Any, **kwargs: Any) -> Any:
            time.sleep(seconds)
            return original(*args, **kwargs)

        setattr(slowed, method, slow)

    ray.get(actor.__ray_call__.remote(spoil, method, seconds), timeout=60)


def hold_steps(worker: Any, *, first_ordinal: int, caps: Mapping[int, int]) -> None:
    """Has a worker's engine hold still under the versions of `caps` while only groups from an ordinal on are left, once
    one of their responses has so many tokens; another call puts other caps in place of these."""

    def spoil(self: Any, first_ordinal: int, caps: Mapping[int, int]) -> None:
        engine = self._loop._engine
        step = type(engine).step

        def held() -> Any:
            samples = engine._samples.values()
            cap = caps.get(engine.version)
            late = all(sample.group.ordinal >= first_ordinal for sample in samples)
            if cap is not None and late and any(len(sample.token_ids) >= cap for sample in samples):
                return []
            return step(engine)

        engine.step = held

    ray.get(worker.__ray_call__.remote(spoil, first_ordinal, caps), timeout=60)


def fail_verdicts(verifier: Any, *, every: int) -> None:
    """From now on one in so many verdicts of a verifier worker is a time-out; with 0, none."""

    def spoil(self: Any, every: int) -> None:
        pool, numbers = self._verifying._pool, count(1)

        def verify_many(requests: Any) -> list[Any]:
            return [
                replace(verdict, outcome="timeout", score=0.0) if every and next(numbers) % every == 0 else verdict
                for verdict in type(pool).verify_many(pool, requests)
            ]

        pool.verify_many = verify_many

    ray.get(verifier.__ray_call__.remote(spoil, every), timeout=60)


class Faults:
    """Injects faults at named moments, once each, and keeps count."""

    def __init__(self) -> None:
        self.injected: list[str] = []

    def signal(self, name: str, pids: list[int], number: int = signal.SIGKILL) -> None:
        """Sends a signal to processes that must live."""
        for pid in pids:
            assert psutil.pid_exists(pid), name
            os.kill(pid, number)
        self.injected.append(name)

    def around(self, monkeypatch: Any, owner: Any, method: str, **faults: Callable[[int], None]) -> None:
        """Has `before(n)` and `after(n)` called around the n-th call of a method, n from 1.

        Methods of a group of ranks return when their work is submitted: after that, it is under way.
        """
        original = owner.__dict__[method]
        calls = 0

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if "before" in faults:
                faults["before"](calls)
            answer = original(*args, **kwargs)
            if "after" in faults:
                faults["after"](calls)
            return answer

        monkeypatch.setattr(owner, method, wrapped)
