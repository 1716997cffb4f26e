"""A small RLVR run to break: its recipe, and the faults."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import ray

from rlsys.recipe.load import load_recipe
from rlsys.recipe.recipe import Recipe

ROOT = Path(__file__).parents[2]
RECIPE = f"""
name = "faults"
deterministic = true
[model]
tokenizer = "{ROOT}/rlsys/quickstart/tokenizer"
init_std = 0.05
[model.config]
model_type = "llama"
vocab_size = 1024
hidden_size = 64
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
intermediate_size = 128
max_position_embeddings = 128
tie_word_embeddings = true
pad_token_id = 0
eos_token_id = 1
[cluster]
oversubscribe_cpus = true
rollout_workers = 2
heartbeat_s = 1.0
hang_timeout_s = 15.0
[rollout]
update_timeout_s = 20.0
[rollout.vllm]
max_model_len = 96
max_num_seqs = 32
kv_cache_memory_bytes = 33554432
[sampling]
max_tokens = 16
[verifiers]
workers = 1
modules = ["rlsys.quickstart.exact_items"]
[tracking]
console = false
wandb = "off"
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


def pid_of(handle: Any) -> int:
    """The process of an actor that is not busy."""
    return ray.get(handle.__ray_call__.remote(lambda self: os.getpid()), timeout=60)


def pids_of(kind: str) -> list[int]:
    """Processes of this process's cluster that hold an actor of a class, busy or not."""
    return [
        process.pid
        for process in psutil.Process().children(recursive=True)
        if (process.cmdline() or [""])[0].startswith(f"ray::{kind}")
    ]


def raise_in_steps(worker: Any) -> None:
    """From now on the worker's engine fails at every step."""

    def spoil(self: Any) -> None:
        def step() -> None:
            raise RuntimeError("injected into the engine's step")

        self._loop._engine.step = step

    ray.get(worker.__ray_call__.remote(spoil), timeout=60)


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
