"""On-policy pairs: several samples a prompt from the newest policy, decided by the verifiers.

    prompts --> RolloutWorker (n samples) --> VerifierWorker --> write_pairs: a right and a wrong sample of one prompt

consumes: prompts and a policy     produces: pairs/ (token ids as sampled)     waits for: verified chunks
"""

from typing import Any

from actors.data_tasks import build_prompts, write_pairs
from actors.pump import RolloutPump
from actors.pump_records import PumpSettings
from actors.shards import GroupReference
from launch.context import RunContext, StageContext
from launch.evaluation import stage_modules
from launch.sampling import groups_per_call, sample_all
from rlsys.errors import DataError
from rlsys.recipe.stages import PreferencesStage
from rlsys.rollouts.prompt_stream import PromptStream
from rlsys.rollouts.summary_metrics import rollout_metrics, verdict_metrics
from rlsys.types import GroupSummary


def run_preferences(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """Samples, verifies and writes the pair store."""
    settings = stage.stage
    assert isinstance(settings, PreferencesStage)
    data = context.recipe.fitted(context.resolve_data(settings.prompts), max_tokens=settings.sampling.max_tokens)
    gate = context.resolve_gate(settings.decontamination)
    ref = build_prompts.remote(data, context.model.folder, str(stage.folder), stage_modules(context), None, gate)
    prompts = context.result(ref, what="reading the prompts")
    stream = PromptStream(prompts, stage.seed)
    num_prompts = min(settings.num_prompts or len(prompts), len(prompts))
    context.bring_policy(context.policy_folder(settings.policy))
    with context.spans.span("sampling"):
        summaries, references = _sample_all(context, settings, stream, num_prompts, stage.seed)
    written = write_pairs.remote(references, str(stage.folder / "pairs"), stage.seed)
    manifest = context.result(written, what="writing the pairs")
    if not manifest["rows"]:
        raise DataError(
            "no prompt gave both right and wrong samples",
            value=manifest["about"],
            fix="use harder or easier prompts, more of them, or more samples",
        )
    stage.tracker.log(1, rollout_metrics(summaries) | verdict_metrics(summaries))
    return {"prompts": num_prompts, "pairs": manifest["rows"] // 2, "groups": manifest["about"]}


def _sample_all(
    context: RunContext, settings: PreferencesStage, stream: PromptStream, num_prompts: int, seed: int
) -> tuple[list[GroupSummary], list[GroupReference]]:
    pump_settings = PumpSettings(
        num_samples=settings.samples,
        sampling=settings.sampling,
        seed=seed,
        groups_per_call=groups_per_call(num_prompts, context.crew.workers.size),
        groups_per_worker=context.recipe.rollout.groups_per_worker(settings.samples),
        group_timeout_s=context.recipe.cluster.operation_timeout_s,
        tag="preferences",
    )
    pump = RolloutPump(context.crew.workers, context.crew.verifiers, pump_settings, prompts=stream.__getitem__)
    groups = sample_all(context, pump, num_prompts, what="sampling preferences")
    return [group.summary for group in groups], [group.reference for group in groups]
