"""One batch's update, as a chain of calls that the driver follows without blocking.

reference.logprobs   values   learner.logprobs        all three groups at once
          '------------+-----------'
               learner.advantages                      whitened over the whole batch
          .------------+-----------.
    learner.train_policy      value.train_value        both at once
"""

import math
import re
import time
from collections.abc import Sequence
from random import Random
from statistics import fmean
from typing import TYPE_CHECKING, Any

from actors.groups import Pending
from actors.shards import GroupReference, ShardReference
from launch.rlvr_recovery import replace_frozen
from launch.supervised import skipped_metrics
from rlsys.algorithms.schedule import learning_rate
from rlsys.errors import ActorError
from rlsys.recipe.algorithm import AlgorithmSettings
from rlsys.recipe.cluster import ClusterSettings
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.stages import RlvrStage
from rlsys.rollouts.experience_buffer import BufferedGroup, balance
from rlsys.rollouts.ledger_records import Batch

if TYPE_CHECKING:
    from launch.rlvr_run import RlvrRun


class Update:
    """Call `advance` whenever one of `refs` is ready, until `done`."""

    def __init__(
        self, run: "RlvrRun", batch: Batch, groups: Sequence[BufferedGroup[GroupReference]], seconds: dict[str, float]
    ) -> None:
        self.done = False
        self.metrics: dict[str, float] = {}
        self._run, self._batch, self._seconds = run, batch, seconds
        self._shards = self._make_shards(groups)
        self._phase = "score"
        self._started = time.perf_counter()
        self._began = self._optimizing_since = time.time()
        self._answers: dict[str, Any] = {"reference": None, "values": None, "proximal": None}
        self._pending: dict[str, Pending[Any]] = {}
        self._submit_scores()

    @property
    def refs(self) -> list[Any]:
        """What is waited for, so that the driver may wait for other things too."""
        return [ref for pending in self._pending.values() for ref in pending.refs]

    def advance(self) -> None:
        """Takes what is ready, and goes on to the next phase when all of it is.

        Raises:
            ActorError: a rank died, failed or passed its deadline.
        """
        for name in [name for name, pending in self._pending.items() if pending.ready]:
            pending = self._pending.pop(name)
            try:
                self._answers[name] = pending.get()
            except ActorError as error:
                if name != "reference":
                    raise
                if pending.asked(self._run.context.crew.reference):  # else another has taken its place already
                    replace_frozen(self._run, error)
                self._submit_reference()
            else:
                self._note_time(name)
        if self._pending:
            return
        if self._phase == "score":
            self._submit_advantages()
        elif self._phase == "advantages":
            self._submit_training()
        else:
            self._finish()

    def _make_shards(self, groups: Sequence[BufferedGroup[GroupReference]]) -> list[ShardReference]:
        """Whole prompt groups, balanced by tokens."""
        num_shards = shards_for(self._run.context.recipe.cluster, self._run.settings.algorithm)
        lengths = [sum(g.summary.lengths) + len(g.summary.lengths) * g.summary.prompt_length for g in groups]
        references = self._run.control(self._batch, groups)
        return [
            ShardReference(tuple(references[index] for index in indices)) for indices in balance(lengths, num_shards)
        ]

    def _submit_scores(self) -> None:
        crew, settings = self._run.context.crew, self._run.settings
        temperature = settings.sampling.temperature
        self._pending["proximal"] = crew.learner.logprobs(self._shards, temperature=temperature)
        if settings.algorithm.needs_reference:
            self._submit_reference()
        if settings.algorithm.needs_values:
            self._pending["values"] = crew.value.values(self._shards)

    def _submit_reference(self) -> None:
        reference, temperature = self._run.context.crew.reference, self._run.settings.sampling.temperature
        self._pending["reference"] = reference.logprobs(self._shards, temperature=temperature)

    def _submit_advantages(self) -> None:
        self._phase = "advantages"
        answers = self._answers
        self._pending["advantages"] = self._run.context.crew.learner.advantages(
            self._shards,
            self._run.settings.algorithm,
            proximal=answers["proximal"],
            reference=answers["reference"],
            values=answers["values"],
            oldest_version=self._batch.min_version,
        )

    def _submit_training(self) -> None:
        self._phase = "train"
        self._started = time.perf_counter()
        self._optimizing_since = time.time()
        crew, settings, answers = self._run.context.crew, self._run.settings, self._answers
        advantages, returns, metrics = answers["advantages"]
        self.metrics |= metrics
        common = {"seed": self._run.minibatch_seed(self._batch), "oldest_version": self._batch.min_version}
        if settings.algorithm.needs_values:
            self._pending["train_value"] = crew.value.train_value(
                self._shards,
                settings.algorithm,
                returns=returns,
                old_values=answers["values"],
                lrs=learning_rates(settings, settings.value_learner, self._batch.index),
                **common,
            )
        warmup = settings.algorithm.value_warmup_batches
        if self._batch.index >= warmup:
            self._pending["train_policy"] = crew.learner.train_policy(
                self._shards,
                settings.algorithm,
                advantages=advantages,
                proximal=answers["proximal"],
                reference=answers["reference"],
                lrs=learning_rates(settings, settings.learner, self._batch.index, first_batch=warmup),
                max_response_length=settings.sampling.max_tokens,
                temperature=settings.sampling.temperature,
                version=self._batch.index,
                **common,
            )

    def _note_time(self, name: str) -> None:
        if name in ("proximal", "reference", "values"):
            self._seconds[f"time/{name}_s"] = time.perf_counter() - self._started

    def _finish(self) -> None:
        run = self._run
        self._seconds["time/update_s"] = time.perf_counter() - self._started
        run.context.spans.add("optimize", self._optimizing_since, time.time())
        run.context.spans.add("update", self._began, time.time())  # scoring included: all that a batch is trained by
        for model, prefix in (("value", "value_"), ("policy", "")):
            if reports := self._answers.get(f"train_{model}"):
                run.guard.record(model, [report.fault for report in reports])
                self.metrics |= batch_metrics(reports, prefix)
        self.metrics |= skipped_metrics(run.guard)
        self.done = True


