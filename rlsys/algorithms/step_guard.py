"""Counts the steps that must not reach the weights, and says when to stop. Needs no torch."""

from collections import Counter

from rlsys.errors import TrainingError

LOSS, GRADIENT, ADVANTAGE = "loss_not_finite", "gradient_not_finite", "advantage_not_finite"
ALL_MASKED = "all_masked"


class StepGuard:
    """Counts skipped steps by reason and stops the run when too many come in a row.

    The counts are part of a checkpoint: `state` and `restore`.
    """

    def __init__(self, max_skipped_in_a_row: int) -> None:
        self._limit = max_skipped_in_a_row
        self.skipped: Counter[str] = Counter()
        self.skipped_in_a_row = 0

    def record(self, fault: str | None) -> bool:
        """Takes a step's fault, None if it has none; returns whether the step may be applied.

        Raises:
            TrainingError: this was one skipped step in a row too many.
        """
        if fault is None:
            self.skipped_in_a_row = 0
            return True
        self.skipped[fault] += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row >= self._limit:
            raise TrainingError(
                f"{self.skipped_in_a_row} steps in a row were skipped, the last one for {fault}",
                value=dict(self.skipped),
                fix="look at those batches in metrics.jsonl, lower the learning rate, or raise max_skipped_in_a_row",
            )
        return False

    def state(self) -> dict[str, object]:
        """JSON values."""
        return {"skipped": dict(self.skipped), "skipped_in_a_row": self.skipped_in_a_row}

    def restore(self, state: dict) -> None:
        """Takes what `state` gave."""
        self.skipped = Counter(state["skipped"])
        self.skipped_in_a_row = state["skipped_in_a_row"]
