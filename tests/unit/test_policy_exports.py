"""Exported policies: which of them becomes hf/, whatever a resume has forgotten."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rlsys.checkpoint.policy_exports import PolicyExports


def model(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(text)

    return write


@pytest.fixture
def exports(tmp_path: Path) -> PolicyExports:
    made = PolicyExports(tmp_path)
    for step in (10, 20, 30):
        made.add(step, model(f"of {step}"))
    return made


def names(exports: PolicyExports) -> list[str]:
    return sorted(path.name for path in exports.folder.iterdir() if path.is_dir())


def test_the_best_step_becomes_hf_though_later_ones_were_written(exports: PolicyExports):
    exports.finish(20)
    assert names(exports) == ["hf"]
    assert (exports.folder / "hf" / "weights").read_text() == "of 20"


def test_models_before_the_committed_best_are_removed(exports: PolicyExports):
    exports.forget_before(20)
    assert names(exports) == ["hf.step_000020", "hf.step_000030"]
    assert [exports.holds(step) for step in (10, 20, 30)] == [False, True, True]


def test_a_step_that_is_done_again_takes_the_place_of_its_model(exports: PolicyExports):
    exports.add(20, model("again"))
    exports.finish(20)
    assert (exports.folder / "hf" / "weights").read_text() == "again"


def test_a_model_that_could_not_be_written_takes_nobodys_place(exports: PolicyExports):
    def fails(folder: Path) -> None:
        model("half")(folder)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        exports.add(20, fails)
    assert (exports.folder / "hf.step_000020" / "weights").read_text() == "of 20"
    exports.add(20, model("whole"))
    assert (exports.folder / "hf.step_000020" / "weights").read_text() == "whole"


def test_a_stage_that_goes_on_after_its_end_has_its_model_under_its_step(exports: PolicyExports):
    exports.finish(30)
    exports.reopen()
    assert names(exports) == ["hf.step_000030"]
    exports.reopen()
    exports.add(40, model("of 40"))
    exports.finish(40)
    assert (exports.folder / "hf" / "weights").read_text() == "of 40"
