"""A file is whole or as it was."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlsys.checkpoint.durable_file import write_durably


def test_a_file_is_written_whole_or_in_parts(tmp_path: Path):
    write_durably(tmp_path / "file", b"one\n")
    assert (tmp_path / "file").read_bytes() == b"one\n"
    write_durably(tmp_path / "file", iter([b"two\n", b"three\n"]))
    assert (tmp_path / "file").read_bytes() == b"two\nthree\n"


def test_an_error_on_the_way_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path):
    def parts() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("injected")

    write_durably(tmp_path / "file", b"old")
    with pytest.raises(RuntimeError, match="injected"):
        write_durably(tmp_path / "file", parts())
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"old"
