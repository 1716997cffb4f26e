"""The store keeps whole lines only, whatever was cut or damaged, and refuses to hold one key twice."""

import json
import subprocess
import sys

import pytest

from rlsys.data.response_store import ResponseStore
from rlsys.errors import DataError

ITEMS = [(("p/0", "sft", 0), {"text": "ä\ud800\n"}), (("p/0", "sft", 1), None), (("p/1", "other", 0), [1, 2.5])]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "answers.jsonl"


def test_what_was_appended_is_there_after_reopening(path):
    with ResponseStore(path) as store:
        store.append(*ITEMS[0])
        store.append_all(ITEMS[1:])
        assert [(key, store[key]) for key in store] == ITEMS
    with ResponseStore(path) as store:
        assert [(key, store[key]) for key in store] == ITEMS
        assert (len(store), ("p/0", "sft", 1) in store, ("p/0", "sft", 2) in store) == (3, True, False)
        store.append(("p/2", "sft", 0), "more")
        assert store[("p/2", "sft", 0)] == "more"


def test_a_key_that_comes_twice_is_refused_and_nothing_of_its_batch_written(path):
    with ResponseStore(path) as store:
        store.append(*ITEMS[0])
        before = path.read_bytes()
        with pytest.raises(ValueError, match="asked for twice"):
            store.append_all([ITEMS[1], ITEMS[0]])
        with pytest.raises(ValueError, match="asked for twice"):
            store.append_all([ITEMS[1], ITEMS[1]])
        with pytest.raises(ValueError, match="not JSON compliant"):
            store.append(("nan",), float("nan"))
        assert path.read_bytes() == before


def test_cut_at_every_byte_it_opens_with_the_whole_lines_before_the_cut(path):
    with ResponseStore(path) as store:
        store.append_all(ITEMS)
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        expected = ITEMS[: whole[:cut].count(b"\n")]
        with ResponseStore(path) as store:
            assert [(key, store[key]) for key in store] == expected
            store.append_all(ITEMS[len(expected) :])
        assert path.read_bytes() == whole


def test_a_damaged_line_is_counted_and_can_be_asked_for_again(path):
    with ResponseStore(path) as store:
        store.append_all(ITEMS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 40 + b"\n" + lines[2])
    with ResponseStore(path) as store:
        assert store.num_damaged == 1
        assert list(store) == [ITEMS[0][0], ITEMS[2][0]]
        store.append(*ITEMS[1])
        assert store[ITEMS[1][0]] is None
    assert [json.loads(line)["key"][0] for line in path.read_bytes().splitlines() if b"\0" not in line] == [
        "p/0", "p/1", "p/0",
    ]  # fmt: skip


def test_two_processes_never_share_a_store(path):
    program = f"from rlsys.data.response_store import ResponseStore; ResponseStore({str(path)!r})"
    with ResponseStore(path):
        with pytest.raises(DataError, match="another process has the store open"):
            ResponseStore(path)
        other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert other.returncode == 1
        assert "another process has the store open" in other.stderr
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
