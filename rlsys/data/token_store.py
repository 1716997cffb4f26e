"""Tokenized rows on disk: flat arrays that every learner rank maps into memory and reads only what it needs of.

    folder/manifest.json  token_ids.npy [T] int32  loss_weights.npy [T] float32  offsets.npy [R + 1] int64
           and for pairs  margins.npy [R / 2] float32; rows 2i and 2i + 1 are the chosen and rejected of pair i

A store is written beside its place, synced, digested and renamed once: a folder that exists is whole.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rlsys.data.publication import publishing
from rlsys.data.tokenized import TokenizedPair, TokenizedRow
from rlsys.errors import DataError

Layout = Literal["rows", "pairs"]

_MANIFEST = "manifest.json"
_VERSION = 1


def write_token_store(
    folder: str | Path, rows: Iterable[TokenizedRow], *, key: str = "", about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Writes rows, one after another as they come, and publishes the folder by one rename.

    Args:
        folder: where; an existing store there is replaced.
        rows: any number of rows; never all in memory.
        key: what the content was made from (`rlsys.data.prepare`), so that it can be reused; kept in the manifest.
        about: JSON values to keep in the manifest, such as counts of dropped rows; read after the last row.

    Returns: the manifest: layout, rows, tokens, targets, the longest row, and the SHA-256 of the content.

    Raises:
        DataError: there is no row, or a row's arrays do not fit each other; nothing is published.
    """
    return _write(Path(folder), ((row, None) for row in rows), layout="rows", key=key, about=about or {})


def write_pair_store(
    folder: str | Path, pairs: Iterable[TokenizedPair], *, key: str = "", about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """As `write_token_store`, for preference pairs."""
    return _write(Path(folder), _sides(pairs), layout="pairs", key=key, about=about or {})


class TokenStore:
    """Reads a store of rows. Opening it maps the arrays; no row is read before it is asked for.

    Raises:
        DataError: no whole store of rows is in the folder.
    """

    layout: Layout = "rows"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        if self.manifest is None or self.manifest["layout"] != self.layout:
            found = None if self.manifest is None else self.manifest["layout"]
            raise DataError(f"{self.folder} holds no store of {self.layout}", value=found, fix="prepare the data again")
        self._offsets = np.load(self.folder / "offsets.npy")
        self._token_ids = np.load(self.folder / "token_ids.npy", mmap_mode="r")
        self._loss_weights = np.load(self.folder / "loss_weights.npy", mmap_mode="r")
        if not len(self._token_ids) == len(self._loss_weights) == self._offsets[-1] == self.manifest["tokens"]:
            raise DataError(
                f"the arrays in {self.folder} do not fit each other", fix="delete the folder and prepare again"
            )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self._offsets) - 1

    @property
    def digest(self) -> str:
        """SHA-256 of all token ids, weights, offsets and margins."""
        return self.manifest["digest"]  # pyright: ignore[reportOptionalSubscript]

    @property
    def lengths(self) -> np.ndarray:
        """`[R]` int32: tokens of each row."""
        return np.diff(self._offsets).astype(np.int32)

    def row(self, index: int) -> TokenizedRow:
        """Row `index`, copied out of the map.

        Raises:
            IndexError: out of range.
        """
        if not 0 <= index < len(self._offsets) - 1:
            raise IndexError(f"row {index} of {len(self._offsets) - 1}")
        part = slice(self._offsets[index], self._offsets[index + 1])
        return TokenizedRow(np.array(self._token_ids[part]), np.array(self._loss_weights[part]))


class PairStore(TokenStore):
    """Reads a store of preference pairs: `len` counts pairs, `pair(i)` reads one."""

    layout: Layout = "pairs"

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder)
        self._margins = np.load(self.folder / "margins.npy")

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self._margins)

    @property
    def lengths(self) -> np.ndarray:
        """`[P, 2]` int32: tokens of the chosen and of the rejected row of each pair."""
        return super().lengths.reshape(-1, 2)

    def pair(self, index: int) -> TokenizedPair:
        """Pair `index`.

        Raises:
            IndexError: out of range.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"pair {index} of {len(self)}")
        return TokenizedPair(self.row(2 * index), self.row(2 * index + 1), float(self._margins[index]))


def read_manifest(folder: str | Path) -> dict[str, Any] | None:
    """The manifest of a store, or None where no whole one is."""
    path = Path(folder) / _MANIFEST
    if not path.is_file():
        return None
    manifest = json.loads(path.read_text())
    return manifest if manifest.get("version") == _VERSION else None


def _sides(pairs: Iterable[TokenizedPair]) -> Iterator[tuple[TokenizedRow, float | None]]:
    for pair in pairs:
        yield pair.chosen, pair.margin
        yield pair.rejected, None


def _write(
    folder: Path,
    rows: Iterable[tuple[TokenizedRow, float | None]],
    *,
    layout: Layout,
    key: str,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    with publishing(folder, marker=_MANIFEST) as draft:
        counts = _write_arrays(draft, rows, with_margins=layout == "pairs")
        manifest = {"version": _VERSION, "layout": layout, "key": key, **counts, "digest": _digest(draft, layout)}
        manifest["about"] = dict(about)
        (draft / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    return manifest


def _write_arrays(
    folder: Path, rows: Iterable[tuple[TokenizedRow, float | None]], *, with_margins: bool
) -> dict[str, int]:
    offsets, margins, targets = [0], [], 0
    with (
        _GrowingArray(folder / "token_ids.npy", np.int32) as ids,
        _GrowingArray(folder / "loss_weights.npy", np.float32) as weights,
    ):
        for row, margin in rows:
            if row.token_ids.ndim != 1 or row.token_ids.shape != row.loss_weights.shape or not len(row.token_ids):
                shapes = (row.token_ids.shape, row.loss_weights.shape)
                raise DataError("a row needs as many weights as tokens, and at least one", value=shapes)
            ids.append(row.token_ids)
            weights.append(row.loss_weights)
            offsets.append(offsets[-1] + len(row.token_ids))
            targets += row.num_targets
            if margin is not None:
                margins.append(margin)
    np.save(folder / "offsets.npy", np.array(offsets, np.int64))
    if with_margins:
        np.save(folder / "margins.npy", np.array(margins, np.float32))
    if len(offsets) == 1:
        raise DataError("there is no row to learn from", fix="see which rows were dropped and why")
    return {
        "rows": len(offsets) - 1,
        "tokens": offsets[-1],
        "targets": targets,
        "longest": int(np.diff(offsets).max()),
    }


class _GrowingArray:
    """A one-dimensional .npy file that is appended to; its header is written again with the true length at the end."""

    def __init__(self, path: Path, dtype: type[np.generic]) -> None:
        self._dtype = np.dtype(dtype)
        self._length = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(values, self._dtype).tobytes())
        self._length += len(values)

    def __enter__(self) -> "_GrowingArray":
        return self

    def __exit__(self, *exception: object) -> None:
        start = self._file.tell() - self._length * self._dtype.itemsize
        self._file.seek(0)
        self._write_header()
        assert self._file.tell() == start, "numpy leaves room in a header for its first axis to grow"
        self._file.close()

    def _write_header(self) -> None:
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self._length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _digest(folder: Path, layout: Layout) -> str:
    digest = hashlib.sha256()
    names = ["offsets.npy", "token_ids.npy", "loss_weights.npy", *(["margins.npy"] if layout == "pairs" else [])]
    for name in names:
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
