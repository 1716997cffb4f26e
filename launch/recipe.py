"""A whole recipe: its stages one after the other on one set of actors, and the table at the end."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import tomli_w

from actors.cluster import attach, link_logs, node_resources, num_gpus, uses_gpus
from actors.crew import Crew, verifier_settings
from actors.data_tasks import ModelFolder, prepare_model
from actors.prometheus import PrometheusTracker
from launch.context import BEGINNING, RunContext, StageContext, checkpoint_store, get, stage_beginning
from launch.evaluation import evaluate, load_sets, stage_modules
from launch.judged_preferences import run_judged_preferences
from launch.preferences import run_preferences
from launch.rlvr import run_rlvr
from launch.supervised import run_dpo, run_reward, run_sft
from launch.table import print_table
from rlsys.checkpoint.durable_file import write_durably
from rlsys.checkpoint.run_folder import RunFolder, StageFolder
from rlsys.errors import RecipeError
from rlsys.recipe.data import DataSettings
from rlsys.recipe.faults import check_model
from rlsys.recipe.recipe import HUB, Recipe
from rlsys.recipe.rollout import WeightTransfer
from rlsys.recipe.stages import (
    AnyStage,
    CheckpointSettings,
    EvaluateStage,
    RlvrStage,
    SupervisedStage,
    WorldStage,
    data_of,
    evaluation_of,
)
from rlsys.rollouts.prompt_stream import hash_integers
from rlsys.rollouts.sampling_engine_settings import EngineSettings
from rlsys.scaling.placement import PlacementPlan, check_fits, placement_plan, weight_transfer
from rlsys.scaling.scale_request import forget_requests
from rlsys.telemetry.console import ConsoleTracker
from rlsys.telemetry.report import write_report
from rlsys.telemetry.trace import TraceFile
from rlsys.telemetry.tracker import JsonlTracker, MultiTracker, Tracker
from rlsys.telemetry.wandb_tracker import WandbTracker

BESIDE_LEARNER = {"gpu_memory_utilization": 0.4}
"""Of an engine that shares its GPU with the learner: vLLM would take nine tenths of it."""


def run_world(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """Writes the tiny world's files."""
    from rlsys.quickstart.world import write_world

    settings = stage.stage
    assert isinstance(settings, WorldStage)
    return {
        "rows": write_world(
            stage.folder,
            seed=context.recipe.seed,
            demonstrations=settings.demonstrations,
            prompts=settings.prompts,
            held_out=settings.held_out,
        )
    }


def run_evaluate(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """Nothing: `run_stage` evaluates."""
    return {}


TOPOLOGIES: dict[str, Callable[[RunContext, StageContext], dict[str, Any]]] = {
    "world": run_world,
    "sft": run_sft,
    "preferences": run_preferences,
    "judged_preferences": run_judged_preferences,
    "reward": run_reward,
    "dpo": run_dpo,
    "rlvr": run_rlvr,
    "evaluate": run_evaluate,
}


def run_recipe(recipe: Recipe, *, resume: str = "auto", from_stage: str | None = None) -> dict[str, dict[str, Any]]:
    """Runs every stage that is not done yet.

    Args:
        recipe: checked.
        resume: `auto`, `never`, or a checkpoint's folder.
        from_stage: this stage and all after it are done again.

    Returns:
        Stage label to its result: what it made, its seconds, held-out accuracies.

    Raises:
        RlsysError: of the kind that tells what went wrong; what was committed stays.
    """
    started = time.perf_counter()
    first = recipe.stage_number(from_stage) if from_stage is not None else None
    path = Path(recipe.runs) / recipe.name
    text = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True))
    with RunFolder.open(path.absolute(), resume=resume, recipe_toml=text, command=sys.argv) as folder:
        if folder.recipe_changes:
            print("the recipe has changed since the last start:", *folder.recipe_changes, sep="\n  ")
            print('what is finished stays as it is; --from STAGE does it again, name="other" begins anew', flush=True)
        if first is not None:
            _begin_again(folder, first, recipe.stage[first - 1].label)
        forget_requests(folder.path)
        results: dict[str, dict[str, Any]] = {}
        with running(recipe, folder.path) as context:
            start_up_s = time.perf_counter() - started
            for number, stage in enumerate(recipe.stage, 1):
                results[stage.label] = run_stage(context, stage, folder.stage(number, stage.label))
            context.flush_trace()
        write_report(folder.path)
    print_table(recipe, results, start_up_s=start_up_s, total_s=time.perf_counter() - started, folder=path)
    return results


