"""Rows into micro-batches: every token exactly once, units whole, budgets kept, documents apart."""

import numpy as np
import pytest

from rlsys.data.packing import Row, dummy_micro_batch, micro_batches
from rlsys.errors import DataError


def row(length: int, first: int = 1) -> Row:
    ids = np.arange(first, first + length, dtype=np.int32)
    return Row(ids, {"mask": ids.astype(np.float32) * 0.5})


def test_best_fit_places_documents_by_hand():
    units = [[row(5, 10)], [row(3, 20)], [row(2, 30)], [row(4, 40)]]
    (batch,) = micro_batches(units, tokens_per_micro_batch=16, row_length=8)
    # 5 goes to row 0, 4 to row 1, 3 to row 0 (3 left, the tighter fit), 2 to row 1.
    assert batch.input_ids.tolist() == [[10, 11, 12, 13, 14, 20, 21, 22], [40, 41, 42, 43, 30, 31, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3, 0, 1, 0, 1]]
    assert batch.document_ids.tolist() == [[0, 0, 0, 0, 0, 2, 2, 2], [1, 1, 1, 1, 3, 3, -1, -1]]
    assert batch.row_indices.tolist() == [0, 3, 1, 2]
    assert batch.fields["mask"][1].tolist() == [20.0, 20.5, 21.0, 21.5, 15.0, 15.5, 0.0, 0.0]
    assert [part.tolist() for part in batch.documents(batch.input_ids)] == [
        list(range(10, 15)), list(range(40, 44)), [20, 21, 22], [30, 31],
    ]  # fmt: skip


def test_one_document_a_row_counts_positions_through_the_padding():
    """No position restarts, so that transformers builds no packed mask: causal attention alone keeps padding out."""
    (batch,) = micro_batches([[row(4)], [row(2)]], tokens_per_micro_batch=100, packing="bucketed")
    assert batch.input_ids.tolist() == [[1, 2, 3, 4], [1, 2, 0, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_buckets_hold_neighbours_in_length_and_keep_the_budget():
    lengths = [7, 2, 6, 3, 5]
    batches = micro_batches([[row(n)] for n in lengths], tokens_per_micro_batch=14, packing="bucketed")
    assert [batch.input_ids.shape for batch in batches] == [(2, 7), (2, 5), (1, 2)]
    assert [batch.row_indices.tolist() for batch in batches] == [[0, 2], [4, 3], [1]]


def test_micro_batches_are_cut_to_the_longest_row_in_them():
    units = [[row(8)], [row(3)], [row(2)]]
    batches = micro_batches(units, tokens_per_micro_batch=8, row_length=8)
    assert [batch.input_ids.shape for batch in batches] == [(1, 8), (1, 5)]


@pytest.mark.parametrize("packing", ["packed", "bucketed"])
@pytest.mark.parametrize("rows_a_unit", [1, 2, 3])
def test_every_row_is_placed_once_and_units_stay_together(packing, rows_a_unit):
    rng = np.random.default_rng(rows_a_unit)
    units = [[row(int(n), int(n) + 7) for n in rng.integers(1, 40, rows_a_unit)] for _ in range(57)]
    rows = [r for unit in units for r in unit]
    budget = 160
    batches = micro_batches(units, tokens_per_micro_batch=budget, packing=packing)
    seen: list[int] = []
    for batch in batches:
        assert batch.input_ids.size <= budget
        for n, document in enumerate(batch.documents(batch.input_ids)):
            assert document.tolist() == rows[batch.row_indices[n]].token_ids.tolist()
        for n, values in enumerate(batch.documents(batch.fields["mask"])):
            assert values.tolist() == rows[batch.row_indices[n]].fields["mask"].tolist()
        for n, positions in enumerate(batch.documents(batch.position_ids)):
            assert positions.tolist() == list(range(rows[batch.row_indices[n]].num_tokens))
        whole_units = batch.row_indices.reshape(-1, rows_a_unit)
        assert (whole_units[:, 0] % rows_a_unit == 0).all()
        assert (np.diff(whole_units, axis=1) == 1).all()
        assert (batch.fields["mask"][batch.document_ids < 0] == 0).all()
        seen += batch.row_indices.tolist()
    assert sorted(seen) == list(range(len(rows)))


def test_packing_wastes_little():
    rng = np.random.default_rng(0)
    units = [[row(int(n))] for n in rng.integers(10, 200, 300)]
    batches = micro_batches(units, tokens_per_micro_batch=2048)
    useful = sum(unit[0].num_tokens for unit in units)
    assert useful / sum(batch.input_ids.size for batch in batches) > 0.93


def test_a_unit_over_the_budget_gets_a_micro_batch_of_its_own():
    batches = micro_batches([[row(30), row(30)], [row(4), row(4)]], tokens_per_micro_batch=16)
    assert [batch.row_indices.tolist() for batch in batches] == [[0, 1], [2, 3]]


def test_no_units_no_micro_batches():
    assert micro_batches([], tokens_per_micro_batch=8) == []


def test_a_dummy_has_nothing_to_learn():
    batch = dummy_micro_batch(("mask", "advantages"))
    assert batch.is_dummy and batch.input_ids.tolist() == [[0, 0]] and batch.fields["advantages"].tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([Row(np.zeros(0, np.int32), {})], "row 0 has no tokens"),
        ([row(2), Row(np.ones(2, np.int32), {})], "row 1 has other fields"),
        ([Row(np.ones(3, np.int32), {"mask": np.ones(2, np.float32)})], "field mask of row 0 is not aligned"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        micro_batches([[r] for r in rows], tokens_per_micro_batch=8)
