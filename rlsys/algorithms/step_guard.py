"""What a step says of itself; counts those that must not reach the weights, and says when to stop. Needs no torch."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.errors import TrainingError

LOSS, GRADIENT, ADVANTAGE = "loss_not_finite", "gradient_not_finite", "advantage_not_finite"
ALL_MASKED = "all_masked"


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step. It is here, and not beside the engine that takes it, because the driver reads it."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Over all ranks, the same on each; `optim/grad_norm` before clipping, absent when skipped."""
    fault: str | None = None
    """Why the weights did not change, one of the above; None when they did."""


class StepGuard:
    """Counts skipped steps by reason, and stops the run when one model is left as it is too often in a row.

    A row is of updates: an optimizer step of a supervised stage, all passes over one batch of RLVR. One bad batch is
    skipped in every pass and says no more than one bad step; and policy and value model each have a row of their own.
    The counts are part of a checkpoint: `state` and `restore`.
    """

    def __init__(self, max_skipped_in_a_row: int) -> None:
        self._limit = max_skipped_in_a_row
        self.skipped: Counter[str] = Counter()
        """Steps by reason."""
        self.in_a_row: dict[str, list[str]] = {}
        """By model, the reasons of the updates that were skipped since one was applied."""

    def record(self, model: str, faults: Sequence[str | None]) -> None:
        """Takes the faults of an update's steps, None for each step that was applied."""
        reasons = [fault for fault in faults if fault is not None]
        self.skipped.update(reasons)
        is_skipped = len(reasons) == len(faults)
        self.in_a_row[model] = [*self.in_a_row.get(model, []), reasons[-1]] if is_skipped else []

    def check(self) -> None:
        """Call it when the update's metrics are logged, since its error sends the user there.

        Raises:
            TrainingError: this was one skipped update in a row too many.
        """
        for model, reasons in self.in_a_row.items():
            if len(reasons) >= self._limit:
                raise TrainingError(
                    f"{len(reasons)} updates of the {model} in a row were skipped, the last one for {reasons[-1]}",
                    value=dict(self.skipped),
                    fix="see those steps in metrics.jsonl, lower the learning rate, or raise max_skipped_in_a_row",
                )

    def state(self) -> dict[str, Any]:
        """JSON values that later updates do not change: a checkpoint is written while training goes on."""
        in_a_row = {model: list(reasons) for model, reasons in self.in_a_row.items()}
        return {"skipped": dict(self.skipped), "in_a_row": in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes what `state` gave."""
        self.skipped = Counter(state["skipped"])
        self.in_a_row = dict(state["in_a_row"])
