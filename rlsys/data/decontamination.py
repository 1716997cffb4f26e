"""Decontamination: which evaluation prompts are found in training data, by the rule of Tülu 3 (arXiv 2411.15124, 3.2).

An evaluation unit (token) matches if it lies in an n-gram shared with a training instance; an evaluation instance is
contaminated if more than a threshold of its units match ONE training instance; a training set is contaminated if more
than 2 % of any evaluation set is. `decontamination_text` says what a token is.
"""

from collections.abc import Iterable, Mapping, Sequence
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
    rows = ((name, instance) for name, instances in train_sets.items() for instance in instances)
    return decontaminate_mixed(rows, eval_sets, settings, names=tuple(train_sets))


def decontaminate_mixed(
    rows: Iterable[tuple[str, Instance]],
    eval_sets: Mapping[str, Iterable[Instance]],
    settings: Decontamination,
    *,
    names: Sequence[str] = (),
) -> DecontaminationReport:
    """As `decontaminate`, for rows of several training sets in any order, such as a mixture's.

    Args:
        rows: (name of the training set, its user turns); a row's number counts the rows of its own set.
        eval_sets: see there.
        settings: see there.
        names: training sets to report on even if no row is theirs.
    """
    evals = {name: list(instances) for name, instances in eval_sets.items()}
    if not evals or not all(evals.values()):
        empty = [name for name, instances in evals.items() if not instances]
        raise DataError(
            "nothing to compare with: an evaluation set has no rows", value=empty, fix="check --eval or evals"
        )
    instances = [instance for eval_rows in evals.values() for instance in eval_rows]
    index = EvalIndex(instances, mode=settings.mode, ngram=settings.units)
    found = {name: _Findings(settings.threshold) for name in names}
    for name, instance in rows:
        if name not in found:
            found[name] = _Findings(settings.threshold)
        found[name].add(index.matches(instance))
    pairs = [pair for name, one in found.items() for pair in _pair_reports(name, evals, one, settings=settings)]
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

    def add(self, matches: Iterable[Match]) -> None:
        row = self.num_rows
        self.num_rows += 1
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
