"""A reward stage's own model rewards two RLVR stages of the same recipe: beside verifiers, and alone."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from fault_lab import RECIPE, Faults, pids_of
from transformers import AutoModelForSequenceClassification

from actors.reward_model import RewardModel
from launch.recipe import run_recipe
from rlsys.recipe.load import load_recipe
from rlsys.telemetry.tracker import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

STAGES = """
[[stage]]
kind = "reward"
batch_size = 8
data = {{ source = [{{ path = "{folder}/pairs.jsonl" }}] }}
learner = {{ lr = 1e-2, eps = 1e-5 }}

[[stage]]
kind = "rlvr"
name = "added"
batch_groups = 8
samples = 2
batches = 2
max_staleness = 0
groups_per_call = 2
prompts = {{ source = [{{ path = "{folder}/verified.jsonl" }}] }}
reward_model = {{ weight = 0.5 }}
verifiers = {{ no_end_token_reward = "none" }}
learner = {{ lr = 1e-3 }}
algorithm = {{ advantage = "rloo", kl_in = "none", epochs_per_batch = 1 }}

[[stage]]
kind = "rlvr"
name = "alone"
batch_groups = 8
batches = 2
prompts = {{ source = [{{ path = "{folder}/bare.jsonl" }}] }}
reward_model = {{ path = "stage:reward", use = "alone", weight = 2.0 }}
verifiers = {{ no_end_token_reward = "none" }}
learner = {{ lr = 1e-3 }}
algorithm = {{ advantage = "reinforce_pp", kl_in = "none", epochs_per_batch = 1 }}
"""
THINGS = ["cups", "dogs", "pens", "hats", "keys", "maps", "jars", "nuts"]


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer(prompt: str, text: str) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Iterator[SimpleNamespace]:
    """The recipe, in which one of the reward model's two ranks dies with rollouts to score."""
    folder = tmp_path_factory.mktemp("reward")
    asked = [f"List {n} {thing}." for n in (2, 3) for thing in THINGS]
    write_jsonl(folder / "pairs.jsonl", [{"chosen": answer(p, "a, b"), "rejected": answer(p, "b")} for p in asked])
    check = {"verifier": "max_length", "ground_truth": {"max_chars": 44}}
    write_jsonl(folder / "verified.jsonl", [{"prompt": p, "checks": [check]} for p in asked])
    write_jsonl(folder / "bare.jsonl", [{"prompt": p} for p in asked])
    (folder / "recipe.toml").write_text(RECIPE.partition("[[stage]]")[0] + STAGES.format(folder=folder))
    overrides = [
        f'runs="{folder}"',
        "name=run",
        "cluster.reward_ranks=2",
        'cluster.colocate=["value"]',
        "cluster.rollout_workers=1",
    ]
    faults = Faults()

    def kill(call: int) -> None:
        if call == 2:
            faults.signal("reward model", pids_of("RewardModelRank")[:1])

    with pytest.MonkeyPatch.context() as patch:
        faults.around(patch, RewardModel, "score", after=kill)
        run_recipe(load_recipe(folder / "recipe.toml", [*overrides, "deterministic=false"]))
    assert faults.injected == ["reward model"]
    yield SimpleNamespace(folder=folder / "run", metrics=list(read_metrics(folder / "run" / "metrics.jsonl")))


def rollouts(run: SimpleNamespace, stage: str, step: int) -> list[dict]:
    return pq.read_table(run.folder / stage / "rollouts" / f"step_{step:06d}.parquet").to_pylist()


def row_of(run: SimpleNamespace, stage: str, step: int) -> dict:
    return next(row for row in run.metrics if (row["stage"], row["step"]) == (stage, step))


@pytest.fixture(scope="module")
def score(run: SimpleNamespace):
    """What transformers makes of the exported reward model: the head at the last token."""
    model = AutoModelForSequenceClassification.from_pretrained(run.folder / "01-reward" / "hf")

    def score(row: dict) -> float:
        ids = torch.tensor([[*row["prompt_ids"], *row["response_ids"]]])
        with torch.no_grad():
            return model.score(model.model(input_ids=ids).last_hidden_state)[0, -1, 0].item()

    return score


@pytest.mark.parametrize("step", [1, 2])
def test_the_score_is_added_to_what_is_verified(run: SimpleNamespace, score, step: int):
    rows = rollouts(run, "02-added", step)
    scores = [score(row) for row in rows]
    assert len(rows) == 16 and np.std(scores) > 0.05
    assert [row["reward_model_score"] for row in rows] == pytest.approx(scores, abs=1e-4)
    verified = [row["scores"][0] for row in rows]
    assert [row["reward"] for row in rows] == pytest.approx(
        [10 * v + 0.5 * s for v, s in zip(verified, scores, strict=True)], abs=1e-4
    )
    assert set(verified) == {0.0, 1.0}
    metrics = row_of(run, "added", step)
    assert metrics["reward/reward_model/mean"] == pytest.approx(np.mean(scores), abs=1e-4)
    assert metrics["reward/mean"] == pytest.approx(10 * np.mean(verified) + 0.5 * np.mean(scores), abs=1e-4)


@pytest.mark.parametrize("step", [1, 2])
def test_alone_it_needs_no_ground_truth(run: SimpleNamespace, score, step: int):
    rows = rollouts(run, "03-alone", step)
    assert {tuple(row["verifiers"]) for row in rows} == {()}
    assert [row["reward"] for row in rows] == pytest.approx([2.0 * score(row) for row in rows], abs=1e-4)
    metrics = row_of(run, "alone", step)
    assert metrics["reward/reward_model/mean"] == pytest.approx(np.mean([score(row) for row in rows]), abs=1e-4)
    assert not [name for name in metrics if name.startswith("verifier/")]


def test_a_reward_model_that_dies_is_started_again_alone(run: SimpleNamespace):
    """Its chunk is scored by its successor: nothing is sampled again, nothing goes back."""
    last = row_of(run, "added", 2)
    assert last["perf/restarts/reward"] == 1
    assert last["perf/rollbacks"] == last["rollout/lost_groups"] == 0
    ends = [json.loads(line) for line in (run.folder / "02-added" / "ends.jsonl").read_text().splitlines()]
    assert sorted(ordinal for ordinal, kind, _ in ends if kind == "trained") == list(range(16))
