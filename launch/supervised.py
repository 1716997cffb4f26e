"""The topologies that read a fixed data set: SFT, DPO and its variants, the reward model.

    store on disk --> learner (SFT, DPO) or value model (reward): optimizer step s takes rows that are a pure function
                      of (seed, s), so that a resume needs the number of the last step and nothing else
    reference model --> logprobs of all pairs, once, before DPO's first step

consumes: a token or pair store     produces: checkpoints, hf/     waits for: one call of several steps at a time
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.data_tasks import build_store
from actors.groups import ModelGroup, Pending
from launch.context import RunContext, StageContext, get, pairs_folder
from launch.model_states import commit_deadline_s, save_states
from launch.progress import progress
from rlsys.algorithms.schedule import learning_rate
from rlsys.algorithms.step_guard import StepGuard
from rlsys.checkpoint.background import BackgroundCommitter
from rlsys.checkpoint.checkpoint import Checkpoint
from rlsys.recipe.algorithm import SafetySettings
from rlsys.recipe.section import PREVIOUS
from rlsys.recipe.stages import DpoStage, RewardStage, SftStage, SupervisedStage

SECONDS_A_CALL = 2.0
"""Steps are asked for in calls of about so long: short enough for a live console, long enough to hide a round trip."""


@dataclass(frozen=True, slots=True)
class SupervisedWork:
    """What tells the three topologies apart."""

    group: ModelGroup
    num_rows: int
    train: Callable[[int, Sequence[float]], Pending[Any]]
    """(number of the first step, learning rates) to reports."""


def run_sft(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """Supervised fine-tuning on a mixture, the loss on assistant tokens."""
    settings = stage.stage
    assert isinstance(settings, SftStage)
    folder = stage.folder / "data"
    with context.loading_policy(context.policy_folder(settings.policy), settings.learner):
        manifest = _build_store(context, settings, folder, "rows")
    learner = context.crew.learner
    seed = context.recipe.seed

    def train(first_step: int, lrs: Sequence[float]) -> Pending[Any]:
        return learner.train_supervised(
            str(folder), settings.loss, first_step=first_step, lrs=lrs, batch_size=settings.batch_size, seed=seed
        )

    context.learner_holds = None
    summary = _train(context, stage, SupervisedWork(learner, manifest["rows"], train))
    context.learner_holds = stage.folder / "hf"
    return summary | {"rows": manifest["rows"], "dropped": manifest["about"]}


def run_dpo(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """A preference loss on pairs; the reference is the policy before the first step."""
    settings = stage.stage
    assert isinstance(settings, DpoStage)
    folder, num_pairs = _pairs(context, settings, stage.folder)
    policy = context.policy_folder(settings.policy)
    reference = None
    if settings.loss.needs_reference:
        model = context.crew.reference
        model.load(context.policy_settings(policy), settings.learner).get(context.recipe.cluster.start_timeout_s)
        with context.spans.span("reference"):
            reference = model.pair_logprobs(str(folder)).get()
    context.load_policy(policy, settings.learner)
    learner = context.crew.learner

    def train(first_step: int, lrs: Sequence[float]) -> Pending[Any]:
        steps = _pair_steps(context, settings, first_step, lrs)
        return learner.train_preferences(str(folder), steps, settings.loss, reference=reference)

    context.learner_holds = None
    summary = _train(context, stage, SupervisedWork(learner, num_pairs, train))
    context.learner_holds = stage.folder / "hf"
    return summary | {"pairs": num_pairs}


def run_reward(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """A reward model on pairs; its actors are those of the value model, which starts from it."""
    settings = stage.stage
    assert isinstance(settings, RewardStage)
    folder, num_pairs = _pairs(context, settings, stage.folder)
    policy = context.policy_folder(settings.policy)
    value = context.crew.value
    value.load(context.policy_settings(policy), settings.learner).get(context.recipe.cluster.start_timeout_s)

    def train(first_step: int, lrs: Sequence[float]) -> Pending[Any]:
        return value.train_reward(str(folder), _pair_steps(context, settings, first_step, lrs), settings.loss)

    summary = _train(context, stage, SupervisedWork(value, num_pairs, train))
    context.value_holds = stage.folder / "hf"
    scores = value.pair_scores(str(folder)).get()
    return summary | {"pairs": num_pairs, "pair_accuracy": float((scores[:, 0] > scores[:, 1]).mean())}


def _train(context: RunContext, stage: StageContext, work: SupervisedWork) -> dict[str, Any]:
    """The loop of all three: steps in calls, metrics, checkpoints, the exported folder."""
    settings = stage.stage
    assert isinstance(settings, SupervisedStage)
    total = total_steps(settings, work.num_rows)
    guard = StepGuard(SafetySettings().max_skipped_in_a_row)
    deadline_s = commit_deadline_s(context.recipe.cluster)
    committer = BackgroundCommitter(stage.checkpoints, deadline_s=deadline_s)
    step = resume(stage, work.group)
    num_steps = 1
    metrics: dict[str, float] = {}
    while step < total:
        until = min(total, step + num_steps, next_checkpoint(step, settings.checkpoint.every))
        lrs = [
            learning_rate(s, settings.learner.lr, settings.learner.schedule, total_steps=total)
            for s in range(step, until)
        ]
        started = time.perf_counter()
        with context.spans.span("update"):
            reports = work.train(step, lrs).get()
        seconds = (time.perf_counter() - started) / len(lrs)
        for number, report in enumerate(reports, step + 1):
            guard.record(report.fault)
            metrics = report.metrics | {"time/step_s": seconds} | skipped_metrics(guard)
            stage.tracker.log(number, metrics)
        step = until
        num_steps = max(1, min(2 * num_steps, int(SECONDS_A_CALL / seconds)))
        if settings.checkpoint.every and step % settings.checkpoint.every == 0 and step < total:
            save(stage, work.group, committer, step, deadline_s=deadline_s)
        committer.poll()
        context.flush_trace()
    committer.wait()
    with context.spans.span("export"):
        work.group.export_hf(str(stage.folder / "hf")).get()
    return {"steps": total, "last": metrics}


def total_steps(stage: SupervisedStage, num_rows: int) -> int:
    """Optimizer steps of the stage; an epoch's last step takes the rows that are left."""
    steps = stage.epochs * -(-num_rows // stage.batch_size)
    return min(steps, stage.max_steps or steps)


def next_checkpoint(step: int, every: int) -> int:
    """The step of the next checkpoint after `step`."""
    return (step // every + 1) * every if every else 1 << 62


def skipped_metrics(guard: StepGuard) -> dict[str, float]:
    """Skipped steps by reason."""
    return {f"skipped/{reason}": float(count) for reason, count in guard.skipped.items()}


def resume(stage: StageContext, group: ModelGroup) -> int:
    """Restores the newest intact checkpoint of the stage; gives the number of steps it holds."""
    found = stage.checkpoints.recover()
    for problem in found.passed_over:
        print(f"passed over a damaged checkpoint: {problem}", flush=True)
    checkpoint: Checkpoint | None = found.checkpoint
    if checkpoint is None:
        return 0
    group.restore(str(checkpoint.path / "model")).get()
    stage.tracker.restore(checkpoint.manifest.metadata["tracker"])
    print(f"resumed {stage.stage.label} after step {checkpoint.step}", flush=True)
    return checkpoint.step


def save(
    stage: StageContext, group: ModelGroup, committer: BackgroundCommitter, step: int, *, deadline_s: float
) -> None:
    """One transactional checkpoint; it is written and committed while training goes on."""
    committer.wait()
    transaction = stage.checkpoints.begin(step)
    try:
        wait_for_state = save_states({"model": group}, transaction.folder, deadline_s=deadline_s)
        metadata = {"tracker": stage.tracker.position()}
    except BaseException:
        transaction.cancel()
        raise
    committer.submit(transaction, metadata=metadata, gather=wait_for_state)
    assert isinstance(stage.stage, SupervisedStage)
    if not stage.stage.checkpoint.background:
        committer.wait()


def _build_store(context: RunContext, settings: Any, folder: Path, layout: str) -> dict[str, Any]:
    data = context.resolve_data(settings.data)
    gate = context.resolve_gate(settings.decontamination)
    ref = build_store.remote(data, context.model.folder, str(folder), layout, gate)
    with context.spans.span("tokenize"), progress("tokenising the data", shown=context.recipe.tracking.console):
        return get(ref, timeout_s=context.recipe.cluster.operation_timeout_s, what="tokenising the data")


def _pairs(context: RunContext, settings: RewardStage | DpoStage, folder: Path) -> tuple[Path, int]:
    if settings.data.source:
        store = folder / "data"
        return store, _build_store(context, settings, store, "pairs")["rows"] // 2
    store = pairs_folder(context, settings.pairs or PREVIOUS)
    from rlsys.data.token_store import PairStore

    return store, len(PairStore(store))


def _pair_steps(context: RunContext, settings: RewardStage | DpoStage, first_step: int, lrs: Sequence[float]) -> Any:
    from rlsys.models.pairs import PairSteps

    return PairSteps(first_step, lrs, settings.batch_size, context.recipe.seed)
