"""What a run knows of the weights that its groups hold."""

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch import recipe as recipe_module
from launch.context import RunContext
from rlsys.recipe.data import DataSettings, SourceSettings
from rlsys.recipe.load import load_recipe
from rlsys.recipe.stages import EvaluateStage
from rlsys.rollouts.sampling_engine_settings import EngineSettings
from rlsys.telemetry.trace import SpanRecorder

QUIET = ('tracking.wandb="off"', "tracking.prometheus=false", "tracking.console=false")
SFT, DPO = Path("01-sft/hf"), Path("02-dpo/hf")


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
def context(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Engines hold what SFT exported; the only one of them has died, and its successor has no weights."""
    context: Any = object.__new__(RunContext)
    workers = SimpleNamespace(serving=[], wait_for_one=lambda: calls.append("wait"))
    context.crew = SimpleNamespace(engines_await_weights=True, workers=workers)
    context.engines_hold, context._published = SFT, (0, [1, 2])

    def load(folder: Path, learner: Any) -> None:
        calls.append(("load", folder))
        context.learner_holds = folder

    def publish(version: int, canary_ids: list[int]) -> None:
        calls.append(("publish", version))
        context.engines_hold = None

    monkeypatch.setattr(context, "load_policy", load)
    monkeypatch.setattr(context, "publish", publish)
    monkeypatch.setattr(context, "_any_learner_settings", lambda: None)
    return context


def test_a_new_engine_gets_what_the_others_had_from_the_learners_memory(context: Any, calls: list[Any]):
    context.learner_holds = SFT
    context.reinforce()
    assert calls == [("publish", 0)] and context.engines_hold == SFT


def test_a_new_engine_gets_what_the_others_had_though_the_learner_went_on(context: Any, calls: list[Any]):
    """Its canary would agree with the learner, whatever that holds."""
    context.learner_holds = DPO
    context.reinforce()
    assert calls == [("load", SFT), ("publish", 0)]
    assert (context.learner_holds, context.engines_hold) == (SFT, SFT)


def test_a_stage_that_trains_publishes_what_its_learner_has(context: Any, calls: list[Any]):
    context.learner_holds = context.engines_hold = None
    context.reinforce()
    assert calls == [("publish", 0)]


def test_without_a_learner_the_recipes_own_model_comes_back(monkeypatch: pytest.MonkeyPatch):
    """An evaluation of another model may come before one of the recipe's."""
    context: Any = object.__new__(RunContext)
    context.recipe = SimpleNamespace(trains_policy=False)
    own = EngineSettings("base", (1,), load_format="safetensors")
    context.crew, context.engines_hold = SimpleNamespace(engine=own), None
    swapped: list[str] = []

    def swap(engine: EngineSettings) -> None:
        swapped.append(engine.model)
        context.engines_hold = None

    monkeypatch.setattr(context, "swap_engines", swap)
    for folder in (None, Path("other"), Path("other"), None, None):
        context.bring_policy(folder)
    assert swapped == ["other", "base"] and context.engines_hold is None


def test_an_evaluation_that_was_interrupted_brings_the_policy_that_its_stage_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """`done.json` is there before anything is measured, and the topology is not run again."""
    brought: list[Any] = []
    settings = {"test": {"test": "rows.jsonl"}}
    stage = EvaluateStage(kind="evaluate", policy="model", evaluation=settings)  # pyright: ignore[reportArgumentType]
    context: Any = SimpleNamespace(
        recipe=SimpleNamespace(stage_number=lambda label: 1),
        spans=SpanRecorder("driver"),
        done=lambda *_: None,
        policy_folder=Path,
        bring_policy=brought.append,
    )

    @contextmanager
    def stage_context(*_: Any) -> Any:
        yield SimpleNamespace(stage=stage, folder=tmp_path, tracker=SimpleNamespace(log=lambda *_: None))

    monkeypatch.setattr(recipe_module, "stage_context", stage_context)
    monkeypatch.setattr(recipe_module, "stage_modules", lambda _: ())
    monkeypatch.setattr(recipe_module, "load_sets", lambda *_, **__: [])
    monkeypatch.setattr(recipe_module, "evaluate", lambda *_, **__: {"eval/test/accuracy@T1": 0.5})
    finished: list[dict[str, Any]] = []
    folder: Any = SimpleNamespace(result={"seconds": 1.0}, path=tmp_path, finish=finished.append)
    result = recipe_module.run_stage(context, stage, folder)
    assert brought == [Path("model")]
    assert result["evaluation"] == {"eval/test/accuracy@T1": 0.5} and finished == [result]


def test_every_stage_draws_from_a_seed_of_its_own_that_follows_from_the_runs(tmp_path: Path):
    """RLVR's first prompts would be those of the preference stage, with the same answers."""
    seeds = set()
    for seed in (0, 1):
        recipe = load_recipe("configs/quickstart.toml", [f"seed={seed}", *QUIET])
        context: Any = SimpleNamespace(recipe=recipe, folder=tmp_path)
        for number, stage in enumerate(recipe.stage, 1):
            for _ in range(2):  # the same when it is resumed
                with recipe_module.stage_context(context, stage, tmp_path / stage.label, number) as of_stage:
                    seeds.add((seed, number, of_stage.seed))
    assert len(seeds) == len({each for *_, each in seeds}) == 2 * 6


def test_what_a_mixture_draws_follows_from_the_runs_seed():
    context: Any = object.__new__(RunContext)
    context.recipe, context.outputs = SimpleNamespace(seed=3), {}
    data = DataSettings(seed=2, source=(SourceSettings(path="rows.jsonl"),))
    assert context.resolve_data(data).seed == 5
