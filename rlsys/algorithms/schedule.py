"""Learning rates as a pure function of the step, so that a resumed run needs no scheduler state. Needs no torch."""

import math

from rlsys.recipe.algorithm import ScheduleSettings


def num_warmup_steps(settings: ScheduleSettings, total_steps: int) -> int:
    """Optimizer steps of warm-up: those stated, else the fraction of all steps, rounded up."""
    if settings.warmup_steps is not None:
        return settings.warmup_steps
    return math.ceil(settings.warmup_fraction * total_steps)


def learning_rate(step: int, peak: float, settings: ScheduleSettings, *, total_steps: int) -> float:
    """The rate of the optimizer step number `step`, counted from 0.

    Warm-up rises linearly, peak (step + 1) / warmup, so that the first step moves the weights. The decay from there,
    with progress p from 0 to 1: `linear` 1 - p, `cosine` (1 + cos(pi p)) / 2, each between peak and peak x
    final_fraction, reached at total_steps; later steps keep it.

    Raises:
        ValueError: a negative step.
    """
    if step < 0:
        raise ValueError(f"step must not be negative; got {step}")
    warmup = num_warmup_steps(settings, total_steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
    shape = {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[settings.kind]
    if settings.kind == "constant":
        return peak
    return peak * (settings.final_fraction + (1 - settings.final_fraction) * shape)
