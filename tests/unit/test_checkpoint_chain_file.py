"""The chain file goes forward with commits and back with resumes."""

from pathlib import Path

import pytest

from rlsys.checkpoint.chain_file import ChainFile
from rlsys.errors import CheckpointError


def test_a_rewind_forgets_what_was_not_committed(tmp_path: Path):
    chain = ChainFile(tmp_path / "ends.jsonl")
    assert list(chain.records()) == []
    committed = chain.append([[0, "trained", 1], [1, "filtered", "equal\nrewards"]])
    later = chain.append([[2, "expired", 3]])
    assert later > committed == (tmp_path / "ends.jsonl").read_bytes().index(b"[2,")
    (tmp_path / "ends.jsonl").open("ab").write(b'[3, "tra')  # torn by a crash
    chain.rewind(committed)
    assert list(chain.records()) == [[0, "trained", 1], [1, "filtered", "equal\nrewards"]]
    chain.append([[2, "trained", 2]])
    assert list(chain.records())[-1] == [2, "trained", 2]
    chain.rewind(0)
    assert list(chain.records()) == []


def test_no_records_leave_the_position(tmp_path: Path):
    chain = ChainFile(tmp_path / "ends.jsonl")
    assert chain.append([]) == 0
    position = chain.append([1])
    assert chain.append([]) == position == 2


def test_a_file_that_lost_committed_records_is_an_error(tmp_path: Path):
    chain = ChainFile(tmp_path / "ends.jsonl")
    chain.rewind(0)
    with pytest.raises(CheckpointError, match=r"lost records.*0 bytes, not 5"):
        chain.rewind(5)
    chain.append([[1, 2], [3, 4]])
    with pytest.raises(CheckpointError, match="no record that ends there"):
        chain.rewind(5)
    assert list(chain.records()) == [[1, 2], [3, 4]]
