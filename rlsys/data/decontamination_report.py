"""What decontamination found, as records and as JSON, and which training rows a policy drops for it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlsys.errors import DataError
from rlsys.recipe.decontamination import Policy


@dataclass(frozen=True, slots=True)
class ContaminatedInstance:
    """An evaluation instance of which one training row holds more than the threshold.

    >>> ContaminatedInstance(eval_row=4, train_row=17, fraction=0.9, num_train_rows=2).fraction
    0.9
    """

    eval_row: int
    """Row of the evaluation set, from 0."""
    train_row: int
    """The training row that holds most of it, from 0; the first one of several that hold the same."""
    fraction: float
    """How much of the evaluation instance that row holds, in (threshold, 1]."""
    num_train_rows: int
    """Training rows that hold more than the threshold of it."""


@dataclass(frozen=True, slots=True)
class PairReport:
    """One training set against one evaluation set."""

    train: str
    eval: str
    num_train_rows: int
    num_eval_rows: int
    instances: tuple[ContaminatedInstance, ...]
    """By evaluation row."""
    matching_train_rows: tuple[int, ...]
    """Every training row that holds more than the threshold of any of the evaluation instances, in order."""
    max_overlap: float
    """The fraction over which the training set is contaminated."""

    @property
    def overlap(self) -> float:
        """Contaminated fraction of the evaluation set, in [0, 1]; 0 for an empty one."""
        return len(self.instances) / self.num_eval_rows if self.num_eval_rows else 0.0

    @property
    def contaminated(self) -> bool:
        """The verdict: whether the overlap is over `max_overlap`."""
        return self.overlap > self.max_overlap

    def to_json(self) -> dict[str, Any]:
        """JSON values only; fractions as they are, the overlap in percent."""
        return {
            "train": self.train,
            "eval": self.eval,
            "num_train_rows": self.num_train_rows,
            "num_eval_rows": self.num_eval_rows,
            "num_contaminated": len(self.instances),
            "overlap_percent": 100 * self.overlap,
            "contaminated": self.contaminated,
            "matching_train_rows": list(self.matching_train_rows),
            "instances": [asdict(instance) for instance in self.instances],
        }


@dataclass(frozen=True, slots=True)
class KeptRows:
    """What a policy keeps of one training set."""

    train: str
    num_rows: int
    dropped_rows: frozenset[int]
    """Single rows that are dropped; empty where the whole set is."""
    set_dropped: bool = False

    def keeps(self, row: int) -> bool:
        """Whether the row, counted from 0, stays."""
        return not self.set_dropped and row not in self.dropped_rows

    @property
    def num_kept(self) -> int:
        """Rows that stay."""
        return 0 if self.set_dropped else self.num_rows - len(self.dropped_rows)


@dataclass(frozen=True, slots=True)
class DecontaminationReport:
    """Every training set against every evaluation set, with the settings that it was made under."""

    settings: Mapping[str, Any]
    """mode, ngram, threshold, max_overlap."""
    pairs: tuple[PairReport, ...]
    """Training sets in the order given, for each the evaluation sets in the order given."""

    @property
    def contaminated_sets(self) -> tuple[str, ...]:
        """Training sets over `max_overlap` of any evaluation set, in the order given."""
        return tuple(dict.fromkeys(pair.train for pair in self.pairs if pair.contaminated))

    def kept_rows(self, policy: Policy) -> dict[str, KeptRows]:
        """What the policy keeps of each training set, by name."""
        kept: dict[str, KeptRows] = {}
        over = set(self.contaminated_sets)
        for pair in self.pairs:
            before = kept.get(pair.train, KeptRows(pair.train, pair.num_train_rows, frozenset()))
            rows = before.dropped_rows
            if policy == "drop-rows":
                rows = rows | frozenset(pair.matching_train_rows)
            set_dropped = policy == "drop-set" and pair.train in over
            kept[pair.train] = KeptRows(pair.train, pair.num_train_rows, rows, set_dropped)
        return kept

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "settings": dict(self.settings),
            "contaminated_sets": list(self.contaminated_sets),
            "pairs": [pair.to_json() for pair in self.pairs],
        }


def require_clean(report: DecontaminationReport, policy: Policy) -> dict[str, KeptRows]:
    """The gate before a training stage: what may be trained on, by training set.

    Raises:
        DataError: under `refuse`, a training set is contaminated; under any policy, nothing is left to train on.
    """
    if policy == "refuse" and report.contaminated_sets:
        worst = max((pair for pair in report.pairs if pair.contaminated), key=lambda pair: pair.overlap)
        raise DataError(
            f"training set {worst.train} holds {len(worst.instances)} of the {worst.num_eval_rows} prompts of "
            f"evaluation set {worst.eval}, over the {worst.max_overlap:.1%} allowed",
            value=", ".join(report.contaminated_sets),
            fix="drop the matching rows (policy drop-rows) or the sets (policy drop-set)",
        )
    kept = report.kept_rows(policy)
    if kept and not any(rows.num_kept for rows in kept.values()):
        raise DataError(
            "decontamination leaves nothing to train on",
            value=", ".join(kept),
            fix="check that the training and evaluation sets are not the same files",
        )
    return kept
