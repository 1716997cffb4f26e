"""Decontamination as a gate before a training stage: rows of a mixture in, the rows that may be trained on out."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from rlsys.data.decontamination import decontaminate_mixed
from rlsys.data.decontamination_files import InstanceSource, user_turns
from rlsys.data.decontamination_report import DecontaminationReport, KeptRows, require_clean
from rlsys.data.reader import source_files
from rlsys.data.row import Row
from rlsys.data.spool import file_sha256
from rlsys.recipe.data import parse_source
from rlsys.recipe.decontamination import Decontamination


class GatedRows(NamedTuple):
    """What came through, and why the rest did not."""

    read: Callable[[], Iterator[Row]]
    """The rows that stay, in their order, each time it is called."""
    report: DecontaminationReport
    """A training set is a source of the mixture."""
    json: dict[str, Any]
    """The report, with the file and line of every row it names, and `kept_rows` by source."""


def decontaminated_rows(read: Callable[[], Iterable[Row]], settings: Decontamination) -> GatedRows:
    """Compares a mixture with the evaluation sets of the recipe and applies the policy, source by source.

    >>> gated = decontaminated_rows(mixture.read, recipe.decontamination)  # doctest: +SKIP
    >>> rows = gated.read()  # doctest: +SKIP

    Args:
        read: the rows of the mixture, the same each time; they are streamed twice, and a third time if any matches.
        settings: names the evaluation sets.

    Raises:
        DataError: the policy is `refuse` and a source is contaminated, nothing is left, or an evaluation set cannot be
            read.
    """
    evals = {name: InstanceSource(name, protected=True) for name in settings.evals}
    report = decontaminate_mixed(((row.source, user_turns(row)) for row in read()), evals, settings)
    kept = require_clean(report, settings.policy)
    document = report.to_json()
    document["kept_rows"] = {name: rows.num_kept for name, rows in kept.items()}
    named = {(pair.train, hit.train_row) for pair in report.pairs for hit in pair.instances}
    origins = {place: str(row.origin) for place, row in _numbered(read()) if place in named} if named else {}
    for pair in document["pairs"]:
        for hit in pair["instances"]:
            hit["train_at"] = origins[pair["train"], hit["train_row"]]
            hit["eval_at"] = str(evals[pair["eval"]].origin(hit["eval_row"]))
    return GatedRows(lambda: _keep(read(), kept), report, document)


def gate_hashes(settings: Decontamination) -> list[list[str]]:
    """SHA-256 of every file of each evaluation set, in order: when one of them changes, so may what comes through.

    A data set of the hub has no local file: it is told by its name, with the revision if one is given.
    """
    return [[file_sha256(file) for file in source_files(parse_source(name))] for name in settings.evals]


def _keep(rows: Iterable[Row], kept: dict[str, KeptRows]) -> Iterator[Row]:
    return (row for (source, number), row in _numbered(rows) if kept[source].keeps(number))


def _numbered(rows: Iterable[Row]) -> Iterator[tuple[tuple[str, int], Row]]:
    """Each row with its source and its number among the rows of that source."""
    numbers: Counter[str] = Counter()
    for row in rows:
        yield (row.source, numbers[row.source]), row
        numbers[row.source] += 1
