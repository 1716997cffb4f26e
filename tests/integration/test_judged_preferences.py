"""Judged preferences as a stage: a real engine for the policy and another model, a bad server for the rest, a kill."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import psutil
import pytest

sys.path.append(str(Path(__file__).parents[1] / "unit"))
from fake_openai_server import FakeOpenAI, true_rating

from rlsys.data.token_store import PairStore
from rlsys.recipe.load import load_recipe
from rlsys.recipe.preferences import ASPECTS
from rlsys.recipe.recipe import Recipe
from rlsys.telemetry.tracker import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
RESPONSES = 3
TO_ANSWER = 8 + 10 + 4 + 2 + 2
"""Prompts that are relaxed are answered as they are, and without one of their constraints."""
RECIPE = f"""
name = "judged"
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
max_position_embeddings = 256
tie_word_embeddings = true
pad_token_id = 0
eos_token_id = 1
[cluster]
oversubscribe_cpus = true
[rollout.vllm]
max_model_len = 192
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
demonstrations = 64
prompts = 40
held_out = 8
[[stage]]
kind = "sft"
batch_size = 16
max_steps = 1
data = {{ source = [{{ path = "stage:world/demonstrations.jsonl" }}] }}
learner = {{ lr = 1e-3, eps = 1e-5, tokens_per_micro_batch = 2048 }}
[[stage]]
kind = "judged_preferences"
responses_per_prompt = {RESPONSES}
unused = {{ source = [{{ path = "stage:world/prompts.jsonl" }}] }}
selection = {{ reused = 8, unused = 10, constrained = 4, relaxed = 2, constraint_ids = ["punctuation:no_comma"] }}
decontamination = {{ evals = ["stage:world/test.jsonl"], max_overlap = 1.0 }}
templating = {{ markers = "escape" }}
[[stage.pool]]
name = "policy"
on_policy = true
[[stage.pool]]
name = "earlier"
local_model = "stage:sft"
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
kind = "dpo"
batch_size = 4
max_steps = 2
learner = {{ lr = 1e-5, eps = 1e-5, tokens_per_micro_batch = 2048 }}
evaluation = {{ test = {{ test = "stage:world/test.jsonl" }}, max_tokens = 16 }}
"""
ENDPOINT = 'base_url = "URL", deadline_s = 5.0, max_attempts = 12, backoff_s = 0.01, max_backoff_s = 0.05'


def judged_recipe(folder: Path, url: str) -> Recipe:
    """The recipe with its run folder under `folder`, asking the server at `url`."""
    path = folder / "judged.toml"
    path.write_text(RECIPE.replace("ENDPOINT", ENDPOINT.replace("URL", url)))
    return load_recipe(path, [f'runs="{folder}"'])


def start_driver(folder: Path, url: str) -> subprocess.Popen:
    code = (
        "import sys; from pathlib import Path; from test_judged_preferences import judged_recipe; "
        "from launch.recipe import run_recipe; run_recipe(judged_recipe(Path(sys.argv[1]), sys.argv[2]))"
    )
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "integration")])
    log = (folder / "driver.log").open("a")
    return subprocess.Popen(
        [sys.executable, "-c", code, str(folder), url], env=os.environ | {"PYTHONPATH": paths},
        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def kill_driver(driver: subprocess.Popen) -> None:
    """The driver first, then what it started: another test shows that it would end by itself."""
    family = psutil.Process(driver.pid).children(recursive=True)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait(timeout=30)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(family, timeout=60)


def lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a store, which may not be there yet."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def keys(path: Path) -> list[tuple[str | int, ...]]:
    """What a store has answers to."""
    return [tuple(one["key"]) for one in lines(path)]


def told(stage: Path) -> set[str]:
    """Questions that the server answered and the stage has on disk: the server puts their keys into its answers."""
    records = [*lines(stage / "responses.jsonl"), *lines(stage / "ratings.jsonl")]
    texts = [one["value"]["text"] for one in records if one["key"][1] not in ("policy", "earlier")]
    return {text[1:].partition("]")[0] for text in texts}


def test_killed_in_the_middle_it_asks_nothing_twice_and_dpo_trains_on_its_pairs(tmp_path: Path):
    stage, log = tmp_path / "judged" / "03-judged_preferences", tmp_path / "driver.log"
    with FakeOpenAI() as server:
        driver = start_driver(tmp_path, server.base_url)
        try:
            while not any(key[1] == "policy" for key in keys(stage / "responses.jsonl")):
                assert driver.poll() is None, log.read_text()[-4000:]
                time.sleep(0.05)
        finally:
            kill_driver(driver)
        before = {question: server.calls[question] for question in told(stage)}
        kept = keys(stage / "responses.jsonl")
        assert not (stage / "done.json").exists()
        again = start_driver(tmp_path, server.base_url)
        assert again.wait(timeout=600) == 0, log.read_text()[-4000:]
        assert {question: server.calls[question] for question in before} == before
        after = keys(stage / "responses.jsonl")
    assert len(before) > 20
    assert after[: len(kept)] == kept
    assert len(set(after)) == len(after) == TO_ANSWER * RESPONSES
    result = json.loads((stage / "done.json").read_text())
    assert result["responses"] == {"asked": len(after) - len(kept), "failed": 0, "kept": len(kept)}
    assert result["asked"]["judge"]["failures"], "the server fails one call in five"
    require_right_pairs(stage, result)
    assert result["dropped"]["total"] == 0
    store = PairStore(stage / "pairs")
    assert len(store) == result["pairs"] == len(lines(stage / "pairs.jsonl"))
    rows = list(read_metrics(tmp_path / "judged" / "metrics.jsonl"))
    assert [row["step"] for row in rows if row["stage"] == "dpo"] == [1, 2]
    assert [row["preference/pairs"] for row in rows if row["stage"] == "judged_preferences"] == [len(store)]
    evaluated = json.loads((tmp_path / "judged" / "04-dpo" / "done.json").read_text())["evaluation"]
    assert evaluated, "after the other model's turn the run's own engines are back, and take the new policy"


def require_right_pairs(stage: Path, result: dict[str, Any]) -> None:
    """Every rated pair is the one that the server's true ratings give, and no other is missing."""
    answers: dict[str, dict[str, str]] = {}
    for record in lines(stage / "responses.jsonl"):
        prompt, model, _ = record["key"]
        answers.setdefault(prompt, {})[model] = record["value"]["text"]
    assert all("policy" in by_model and len(by_model) == RESPONSES for by_model in answers.values())
    kinds = {prompt["id"]: prompt["kind"] for prompt in lines(stage / "prompts.jsonl")}
    assert Counter(kinds.values()) == {"reused": 8, "unused": 10, "constrained": 4, "relaxed": 2}
    pairs = {pair["id"]: pair for pair in lines(stage / "pairs.jsonl")}
    broken = 0
    for prompt, kind in kinds.items():
        pair = pairs.pop(prompt, None)
        if kind == "relaxed":
            assert pair is None or "," not in pair["chosen"][0]["content"]
            continue
        means = {model: true_mean(text) for model, text in answers[prompt].items()}
        best = [model for model, mean in means.items() if mean == max(means.values())]
        keeps = [model for model in best if kind != "constrained" or "," not in answers[prompt][model]]
        if pair is None:
            broken += kind == "constrained"
            assert len(set(means.values())) == 1 or len(keeps) < len(best), prompt
            continue
        assert pair["chosen_model"] in keeps
        assert (
            means[pair["rejected_model"]]
            < means[pair["chosen_model"]]
            == Fraction(pair["chosen_score"]).limit_denominator(100)
        )
    assert pairs == {}
    assert result["verified"]["verified"] + result["verified"]["broken"] <= 4


def true_mean(text: str) -> Fraction:
    ratings = [rating for aspect in ASPECTS if (rating := true_rating(text, aspect)) is not None]
    return Fraction(sum(ratings), len(ratings))
