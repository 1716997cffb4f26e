"""A killed learner takes SFT back to its last checkpoint, in the same run and to the same bits."""

import json
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from fault_lab import Faults, assert_same_weights, pids_of
from tiny_recipe import tiny_sections

from actors.learner import Learner
from launch.context import RunContext
from launch.recipe import running, stage_context
from launch.supervised import run_sft
from rlsys.errors import ActorError
from rlsys.recipe.load import load_recipe
from rlsys.telemetry.tracker import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

RECIPE = """
name = "supervised"
runs = "{folder}"
[cluster]
oversubscribe_cpus = true
{sections}
[checkpoint]
every = 2
background = false
[[stage]]
kind = "sft"
batch_size = 4
max_steps = 5
data = {{ source = [{{ path = "{folder}/rows.jsonl" }}] }}
learner = {{ lr = 1e-2, eps = 1e-5 }}
"""


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Iterator[RunContext]:
    folder = tmp_path_factory.mktemp("supervised")
    chats = [
        [
            {"role": "user", "content": f"How many are {n} and {n + 1}?"},
            {"role": "assistant", "content": f"{2 * n + 1}."},
        ]
        for n in range(24)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    (folder / "supervised.toml").write_text(RECIPE.format(folder=folder, sections=tiny_sections(context_length=128)))
    recipe = load_recipe(folder / "supervised.toml")
    with running(recipe, folder / "run") as context:
        yield context


def train(context: RunContext, name: str) -> SimpleNamespace:
    """Runs the stage under a name of its own."""
    settings = context.recipe.stage[0].model_copy(update={"name": name})
    folder = context.folder / name
    folder.mkdir()
    with stage_context(context, settings, folder, 1) as stage:
        run_sft(context, stage)
    rows = [row for row in read_metrics(context.folder / "metrics.jsonl") if row["stage"] == name]
    return SimpleNamespace(rows=rows, folder=folder)


def kill_after_checkpoint(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Has the learner's rank killed in its third call, which is the first one after a checkpoint."""
    faults = Faults()

    def after(call: int) -> None:
        if call == 3:
            faults.signal("learner in a step", pids_of("LearnerRank"))

    faults.around(monkeypatch, Learner, "train_supervised", after=after)
    return faults


def test_a_killed_learner_goes_back_to_the_last_checkpoint(context: RunContext, monkeypatch):
    undisturbed = train(context, "undisturbed")
    faults = kill_after_checkpoint(monkeypatch)
    run = train(context, "killed")
    assert len(faults.injected) == 1
    assert [row["step"] for row in run.rows] == [1, 2, 3, 4, 5]
    for name in ("loss/supervised", "optim/lr", "optim/grad_norm"):
        assert [row[name] for row in run.rows] == [row[name] for row in undisturbed.rows]
    assert [row["perf/rollbacks"] for row in run.rows] == [0, 0, 1, 1, 1], "two steps are those of the checkpoint"
    assert run.rows[-1]["perf/restarts/learner"] == 1
    assert_same_weights(run.folder, undisturbed.folder)


def test_the_restarts_of_a_run_are_bounded(context: RunContext, monkeypatch):
    monkeypatch.setattr(context.crew.restarts, "limit", 0)
    kill_after_checkpoint(monkeypatch)
    with pytest.raises(ActorError, match=r"learner\[0\] in train_supervised, .* died"):
        train(context, "spent")
    steps = [row["step"] for row in read_metrics(context.folder / "metrics.jsonl") if row["stage"] == "spent"]
    assert steps == [1, 2]
