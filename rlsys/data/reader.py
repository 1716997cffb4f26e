"""Reads rows from files, folders, globs, saved data sets and the Hugging Face hub."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rlsys.data.drops import DropLog, RowRefused
from rlsys.data.formats import rows_of
from rlsys.data.records import Record, data_files, read_records
from rlsys.data.row import Origin, Row
from rlsys.errors import DataError
from rlsys.recipe.data import SourceSettings

_HUB = "hf:"


def read_rows(source: SourceSettings | str | Path, *, drops: DropLog | None = None) -> Iterator[Row]:
    """The rows of a source in order, whatever form they are written in; `rlsys.data.formats` lists the forms.

    Args:
        source: a path, a glob, `hf:owner/name`, or a recipe's source; `take` and `filters` are left to the mixture.
        drops: counts wrong rows by reason and leaves them out; without it the first wrong row is an error.

    Raises:
        DataError: the source cannot be read; without `drops`, a row is wrong: names file, line and reason.

    >>> next(read_rows("train.jsonl")).kind  # doctest: +SKIP
    'conversation'
    """
    settings = source if isinstance(source, SourceSettings) else SourceSettings(path=str(source))
    for ordinal, record in source_records(settings):
        try:
            if record.refused is not None:
                raise record.refused
            rows = rows_of(record.value, source=settings.label, ordinal=ordinal, origin=record.origin)
        except RowRefused as refused:
            if drops is None:
                raise DataError(
                    f"{record.origin}: {refused.problem} ({refused.reason})",
                    fix=refused.fix or "mend or remove the row, or let wrong rows be dropped (wrong_rows = 'drop')",
                ) from refused
            drops.add(refused.reason, str(record.origin), refused.problem)
            continue
        yield from rows


def source_records(
    source: SourceSettings, *, wanted: Callable[[int], bool] | None = None
) -> Iterator[tuple[int, Record]]:
    """(ordinal in the source, record): the ordinal counts on from file to file, whatever is skipped.

    Args:
        source: `take` and `filters` are left to the mixture.
        wanted: given a record's ordinal (from 0), whether to read it; how readers share a source.

    Raises:
        DataError: the source cannot be read.
    """
    if source.path.startswith(_HUB) or _is_saved_dataset(Path(source.path)):
        yield from _dataset_records(source, wanted)
        return
    ordinal = 0
    for file in data_files(source.path):
        for record in read_records(file, first=ordinal, wanted=wanted):
            if record is not None:
                yield ordinal, record
            ordinal += 1


def source_files(source: SourceSettings) -> list[Path]:
    """The local files of a source; none for one of the hub.

    Raises:
        DataError: a local source has none.
    """
    if source.path.startswith(_HUB):
        return []
    if _is_saved_dataset(Path(source.path)):
        return sorted(file for file in Path(source.path).rglob("*") if file.is_file())
    return data_files(source.path)


def _is_saved_dataset(folder: Path) -> bool:
    """Whether `datasets` wrote the folder with `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _dataset_records(source: SourceSettings, wanted: Callable[[int], bool] | None) -> Iterator[tuple[int, Record]]:
    dataset = _hub_dataset(source) if source.path.startswith(_HUB) else _saved_dataset(source)
    for ordinal, value in enumerate(dataset):
        if wanted is None or wanted(ordinal):
            yield ordinal, Record(Origin(source.path, ordinal + 1), value)


def _hub_dataset(source: SourceSettings) -> Iterable[Any]:
    import datasets
    from datasets.exceptions import DatasetsError

    name = source.path.removeprefix(_HUB)
    try:
        return datasets.load_dataset(
            name, source.subset, split=source.split, revision=source.revision, streaming=source.streaming
        )
    except (OSError, ValueError, DatasetsError) as error:
        raise DataError(
            f"the hub's data set cannot be loaded: {error}",
            value=name,
            fix="check name, subset, split and network, or give the path of a downloaded copy",
        ) from error


def _saved_dataset(source: SourceSettings) -> Iterable[Any]:
    import datasets

    saved = datasets.load_from_disk(source.path)
    if not isinstance(saved, datasets.DatasetDict):
        return saved
    if source.split not in saved:
        raise DataError("the saved data set has no such split", value=source.split, fix=f"choose one of {list(saved)}")
    return saved[source.split]
