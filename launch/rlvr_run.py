"""The state of an RLVR stage, and what is done once a batch beside training on it."""

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.exceptions

from actors.data_tasks import write_rollouts
from actors.pump import RolloutPump
from actors.pump_records import LostGroups
from actors.shards import GroupReference
from launch.context import RunContext, StageContext
from launch.driver_metrics import driver_metrics
from launch.evaluation import EvaluationSet, evaluate
from launch.rlvr_update import shuffled_rewards
from rlsys.algorithms.step_guard import StepGuard
from rlsys.checkpoint.background import BackgroundCommitter
from rlsys.checkpoint.chain_file import ChainFile
from rlsys.checkpoint.policy_exports import PolicyExports
from rlsys.errors import ActorError, RlsysError, TrainingError, VerifierError
from rlsys.recipe.stages import RlvrStage
from rlsys.rollouts.experience_buffer import BufferedGroup, ExperienceBuffer
from rlsys.rollouts.ledger import Ledger
from rlsys.rollouts.ledger_records import Batch
from rlsys.rollouts.prompt_stream import hash_integers
from rlsys.rollouts.summary_metrics import (
    rollout_metrics,
    staleness_metrics,
    verdict_metrics,
)
from rlsys.scaling.scale_request import ScaleRequests
from rlsys.telemetry.names import name_part
from rlsys.types import GroupSummary

MAX_IN_A_ROW = 10
"""Groups that come to nothing one after another, with none that can be trained on between them, before the run ends:
given up by the ledger after `rlvr.max_attempts`, or without a verdict (then at least a batch of them).

What a dead worker had under way, hundreds of groups, is no such sign: deaths are bounded by `cluster.max_restarts`."""

MAX_FILTERED_BATCHES = 20
"""Batches of groups, one after another, that are all left out of training, before the run ends."""


