"""Pairs by a judge: a pool of models answers, the judge rates, the best mean is chosen and a lower one rejected.

    prompts --> pool: the policy on its rollout workers | local models in their places | endpoints --> responses.jsonl
            --> judge: an endpoint | a local model in the same places                              --> ratings.jsonl
            --> binarise, verify constraints --> pairs.jsonl --> pairs/ (token ids)

consumes: prompts and a policy     produces: the files above     waits for: all responses, then all ratings
after a kill: asks for what the files do not have, and for nothing else
"""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from actors.data_tasks import build_store, select_preference_prompts, verify_texts
from actors.judge import JudgeGroup, JudgeLostError, JudgeWorker
from launch.context import RunContext, StageContext, get
from launch.engine_turns import EngineTurns, ServedModel
from rlsys.data.judge import Judge, Rater
from rlsys.data.judge_backend import TextBackend
from rlsys.data.judge_endpoint import Endpoint
from rlsys.data.preference_pipeline import PAIRS_FILE, JudgedPairs, judged_pairs
from rlsys.data.preference_prompts import PromptSelection
from rlsys.errors import DataError
from rlsys.recipe.data import DataSettings, SourceSettings
from rlsys.recipe.preferences import JudgeSettings
from rlsys.recipe.stages import JudgedPreferencesStage, SftStage
from rlsys.types import Check, Outcome