def _begin_again(folder: RunFolder, number: int, label: str) -> None:
    """Sets the stage and all after it aside; it begins where it began before, so that no step has two lines."""
    beginning = folder.path / f"{number:02d}-{label}" / BEGINNING
    known = beginning.read_bytes() if beginning.exists() else None
    folder.set_aside_from(number)
    if known is not None:
        beginning.parent.mkdir()
        write_durably(beginning, known)


def run_stage(context: RunContext, stage: AnyStage, folder: StageFolder) -> dict[str, Any]:
    """One stage with its evaluation, each unless the folder says that it is done."""
    result = folder.result or {}
    if "evaluation" in result:
        context.done(stage, folder.path)
        return result
    with stage_context(context, stage, folder.path, context.recipe.stage_number(stage.label)) as stage_run:
        if not result:
            if not stage_run.checkpoints.steps:  # lines of a process that was killed before its first checkpoint
                stage_run.tracker.restore(stage_run.beginning)
            started = time.perf_counter()
            result = TOPOLOGIES[stage.kind](context, stage_run)
            result["seconds"] = time.perf_counter() - started
            folder.finish(result)
        context.done(stage, folder.path)
        started = time.perf_counter()
        result["evaluation"] = evaluate_stage(context, stage_run)
        if result["evaluation"]:  # a line of its own: that of the step was written when it was done
            stage_run.tracker.log(result.get("steps") or result.get("batches") or 0, result["evaluation"])
        result["evaluation_seconds"] = time.perf_counter() - started
        folder.finish(result)
    return result


def evaluate_stage(context: RunContext, stage_run: StageContext) -> dict[str, float]:
    """Test sets of the stage, with the policy that it exported, or that an `evaluate` stage names."""
    stage = stage_run.stage
    settings = evaluation_of(stage)
    if settings is None or not settings.test:
        return {}
    named = isinstance(stage, EvaluateStage)
    context.bring_policy(context.policy_folder(stage.policy) if named else stage_run.folder / "hf")
    sets = load_sets(context, settings.test, settings, stage_modules(context), limit=settings.limit)
    with context.spans.span("evaluate"):
        metrics = evaluate(context, sets, settings, record=stage_run.folder / "eval")
    return metrics


def evaluate_model(recipe: Recipe, model: str) -> dict[str, float]:
    """`rlsys evaluate`: a model folder on the recipe's test sets, with the settings of its last stage that has any.

    Raises:
        RecipeError: the recipe names no test set, or there is no such model.
    """
    if not model.startswith(HUB):
        try:
            check_model(model, recipe.model.trust_remote_code)
        except RecipeError as error:
            raise RecipeError(f"MODEL cannot be evaluated: {error.problem}", value=model, fix=error.fix) from None
    found = [settings for stage in recipe.stage if (settings := evaluation_of(stage)) is not None and settings.test]
    if not found:
        raise RecipeError("the recipe names no test set", fix="add [evaluation] with test = { name = 'file.jsonl' }")
    settings = found[-1]
    stage = EvaluateStage(kind="evaluate", evaluation=settings, verifiers=verifier_settings(recipe))
    model_settings = recipe.model.model_copy(
        update={"path": model, "config": None, "init_std": None, "tokenizer": None}
    )
    alone = recipe.model_copy(update={"model": model_settings, "stage": (stage,)})
    run = (Path(recipe.runs) / recipe.name).absolute()
    # Beside the run's folder: a run may be under way there, or be started later.
    folder = run.with_name(f"{recipe.name}-evaluated") / time.strftime("%Y%m%d-%H%M%S")
    with running(alone, folder) as context:
        for number, earlier in enumerate(recipe.stage, 1):
            context.outputs[earlier.label] = run / f"{number:02d}-{earlier.label}"
        sets = load_sets(context, settings.test, settings, stage_modules(context), limit=settings.limit)
        metrics = evaluate(context, sets, settings, record=folder / "eval")
    write_durably(folder / "metrics.json", json.dumps({"model": model} | metrics, indent=1).encode())
    print(f"every response and its verdicts: {folder / 'eval'}")
    for name, value in metrics.items():
        print(f"{name:48} {value:.3f}")
    return metrics


