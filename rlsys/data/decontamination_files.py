"""Decontamination of data sets on disk or on the hub: read as instances, reported with file and line, written clean."""

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsys.data.decontamination import decontaminate
from rlsys.data.decontamination_report import DecontaminationReport, KeptRows
from rlsys.data.drops import DropLog, RowRefused
from rlsys.data.formats import rows_of
from rlsys.data.reader import source_records
from rlsys.data.records import Record
from rlsys.data.row import Origin, Row
from rlsys.errors import DataError
from rlsys.recipe.data import parse_source
from rlsys.recipe.decontamination import Decontamination

_PROMPT_KEYS = ("problem", "question", "Question", "instruction", "instruct_prompt", "prompt", "input", "query", "goal")


def user_turns(row: Row) -> tuple[str, ...]:
    """What decontamination compares of a row: its user turns, those of a pair's responses included, or its plain text.

    >>> user_turns(Row("a/0", "a", Origin("a.jsonl", 1), ({"role": "user", "content": "1 + 1?"},)))
    ('1 + 1?',)
    """
    if row.text is not None:
        return (row.text,)
    messages = (*row.messages, *row.chosen, *row.rejected)
    return tuple(message["content"] for message in messages if message["role"] == "user")


class InstanceSource:
    """The rows of a source as instances, in order; where each was read is known once it has been iterated.

    Args:
        name: a path or glob, or `hf:owner/name`, to which `?subset=…&split=…&revision=…` may be added.
        protected: an evaluation set: a row that cannot be trained on, because it has no answer for example, still
            counts with its prompt. Of training sets such rows are dropped and counted in `drops`.
    """

    def __init__(self, name: str, *, protected: bool) -> None:
        self.name, self.settings = name, parse_source(name)
        self.drops = DropLog()
        self._protected = protected
        self._files: list[str] = []
        self._file_of, self._line_of, self._ordinal_of = array("l"), array("l"), array("l")

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        self.drops = DropLog()
        self._files = []
        self._file_of, self._line_of, self._ordinal_of = array("l"), array("l"), array("l")
        for ordinal, record in source_records(self.settings):
            for turns in self._instances(ordinal, record):
                self._remember(ordinal, record.origin)
                yield turns

    def origin(self, row: int) -> Origin:
        """Where the row stands that was yielded as number `row`, from 0."""
        return Origin(self._files[self._file_of[row]], self._line_of[row])

    def kept_records(self, kept: KeptRows) -> Iterator[dict[str, Any]]:
        """The records, as they were written, of which every row is kept; unreadable ones are left out."""
        drop = {self._ordinal_of[row] for row in range(len(self._ordinal_of)) if not kept.keeps(row)}
        wanted = set(self._ordinal_of) - drop
        for _, record in source_records(self.settings, wanted=wanted.__contains__):
            yield record.value

    def _instances(self, ordinal: int, record: Record) -> list[tuple[str, ...]]:
        try:
            if record.refused is not None:
                raise record.refused
            rows = rows_of(record.value, source=self.settings.label, ordinal=ordinal, origin=record.origin)
            return [user_turns(row) for row in rows]
        except RowRefused as refused:
            if not self._protected:
                self.drops.add(refused.reason, str(record.origin), refused.problem)
                return []
            return [(_prompt_of(record, refused),)]

    def _remember(self, ordinal: int, origin: Origin) -> None:
        if not self._files or self._files[-1] != origin.file:
            self._files.append(origin.file)
        self._file_of.append(len(self._files) - 1)
        self._line_of.append(origin.line)
        self._ordinal_of.append(ordinal)


def _prompt_of(record: Record, refused: RowRefused) -> str:
    """The prompt of an evaluation row in no form that training knows: an evaluation row is never left unprotected."""
    texts = [record.value[key] for key in _PROMPT_KEYS if isinstance(record.value.get(key), str)]
    if not texts:
        raise DataError(
            f"{record.origin}: an evaluation row without a prompt ({refused.problem})",
            value=sorted(record.value),
            fix=f"name its prompt one of {', '.join(_PROMPT_KEYS)}",
        )
    return texts[0]


def decontaminate_sources(
    train: Sequence[str], evals: Sequence[str], settings: Decontamination
) -> tuple[DecontaminationReport, dict[str, InstanceSource], dict[str, InstanceSource]]:
    """Decontaminates named sources; returns the report, and training and evaluation sources by name.

    Raises:
        DataError: a source cannot be read, or is named twice.
    """
    twice = sorted({name for names in (train, evals) for name in names if names.count(name) > 1})
    if twice:
        raise DataError("a data set is named twice", value=twice, fix="name it once")
    train_sources = {name: InstanceSource(name, protected=False) for name in train}
    eval_sources = {name: InstanceSource(name, protected=True) for name in evals}
    return decontaminate(train_sources, eval_sources, settings), train_sources, eval_sources


def report_json(
    report: DecontaminationReport, train: Mapping[str, InstanceSource], evals: Mapping[str, InstanceSource]
) -> dict[str, Any]:
    """The report as JSON, with the file and line of every row that it names and what could not be read."""
    value = report.to_json()
    for pair in value["pairs"]:
        for instance in pair["instances"]:
            instance["eval_at"] = str(evals[pair["eval"]].origin(instance["eval_row"]))
            instance["train_at"] = str(train[pair["train"]].origin(instance["train_row"]))
    value["unreadable_train_rows"] = {name: source.drops.as_manifest() for name, source in train.items()}
    return value


def write_kept(train: Mapping[str, InstanceSource], kept: Mapping[str, KeptRows], folder: Path) -> dict[str, Path]:
    """Writes what is kept of each training set to `<folder>/<label>.jsonl`, records as they were; returns the files.

    A set of which nothing is kept gets no file. A file appears whole or not at all.

    Raises:
        DataError: the folder already holds a file of that name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, Path] = {}
    for name, source in train.items():
        if not kept[name].num_kept:
            continue
        file = _free_name(folder, source.settings.label, taken=files.values())
        partial = file.with_suffix(".partial")
        with open(partial, "wb") as stream:
            for record in source.kept_records(kept[name]):
                stream.write(_line(record))
            stream.flush()
            os.fsync(stream.fileno())
        partial.rename(file)
        files[name] = file
    return files


def _line(record: Mapping[str, Any]) -> bytes:
    """One line of JSON; a record that holds half a surrogate pair somewhere is written in ASCII, which can say so."""
    try:
        return (json.dumps(record, ensure_ascii=False, default=str) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(record, default=str) + "\n").encode()


def _free_name(folder: Path, label: str, *, taken: Any) -> Path:
    """`label`.jsonl, numbered where another set of this call has the label."""
    stem = label.replace("/", "__").replace("*", "all")
    names = [f"{stem}.jsonl", *(f"{stem}-{number}.jsonl" for number in range(2, 1000))]
    file = next(folder / name for name in names if folder / name not in taken)
    if file.exists():
        raise DataError("a clean set would overwrite a file", value=str(file), fix="give an empty folder")
    return file
