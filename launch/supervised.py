"""The topologies that read a fixed data set: SFT, DPO and its variants, the reward model.

    store on disk --> learner (SFT, DPO) or value model (reward): optimizer step s takes rows that are a pure function
                      of (seed, s), so that a resume needs the number of the last step and nothing else
    reference model --> logprobs of all pairs, once, before DPO's first step; kept on disk

consumes: a token or pair store     produces: checkpoints, hf/     waits for: one call of several steps at a time
when ranks die: they are started again, and the topology as well, which finds everything as a resume would
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from actors.data_tasks import build_store, digest_model
from actors.groups import ModelGroup, Pending
from launch.context import RunContext, StageContext, pairs_folder
from launch.model_states import commit_deadline_s, save_states
from launch.progress import progress
from rlsys.algorithms.schedule import learning_rate
from rlsys.algorithms.step_guard import StepGuard
from rlsys.checkpoint.background import BackgroundCommitter
from rlsys.checkpoint.checkpoint import Checkpoint
from rlsys.data.reference_logprobs import ReferenceLogprobs
from rlsys.errors import ActorError, CheckpointError, RlsysError
from rlsys.models.row_order import PairSteps, steps_per_epoch
from rlsys.recipe.section import PREVIOUS
from rlsys.recipe.stages import DpoStage, RewardStage, SftStage, SupervisedStage

SECONDS_A_CALL = 2.0
"""Steps are asked for in calls of about so long: short enough for a live console, long enough to hide a round trip."""


@dataclass(slots=True)
class SupervisedRun:
    """A stage that is under way, through all its returns to the last checkpoint."""

    context: RunContext
    stage: StageContext
    committer: BackgroundCommitter
    num_rollbacks: int = 0


@dataclass(frozen=True, slots=True)
class SupervisedWork:
    """What tells the three topologies apart."""

    model: str
    """What is trained, for messages."""
    group: ModelGroup
    num_rows: int
    data: str
    """Digest of the rows or pairs."""
    train: Callable[[int, Sequence[float]], Pending[Any]]
    """(number of the first step, learning rates) to reports."""


def run_sft(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """Supervised fine-tuning on a mixture, the loss on assistant tokens."""
    return _supervise(context, stage, _sft)


def run_dpo(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """A preference loss on pairs; the reference is the policy before the first step."""
    return _supervise(context, stage, _dpo)


def run_reward(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """A reward model on pairs; its actors are those of the value model, which starts from it."""
    return _supervise(context, stage, _reward)


def _supervise(
    context: RunContext, stage: StageContext, topology: Callable[[SupervisedRun], dict[str, Any]]
) -> dict[str, Any]:
    """Runs a topology to its end, however often ranks die in it."""
    committer = BackgroundCommitter(stage.checkpoints, deadline_s=commit_deadline_s(context.recipe.cluster))
    run = SupervisedRun(context, stage, committer)
    while True:
        try:
            return topology(run)
        except (ActorError, CheckpointError) as error:  # what a death looks like; bad data, say, is told at once
            _go_back(run, error)


def _go_back(run: SupervisedRun, error: RlsysError) -> None:
    """Starts the groups of ranks that died again, and ends the commit under way.

    Raises:
        RlsysError: the error itself: no rank died, or too many did.
    """
    crew = run.context.crew
    fallen = crew.fallen()
    if not fallen or not all([crew.restart(kind) for kind in fallen]):
        raise error
    run.num_rollbacks += 1
    print(f"{run.stage.stage.label} goes back to its last checkpoint, {', '.join(fallen)} died: {error}", flush=True)
    try:
        run.committer.wait()
    except RlsysError as problem:  # that checkpoint is lost; the one before it is there
        print(f"what was being written is lost: {problem}", flush=True)
    run.context.forget_models()


def _sft(run: SupervisedRun) -> dict[str, Any]:
    context, stage = run.context, run.stage
    settings = stage.stage
    assert isinstance(settings, SftStage)
    folder = stage.folder / "data"
    with context.loading_policy(context.policy_folder(settings.policy), settings.learner):
        manifest = _build_store(context, settings, folder, "rows")
    learner = context.crew.learner
    seed = stage.seed

    def train(first_step: int, lrs: Sequence[float]) -> Pending[Any]:
        return learner.train_supervised(
            str(folder), settings.loss, first_step=first_step, lrs=lrs, batch_size=settings.batch_size, seed=seed
        )

    context.learner_holds = None
    summary = _train(run, SupervisedWork("policy", learner, manifest["rows"], manifest["digest"], train))
    context.learner_holds = stage.folder / "hf"
    return summary | {"rows": manifest["rows"], "dropped": manifest["about"]}


def _dpo(run: SupervisedRun) -> dict[str, Any]:
    context, stage = run.context, run.stage
    settings = stage.stage
    assert isinstance(settings, DpoStage)
    folder, num_pairs, digest = _pairs(context, settings, stage.folder)
    policy = context.policy_folder(settings.policy)
    reference = None
    if settings.loss.needs_reference:  # put once: as an argument it would be copied for every rank at every call
        reference = ray.put(_reference_logprobs(context, settings, folder, policy))
    context.load_policy(policy, settings.learner)
    learner = context.crew.learner

    def train(first_step: int, lrs: Sequence[float]) -> Pending[Any]:
        steps = PairSteps(first_step, lrs, settings.batch_size, stage.seed)
        return learner.train_preferences(str(folder), steps, settings.loss, reference=reference)

    context.learner_holds = None
    summary = _train(run, SupervisedWork("policy", learner, num_pairs, digest, train))
    context.learner_holds = stage.folder / "hf"
    return summary | {"pairs": num_pairs}


def _reward(run: SupervisedRun) -> dict[str, Any]:
    context, stage = run.context, run.stage
    settings = stage.stage
    assert isinstance(settings, RewardStage)
    folder, num_pairs, digest = _pairs(context, settings, stage.folder)
    policy = context.policy_folder(settings.policy)
    value = context.crew.value
    context.await_load(value.load(context.policy_settings(policy), settings.learner), "the reward model")

    def train(first_step: int, lrs: Sequence[float]) -> Pending[Any]:
        steps = PairSteps(first_step, lrs, settings.batch_size, stage.seed)
        return value.train_reward(str(folder), steps, settings.loss)

    summary = _train(run, SupervisedWork("reward model", value, num_pairs, digest, train))
    context.value_holds = stage.folder / "hf"
    scores = value.pair_scores(str(folder)).get()
    return summary | {"pairs": num_pairs, "pair_accuracy": float((scores[:, 0] > scores[:, 1]).mean())}


def _train(run: SupervisedRun, work: SupervisedWork) -> dict[str, Any]:
    """The loop of all three: steps in calls, metrics, checkpoints, the exported folder."""
    context, stage, committer = run.context, run.stage, run.committer
    settings = stage.stage
    assert isinstance(settings, SupervisedStage)
    total = total_steps(settings, work.num_rows)
    guard = StepGuard(settings.safety.max_skipped_in_a_row)
    rows = {"data": work.data, "seed": stage.seed, "batch_size": settings.batch_size}
    step = resume(stage, work.group, guard, rows)
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
            guard.record(work.model, [report.fault])
            metrics = report.metrics | {"time/step_s": seconds} | skipped_metrics(guard) | restart_metrics(run)
            stage.tracker.log(number, metrics)
            guard.check()
        step = until
        num_steps = max(1, min(2 * num_steps, int(SECONDS_A_CALL / seconds)))
        if settings.checkpoint.every and step % settings.checkpoint.every == 0 and step < total:
            save(run, work.group, guard, step, rows)
        committer.poll()
        context.flush_trace()
    committer.wait()
    with context.spans.span("export"):
        work.group.export_hf(str(stage.folder / "hf")).get()
    return {"steps": total, "last": metrics}


def total_steps(stage: SupervisedStage, num_rows: int) -> int:
    """Optimizer steps of the stage."""
    steps = stage.epochs * steps_per_epoch(num_rows, stage.batch_size)
    return min(steps, stage.max_steps or steps)


def next_checkpoint(step: int, every: int) -> int:
    """The step of the next checkpoint after `step`."""
    return (step // every + 1) * every if every else 1 << 62


def skipped_metrics(guard: StepGuard) -> dict[str, float]:
    """Skipped steps by reason."""
    return {f"skipped/{reason}": float(count) for reason, count in guard.skipped.items()}


def restart_metrics(run: SupervisedRun) -> dict[str, float]:
    """What had to be started again."""
    restarts = {f"perf/restarts/{kind}": float(n) for kind, n in run.context.crew.restarts.counts.items()}
    return restarts | {"perf/rollbacks": float(run.num_rollbacks)}


def resume(stage: StageContext, group: ModelGroup, guard: StepGuard, rows: dict[str, Any]) -> int:
    """Goes on from the newest intact checkpoint of the stage, or begins it; gives the number of steps it holds.

    Args:
        stage: of a run.
        group: gets the checkpoint's model.
        guard: goes on counting.
        rows: what decides which rows a step's number stands for.

    Raises:
        CheckpointError: steps of the checkpoint stand for other rows.
    """
    found = stage.checkpoints.recover()
    for problem in found.passed_over:
        print(f"passed over a damaged checkpoint: {problem}", flush=True)
    checkpoint: Checkpoint | None = found.checkpoint
    if checkpoint is None:
        stage.tracker.restore(stage.beginning)
        return 0
    metadata: Any = checkpoint.manifest.metadata
    before = metadata.get("rows", {})
    if changed := [f"{name} {before.get(name)} -> {now}" for name, now in rows.items() if before.get(name) != now]:
        raise CheckpointError(
            "the checkpoint was trained with other rows in its steps: some would be repeated, others skipped",
            value=", ".join(changed),
            fix=f"bring the data and settings back, or begin the stage again with --from {stage.stage.label}",
        )
    group.restore(str(checkpoint.path / "model")).get()
    guard.restore(metadata["guard"])
    stage.tracker.restore(metadata["tracker"])
    print(f"resumed {stage.stage.label} after step {checkpoint.step}", flush=True)
    return checkpoint.step


def save(run: SupervisedRun, group: ModelGroup, guard: StepGuard, step: int, rows: dict[str, Any]) -> None:
    """One transactional checkpoint; it is written and committed while training goes on."""
    stage = run.stage
    run.committer.wait()
    transaction = stage.checkpoints.begin(step)
    try:
        deadline_s = commit_deadline_s(run.context.recipe.cluster)
        wait_for_state = save_states({"model": group}, transaction.folder, deadline_s=deadline_s)
        metadata = {"guard": guard.state(), "tracker": stage.tracker.position(), "rows": rows}
    except BaseException:
        transaction.cancel()
        raise
    run.committer.submit(transaction, metadata=metadata, gather=wait_for_state)
    assert isinstance(stage.stage, SupervisedStage)
    if not stage.stage.checkpoint.background:
        run.committer.wait()


def _build_store(context: RunContext, settings: Any, folder: Path, layout: str) -> dict[str, Any]:
    data = context.resolve_data(settings.data)
    gate = context.resolve_gate(settings.decontamination)
    ref = build_store.remote(data, context.model.folder, str(folder), layout, gate)
    return context.result(ref, what="tokenising the data")


def _pairs(context: RunContext, settings: RewardStage | DpoStage, folder: Path) -> tuple[Path, int, str]:
    """The store of the stage's pairs, how many there are, and their digest."""
    if settings.data.source:
        store = folder / "data"
        manifest = _build_store(context, settings, store, "pairs")
        return store, manifest["rows"] // 2, manifest["digest"]
    store = pairs_folder(context, settings.pairs or PREVIOUS)
    from rlsys.data.token_store import PairStore

    pairs = PairStore(store)
    return store, len(pairs), pairs.digest


def _reference_logprobs(context: RunContext, settings: DpoStage, folder: Path, policy: Path | None) -> Any:
    """`[P, 2]` of the policy before the first step: from the disk, where this run has computed them before."""
    model = context.policy_settings(policy)
    digest = context.result(digest_model.remote(model), what="digesting the reference")
    precision = f"{settings.learner.dtype} on {'GPUs' if context.crew.use_gpus else 'CPUs'}"
    kept = ReferenceLogprobs(context.folder / "reference_logprobs", pairs=folder, model=digest, precision=precision)
    logprobs = kept.read()
    if logprobs is None:
        reference = context.crew.reference
        context.await_load(reference.load(model, settings.learner), "the reference")
        shown = context.recipe.tracking.console
        with context.spans.span("reference"), progress("logprobs of the reference", shown=shown):
            logprobs = reference.pair_logprobs(str(folder)).get()
        kept.write(logprobs)
    return logprobs