@contextmanager
def running(recipe: Recipe, folder: Path) -> Iterator[RunContext]:
    """The cluster and its actors, while the block runs.

    Args:
        recipe: of the run. Where no stage trains a policy, engines load the recipe's model from its folder.
        folder: of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owns_cluster = attach(recipe.cluster)
    link_logs(folder)
    crew = None
    trace = TraceFile(folder / "trace.json")
    try:
        plan = placement_plan(recipe, use_gpus=uses_gpus(recipe.cluster), one_gpu=num_gpus() == 1)
        transfer = weight_transfer(recipe, plan)
        check_fits(plan.bundles, node_resources())  # before a model is fetched
        model = prepare(recipe, folder)
        engine = engine_settings(recipe, model, plan, transfer)
        crew = Crew(recipe, plan, engine=engine, tokenizer=model.folder)
        crew.start()
        context = RunContext(recipe=recipe, folder=folder, crew=crew, model=model, trace=trace)
        yield context
        context.flush_trace()
    finally:
        trace.close()
        if crew is not None:
            crew.close()
        if owns_cluster:
            ray.shutdown()


def prepare(recipe: Recipe, folder: Path) -> ModelFolder:
    """The folder with configuration, tokenizer and chat template."""
    data = next((data for stage in recipe.stage if (data := data_of(stage)) is not None), DataSettings())
    model = recipe.model.model_copy(update={"init_seed": recipe.model.init_seed + recipe.seed})
    ref = prepare_model.remote(model, data, str(folder / "model"))
    limit = recipe.cluster.start_timeout_s
    return get(ref, timeout_s=limit, what="preparing the model's folder", setting="cluster.start_timeout_s")


def engine_settings(
    recipe: Recipe, model: ModelFolder, plan: PlacementPlan, transfer: WeightTransfer
) -> EngineSettings:
    """What every rollout worker builds."""
    own_weights = not recipe.trains_policy and model.settings.path is not None
    weights = model.settings.path if own_weights and model.settings.path else model.folder
    return EngineSettings(
        model=weights,
        end_token_ids=model.end_token_ids,
        load_format="safetensors" if own_weights else "dummy",
        weight_transfer=transfer,
        kv_on_update=recipe.rollout.kv_on_update,
        cpu_cores=recipe.rollout.cpu_cores,
        seed=recipe.seed,
        vllm={**(BESIDE_LEARNER if plan.shares_gpu else {}), **recipe.rollout.vllm},
    )


@contextmanager
def stage_context(context: RunContext, stage: AnyStage, folder: Path, number: int) -> Iterator[StageContext]:
    """The stage's trackers and checkpoints, while the block runs; `number` is its place, 1 for the first."""
    checkpoint = stage.checkpoint if isinstance(stage, SupervisedStage | RlvrStage) else CheckpointSettings()
    tracking = context.recipe.tracking
    trackers: list[Tracker] = [JsonlTracker(context.folder / "metrics.jsonl", stage=stage.label)]
    if tracking.wandb != "off" and not isinstance(stage, WorldStage):
        trackers.append(
            WandbTracker(
                context.folder / "logs",
                project=tracking.wandb_project,
                name=f"{context.recipe.name}-{stage.label}",
                mode=tracking.wandb,
                config=context.recipe.model_dump(mode="json"),
            )
        )
    if tracking.prometheus:
        trackers.append(PrometheusTracker(run=context.recipe.name, stage=stage.label))
    if tracking.console:
        trackers.append(ConsoleTracker(stage=stage.label, total_steps=_expected_steps(stage)))
    tracker = MultiTracker(trackers)
    try:
        yield StageContext(
            stage=stage,
            seed=hash_integers(context.recipe.seed, number, bits=32),
            folder=folder,
            tracker=tracker,
            checkpoints=checkpoint_store(folder, checkpoint),
            beginning=stage_beginning(folder, tracker),
        )
    finally:
        tracker.close()


def _expected_steps(stage: AnyStage) -> int:
    if isinstance(stage, RlvrStage):
        return stage.batches
    return (stage.max_steps or 0) if isinstance(stage, SupervisedStage) else 1