@dataclass
class RlvrRun:
    """Made by `rlvr_setup.set_up`."""

    context: RunContext
    stage: StageContext
    settings: RlvrStage
    ledger: Ledger
    buffer: ExperienceBuffer[GroupReference]
    pump: RolloutPump
    guard: StepGuard
    chain: ChainFile
    committer: BackgroundCommitter
    exports: PolicyExports
    canary_ids: list[int]
    prompts_digest: str
    """Of the stage's prompts in their order: what a resumed run compares its own with."""
    development: list[EvaluationSet]
    scale_requests: ScaleRequests
    num_rollbacks: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    saved_best_step: int = 0
    """As the newest checkpoint has it."""
    chain_position: int = 0
    step_started: float = 0.0
    counted_at: float = 0.0
    """When the last batch was counted, for throughput; 0 before the first one of this process."""
    expired_in_a_row: int = 0
    """Lost groups that the ledger gave up since one came through."""
    masked_in_a_row: int = 0
    """Groups without a verdict since one had some."""
    filtered_in_a_row: int = 0
    """Groups of equal rewards since one had different ones."""
    judged_groups: list[GroupSummary] = field(default_factory=list)
    """Since the last step."""
    lost_groups: Counter[str] = field(default_factory=Counter)
    """By reason, since the start of the process."""
    carried_seconds: dict[str, float] = field(default_factory=dict)
    """Of the checkpoint after the step before: told with the next step."""
    writes: list[Any] = field(default_factory=list)
    """Rollout files being written."""
    num_unwritten: int = 0
    """Rollout files that could not be, since the start of the process."""

    def forget(self) -> None:
        """Everything that a checkpoint holds is as before the first batch."""
        self.ledger, self.buffer = Ledger(self.ledger.settings), ExperienceBuffer()
        self.guard = StepGuard(self.settings.algorithm.safety.max_skipped_in_a_row)
        self.best_score, self.best_step, self.saved_best_step, self.chain_position = -math.inf, 0, 0, 0
        self.expired_in_a_row = self.masked_in_a_row = self.filtered_in_a_row = 0
        self.judged_groups = []
        self.carried_seconds, self.writes = {}, []

    def start_admitted(self) -> None:
        """Starts what the ledger admits. With `deterministic`, a whole batch at once, and only when nothing runs."""
        if not (self.context.recipe.deterministic and self.pump.num_running):
            self.pump.start(self.ledger.admit())

    def scale_if_asked(self) -> None:
        """Adds workers, or lets some leave, as `rlsys scale` asks; new ones join at the next publication."""
        request = self.scale_requests.new()
        if request is None:
            return
        crew = self.context.crew
        try:
            if self.context.recipe.deterministic:
                raise RlsysError("a deterministic run keeps its workers", fix="set deterministic = false")
            crew.scale(rollout=request.rollout, verifier=request.verifier)
        except RlsysError as error:
            self.scale_requests.answer(request, accepted=False, text=str(error))
        else:
            text = f"{crew.workers.size} rollout workers from the next publication on, {crew.verifiers.size} verifiers"
            print(f"asked to scale: {text}", flush=True)
            self.scale_requests.answer(request, accepted=True, text=text)

    def control(self, batch: Batch, groups: Sequence[BufferedGroup[GroupReference]]) -> list[GroupReference]:
        """The references to train on: with `shuffle_rewards`, those of the control experiment."""
        if not self.settings.shuffle_rewards:
            return [group.reference for group in groups]
        return shuffled_rewards(groups, f"{self.stage.seed} {batch.index}")

    def minibatch_seed(self, batch: Batch) -> int:
        """Another one for every batch, the same at a repetition."""
        return hash_integers(self.stage.seed, batch.index, bits=32)

    def metrics_of(
        self,
        batch: Batch,
        groups: Sequence[BufferedGroup[GroupReference]],
        update: dict[str, float],
    ) -> dict[str, float]:
        """Everything of one batch but its times."""
        summaries = [group.summary for group in groups]
        dropped = self.ledger.counters["over_age_dropped"]
        metrics = rollout_metrics(summaries) | staleness_metrics(summaries, batch.index, num_dropped=dropped) | update
        # Of the batch itself where nothing was judged since the last step: its groups were sampled ahead.
        metrics |= verdict_metrics(summaries) | self._verdict_metrics()
        metrics["policy/canary_gap"] = self.context.take_canary_gap()
        metrics["perf/rollbacks"] = self.num_rollbacks
        metrics["perf/rollout_workers"] = len(self.context.crew.workers.serving)
        metrics |= {f"perf/restarts/{kind}": n for kind, n in self.context.crew.restarts.counts.items()}
        metrics["rollout/lost_groups"] = self.ledger.counters["failed"]
        metrics |= {f"rollout/lost/{reason}": count for reason, count in self.lost_groups.items()}
        metrics["rollout/continued"] = self.pump.num_continued
        metrics["rollout/unwritten"] = self.num_unwritten
        metrics |= driver_metrics()
        seconds = self._since_last_batch_s()
        metrics["perf/samples_per_s"] = sum(len(s.lengths) for s in summaries) / seconds
        metrics["perf/tokens_per_s"] = sum(sum(s.lengths) for s in summaries) / seconds
        return metrics

    def _verdict_metrics(self) -> dict[str, float]:
        """Of every group that was judged since the last step: those of a batch are only the ones that could be."""
        groups, self.judged_groups = self.judged_groups, []
        metrics = verdict_metrics(groups)
        names = {name_part(verdict.verifier) for group in groups for sample in group.verdicts for verdict in sample}
        alarms = 0
        for name in sorted(names):  # each by itself: a few verdicts of one drown in another's
            failed = metrics[f"verifier/{name}/timeout_frac"] + metrics[f"verifier/{name}/error_frac"]
            if failed > self.settings.verifiers.alarm_failed_frac:
                alarms += 1
                told = "timed out or failed; they are masked from training"
                print(f"ALARM: {failed:.1%} of the verdicts of {name} {told}", flush=True)
        if names:  # a reward model alone gives no verdicts
            metrics["verifier/alarm"] = float(alarms > 0)
        return metrics

    def evaluate_if_due(self, step: int, seconds: dict[str, float]) -> dict[str, float]:
        """Development accuracy every `evaluation.every` batches and at the end; exports a policy that is the best.

        What it took is added to `seconds`.
        """
        every = self.settings.evaluation.every
        due = step == self.settings.batches or (every and step % every == 0)
        if not due or not self.development:
            return {}
        with self.context.timed("evaluate", seconds):
            metrics = evaluate(self.context, self.development, self.settings.evaluation)
        first = f"accuracy@T{self.settings.evaluation.temperatures[0]:g}"
        scores = [metrics[f"eval/{each.name}/{first}"] for each in self.development]
        score = sum(scores) / len(scores)
        if score > self.best_score:
            self.best_score, self.best_step = score, step
            self.export(step)
        return metrics

    def export(self, step: int) -> None:
        """Keeps the policy as the best so far: `hf.step_<step>/`."""
        learner = self.context.crew.learner
        with self.context.spans.span("export"):
            self.exports.add(step, lambda folder: learner.export_hf(str(folder)).get())
            if not self.settings.checkpoint.every:  # nothing to go back to
                self.exports.forget_before(step)

    def finish_exports(self) -> None:
        """Makes the best policy `hf/`; the last one, where none was found better on development sets."""
        if not self.best_step:
            self.best_step = self.settings.batches
            self.export(self.best_step)
        self.exports.finish(self.best_step)

    def record_ends(self, groups: Sequence[BufferedGroup[GroupReference]], step: int) -> None:
        """Appends how ordinals ended to the chain file, and has the batch's rollouts written."""
        self.chain_position = self.chain.append(end.record(ordinal) for ordinal, end in self.ledger.drain_ends())
        every = self.settings.save_rollouts_every
        self.collect_writes(timeout_s=0)
        if every and step % every == 0:
            path = self.stage.folder / "rollouts" / f"step_{step:06d}.parquet"
            references = [group.reference for group in groups]
            self.writes.append(write_rollouts.remote(references, str(path), self.context.model.folder, step))

    def collect_writes(self, *, timeout_s: float) -> None:
        """Takes note of rollout files that are done. One that failed is told and counted: training needs none."""
        if not self.writes:
            return
        done, self.writes = ray.wait(self.writes, num_returns=len(self.writes), timeout=timeout_s)
        for ref in done:
            try:
                ray.get(ref)
            except ray.exceptions.RayError as error:
                self.num_unwritten += 1
                print(f"the rollouts of a batch were not written: {error}", flush=True)

    def checkpoint_is_due(self, step: int) -> bool:
        """Every `checkpoint.every` batches; the end of the stage has its exported folder."""
        every = self.settings.checkpoint.every
        return bool(every) and step % every == 0

    def lost(self, group: LostGroups) -> None:
        """Has the ledger start groups again whose worker or verifier failed, and counts them.

        Raises:
            ActorError: nothing comes through any more.
        """
        self.lost_groups[group.reason] += len(group.ordinals)
        expired_before = self.ledger.counters["expired"]
        for ordinal in group.ordinals:
            self.ledger.failed(ordinal, group.reason)
        self.expired_in_a_row += self.ledger.counters["expired"] - expired_before
        if self.expired_in_a_row >= MAX_IN_A_ROW:
            raise ActorError(
                f"{self.expired_in_a_row} prompts in a row came to nothing, each tried "
                f"{self.settings.max_attempts} times, the last one because {group.reason}",
                value=str(group.error),
                fix="see the workers' logs",
            )

    def judged(self, group: GroupSummary) -> None:
        """Counts the verdicts of a group that came through.

        Raises:
            VerifierError: the verifiers fail on everything.
        """
        self.judged_groups.append(group)
        self.expired_in_a_row = 0
        self.masked_in_a_row = self.masked_in_a_row + 1 if group.num_masked == len(group.lengths) else 0
        if self.masked_in_a_row >= max(MAX_IN_A_ROW, self.settings.batch_groups):
            failed = Counter(f"{v.verifier}: {v.outcome}" for sample in group.verdicts for v in sample if v.masked)
            raise VerifierError(
                f"{self.masked_in_a_row} prompts in a row have no sample that the verifiers could judge",
                value=", ".join(failed),
                fix="try them with `rlsys verify`; raise verifiers.wall_limit_s or memory_limit_mib, or mend it",
            )

    def filtered(self, ordinal: int) -> None:
        """Leaves a group out of training, all of whose rewards are equal.

        Raises:
            TrainingError: there are no others any more: no batch would ever be full.
        """
        self.ledger.filtered(ordinal, "all rewards equal")
        self.filtered_in_a_row += 1
        if self.filtered_in_a_row >= MAX_FILTERED_BATCHES * self.settings.batch_groups:
            raise TrainingError(
                "prompts in a row whose samples all have one reward, so that none of them teaches anything",
                value=self.filtered_in_a_row,
                fix="use easier or harder prompts, more samples, or algorithm.filter_equal_groups = false",
            )

    def flush_trace(self) -> None:
        """The driver's and the workers' spans since the last call."""
        self.context.flush_trace(self.context.worker_spans())

    def summary(self) -> dict[str, Any]:
        """For the stage's record."""
        counters = {name: count for name, count in self.ledger.counters.items() if count}
        return {
            "batches": self.settings.batches,
            "exported_step": self.best_step,
            "ledger": counters,
            "skipped": dict(self.guard.skipped),
            "unwritten": self.num_unwritten + len(self.writes),
        }

    def _since_last_batch_s(self) -> float:
        """Everything in between, as samples are drawn during evaluations and checkpoints too."""
        before, self.counted_at = self.counted_at or self.step_started, time.perf_counter()
        return max(self.counted_at - before, 1e-9)
