"""Transactional checkpoints of an RLVR stage: policy, value, optimizers, ledger, buffer, tracker, one rename.

The driver waits while the ranks take their state into memory; they write it, and it is digested and committed, while
training goes on. Of groups that are
being sampled or verified the tokens so far are saved: the ledger issues them again after a resume, and the rollout
workers go on where these end.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from actors.begun_groups import BegunGroup
from actors.data_tasks import load_buffer, save_buffer
from actors.groups import ModelGroup
from actors.shards import GroupReference
from launch.context import get
from launch.model_states import commit_deadline_s, save_states
from rlsys.checkpoint.checkpoint import Checkpoint
from rlsys.checkpoint.seal import FileDigest
from rlsys.errors import CheckpointError
from rlsys.rollouts.ledger import Ledger

if TYPE_CHECKING:
    from launch.rlvr_run import RlvrRun

BUFFER = "rollouts.safetensors"


def save_checkpoint(run: "RlvrRun", step: int) -> None:
    """Everything needed to go on after `step`.

    Raises:
        CheckpointError: the one before failed, or this one cannot be written.
    """
    crew = run.context.crew
    run.committer.wait()
    run.exports.forget_before(run.saved_best_step)
    transaction = run.stage.checkpoints.begin(step)
    try:
        references = [group.reference for group in run.buffer.groups()]
        saving = save_buffer.remote(references, run.pump.under_way(), str(transaction.folder / BUFFER))
        models: dict[str, ModelGroup] = {"policy": crew.learner}
        if run.settings.algorithm.needs_values:
            models["value"] = crew.value
        wait_for_states = save_states(
            models, transaction.folder, deadline_s=commit_deadline_s(run.context.recipe.cluster)
        )
        metadata: dict[str, Any] = {
            "ledger": run.ledger.state_dict(),
            "guard": run.guard.state(),
            "tracker": run.stage.tracker.position(),
            "chain": run.chain_position,
            "best": [run.best_score, run.best_step] if run.best_step else None,
            "development": _what_decides(run),
            "prompts": run.prompts_digest,
            "seed": run.stage.seed,
        }
    except BaseException:
        transaction.cancel()
        raise

    def gather() -> dict[str, FileDigest]:
        timeout_s = run.context.recipe.cluster.operation_timeout_s
        metadata["begun"] = get(saving, timeout_s=timeout_s, what="saving the buffer")
        return wait_for_states()

    run.committer.submit(transaction, metadata=metadata, gather=gather)
    run.saved_best_step = run.best_step
    if not run.settings.checkpoint.background:
        run.committer.wait()


def finish_checkpoints(run: "RlvrRun") -> None:
    """Waits for the commit that may still be under way, and for rollout files."""
    try:
        run.committer.wait()
    finally:
        run.collect_writes(timeout_s=run.context.recipe.cluster.operation_timeout_s)


def restore_checkpoint(run: "RlvrRun") -> None:
    """Goes on from the newest intact checkpoint of the stage; without one the stage starts at its beginning."""
    run.exports.reopen()
    found = run.stage.checkpoints.recover()
    for problem in found.passed_over:
        print(f"passed over a damaged checkpoint: {problem}", flush=True)
    if found.checkpoint is None:
        run.chain.rewind(0)
        run.stage.tracker.restore(run.stage.beginning)
        return
    _restore(run, found.checkpoint)
    print(f"resumed {run.settings.label} after batch {found.checkpoint.step}", flush=True)


def _what_decides(run: "RlvrRun") -> dict[str, Any]:
    """What two development scores must have in common to be compared."""
    settings = run.settings.evaluation
    return settings.model_dump(mode="json", exclude={"test", "every"})


def _restore(run: "RlvrRun", checkpoint: Checkpoint) -> None:
    metadata: Any = checkpoint.manifest.metadata
    for what, now in (("prompts", run.prompts_digest), ("seed", run.stage.seed)):
        if metadata.get(what) != now:
            raise CheckpointError(
                f"{what}: not as when the checkpoint was written: ordinals would stand for other prompts",
                value=str(checkpoint.path),
                fix=f"bring the data and settings back, or begin the stage again with --from {run.settings.label}",
            )
    crew = run.context.crew
    pending = [crew.learner.restore(str(checkpoint.path / "policy"))]
    if run.settings.algorithm.needs_values:
        pending.append(crew.value.restore(str(checkpoint.path / "value")))
    run.ledger = Ledger.from_state_dict(run.ledger.settings, metadata["ledger"])
    run.guard.restore(metadata["guard"])
    run.stage.tracker.restore(metadata["tracker"])
    run.chain.rewind(metadata["chain"])
    run.chain_position = metadata["chain"]
    comparable = metadata.get("development") == _what_decides(run)
    if metadata["best"] is not None and comparable and run.exports.holds(metadata["best"][1]):
        run.best_score, run.best_step = metadata["best"]
        run.saved_best_step = run.best_step
    _restore_buffer(run, checkpoint.path / BUFFER, metadata["begun"])
    for answer in pending:
        answer.get()


def _restore_buffer(run: "RlvrRun", path: Path, begun: list[dict[str, int]]) -> None:
    """Puts the finished groups into the buffer, and gives the pump those that the ledger will start again.

    A group with a token that is already too old would be sampled to its end only to be dropped: it begins anew.
    """
    loading = load_buffer.options(num_returns=2 + len(begun))
    summaries_ref, chunk, *groups = loading.remote(str(path))  # pyright: ignore[reportGeneralTypeIssues]
    timeout_s = run.context.recipe.cluster.operation_timeout_s
    for index, summary in enumerate(get(summaries_ref, timeout_s=timeout_s, what="reading the buffer")):
        run.buffer.put(summary, GroupReference(chunk, index))
    assert set(run.ledger.buffered) == {group.summary.ordinal for group in run.buffer.groups()}
    ledger, given = run.ledger, {}
    oldest = ledger.min_version if ledger.settings.over_age == "drop" else 0
    waiting = frozenset(ledger.waiting)
    for group, about in zip(groups, begun, strict=True):
        if about["ordinal"] in waiting and about["oldest_version"] >= oldest:
            given[about["ordinal"]] = BegunGroup(group, about["num_responses"])
    run.pump.give(given)
    ray.wait([chunk, *groups], num_returns=1 + len(groups), timeout=timeout_s, fetch_local=False)