def run_judged_preferences(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """Asks, rates, binarises and writes the pair store."""
    settings = stage.stage
    assert isinstance(settings, JudgedPreferencesStage)
    seed = settings.seed + stage.seed
    settings = settings.model_copy(
        update={
            "seed": seed,
            "selection": settings.selection.model_copy(update={"seed": settings.selection.seed + seed}),
        }
    )
    selection = _select(context, settings, stage.folder)
    with context.spans.span("asking"):
        made, asked = _ask_until_done(context, settings, selection, stage.folder)
    if not made.pairs:
        raise DataError(
            "no prompt gave a pair",
            value=made.counts(),
            fix="use more prompts, other models, see what failed, or raise sampling.max_tokens where much was cut",
        )
    source = SourceSettings(path=str(stage.folder / PAIRS_FILE), name="judged", synthetic=True)
    data = DataSettings(source=(source,), templating=settings.templating)
    store = build_store.remote(data, context.model.folder, str(stage.folder / "pairs"), "pairs", None)
    manifest = context.result(store, what="writing the pairs")
    stage.tracker.log(1, _metrics(selection, made, manifest["rows"] // 2))
    return {
        "prompts": dict(selection.counts),
        "pairs": manifest["rows"] // 2,
        "dropped": manifest["about"]["dropped"],
        **made.counts(),
        "asked": asked,
    }


def _select(context: RunContext, settings: JudgedPreferencesStage, folder: Path) -> PromptSelection:
    """The prompts; `sft` defaults to what the newest earlier SFT stage was trained on."""
    earlier = [one for one in context.recipe.stage if one.label in context.outputs and isinstance(one, SftStage)]
    sft = earlier[-1].data if earlier and not settings.sft.source else settings.sft
    sources = {"sft": sft, "unused": settings.unused, "personas": settings.personas}
    ref = select_preference_prompts.remote(
        {name: context.resolve_data(data) for name, data in sources.items()},
        settings.selection,
        str(folder),
        context.resolve_gate(settings.decontamination),
    )
    return context.result(ref, what="selecting the prompts")


def _ask_until_done(
    context: RunContext, settings: JudgedPreferencesStage, selection: PromptSelection, folder: Path
) -> tuple[JudgedPairs, dict[str, Any]]:
    """Goes on where a judge's death left off, as often as the recipe allows restarts."""
    while True:
        try:
            return asyncio.run(_ask(context, settings, selection, folder))
        except JudgeLostError as error:
            if not context.crew.restarts.spend("judge"):
                raise
            print(f"the asking goes on after: {error}", flush=True)


async def _ask(
    context: RunContext, settings: JudgedPreferencesStage, selection: PromptSelection, folder: Path
) -> tuple[JudgedPairs, dict[str, Any]]:
    """The pairs, and what each model of the pool and the judge were asked in this start."""
    async with AsyncExitStack() as stack:
        turns = EngineTurns(context, context.policy_folder(settings.policy))
        stack.callback(turns.close)
        pool, endpoints = await _open_pool(context, settings, turns, stack)
        judge, worker = _open_judge(context, settings, turns)

        def verify(asked: Sequence[tuple[Check, str]]) -> list[Outcome]:
            ref = verify_texts.remote(list(asked), settings.verifiers)
            return get(ref, timeout_s=context.recipe.cluster.operation_timeout_s, what="verifying constraints")

        made = await judged_pairs(selection.prompts, pool, judge, folder, settings=settings, verify=verify)
        told: dict[str, Any] = {name: endpoint.counts.to_json() for name, endpoint in endpoints.items()}
        failed_batches = {name: {"failed_batches": dict(counts)} for name, counts in turns.failures.items()}
        told |= {name: failed_batches[name] for name in pool if name in failed_batches}
        if worker is not None:
            timeout_s = context.recipe.cluster.operation_timeout_s
            told["judge"] = get(worker.stats.remote(), timeout_s=timeout_s, what="counting what the judge was asked")
            get(worker.close.remote(), timeout_s=timeout_s, what="closing the judge's connections")
        elif isinstance(judge, Judge):
            told["judge"] = {"replies": dict(judge.counts), **failed_batches.get(str(settings.judge.local_model), {})}
        return made, told


async def _open_pool(
    context: RunContext, settings: JudgedPreferencesStage, turns: EngineTurns, stack: AsyncExitStack
) -> tuple[dict[str, TextBackend], dict[str, Endpoint]]:
    """A backend for each model; the policy first, since its engines are there already."""
    pool: dict[str, TextBackend] = {}
    endpoints: dict[str, Endpoint] = {}
    for model in sorted(settings.pool, key=lambda model: not model.is_policy):
        if model.endpoint is not None:
            endpoints[model.name] = await stack.enter_async_context(Endpoint(model.endpoint))
            pool[model.name] = endpoints[model.name]
            continue
        served = ServedModel(
            name=model.name,
            path=model.local_model,
            sampling=settings.sampling,
            timeout_s=context.recipe.cluster.operation_timeout_s,
            seed=settings.seed,
            vllm=model.vllm,
        )
        pool[model.name] = turns.backend(served)
    return pool, endpoints


def _open_judge(context: RunContext, settings: JudgedPreferencesStage, turns: EngineTurns) -> tuple[Rater, Any]:
    """Who rates; and the actor that asks an endpoint, if it is one."""
    judge = settings.judge
    if judge.endpoint is not None:
        options: Any = JudgeWorker.options(num_cpus=0)  # pyright: ignore[reportAttributeAccessIssue]
        worker = options.remote(judge)
        return JudgeGroup([worker], judge, reply_timeout_s=_longest_silence_s(judge)), worker
    assert judge.local_model is not None
    served = ServedModel(
        name=judge.local_model,
        path=judge.local_model,
        sampling=judge.sampling,
        timeout_s=judge.deadline_s,
        batch_size=judge.batch_size,
        seed=settings.seed,
        vllm=judge.vllm,
    )
    return Judge(turns.backend(served), not_applicable=judge.not_applicable, max_asks=judge.max_asks), None


def _longest_silence_s(judge: JudgeSettings) -> float:
    """Seconds in which an endpoint that still answers gives at least one reply, failures included."""
    endpoint = judge.endpoint
    assert endpoint is not None
    pace_s = 60.0 / endpoint.requests_per_minute if endpoint.requests_per_minute else 0.0
    return 60.0 + endpoint.max_attempts * (endpoint.deadline_s + endpoint.max_backoff_s + pace_s)


def _metrics(selection: PromptSelection, made: JudgedPairs, num_pairs: int) -> dict[str, float]:
    return {
        "preference/prompts": float(len(selection.prompts)),
        "preference/responses": float(
            made.responses["asked"] - made.responses["failed"] + made.responses["kept"] - made.responses["cut"]
        ),
        "preference/ratings": float(sum(made.ratings[key] for key in ("rated", "not_applicable", "kept"))),
        "preference/pairs": float(num_pairs),
        "preference/tied": float(made.binarised["tied"]),
        "preference/unsettled": float(made.binarised["unsettled"]),
    }
