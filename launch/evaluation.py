"""Held-out accuracy: rollout workers sample, verifiers decide.

consumes: prompt files     produces: eval/<set>/<task>@T<temperature> in [0, 1]     waits for: one set at a time
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.data_tasks import build_prompts, write_rollouts
from actors.pump import RolloutPump
from actors.pump_records import PumpSettings, VerifiedGroup
from launch.context import RunContext
from launch.sampling import groups_per_call, sample_all
from rlsys.errors import RlsysError
from rlsys.recipe.data import DataSettings, TemplatingSettings, parse_source
from rlsys.recipe.evaluation import EvaluationSettings
from rlsys.recipe.recipe import HUB
from rlsys.recipe.rollout import SamplingSettings
from rlsys.recipe.stages import verifiers_of
from rlsys.rollouts.prompt_stream import prompt_at
from rlsys.telemetry.names import name_part
from rlsys.types import GroupSummary, Prompt

EVALUATION_SEED_OFFSET = 1_000_003
"""So that evaluation does not draw the random numbers of training."""


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Prompts by their place in the set."""

    name: str
    prompts: tuple[Prompt, ...]


def load_sets(
    context: RunContext,
    files: dict[str, str],
    settings: EvaluationSettings,
    modules: tuple[str, ...],
    *,
    limit: int | None,
) -> list[EvaluationSet]:
    """Reads and templates at most `limit` prompts of each file; every ground truth is checked by its verifier."""
    sets: list[EvaluationSet] = []
    for name, path in files.items():
        source = parse_source(path if path.startswith(HUB) else str(context.resolve(path)))
        data = DataSettings(
            source=(source.model_copy(update={"name": name}),),
            wrong_rows="refuse",
            templating=TemplatingSettings(max_prompt_length=settings.max_prompt_length),
        )
        data = context.recipe.fitted(data, max_tokens=settings.max_tokens)
        folder = context.folder / "evaluation" / name
        folder.mkdir(parents=True, exist_ok=True)
        ref = build_prompts.remote(data, context.model.folder, str(folder), modules, limit, None)
        prompts = context.result(ref, what=f"reading {path}")
        sets.append(EvaluationSet(name, tuple(prompt_at(i, prompts[i]) for i in range(len(prompts)))))
    return sets


def evaluate(
    context: RunContext, sets: list[EvaluationSet], settings: EvaluationSettings, *, record: Path | None = None
) -> dict[str, float]:
    """Accuracy of the weights that the engines hold, by set and task, at each temperature.

    Args:
        context: of the run.
        sets: what `load_sets` gave.
        settings: temperatures, lengths, samples.
        record: a folder for one parquet file a set and temperature, with every response and its verdicts.

    Returns:
        `eval/<set>/accuracy@T<t>`, and `eval/<set>/<task>@T<t>` where a set has several tasks. A response counts as
        right when all its verdicts are; those that a failed verifier masks are left out, their share is `failed@T<t>`.
    """
    metrics: dict[str, float] = {}
    writes: dict[str, Any] = {}
    for evaluation_set in sets:
        for temperature in settings.temperatures:
            groups = _sample(context, evaluation_set, settings, temperature)
            label = f"T{temperature:g}"
            metrics |= _accuracies(evaluation_set, [group.summary for group in groups], label)
            if record is not None:
                path = str(record / f"{evaluation_set.name}@{label}.parquet")
                references = [group.reference for group in groups]
                writes[path] = write_rollouts.remote(references, path, context.model.folder, None)
    for path, written in writes.items():
        try:
            context.result(written, what=f"writing {path}")
        except RlsysError as error:  # what was measured is known all the same
            print(f"the responses of an evaluation were not written: {error}", flush=True)
    return metrics


def _sample(
    context: RunContext, evaluation_set: EvaluationSet, settings: EvaluationSettings, temperature: float
) -> list[VerifiedGroup]:
    num_samples = settings.samples if temperature > 0 else 1
    pump_settings = PumpSettings(
        num_samples=num_samples,
        sampling=SamplingSettings(max_tokens=settings.max_tokens, temperature=temperature),
        seed=context.recipe.seed + EVALUATION_SEED_OFFSET,
        groups_per_call=groups_per_call(len(evaluation_set.prompts), context.crew.workers.size),
        groups_per_worker=context.recipe.rollout.groups_per_worker(num_samples),
        group_timeout_s=context.recipe.cluster.operation_timeout_s,
        tag="eval",
        mode=settings.mode,
    )
    crew = context.crew
    pump = RolloutPump(crew.workers, crew.verifiers, pump_settings, prompts=evaluation_set.prompts.__getitem__)
    return sample_all(context, pump, len(evaluation_set.prompts), what=f"evaluating {evaluation_set.name}")


def _accuracies(evaluation_set: EvaluationSet, groups: list[GroupSummary], label: str) -> dict[str, float]:
    right: dict[str, list[float]] = defaultdict(list)
    failed = 0
    for prompt, group in zip(evaluation_set.prompts, groups, strict=True):
        for verdicts in group.verdicts:
            if any(verdict.masked for verdict in verdicts):
                failed += 1
                continue
            right[name_part(prompt.source)].append(float(all(verdict.score == 1.0 for verdict in verdicts)))
    every = [value for values in right.values() for value in values]
    base = f"eval/{evaluation_set.name}"
    metrics = {f"{base}/accuracy@{label}": float(np.mean(every)) if every else float("nan")}
    if len(right) > 1:
        metrics |= {f"{base}/{task}@{label}": float(np.mean(values)) for task, values in right.items()}
    if failed:
        metrics[f"{base}/failed@{label}"] = failed / (failed + len(every))
    return metrics


def stage_modules(context: RunContext) -> tuple[str, ...]:
    """Modules with the user's verifiers, over all stages."""
    found: dict[str, None] = {}
    for stage in context.recipe.stage:
        verifiers = verifiers_of(stage)
        found |= dict.fromkeys(verifiers.modules if verifiers else ())
    return tuple(found)
