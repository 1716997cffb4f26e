"""RLVR: rollout workers sample while the learner trains; the ledger decides what may be sampled and trained on.

      ledger.admit --> pump: RolloutWorker --> VerifierWorker --summaries--> absorb --> ledger, buffer
           ^                     ^                                                          | take_batch: B groups
           |                     | weights                                                  v
      ledger.published <-- publish <-- update: reference, values, proximal logprobs -> advantages -> policy and value

consumes: prompts, a policy, a reward model     produces: checkpoints, hf/ (the best on the development sets)
waits for: one batch of verified groups, or the update under way; the learner is the clock
"""

import time
from collections.abc import Sequence
from typing import Any

from actors.pump_records import LostGroups, VerifiedGroup
from launch.context import RunContext, StageContext
from launch.rlvr_checkpoint import finish_checkpoints, save_checkpoint
from launch.rlvr_recovery import go_back, replace_frozen
from launch.rlvr_run import RlvrRun
from launch.rlvr_setup import bring_up, set_up
from launch.rlvr_update import Update
from rlsys.algorithms.shaping import is_informative
from rlsys.errors import ActorError, RlsysError
from rlsys.rollouts.ledger_records import Batch

POLL_S = 5.0


def run_rlvr(context: RunContext, stage: StageContext) -> dict[str, Any]:
    """Trains until the ledger's last batch; when ranks die, goes back to the last checkpoint by itself."""
    run = set_up(context, stage)
    while True:
        try:
            bring_up(run)
            train(run)
            return run.summary()
        except RlsysError as error:
            go_back(run, error)


def train(run: RlvrRun) -> None:
    """From where the run stands to the last batch."""
    while not run.ledger.done:
        run.start_admitted()
        batch = run.ledger.take_batch()
        if batch is None:
            wait_for_groups(run)
        else:
            train_on(run, batch)
    finish_checkpoints(run)
    run.finish_exports()


def wait_for_groups(run: RlvrRun) -> None:
    """Nothing but sampling is under way: dead ranks are noticed by their heartbeats."""
    if fallen := run.context.crew.dead_groups():
        error = ActorError(f"ranks of {', '.join(fallen)} died while they had nothing to do")
        replace_frozen(run, error)
    run.context.reinforce(run.pump)
    run.scale_if_asked()
    absorb(run, run.pump.poll(timeout_s=POLL_S))


def train_on(run: RlvrRun, batch: Batch) -> None:
    """One batch: update, publication, evaluation, metrics, checkpoint."""
    context, ledger, step = run.context, run.ledger, batch.index + 1
    seconds = {"time/wait_rollouts_s": time.perf_counter() - run.step_started, **run.carried_seconds}
    groups = run.buffer.take(batch.ordinals)
    update = Update(run, batch, groups, seconds)
    while not update.done:
        absorb(run, run.pump.poll(timeout_s=POLL_S, until=update.refs))
        run.start_admitted()  # with max_staleness >= 1 the next batch is sampled meanwhile
        run.scale_if_asked()
        update.advance()
    ledger.trained(batch, step)
    run.committer.poll()  # a checkpoint that failed is told now, not when the next one is due
    with context.timed("publish", seconds):
        # Groups that take too long are ended meanwhile: a single one could hold up a publication that drains.
        context.publish(step, run.canary_ids, lambda: absorb(run, run.pump.poll(timeout_s=0.0)))
    ledger.published(step)
    if not context.recipe.deterministic:  # there nothing is in flight at an evaluation or a checkpoint
        run.start_admitted()
    run.buffer.retain(ledger.buffered)  # lets go of groups dropped as over-age, which a checkpoint must not hold
    seconds["time/step_s"] = time.perf_counter() - run.step_started
    metrics = run.metrics_of(batch, groups, update.metrics) | run.evaluate_if_due(step, seconds)
    run.record_ends(groups, step)
    run.stage.tracker.log(step, metrics | seconds)
    run.guard.check()
    run.carried_seconds = {}
    if run.checkpoint_is_due(step):  # after the step's line, which belongs to what the checkpoint keeps
        with context.timed("checkpoint", run.carried_seconds):
            save_checkpoint(run, step)
    run.flush_trace()
    run.step_started = time.perf_counter()


def absorb(run: RlvrRun, arrived: Sequence[VerifiedGroup | LostGroups]) -> None:
    """Tells the ledger what became of groups, and buffers those that can be trained on."""
    if (died := run.pump.reward_model_error) is not None:
        replace_frozen(run, died)
    for group in arrived:
        if isinstance(group, LostGroups):
            run.lost(group)
            continue
        summary = group.summary
        run.judged(summary)
        if summary.num_masked == len(summary.lengths):
            run.ledger.masked(summary.ordinal, "every verdict failed")
        elif run.settings.algorithm.filter_equal_groups and not is_informative(summary.scores or summary.rewards):
            run.filtered(summary.ordinal)
        elif run.ledger.finished(summary.ordinal, summary.oldest_version, summary.newest_version):
            run.filtered_in_a_row = 0
            run.buffer.put(summary, group.reference)
