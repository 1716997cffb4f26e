"""Rows of tokens into micro-batches: best-fit packing with document boundaries, or length buckets.

A document is one row's tokens. Positions restart at every document, which is what makes transformers build a
block-diagonal attention mask (no attention mask is passed). In a micro-batch whose rows all hold one document the
positions of the padding go on counting instead: causal attention alone keeps it out of the document, and the cheaper
mask-free kernel is used.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from rlsys.errors import DataError

Packing: TypeAlias = Literal["packed", "bucketed"]


@dataclass(frozen=True, slots=True)
class Row:
    """One document with its per-token fields.

    >>> Row(np.array([5, 6, 7], np.int32), {"mask": np.array([0, 1, 1], np.float32)}).num_tokens
    3
    """

    token_ids: np.ndarray
    """`[L]` int32."""
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Name to `[L]` float32, aligned with `token_ids`: entry t belongs to token t, not to its prediction of t + 1."""

    @property
    def num_tokens(self) -> int:
        """L."""
        return len(self.token_ids)


Unit: TypeAlias = Sequence[Row]
"""Rows that must share a micro-batch: one row, or a chosen and rejected pair."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """R packed rows of L positions, holding N documents. Padding has token 0, fields 0 and document -1."""

    input_ids: np.ndarray
    """`[R, L]` int64."""
    position_ids: np.ndarray
    """`[R, L]` int64, from 0 in every document."""
    document_ids: np.ndarray
    """`[R, L]` int64: which of the N documents a position belongs to, -1 for padding."""
    fields: Mapping[str, np.ndarray]
    """Name to `[R, L]` float32."""
    row_indices: np.ndarray
    """`[N]`: which input row (units flattened in order) document n is. A unit's documents are neighbours, in order."""
    placements: np.ndarray
    """`[N, 3]`: packed row, first position and number of tokens of document n."""
    is_dummy: bool = False
    """Filled only so that every rank runs the same number of micro-batches: weighs nothing."""

    @property
    def num_documents(self) -> int:
        """N."""
        return len(self.row_indices)

    def documents(self, values: np.ndarray) -> list[np.ndarray]:
        """Cut `[R, L]` values into one array per document, in the order of `row_indices`."""
        return [values[row, start : start + length] for row, start, length in self.placements]


def dummy_micro_batch(field_names: Sequence[str] = ()) -> MicroBatch:
    """One document of two tokens with every field 0, for a rank that has fewer micro-batches than another."""
    return _assemble(
        [Row(np.zeros(2, np.int32), dict.fromkeys(field_names, np.zeros(2, np.float32)))], [(0, 0, 0)], True
    )


def micro_batches(
    units: Sequence[Unit], *, tokens_per_micro_batch: int, row_length: int | None = None, packing: Packing = "packed"
) -> list[MicroBatch]:
    """Place every row of every unit in exactly one micro-batch.

    Args:
        units: may be empty; rows must not be.
        tokens_per_micro_batch: positions a micro-batch may hold, padding included. Exceeded only by a micro-batch
            of one unit that does not fit by itself.
        row_length: positions of a packed row. Attention costs its square: None takes the longest document, which is
            the cheapest choice where attention is computed densely under a mask. Longer documents lengthen it.
        packing: `packed` puts several documents in a row, best fit first; `bucketed` one, with documents of similar
            length together.

    Raises:
        DataError: a row is empty, or its fields do not match its tokens or the other rows' fields.
    """
    rows = [row for unit in units for row in unit]
    if not rows:
        return []
    _check(rows)
    first_row = np.cumsum([0, *(len(unit) for unit in units)])
    longest = max(row.num_tokens for row in rows)
    if packing == "bucketed":
        placed = _bucketed(units, tokens_per_micro_batch)
    else:
        placed = _packed(units, tokens_per_micro_batch, max(row_length or longest, longest))
    batches = []
    for members in placed:
        placements = [(int(first_row[unit]) + k, *place) for unit, places in members for k, place in enumerate(places)]
        batches.append(_assemble(rows, placements))
    return batches


_Places: TypeAlias = list[tuple[int, int]]
"""Packed row and first position of each row of a unit."""


