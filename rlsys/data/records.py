"""Raw records of a data file, one by one, each with its place, whatever is wrong with it."""

import glob
import gzip
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

from rlsys.data.drops import RowRefused
from rlsys.data.row import Origin
from rlsys.errors import DataError

MAX_LINE_BYTES = 64 * 2**20
"""A longer line is refused, so that a file without line ends cannot fill the memory."""

Stream: TypeAlias = IO[bytes] | gzip.GzipFile

SUFFIXES = (".jsonl", ".ndjson", ".json", ".parquet", ".txt")


class Record(NamedTuple):
    """One record of a file: its JSON object, or why there is none."""

    origin: Origin
    value: dict[str, Any]
    """Empty where refused."""
    refused: RowRefused | None = None


def data_files(path: str) -> list[Path]:
    """The files that a path, folder or glob names, in alphabetical order.

    Raises:
        DataError: there is none.
    """
    root = Path(path)
    if root.is_file():
        return [root]
    if root.is_dir():
        files = [file for file in root.rglob("*") if file.is_file() and _kind(file) is not None]
    else:
        files = [Path(name) for name in glob.glob(path, recursive=True) if Path(name).is_file()]
    if not files:
        raise DataError(
            "no data file is there", value=path, fix=f"give a file, folder or glob of {', '.join(SUFFIXES)}, also .gz"
        )
    return sorted(files)


def read_records(file: Path, *, first: int = 0, wanted: Callable[[int], bool] | None = None) -> Iterator[Record | None]:
    """The records of one file in order, streamed except for a `.json` array; None for each blank or unwanted one.

    Args:
        file: .jsonl, .json (an array, or one object a line), .txt (one text a line), each also .gz, or .parquet.
        first: ordinal of the first record.
        wanted: given a record's ordinal, whether to parse it; others are skipped cheaply.

    Raises:
        DataError: the file as a whole is unreadable: truncated gzip, an unknown suffix, a broken array.
    """
    kind = _kind(file)
    if kind is None:
        raise DataError("a data file of an unknown kind", value=str(file), fix=f"use {', '.join(SUFFIXES)}, also .gz")
    is_wanted = _every if wanted is None else lambda index: wanted(first + index)
    if kind == ".parquet":
        yield from _parquet_records(file, is_wanted)
        return
    try:
        with _open(file) as stream:
            if kind == ".json" and _starts_array(stream):
                yield from _array_records(stream, str(file), is_wanted)
            else:
                parse = _text_line if kind == ".txt" else parse_object
                yield from _line_records(stream, str(file), is_wanted, parse)
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{file} is a damaged gzip file: {error}", fix="download or write it again") from error


def parse_object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        RowRefused: `invalid_utf8`, `invalid_json`, `duplicate_key` or `not_an_object`.
    """
    try:
        value = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowRefused("invalid_utf8", f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise RowRefused("invalid_json", f"not JSON: {error}") from None
    except RecursionError:
        raise RowRefused("invalid_json", "nested too deeply") from None
    except ValueError as error:  # an integer of more digits than Python converts
        raise RowRefused("invalid_json", f"not usable JSON: {error}") from None
    if not isinstance(value, dict):
        raise RowRefused("not_an_object", f"a row is a JSON object, not {type(value).__name__}")
    return value


def _every(ordinal: int) -> bool:
    return ordinal >= 0


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowRefused("duplicate_key", f"the key {twice!r} is there twice")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _kind(file: Path) -> str | None:
    suffix = Path(file.name.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in SUFFIXES else None


def _open(file: Path) -> Stream:
    if file.name.endswith(".gz"):
        return gzip.open(file, "rb")
    return file.open("rb")


def _text_line(line: bytes) -> dict[str, Any]:
    try:
        return {"text": line.decode("utf-8").rstrip("\r\n")}
    except UnicodeDecodeError as error:
        raise RowRefused("invalid_utf8", f"not UTF-8 at byte {error.start}") from None


def _line_records(
    stream: Stream, name: str, wanted: Callable[[int], bool], parse: Callable[[bytes], dict[str, Any]]
) -> Iterator[Record | None]:
    for index, line in enumerate(_lines(stream)):
        if index == 0 and line is not None:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not wanted(index) or (line is not None and not line.strip()):
            yield None
            continue
        origin = Origin(name, index + 1)
        try:
            if line is None:
                raise RowRefused("line_too_long", f"a line of over {MAX_LINE_BYTES} bytes")
            yield Record(origin, parse(line))
        except RowRefused as refused:
            yield Record(origin, {}, refused)


def _lines(stream: Stream) -> Iterator[bytes | None]:
    """Lines of a file; None for one that is too long, which is skipped without being held."""
    while line := stream.readline(MAX_LINE_BYTES):
        if len(line) < MAX_LINE_BYTES or line.endswith(b"\n"):
            yield line
            continue
        while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
            pass
        yield None


def _starts_array(stream: Stream) -> bool:
    start = stream.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    stream.seek(0)
    return start.startswith(b"[")


def _array_records(stream: Stream, name: str, wanted: Callable[[int], bool]) -> Iterator[Record | None]:
    """Elements of a JSON array; `line` is where the element starts."""
    try:
        text = stream.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 at byte {error.start}", fix="convert it to UTF-8") from None
    place = _skip_space(text, text.index("[") + 1)
    line, counted = 1, 0
    ordinal = 0
    while text[place : place + 1] != "]":
        line, counted = line + text.count("\n", counted, place), place
        origin = Origin(name, line)
        record, place = _element(text, place, origin)
        yield record if wanted(ordinal) else None
        ordinal += 1
        place = _skip_space(text, place)
        if text[place : place + 1] == ",":
            place = _skip_space(text, place + 1)
        elif text[place : place + 1] != "]":
            raise DataError(
                f"{origin}: the array is broken after this element", fix="mend the file, or write it as .jsonl"
            )


def _element(text: str, place: int, origin: Origin) -> tuple[Record, int]:
    try:
        value, end = _DECODER.raw_decode(text, place)
    except RowRefused as refused:
        _, end = json.JSONDecoder().raw_decode(text, place)
        return Record(origin, {}, refused), end
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{origin}: the array cannot be read from here on: {error}", fix="mend the file, or write it as .jsonl"
        ) from None
    if isinstance(value, dict):
        return Record(origin, value), end
    return Record(origin, {}, RowRefused("not_an_object", f"a row is an object, not {type(value).__name__}")), end


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\n", "\r"):
        place += 1
    return place


def _parquet_records(file: Path, wanted: Callable[[int], bool]) -> Iterator[Record | None]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{file} is not a readable parquet file: {error}", fix="download or write it again") from error
    index = 0
    with table:
        for batch in table.iter_batches(batch_size=1024):
            wanted_here = [wanted(index + offset) for offset in range(batch.num_rows)]
            for offset, value in enumerate(_values(batch) if any(wanted_here) else [None] * batch.num_rows):
                origin = Origin(str(file), index + offset + 1)
                if not wanted_here[offset]:
                    yield None
                elif value is None:
                    yield Record(origin, {}, RowRefused("invalid_utf8", "a text column is not UTF-8"))
                else:
                    yield Record(origin, value)
            index += batch.num_rows


def _values(batch: Any) -> list[dict[str, Any] | None]:
    """The rows of an Arrow batch; None for one whose text is not UTF-8, which Arrow does not check."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        if batch.num_rows == 1:
            return [None]
        return [value for index in range(batch.num_rows) for value in _values(batch.slice(index, 1))]


def is_missing(value: object) -> bool:
    """Whether a field counts as absent: null, or the NaN that table libraries write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))
