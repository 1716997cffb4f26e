"""A run with two judges: its recipe, what it reads, and how it is killed and finished.

sft -> judge (sft) -> served: policy, alpha, beta; the judge is at the server
                   -> judged: policy, critic, alpha, beta; critic and judge are the run's own second model
                      '--> reward, dpo                      the driver is killed while that judge rates
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import psutil
from tiny_recipe import start_python, tiny_sections

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from fake_openai_server import FakeOpenAI
from fake_openai_server import true_rating as true_rating

from rlsys.data.judge_prompt import judge_text
from rlsys.recipe.preferences import ASPECTS
from rlsys.telemetry.tracker import read_metrics
from rlsys.verifiers.ifeval import describe

RESPONSES = 3
NO_COMMA = "punctuation:no_comma"
ENDPOINT = 'base_url = "URL", deadline_s = 5.0, max_attempts = 12, backoff_s = 0.01, max_backoff_s = 0.05'
RECIPE = f"""
name = "judged"
runs = "FOLDER"
[cluster]
oversubscribe_cpus = true
[rollout.vllm]
max_model_len = 768
max_num_seqs = 32
kv_cache_memory_bytes = 33554432
{tiny_sections(context_length=768)}
[[stage]]
kind = "world"
demonstrations = 64
prompts = 40
held_out = 8
[[stage]]
kind = "sft"
batch_size = 16
epochs = 20
data = {{ source = [{{ path = "stage:world/demonstrations.jsonl" }}] }}
learner = {{ lr = 4e-3, eps = 1e-5, tokens_per_micro_batch = 2048 }}
[[stage]]
kind = "sft"
name = "judge"
batch_size = 4
max_steps = 60
data = {{ source = [{{ path = "FOLDER/judge.jsonl" }}] }}
learner = {{ lr = 2e-2, eps = 1e-5, tokens_per_micro_batch = 2560 }}
[[stage]]
kind = "judged_preferences"
name = "served"
policy = "stage:sft"
responses_per_prompt = {RESPONSES}
sampling = {{ max_tokens = 32 }}
sft = {{ source = [{{ path = "stage:world/demonstrations.jsonl" }}] }}
unused = {{ source = [{{ path = "stage:world/prompts.jsonl" }}] }}
selection = {{ reused = 6, unused = 6, constrained = 4, constraint_ids = ["{NO_COMMA}"] }}
decontamination = {{ evals = ["stage:world/test.jsonl"], max_overlap = 1.0 }}
templating = {{ markers = "escape" }}
[[stage.pool]]
name = "policy"
on_policy = true
[[stage.pool]]
name = "alpha"
endpoint = {{ model = "alpha", ENDPOINT }}
[[stage.pool]]
name = "beta"
endpoint = {{ model = "beta", ENDPOINT }}
[stage.judge]
max_asks = 12
endpoint = {{ model = "judge", ENDPOINT }}
[[stage]]
kind = "judged_preferences"
name = "judged"
policy = "stage:sft"
responses_per_prompt = {RESPONSES}
sampling = {{ max_tokens = 32 }}
rewriter = "alpha"
sft = {{ source = [{{ path = "stage:world/demonstrations.jsonl" }}] }}
unused = {{ source = [{{ path = "stage:world/prompts.jsonl" }}] }}
personas = {{ source = [{{ path = "FOLDER/personas.jsonl" }}] }}
selection = {{ reused = 5, unused = 5, constrained = 4, relaxed = 4, persona = 3, constraint_ids = ["{NO_COMMA}"] }}
templating = {{ markers = "escape" }}
[[stage.pool]]
name = "policy"
on_policy = true
[[stage.pool]]
name = "critic"
local_model = "stage:judge"
[[stage.pool]]
name = "alpha"
endpoint = {{ model = "alpha", ENDPOINT }}
[[stage.pool]]
name = "beta"
endpoint = {{ model = "beta", ENDPOINT }}
[stage.judge]
local_model = "stage:judge"
sampling = {{ temperature = 1.0, top_p = 0.95, max_tokens = 8 }}
max_asks = 2
batch_size = 24
[[stage]]
kind = "reward"
policy = "stage:sft"
batch_size = 4
max_steps = 8
learner = {{ lr = 1e-2, eps = 1e-5, tokens_per_micro_batch = 2048 }}
[[stage]]
kind = "dpo"
policy = "stage:sft"
batch_size = 4
max_steps = 2
learner = {{ lr = 1e-5, eps = 1e-5, tokens_per_micro_batch = 2048 }}
evaluation = {{ test = {{ test = "stage:world/test.jsonl" }}, max_tokens = 16 }}
"""
SAID_BY_JUDGE = [*"12345", *"12345", "N/A", "N/A", "Hm.", "Hm.", "Hm."]
"""Drawn evenly."""
PERSONAS = [f"Name {count} fruits that grow near the sea." for count in (2, 3, 4)]


def say(model: str, prompt: str) -> str:
    """Alpha keeps a ban on commas; beta never does; without one both use them. Alpha rewrites the ban away."""
    if 'Write "Request:"' in prompt:
        request = re.search(r"<request>\n(.*)\n</request>", prompt, re.DOTALL)
        assert request is not None
        return f"Request: {request[1].removesuffix(describe(NO_COMMA, {})).strip()}"
    comma = "" if model == "alpha" and describe(NO_COMMA, {}) in prompt else ","
    return f"{model} says{comma} this."


def write_inputs(folder: Path, url: str) -> Path:
    """The recipe, persona prompts, and conversations that teach a model to answer as a judge does, often readably."""
    rng = Random(0)
    conversations = []
    for _ in range(240):
        aspect = rng.choice(ASPECTS)
        said = " ".join(rng.choice(["alpha", "says,", "this", "12", "fruit", "*"]) for _ in range(rng.randint(1, 16)))
        asked = judge_text(
            ({"role": "user", "content": f"What is {rng.randint(1, 99)} + {rng.randint(1, 99)}?"},), said,
            aspect=aspect, allow_not_applicable=aspect == "honesty", ask=rng.randint(0, 1),
        )  # fmt: skip
        said_of_it = {"role": "assistant", "content": rng.choice(SAID_BY_JUDGE)}
        conversations.append([{"role": "user", "content": asked}, said_of_it])
    check = {"verifier": "ifeval", "ground_truth": {"instruction_id_list": [NO_COMMA], "kwargs": [{}]}}
    asked = [f"{text} {describe(NO_COMMA, {})}" for text in PERSONAS]
    personas = [{"messages": [{"role": "user", "content": text}], "checks": [check]} for text in asked]
    write_jsonl(folder / "judge.jsonl", [{"messages": messages} for messages in conversations])
    write_jsonl(folder / "personas.jsonl", personas)
    recipe = folder / "judged.toml"
    recipe.write_text(RECIPE.replace("ENDPOINT", ENDPOINT.replace("URL", url)).replace("FOLDER", str(folder)))
    return recipe


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def start_driver(recipe: Path, log: Path) -> subprocess.Popen:
    code = (
        "import sys; from pathlib import Path; from rlsys.recipe.load import load_recipe; "
        "from launch.recipe import run_recipe; run_recipe(load_recipe(Path(sys.argv[1])))"
    )
    with log.open("a") as output:
        return start_python(code, recipe, output=output)


def kill_driver(driver: subprocess.Popen) -> None:
    """The driver first, then what it started: another test shows that it would end by itself."""
    if driver.poll() is not None:
        return
    family = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(timeout=30)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=60)


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file, which may not be there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def killed_once(folder: Path) -> SimpleNamespace:
    """The run, killed when the local judge has rated its first batch; the three last answers are lost with it."""
    log, judged = folder / "driver.log", folder / "judged" / "05-judged"
    with FakeOpenAI(say=say) as server:
        recipe = write_inputs(folder, server.base_url)
        driver = start_driver(recipe, log)
        try:
            while not lines(judged / "ratings.jsonl"):
                assert driver.poll() is None, log.read_text()[-4000:]
                time.sleep(0.05)
        finally:
            kill_driver(driver)
        assert not (judged / "done.json").exists()
        served = {path.name: path.read_bytes() for path in (folder / "judged" / "04-served").glob("*.json*")}
        calls = Counter(server.calls)
        responses, ratings = lines(judged / "responses.jsonl"), lines(judged / "ratings.jsonl")
        whole = (judged / "responses.jsonl").read_bytes().splitlines(keepends=True)
        lost = [json.loads(line) for line in whole[-3:]]
        (judged / "responses.jsonl").write_bytes(b"".join(whole[:-3]) + whole[-3][:40])
        again = start_driver(recipe, log)
        assert again.wait(timeout=600) == 0, log.read_text()[-4000:]
        failures = sum(server.failures.values())
        new_calls = Counter(server.calls) - calls
    stages = {path.name[3:]: path for path in (folder / "judged").glob("0?-*")}
    return SimpleNamespace(
        stages=stages,
        results={name: json.loads((path / "done.json").read_text()) for name, path in stages.items()},
        metrics=list(read_metrics(folder / "judged" / "metrics.jsonl")),
        killed=SimpleNamespace(responses=responses, ratings=ratings, lost=lost, served=served),
        new_calls=new_calls,
        failures=failures,
    )
