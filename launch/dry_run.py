"""`rlsys run --dry-run`: where every actor goes and what every stage's batches come to, before anything starts."""

import math
import subprocess
from itertools import groupby

from rlsys.recipe.cluster import ClusterSettings
from rlsys.recipe.recipe import Recipe
from rlsys.recipe.stages import AnyStage, JudgedPreferencesStage, PreferencesStage, RlvrStage, SupervisedStage
from rlsys.scaling.placement import PlacementPlan, placement_plan, weight_transfer


def describe(recipe: Recipe) -> str:
    """The recipe's placement and batch arithmetic, as lines."""
    num_gpus, about = _gpus(recipe.cluster)
    is_known = recipe.cluster.device == "auto" and recipe.cluster.address == "local"
    plan = placement_plan(recipe, use_gpus=num_gpus > 0, one_gpu=num_gpus == 1)
    lines = [f"{recipe.name}: {len(recipe.stage)} stage(s), seed {recipe.seed}", "", f"placement{about}"]
    lines += _placement_lines(plan)
    named = recipe.rollout.weight_transfer
    transfer = weight_transfer(recipe, plan) if is_known or named == "auto" else named
    if recipe.trains_policy and plan.rollout:
        lines.append(f"  weights        from the learner to the engines over {transfer}")
    for number, stage in enumerate(recipe.stage, 1):
        lines += ["", f"{number:02d}-{stage.label} ({stage.kind})"]
        lines += [f"  {line}" for line in _batch_lines(recipe, stage)]
    return "\n".join(lines)


def _gpus(cluster: ClusterSettings) -> tuple[float, str]:
    """How many the run would find, and what of it is a guess."""
    if cluster.device != "auto":
        return (math.inf, "") if cluster.device == "gpu" else (0, "")
    if cluster.address != "local":
        return 0, f" on CPU; with cluster.device = auto, GPUs are used if the cluster at {cluster.address} has any"
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0, ""
    return len(listed.splitlines()), ""


def _placement_lines(plan: PlacementPlan) -> list[str]:
    lines = []
    for (actors, cpus, gpus), equal in groupby(plan.bundles, key=lambda b: (b.actors, b.cpus, b.gpus)):
        first, *others = [bundle.name for bundle in equal]
        name = f"{first[:-1]}-{others[-1].partition('[')[2]}" if others else first
        shared = f" shared by {' + '.join(actors)}" if len(actors) > 1 else ""
        lines.append(f"  {name:14} {cpus:g} CPU, {gpus:g} GPU{' each' if others else ''}{shared}")
    cpus, gpus = sum(b.cpus for b in plan.bundles), sum(b.gpus for b in plan.bundles)
    return [*lines, f"  in all         {cpus:g} CPU, {gpus:g} GPU in {len(plan.bundles)} bundles"]


def _batch_lines(recipe: Recipe, stage: AnyStage) -> list[str]:
    ranks = recipe.cluster.learner_ranks
    if isinstance(stage, RlvrStage):
        return _rlvr_lines(stage, ranks)
    if isinstance(stage, SupervisedStage):
        unit = "rows" if stage.kind == "sft" else "pairs"
        return [
            f"effective batch {stage.batch_size} {unit} an optimizer step = {_shares(stage.batch_size, ranks)}",
            f"micro-batches of at most {stage.learner.tokens_per_micro_batch} positions a rank; accumulation follows",
            f"epochs {stage.epochs}" + (f", at most {stage.max_steps} optimizer steps" if stage.max_steps else ""),
            _optimizer_line(stage.learner),
        ]
    if isinstance(stage, JudgedPreferencesStage):
        return _judged_lines(stage)
    if isinstance(stage, PreferencesStage):
        prompts = stage.num_prompts or "all"
        return [f"{prompts} prompts x {stage.samples} samples, at most one pair a prompt, decided by verifiers"]
    return []


def _rlvr_lines(stage: RlvrStage, ranks: int) -> list[str]:
    algorithm = stage.algorithm
    responses = stage.batch_groups * stage.samples
    minibatch = math.ceil(responses / algorithm.minibatches)
    steps = algorithm.epochs_per_batch * algorithm.minibatches
    in_flight = (stage.max_staleness + 1) * stage.batch_groups
    return [
        f"rollout batch {stage.batch_groups} prompts x {stage.samples} = {responses} responses; "
        f"{stage.batches} batches = {stage.batches * responses} episodes",
        f"{algorithm.epochs_per_batch} passes x {algorithm.minibatches} minibatch(es) of {minibatch} responses = "
        f"{steps} optimizer steps a batch, {steps * stage.batches} in all; a minibatch is {_shares(minibatch, ranks)}",
        f"max_staleness {stage.max_staleness}: at most {in_flight} prompts in flight",
        f"{algorithm.policy_loss}, {algorithm.advantage} advantages, KL {algorithm.kl_beta:g} in {algorithm.kl_in}",
        _reward_line(stage),
        _optimizer_line(stage.learner),
    ]


def _judged_lines(stage: JudgedPreferencesStage) -> list[str]:
    selection, samples = stage.selection, stage.responses_per_prompt
    relaxed = selection.relaxed + selection.persona
    rated = selection.total - relaxed
    asked = (selection.total + relaxed) * samples
    return [
        f"{rated} prompts to rate and {relaxed} to relax; {asked} responses of {len(stage.pool)} model(s)",
        f"{rated * samples} responses x {len(stage.judge.aspects)} aspects = "
        f"{rated * samples * len(stage.judge.aspects)} ratings; at most one pair a prompt",
    ]


def _reward_line(stage: RlvrStage) -> str:
    verified = f"{stage.verifiers.reward_scale:g} x verified"
    model = stage.reward_model
    if model is None:
        return f"reward {verified}"
    scored = f"{model.weight:g} x the score of the reward model ({model.path})"
    return f"reward {scored} alone, verifiers are not asked" if model.is_alone else f"reward {verified} + {scored}"


def _shares(count: int, ranks: int) -> str:
    low, rest = divmod(count, ranks)
    if not rest:
        return f"{low} on each of {ranks} rank(s)"
    return f"{low} or {low + 1} on each of {ranks} ranks"


def _optimizer_line(learner) -> str:
    schedule = learner.schedule
    warmup = (
        schedule.warmup_steps if schedule.warmup_steps is not None else f"{schedule.warmup_fraction:g} of the steps"
    )
    return f"AdamW lr {learner.lr:g} {schedule.kind}, warm-up {warmup}, gradient norm {learner.max_grad_norm:g}"
