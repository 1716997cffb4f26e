"""Decontamination: which evaluation prompts are found in training data, by the rule of Tülu 3 (arXiv 2411.15124, 3.2).

An evaluation unit (token) matches if it lies in an n-gram shared with a training instance; an evaluation instance is
contaminated if more than a threshold of its units match ONE training instance; a training set is contaminated if more
than 2 % of any evaluation set is. `decontamination_text` says what a token is.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rlsys.data.decontamination_index import EvalIndex, Match
from rlsys.data.decontamination_report import ContaminatedInstance, DecontaminationReport, PairReport
from rlsys.data.decontamination_text import Instance
from rlsys.errors import DataError
from rlsys.recipe.decontamination import Decontamination


def decontaminate(
    train_sets: Mapping[str, Iterable[Instance]], eval_sets: Mapping[str, Iterable[Instance]], settings: Decontamination
) -> DecontaminationReport:
    """Compares every training set with every evaluation set.

    Args:
        train_sets: by name, each row's user turns; read once, row by row, and never held.
        eval_sets: by name, each row's user turns; held, with their n-grams (about 0.1 MB for 1,000 tokens).
        settings: mode, n-gram length, thresholds; its policy is not applied here (see `require_clean`).

    Raises:
        DataError: there is no evaluation set, or one of them is empty.
    """
    evals = {name: list(instances) for name, instances in eval_sets.items()}
    if not evals or not all(evals.values()):
        empty = [name for name, instances in evals.items() if not instances]
        raise DataError("nothing to compare with: an evaluation set has no rows", value=empty, fix="check --eval")
    instances = [instance for rows in evals.values() for instance in rows]
    index = EvalIndex(instances, mode=settings.mode, ngram=settings.units)
    pairs: list[PairReport] = []
    for train, rows in train_sets.items():
        found = _Findings(threshold=settings.threshold)
        for row, instance in enumerate(rows):
            found.add(row, index.matches(instance))
        pairs += _pair_reports(train, evals, found, settings=settings)
    used = {
        "mode": settings.mode,
        "ngram": settings.units,
        "threshold": settings.threshold,
        "max_overlap": settings.max_overlap,
    }
    return DecontaminationReport(used, tuple(pairs))


@dataclass(slots=True)
class _Findings:
    """What one training set has shown so far, per evaluation instance."""

    threshold: float
    num_rows: int = 0
    best: dict[int, tuple[float, int]] = field(default_factory=dict)
    """Evaluation instance -> (fraction, training row) of the best match over the threshold."""
    rows: dict[int, list[int]] = field(default_factory=dict)
    """Evaluation instance -> training rows over the threshold."""

    def add(self, row: int, matches: Iterable[Match]) -> None:
        self.num_rows = row + 1
        for match in matches:
            if match.matched <= self.threshold * match.units:
                continue
            self.rows.setdefault(match.instance, []).append(row)
            if match.instance not in self.best or match.fraction > self.best[match.instance][0]:
                self.best[match.instance] = (match.fraction, row)


def _pair_reports(
    train: str, evals: Mapping[str, list[Instance]], found: _Findings, *, settings: Decontamination
) -> list[PairReport]:
    reports: list[PairReport] = []
    start = 0
    for name, instances in evals.items():
        hits = [index for index in range(start, start + len(instances)) if index in found.best]
        contaminated = tuple(
            ContaminatedInstance(index - start, found.best[index][1], found.best[index][0], len(found.rows[index]))
            for index in hits
        )
        reports.append(
            PairReport(
                train=train,
                eval=name,
                num_train_rows=found.num_rows,
                num_eval_rows=len(instances),
                instances=contaminated,
                matching_train_rows=tuple(sorted({row for index in hits for row in found.rows[index]})),
                max_overlap=settings.max_overlap,
            )
        )
        start += len(instances)
    return reports
