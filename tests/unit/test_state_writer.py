"""DeepSpeed's files taken into memory: their bytes are those of the moment, and what cannot be written is told."""

import hashlib
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.model_checkpointing import CHECKPOINT_SERIALIZATION

from rlsys.checkpoint.seal import FileDigest
from rlsys.models.state_writer import StateWriter


@pytest.fixture
def writer() -> StateWriter:
    return StateWriter(SimpleNamespace(checkpoint_config={CHECKPOINT_SERIALIZATION: True}))


def wait(writer: StateWriter) -> None:
    deadline = time.monotonic() + 30
    while not writer.written():
        assert time.monotonic() < deadline


def digest_of(path: Path) -> dict[Path, FileDigest]:
    """Read from the disk, by Python's own means."""
    content = path.read_bytes()
    return {path: FileDigest(len(content), hashlib.sha256(content).hexdigest())}


def test_a_file_holds_what_was_there_when_it_was_taken(writer: StateWriter, tmp_path: Path):
    weight = torch.arange(4.0)
    state = {"weight": weight, "tied": weight, "steps": [1, 2]}
    writer.save(state, tmp_path / "state.pt")
    weight.mul_(0)
    state["steps"].append(3)
    wait(writer)
    assert writer.digests == digest_of(tmp_path / "state.pt")
    loaded = torch.load(tmp_path / "state.pt", weights_only=True)
    assert loaded["weight"].tolist() == [0.0, 1.0, 2.0, 3.0] and loaded["steps"] == [1, 2]
    assert loaded["weight"].data_ptr() == loaded["tied"].data_ptr()


def test_a_file_that_cannot_be_written_is_told_once_and_the_next_one_can_be(writer: StateWriter, tmp_path: Path):
    writer.save({"a": 1}, tmp_path / "missing" / "state.pt")
    writer.save({"a": 1}, tmp_path / "later.pt")
    with pytest.raises(FileNotFoundError, match="missing"):
        wait(writer)
    assert writer.written()
    writer.save({"a": 2}, tmp_path / "state.pt")
    wait(writer)
    assert torch.load(tmp_path / "state.pt", weights_only=True) == {"a": 2}
    assert writer.digests == digest_of(tmp_path / "state.pt")
