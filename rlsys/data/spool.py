"""Rows on their way into a mixture: read, filtered and written to disk in units, so that a killed run goes on.

A unit is 2,048 consecutive records of a source, whoever reads them: `<unit>.jsonl` holds the rows that stayed,
`<unit>.json` what is known of them. The second file appears last; a unit without it is read again.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlsys.checkpoint.durable_file import write_durably
from rlsys.data.drops import DropLog, RowRefused
from rlsys.data.duplicates import fingerprint, signature
from rlsys.data.filters import RowFilter
from rlsys.data.formats import rows_of
from rlsys.data.reader import source_files, source_records
from rlsys.data.records import Record
from rlsys.data.row import Row, row_to_json
from rlsys.errors import DataError
from rlsys.recipe.data import FilterSettings, SourceSettings

UNIT_RECORDS = 2048

_VERSION = 1


class SpoolTask(NamedTuple):
    """What one of `num_readers` readers does for one source; can be pickled."""

    source: SourceSettings
    filters: FilterSettings
    folder: Path
    """The source's own."""
    reader: int
    num_readers: int
    refuse_wrong_rows: bool


class SpooledRow(NamedTuple):
    """A row that stayed, as the spool remembers it."""

    id: str
    file: Path
    offset: int
    length: int
    """Bytes [offset, offset + length) of the file hold its JSON object."""
    exact: str | None
    near: np.ndarray | None


@dataclass
class SourceTally:
    """What became of the records of one source."""

    records: int = 0
    drops: DropLog = field(default_factory=DropLog)
    """Wrong rows."""
    filtered: Counter[str] = field(default_factory=Counter)
    digest: str = ""
    """SHA-256 of the rows that stayed, ids and origins included, in order."""


def spool_key(source: SourceSettings, filters: FilterSettings) -> str:
    """Names the folder of a source's units: another file content, or another filter, is another key."""
    description = [_VERSION, source.path, source.subset, source.split, source.revision, source.label]
    hashes = [file_sha256(file) for file in source_files(source)]
    text = json.dumps([description, hashes, filters.model_dump(mode="json")])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def spool(task: SpoolTask) -> None:
    """Reads the units that fall to a reader and are not on disk yet.

    Raises:
        DataError: the source cannot be read, or a row is wrong and the recipe refuses wrong rows.
    """
    task.folder.mkdir(parents=True, exist_ok=True)
    keep = RowFilter(task.filters)
    done = {int(path.stem) for path in task.folder.glob("*.json")}

    def wanted(ordinal: int) -> bool:
        unit = ordinal // UNIT_RECORDS
        return unit % task.num_readers == task.reader and unit not in done

    unit = _Unit(task, -1)
    for ordinal, record in source_records(task.source, wanted=wanted):
        if ordinal // UNIT_RECORDS != unit.number:
            unit.commit()
            unit = _Unit(task, ordinal // UNIT_RECORDS)
        unit.add(ordinal, record, keep)
    unit.commit()


def spooled_rows(folder: Path, tally: SourceTally) -> Iterator[SpooledRow]:
    """The rows that stayed, of all units in order; adds what the units counted to the tally."""
    digest = hashlib.sha256()
    for index in sorted(folder.glob("*.json")):
        unit = json.loads(index.read_text())
        tally.records += unit["records"]
        tally.drops.merge(unit["drops"])
        tally.filtered.update(unit["filtered"])
        digest.update(unit["digest"].encode())
        file = index.with_suffix(".jsonl")
        for name, offset, length, exact, near in unit["rows"]:
            decoded = None if near is None else np.frombuffer(base64.b64decode(near), np.uint32)
            yield SpooledRow(name, file, offset, length, exact, decoded)
    tally.digest = digest.hexdigest()


class _Unit:
    """Collects one unit and commits it."""

    def __init__(self, task: SpoolTask, number: int) -> None:
        self._task = task
        self.number = number
        self._records = 0
        self._drops = DropLog()
        self._filtered: Counter[str] = Counter()
        self._rows: list[list[Any]] = []
        self._content = bytearray()

    def add(self, ordinal: int, record: Record, keep: RowFilter) -> None:
        self._records += 1
        try:
            if record.refused is not None:
                raise record.refused
            rows = rows_of(record.value, source=self._task.source.label, ordinal=ordinal, origin=record.origin)
        except RowRefused as refused:
            if self._task.refuse_wrong_rows:
                raise DataError(f"{record.origin}: {refused.problem} ({refused.reason})", fix=refused.fix) from refused
            self._drops.add(refused.reason, str(record.origin), refused.problem)
            return
        for row in rows:
            reason = keep.reason_to_remove(row)
            if reason is None:
                self._keep(row)
            else:
                self._filtered[reason] += 1

    def _keep(self, row: Row) -> None:
        filters = self._task.filters
        line = json.dumps(row_to_json(row), ensure_ascii=False).encode() + b"\n"
        exact = None if filters.exact_duplicates is None else fingerprint(row, filters.exact_duplicates)
        near = None
        if filters.near_duplicates is not None:
            near = base64.b64encode(signature(row, filters.near_duplicates).tobytes()).decode()
        self._rows.append([row.id, len(self._content), len(line), exact, near])
        self._content += line

    def commit(self) -> None:
        if not self._records:
            return
        stem = self._task.folder / f"{self.number:08d}"
        index = {
            "records": self._records,
            "drops": self._drops.as_manifest(),
            "filtered": dict(self._filtered),
            "digest": hashlib.sha256(self._content).hexdigest(),
            "rows": self._rows,
        }
        write_durably(stem.with_suffix(".jsonl"), bytes(self._content))
        write_durably(stem.with_suffix(".json"), json.dumps(index).encode())


def file_sha256(file: Path) -> str:
    """SHA-256 of a file's bytes, as `sha256sum` prints it."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
