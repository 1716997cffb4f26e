"""The state of an RLVR stage, and what is done once a batch beside training on it."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

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
from rlsys.errors import ActorError, RlsysError
from rlsys.recipe.stages import RlvrStage
from rlsys.rollouts.experience_buffer import BufferedGroup, ExperienceBuffer
from rlsys.rollouts.ledger import Ledger
from rlsys.rollouts.ledger_records import Batch
from rlsys.rollouts.prompt_stream import hash_integers
from rlsys.rollouts.summary_metrics import failed_verdict_frac, rollout_metrics, staleness_metrics
from rlsys.scaling.scale_request import ScaleRequests
from rlsys.weights.publisher import PublicationReport

MAX_LOSSES_IN_A_ROW = 10
"""Chunks lost one after another, with none coming through, before the run gives up."""


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
    canary_ids: list[int]
    development: list[EvaluationSet]
    beginning: dict[str, Any]
    """The tracker's position before the stage's first batch."""
    scale_requests: ScaleRequests
    num_rollbacks: int = 0
    best_score: float = -math.inf
    best_step: int = 0
    chain_position: int = 0
    step_started: float = 0.0
    losses_in_a_row: int = 0
    lost_groups: Counter[str] = field(default_factory=Counter)
    """By reason, since the start of the process."""
    carried_seconds: dict[str, float] = field(default_factory=dict)
    """Of the checkpoint after the step before: told with the next step."""
    writes: list[Any] = field(default_factory=list)
    """Rollout files being written."""

    def forget(self) -> None:
        """Everything that a checkpoint holds is as before the first batch."""
        self.ledger, self.buffer = Ledger(self.ledger.settings), ExperienceBuffer()
        self.guard = StepGuard(self.settings.algorithm.safety.max_skipped_in_a_row)
        self.best_score, self.best_step, self.chain_position = -math.inf, 0, 0
        self.losses_in_a_row = 0
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
        return shuffled_rewards(groups, f"{self.context.recipe.seed} {batch.index}")

    def minibatch_seed(self, batch: Batch) -> int:
        """Another one for every batch, the same at a repetition."""
        return hash_integers(self.context.recipe.seed, batch.index, bits=32)

    def metrics_of(
        self,
        batch: Batch,
        groups: Sequence[BufferedGroup[GroupReference]],
        update: dict[str, float],
        publication: PublicationReport,
    ) -> dict[str, float]:
        """Everything of one batch but its times."""
        summaries = [group.summary for group in groups]
        dropped = self.ledger.counters["over_age_dropped"]
        metrics = rollout_metrics(summaries) | staleness_metrics(summaries, batch.index, num_dropped=dropped) | update
        metrics["policy/canary_gap"] = publication.canary_gap
        metrics["perf/rollbacks"] = self.num_rollbacks
        metrics["perf/rollout_workers"] = len(self.context.crew.workers.serving)
        metrics |= {f"perf/restarts/{kind}": n for kind, n in self.context.crew.restarts.counts.items()}
        metrics["rollout/lost_groups"] = self.ledger.counters["failed"]
        metrics |= {f"rollout/lost/{reason}": count for reason, count in self.lost_groups.items()}
        metrics["rollout/continued"] = self.pump.num_continued
        metrics |= driver_metrics()
        metrics["perf/samples_per_s"] = sum(len(s.lengths) for s in summaries) / self._elapsed_s()
        metrics["perf/tokens_per_s"] = sum(sum(s.lengths) for s in summaries) / self._elapsed_s()
        if failed_verdict_frac(summaries) > self.settings.verifiers.alarm_failed_frac:
            print(
                f"ALARM: {failed_verdict_frac(summaries):.1%} of the verdicts of batch {batch.index} timed out or "
                "failed; they are masked from training",
                flush=True,
            )
        self.losses_in_a_row = 0
        return metrics

    def evaluate_if_due(self, step: int) -> dict[str, float]:
        """Development accuracy every `evaluation.every` batches and at the end; exports a policy that is the best."""
        every = self.settings.evaluation.every
        due = step == self.settings.batches or (every and step % every == 0)
        if not due or not self.development:
            return {}
        with self.context.spans.span("evaluate"):
            metrics = evaluate(self.context, self.development, self.settings.evaluation)
        first = f"accuracy@T{self.settings.evaluation.temperatures[0]:g}"
        scores = [metrics[f"eval/{each.name}/{first}"] for each in self.development]
        score = sum(scores) / len(scores)
        if score > self.best_score:
            self.best_score, self.best_step = score, step
            self.export()
        return metrics

    def export(self) -> None:
        """Writes hf/ anew, in place of an earlier one only when it is whole."""
        target, draft = self.stage.folder / "hf", self.stage.folder / "hf.draft"
        with self.context.spans.span("export"):
            _remove(draft)
            self.context.crew.learner.export_hf(str(draft)).get()
            old = self.stage.folder / "hf.old"
            _remove(old)
            if target.exists():
                os.rename(target, old)
            os.rename(draft, target)
            _remove(old)

    def export_last_if_none_was_best(self) -> None:
        """Without development sets the last policy is the one exported."""
        if not self.development:
            self.best_step = self.settings.batches
            self.export()

    def record_ends(self, groups: Sequence[BufferedGroup[GroupReference]], step: int) -> None:
        """Appends how ordinals ended to the chain file, and has the batch's rollouts written."""
        ends = [[ordinal, end.kind, end.detail] for ordinal, end in self.ledger.drain_ends()]
        self.chain_position = self.chain.append(ends)
        every = self.settings.save_rollouts_every
        _, self.writes = ray.wait(self.writes, num_returns=len(self.writes), timeout=0) if self.writes else ([], [])
        if every and step % every == 0:
            path = self.stage.folder / "rollouts" / f"step_{step:06d}.parquet"
            references = [group.reference for group in groups]
            self.writes.append(write_rollouts.remote(references, str(path), self.context.model.folder, step))

    def checkpoint_is_due(self, step: int) -> bool:
        """Every `checkpoint.every` batches; the end of the stage has its exported folder."""
        every = self.settings.checkpoint.every
        return bool(every) and step % every == 0

    def lost(self, group: LostGroups) -> None:
        """Counts a chunk whose worker or verifier failed.

        Raises:
            ActorError: nothing comes through any more.
        """
        self.lost_groups[group.reason] += len(group.ordinals)
        self.losses_in_a_row += 1
        if self.losses_in_a_row >= MAX_LOSSES_IN_A_ROW:
            raise ActorError(
                f"{self.losses_in_a_row} chunks of prompts were lost in a row, the last one because {group.reason}",
                value=str(group.error),
                fix="see the workers' logs",
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
        }

    def _elapsed_s(self) -> float:
        import time

        return max(time.perf_counter() - self.step_started, 1e-9)


def _remove(folder: Path) -> None:
    import shutil

    if folder.exists():
        shutil.rmtree(folder)
