"""Stores are whole or absent, are read row by row, and notice damage."""

import json
from pathlib import Path

import numpy as np
import pytest

from rlsys.data.token_store import PairStore, TokenStore, read_manifest, write_pair_store, write_token_store
from rlsys.data.tokenized import TokenizedPair, TokenizedRow, cut_prompt, cut_right
from rlsys.errors import DataError


def row(*ids: int, learned: int = 1) -> TokenizedRow:
    weights = np.zeros(len(ids), np.float32)
    weights[len(ids) - learned :] = 1.5
    return TokenizedRow(np.array(ids, np.int32), weights)


ROWS = [row(5, 6, 7), row(8, 9, 10, 11, 2, learned=4), row(3, 2)]


def equal(left: TokenizedRow, right: TokenizedRow) -> bool:
    return (
        left.token_ids.tolist() == right.token_ids.tolist()
        and left.loss_weights.tolist() == right.loss_weights.tolist()
    )


def test_rows_are_read_back(tmp_path: Path):
    manifest = write_token_store(tmp_path / "store", iter(ROWS), key="abc", about={"dropped": 3})
    store = TokenStore(tmp_path / "store")
    assert (len(store), store.lengths.tolist(), store.lengths.dtype) == (3, [3, 5, 2], np.int32)
    assert all(equal(store.row(index), expected) for index, expected in enumerate(ROWS))
    assert store.row(1).token_ids.dtype == np.int32 and store.row(1).loss_weights.dtype == np.float32
    assert {name: manifest[name] for name in ("layout", "key", "rows", "tokens", "targets", "longest", "about")} == {
        "layout": "rows",
        "key": "abc",
        "rows": 3,
        "tokens": 10,
        "targets": 6,
        "longest": 5,
        "about": {"dropped": 3},
    }
    assert read_manifest(tmp_path / "store") == manifest
    for index in (-1, 3):
        with pytest.raises(IndexError):
            store.row(index)


def test_the_arrays_are_plain_npy_files(tmp_path: Path):
    write_token_store(tmp_path / "store", ROWS)
    assert np.load(tmp_path / "store" / "token_ids.npy").tolist() == [5, 6, 7, 8, 9, 10, 11, 2, 3, 2]
    assert np.load(tmp_path / "store" / "offsets.npy").tolist() == [0, 3, 8, 10]


def test_a_row_is_a_copy(tmp_path: Path):
    """A map must not be written through, and must not keep the whole file alive for one row."""
    write_token_store(tmp_path / "store", ROWS)
    store = TokenStore(tmp_path / "store")
    store.row(0).token_ids[0] = 99
    assert store.row(0).token_ids[0] == 5


def test_pairs_are_read_back(tmp_path: Path):
    pairs = [TokenizedPair(ROWS[0], ROWS[1], 2.5), TokenizedPair(ROWS[2], ROWS[0])]
    manifest = write_pair_store(tmp_path / "pairs", iter(pairs))
    store = PairStore(tmp_path / "pairs")
    assert (len(store), store.lengths.tolist(), manifest["rows"]) == (2, [[3, 5], [2, 3]], 4)
    for index, expected in enumerate(pairs):
        pair = store.pair(index)
        assert equal(pair.chosen, expected.chosen) and equal(pair.rejected, expected.rejected)
    assert store.pair(0).margin == 2.5 and np.isnan(store.pair(1).margin)
    with pytest.raises(DataError, match="no store of rows"):
        TokenStore(tmp_path / "pairs")
    with pytest.raises(IndexError):
        store.pair(2)


def test_the_digest_is_of_the_content(tmp_path: Path):
    first = write_token_store(tmp_path / "a", ROWS, key="x")["digest"]
    assert write_token_store(tmp_path / "b", ROWS, key="y")["digest"] == first
    assert write_token_store(tmp_path / "c", ROWS[:2])["digest"] != first
    assert write_token_store(tmp_path / "d", [*ROWS[:2], row(3, 2, learned=2)])["digest"] != first
    assert (
        write_token_store(tmp_path / "e", [row(5, 6), row(7, 8, 9, 10, 11, 2, learned=4), ROWS[2]])["digest"] != first
    )


def test_a_truncated_array_is_refused_at_once(tmp_path: Path):
    write_token_store(tmp_path / "store", ROWS)
    np.save(tmp_path / "store" / "loss_weights.npy", np.zeros(4, np.float32))
    with pytest.raises(DataError, match="do not fit"):
        TokenStore(tmp_path / "store")


def test_nothing_is_published_when_writing_fails(tmp_path: Path):
    def failing():
        yield ROWS[0]
        raise OSError("disk full")

    write_token_store(tmp_path / "store", ROWS[:1])
    before = read_manifest(tmp_path / "store")
    for target in ("store", "other"):
        with pytest.raises(OSError, match="disk full"):
            write_token_store(tmp_path / target, failing())
    assert read_manifest(tmp_path / "store") == before
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_a_store_replaces_a_store_and_nothing_else(tmp_path: Path):
    write_token_store(tmp_path / "store", ROWS)
    write_token_store(tmp_path / "store", ROWS[:1])
    assert len(TokenStore(tmp_path / "store")) == 1
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="choose another folder"):
        write_token_store(mine, ROWS)
    assert (mine / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "bad",
    [[], [TokenizedRow(np.array([1, 2], np.int32), np.ones(3, np.float32))], [row()]],
    ids=["no rows", "more weights than tokens", "no tokens"],
)
def test_unusable_rows_are_refused(tmp_path: Path, bad: list[TokenizedRow]):
    with pytest.raises(DataError):
        write_token_store(tmp_path / "store", bad)
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_another_version_is_no_store(tmp_path: Path):
    manifest = write_token_store(tmp_path / "store", ROWS)
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(manifest | {"version": 0}))
    with pytest.raises(DataError, match="no store of rows"):
        TokenStore(tmp_path / "store")


def test_cuts():
    whole = TokenizedRow(np.arange(8, dtype=np.int32), np.array([0, 0, 0, 0, 1, 1, 0, 1], np.float32))
    assert cut_right(whole, 5).token_ids.tolist() == [0, 1, 2, 3, 4]
    assert cut_prompt(whole, 2).token_ids.tolist() == [2, 3, 4, 5, 6, 7]
    assert cut_prompt(whole, 2).loss_weights.tolist() == [0, 0, 1, 1, 0, 1]
    assert cut_prompt(whole, 4) is whole
    assert whole.num_targets == 3
    assert TokenizedRow(np.array([4], np.int32), np.array([1], np.float32)).num_targets == 0