def _bucketed(units: Sequence[Unit], tokens_per_micro_batch: int) -> list[list[tuple[int, _Places]]]:
    lengths = np.array([max(row.num_tokens for row in unit) for unit in units])
    placed: list[list[tuple[int, _Places]]] = []
    num_rows = row_length = 0
    for unit in np.argsort(-lengths, kind="stable"):
        size = len(units[unit])
        if not placed or (num_rows + size) * row_length > tokens_per_micro_batch:
            placed.append([])
            num_rows, row_length = 0, int(lengths[unit])
        placed[-1].append((int(unit), [(num_rows + k, 0) for k in range(size)]))
        num_rows += size
    return placed


def _packed(units: Sequence[Unit], tokens_per_micro_batch: int, row_length: int) -> list[list[tuple[int, _Places]]]:
    """Longest unit first, into the first micro-batch that takes it; within it each row where the least room is left."""
    totals = np.array([sum(row.num_tokens for row in unit) for unit in units])
    num_rows = max(1, tokens_per_micro_batch // row_length)
    placed: list[list[tuple[int, _Places]]] = []
    room: list[np.ndarray] = []
    first_open = 0
    smallest = min(row.num_tokens for unit in units for row in unit)
    for unit in np.argsort(-totals, kind="stable"):
        lengths = [row.num_tokens for row in units[unit]]
        for batch in range(first_open, len(placed) + 1):
            if batch == len(placed):
                placed.append([])
                room.append(np.full(max(num_rows, len(lengths)), row_length))
            places = _best_fit(room[batch], lengths, row_length)
            if places is not None:
                placed[batch].append((int(unit), places))
                break
        while first_open < len(placed) and room[first_open].max() < smallest:
            first_open += 1
    return placed


def _best_fit(room: np.ndarray, lengths: Sequence[int], row_length: int) -> _Places | None:
    """Place the lengths and take their room, or None, with the room untouched, where one does not fit."""
    taken: list[tuple[int, int]] = []
    places: _Places = []
    for length in lengths:
        left = np.where(room >= length, room, row_length + 1)
        row = int(left.argmin())
        if left[row] > row_length:
            for row, length in taken:
                room[row] += length
            return None
        places.append((row, row_length - int(room[row])))
        room[row] -= length
        taken.append((row, length))
    return places


def _assemble(rows: Sequence[Row], placements: list[tuple[int, int, int]], is_dummy: bool = False) -> MicroBatch:
    """`placements`: (input row, packed row, first position)."""
    lengths = [rows[index].num_tokens for index, _, _ in placements]
    num_rows = max(packed_row for _, packed_row, _ in placements) + 1
    width = max(start + length for (_, _, start), length in zip(placements, lengths, strict=True))
    one_document_a_row = len(placements) == num_rows
    names = rows[placements[0][0]].fields.keys()
    input_ids = np.zeros((num_rows, width), np.int64)
    document_ids = np.full((num_rows, width), -1, np.int64)
    fields = {name: np.zeros((num_rows, width), np.float32) for name in names}
    ends = np.zeros(num_rows, np.int64)
    positions = np.tile(np.arange(width), (num_rows, 1))
    for document, ((index, packed_row, start), length) in enumerate(zip(placements, lengths, strict=True)):
        span = slice(start, start + length)
        input_ids[packed_row, span] = rows[index].token_ids
        document_ids[packed_row, span] = document
        positions[packed_row, span] = np.arange(length)
        ends[packed_row] = max(ends[packed_row], start + length)
        for name, values in fields.items():
            values[packed_row, span] = rows[index].fields[name]
    if not one_document_a_row:
        past_end = np.arange(width) - ends[:, None]
        positions = np.where(past_end >= 0, past_end, positions)
    return MicroBatch(
        input_ids=input_ids,
        position_ids=positions,
        document_ids=document_ids,
        fields=fields,
        row_indices=np.array([index for index, _, _ in placements]),
        placements=np.array([(r, start, n) for (_, r, start), n in zip(placements, lengths, strict=True)]),
        is_dummy=is_dummy,
    )


def _check(rows: Sequence[Row]) -> None:
    names = rows[0].fields.keys()
    for index, row in enumerate(rows):
        if row.num_tokens == 0:
            raise DataError(f"row {index} has no tokens", fix="drop and count empty rows before packing")
        if row.fields.keys() != names:
            raise DataError(f"row {index} has other fields than row 0", value=(sorted(row.fields), sorted(names)))
        for name, values in row.fields.items():
            if len(values) != row.num_tokens:
                raise DataError(
                    f"field {name} of row {index} is not aligned with its {row.num_tokens} tokens", value=len(values)
                )