def shards_for(cluster: ClusterSettings, algorithm: AlgorithmSettings) -> int:
    """The least number that the ranks of every model divide which the algorithm scores a batch with."""
    value_ranks = cluster.value_ranks if algorithm.needs_values else 1
    reference_ranks = cluster.reference_ranks if algorithm.needs_reference else 1
    return math.lcm(cluster.learner_ranks, value_ranks, reference_ranks)


def learning_rates(settings: RlvrStage, learner: LearnerSettings, batch: int, *, first_batch: int = 0) -> list[float]:
    """Of a batch's optimizer steps, for a model that is trained from `first_batch` on, where its schedule begins."""
    steps = settings.algorithm.epochs_per_batch * settings.algorithm.minibatches
    first, total = ((number - first_batch) * steps for number in (batch, settings.batches))
    return [
        learning_rate(step, learner.lr, learner.schedule, total_steps=total) for step in range(first, first + steps)
    ]


def batch_metrics(reports: Sequence[Any], prefix: str) -> dict[str, float]:
    """Over a batch's optimizer steps: the highest peak of memory, means of the rest.

    Args:
        reports: one a step.
        prefix: of names that both models have, those of `optim/` and `perf/`.
    """
    values: dict[str, list[float]] = {}
    for report in reports:
        for name, value in report.metrics.items():
            values.setdefault(name, []).append(value)
    whole = {name: (max if name == "perf/peak_mem_gib" else fmean)(of_steps) for name, of_steps in values.items()}
    return {re.sub("^(optim|perf)/", rf"\1/{prefix}", name): value for name, value in whole.items()}


def shuffled_rewards(groups: Sequence[BufferedGroup[GroupReference]], seed: str) -> list[GroupReference]:
    """The groups with the rewards of all unmasked samples permuted over the batch."""
    rewards = [reward for group in groups for reward in group.summary.rewards if not math.isnan(reward)]
    Random(seed).shuffle(rewards)
    drawn = iter(rewards)
    return [
        GroupReference(
            group.reference.chunk,
            group.reference.index,
            tuple(reward if math.isnan(reward) else next(drawn) for reward in group.summary.rewards),
        )
        for group in groups
    ]
