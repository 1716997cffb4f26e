"""Everything that stands before the first batch of RLVR, and before the first one after a rollback."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.data_tasks import build_prompts
from actors.groups import Pending
from actors.pump import RolloutPump
from actors.pump_records import PumpSettings, RewardScoring
from launch.context import RunContext, StageContext
from launch.evaluation import load_sets, stage_modules
from launch.model_states import commit_deadline_s
from launch.rlvr_checkpoint import restore_checkpoint
from launch.rlvr_recovery import load_frozen
from launch.rlvr_run import RlvrRun
from rlsys.algorithms.step_guard import StepGuard
from rlsys.checkpoint.background import BackgroundCommitter
from rlsys.checkpoint.chain_file import ChainFile
from rlsys.checkpoint.policy_exports import PolicyExports
from rlsys.recipe.stages import FROM_POLICY, RlvrStage
from rlsys.rollouts.experience_buffer import ExperienceBuffer
from rlsys.rollouts.ledger import Ledger
from rlsys.rollouts.ledger_records import LedgerSettings
from rlsys.rollouts.prompt_stream import PromptStream
from rlsys.scaling.scale_request import ScaleRequests

if TYPE_CHECKING:
    from rlsys.data.prompts import PromptSet


def set_up(context: RunContext, stage: StageContext) -> RlvrRun:
    """Reads the prompts. `bring_up` comes next."""
    settings = stage.stage
    assert isinstance(settings, RlvrStage)
    evaluation = settings.evaluation
    prompts = read_prompts(context, settings, stage.folder)
    return RlvrRun(
        context=context,
        stage=stage,
        settings=settings,
        scale_requests=ScaleRequests(context.folder),
        ledger=Ledger(ledger_settings(settings)),
        buffer=ExperienceBuffer(),
        pump=_pump(context, settings, PromptStream(prompts, stage.seed), stage.seed),
        guard=StepGuard(settings.algorithm.safety.max_skipped_in_a_row),
        chain=ChainFile(stage.folder / "ends.jsonl"),
        exports=PolicyExports(stage.folder),
        committer=BackgroundCommitter(stage.checkpoints, deadline_s=commit_deadline_s(context.recipe.cluster)),
        canary_ids=context.model.canary_ids[: context.recipe.rollout.canary_tokens],
        prompts_digest=prompts.digest,
        development=load_sets(
            context,
            evaluation.development,
            evaluation,
            stage_modules(context),
            limit=evaluation.development_limit or evaluation.limit,
        ),
    )


def bring_up(run: RlvrRun) -> None:
    """Loads the models, goes on from the newest checkpoint, and brings the weights to the engines."""
    load_models(run.context, run.settings)
    restore_checkpoint(run)
    run.context.publish(run.ledger.num_trained_batches, run.canary_ids)
    run.ledger.published(run.ledger.num_trained_batches)
    run.step_started = time.perf_counter()


def ledger_settings(settings: RlvrStage) -> LedgerSettings:
    """What the recipe says of the accounting."""
    return LedgerSettings(
        batch_groups=settings.batch_groups,
        max_staleness=settings.max_staleness,
        total_batches=settings.batches,
        max_attempts=settings.max_attempts,
        over_age=settings.over_age,
    )


def read_prompts(context: RunContext, settings: RlvrStage, folder: Path) -> "PromptSet":
    """The stage's prompts; their data card goes into the folder."""
    data = context.recipe.fitted(context.resolve_data(settings.prompts), max_tokens=settings.sampling.max_tokens)
    alone = settings.reward_model is not None and settings.reward_model.is_alone
    modules = None if alone else stage_modules(context)
    gate = context.resolve_gate(settings.decontamination)
    ref = build_prompts.remote(data, context.model.folder, str(folder), modules, None, gate)
    return context.result(ref, what="reading the prompts")


def _pump(context: RunContext, settings: RlvrStage, stream: PromptStream, seed: int) -> RolloutPump:
    pump_settings = PumpSettings(
        num_samples=settings.samples,
        sampling=settings.sampling,
        seed=seed,
        groups_per_call=settings.groups_per_call,
        groups_per_worker=context.recipe.rollout.groups_per_worker(settings.samples),
        group_timeout_s=settings.group_timeout_s or context.recipe.cluster.operation_timeout_s,
        overlong=_overlong(settings),
        fixed=context.recipe.deterministic,
    )
    crew = context.crew
    return RolloutPump(
        crew.workers,
        crew.verifiers,
        pump_settings,
        prompts=stream.__getitem__,
        scoring=_scoring(context, settings),
    )


def _overlong(settings: RlvrStage) -> dict[str, float] | None:
    overlong = settings.algorithm.overlong
    if not overlong.buffer_tokens:
        return None
    return {"max_tokens": settings.sampling.max_tokens, **overlong.model_dump()}


def _scoring(context: RunContext, settings: RlvrStage) -> RewardScoring | None:
    if settings.reward_model is None:
        return None
    return RewardScoring(
        model=lambda: context.crew.reward_model,
        weight=settings.reward_model.weight,
        timeout_s=context.recipe.cluster.operation_timeout_s,
    )


def load_models(context: RunContext, settings: RlvrStage) -> None:
    """All groups at once, each as soon as it is there; a value model that is still in memory keeps its weights."""
    policy = context.policy_folder(settings.policy)
    pending: list[Pending[Any]] = []
    with context.loading_policy(policy, settings.learner):
        if settings.algorithm.needs_values:
            from_policy = settings.value_from == FROM_POLICY
            value_folder = policy if from_policy else context.reward_folder(settings.value_from)
            held, context.value_holds = context.value_holds, None
            loading = context.keep_or_load(context.crew.value, value_folder, held=held, learner=settings.value_learner)
            pending += [] if loading is None else [loading]
        pending += load_frozen(context, settings)
    context.learner_holds = None
    for loading in pending:
        context.await_load(loading, "value, reference and reward models")
