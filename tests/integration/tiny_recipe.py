"""Runs cut down to seconds: the quickstart with hardly any steps, the sections of smaller recipes, drivers of them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

from rlsys.recipe.load import load_recipe
from rlsys.recipe.recipe import Recipe
from rlsys.telemetry.trace import busy_seconds, overlap_seconds, read_trace
from rlsys.telemetry.tracker import read_metrics

ROOT = Path(__file__).parents[2]
CUTS = (
    "world.demonstrations=4800",
    "world.prompts=256",
    "world.held_out=24",
    "sft.max_steps=150",
    "preferences.num_prompts=64",
    "rlvr.batch_groups=16",
    "rlvr.groups_per_call=4",
    "rlvr.batches=4",
    "rlvr.checkpoint.every=2",
    "rlvr.evaluation.every=2",
    "rlvr.evaluation.development_limit=8",
    "evaluation.limit=16",
    "tracking.console=false",
)


def tiny_recipe(folder: Path, *overrides: str) -> Recipe:
    """The cut quickstart with its run folder under `folder`; call it with the repository as the current directory."""
    return load_recipe(ROOT / "configs" / "quickstart.toml", [*CUTS, f'runs="{folder}"', *overrides])


def tiny_sections(*, context_length: int) -> str:
    """`[model]`, `[sampling]`, `[verifiers]` and `[tracking]` of a recipe with a model that is too small to be slow."""
    return f"""
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
max_position_embeddings = {context_length}
tie_word_embeddings = true
pad_token_id = 0
eos_token_id = 1
[sampling]
max_tokens = 16
[verifiers]
workers = 1
modules = ["rlsys.quickstart.exact_items"]
[tracking]
console = false
wandb = "off"
"""


def sampling_and_update(run_folder: Path, stage: str) -> tuple[float, float, float]:
    """Seconds in which an RLVR stage sampled for training, updated, and did both, from its second batch on."""
    first, *_, last = (row["time"] for row in read_metrics(run_folder / "metrics.jsonl") if row["stage"] == stage)
    trace = [span for span in read_trace(run_folder / "trace.json") if first < span.end_s < last]
    sampling = busy_seconds(trace, "sampling") - overlap_seconds(trace, "sampling", "evaluate")
    return sampling, busy_seconds(trace, "update"), overlap_seconds(trace, "sampling", "update")


def start_python(
    code: str, *arguments: str | Path, output: IO[str] | int = subprocess.PIPE, **environment: str
) -> subprocess.Popen:
    """A process in a session of its own that can import the repository and the modules of this folder.

    Args:
        code: statements.
        arguments: found in `sys.argv[1:]`.
        output: where its output and its errors go.
        environment: variables to set.
    """
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "integration")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths} | environment,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
