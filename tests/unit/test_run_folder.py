"""What is in a run folder from the start, and what happens to one that exists."""

import json
import signal
from importlib.metadata import version
from pathlib import Path

import pytest
from killable_child import CONTEXT

from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.checkpoint.run_folder import RunFolder
from rlsys.errors import CheckpointError

RECIPE = 'name = "mine"\nseed = 0\n'


def open_run(path: Path, *, resume: str = "auto", recipe: str = RECIPE) -> RunFolder:
    return RunFolder.open(path, resume=resume, recipe_toml=recipe, command=["rlsys", "run", "mine.toml"])


def tree(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_a_new_run_records_recipe_versions_and_command(tmp_path: Path):
    path = tmp_path / "runs" / "mine"
    with open_run(path, resume="never") as run:
        assert run.recipe_changes == ()
    assert tree(path) == [".lock", "logs", "manifest.json", "recipe.toml"]
    assert (path / "recipe.toml").read_text() == RECIPE
    manifest = json.loads((path / "manifest.json").read_bytes())
    (start,) = manifest["starts"]
    assert start["command"] == ["rlsys", "run", "mine.toml"] and start["packages"]["numpy"] == version("numpy")
    # printf 'name = "mine"\nseed = 0\n' | sha256sum
    assert start["recipe_sha256"] == "1bbc12500536bb18c5c5382f179ae5f0fee35073e332afcca0b5c3aa9500d03a"


def test_never_refuses_a_folder_that_exists_and_auto_goes_on(tmp_path: Path):
    open_run(tmp_path / "mine").close()
    with pytest.raises(CheckpointError, match="the run folder exists"):
        open_run(tmp_path / "mine", resume="never")
    (tmp_path / "empty").mkdir()
    open_run(tmp_path / "empty", resume="never").close()
    with open_run(tmp_path / "mine") as run:
        assert run.recipe_changes == ()
    assert len(json.loads((tmp_path / "mine" / "manifest.json").read_bytes())["starts"]) == 2


def test_a_changed_recipe_is_told_and_the_one_before_is_kept(tmp_path: Path):
    open_run(tmp_path / "mine").close()
    with open_run(tmp_path / "mine", recipe=RECIPE.replace("0", "1")) as run:
        assert [line for line in run.recipe_changes if line[:2] in ("-s", "+s")] == ["-seed = 0", "+seed = 1"]
    assert (tmp_path / "mine" / "recipe.toml").read_text() == RECIPE.replace("0", "1")
    assert (tmp_path / "mine" / "recipe.1.toml").read_text() == RECIPE
    starts = json.loads((tmp_path / "mine" / "manifest.json").read_bytes())["starts"]
    assert starts[0]["recipe_sha256"] != starts[1]["recipe_sha256"]


def test_a_folder_that_is_not_ours_or_has_a_damaged_manifest_is_refused(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(CheckpointError, match="not a run folder"):
        open_run(tmp_path / "thesis")
    open_run(tmp_path / "mine").close()
    (tmp_path / "mine" / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        open_run(tmp_path / "mine")


def test_a_first_start_killed_before_its_manifest_does_not_block_the_next(tmp_path: Path):
    path = tmp_path / "mine"
    (path / "logs").mkdir(parents=True)
    for name in (".lock", "recipe.toml", ".manifest.json.ab12cd34"):
        (path / name).touch()
    open_run(path).close()


def hold(path: Path, is_open) -> None:
    open_run(path)
    is_open.set()
    signal.pause()


def test_two_drivers_never_share_a_folder_and_a_killed_one_holds_nothing(tmp_path: Path):
    path, is_open = tmp_path / "mine", CONTEXT.Event()
    child = CONTEXT.Process(target=hold, args=(path, is_open))
    child.start()
    assert is_open.wait(60)
    with pytest.raises(CheckpointError, match=rf"another driver.*process {child.pid} on"):
        open_run(path)
    child.kill()
    child.join(60)
    open_run(path).close()
    open_run(path).close()


def test_a_stage_has_its_folder_and_a_mark_when_done(tmp_path: Path):
    with open_run(tmp_path / "mine") as run:
        stage = run.stage(5, "rlvr")
        assert stage.path == tmp_path / "mine" / "05-rlvr" and stage.path.is_dir()
        assert stage.result is None
        stage.finish({"accuracy": 0.8})
        assert run.stage(5, "rlvr").result == {"accuracy": 0.8}


def test_stages_are_set_aside_from_one_on(tmp_path: Path):
    with open_run(tmp_path / "mine") as run:
        for number, label in ((1, "sft"), (2, "dpo"), (3, "rlvr")):
            run.stage(number, label).finish({})
        assert [path.name for path in run.set_aside_from(2)] == ["02-dpo.set-aside-1", "03-rlvr.set-aside-1"]
        assert run.stage(1, "sft").result == {} and run.stage(2, "dpo").result is None
        assert [path.name for path in run.set_aside_from(2)] == ["02-dpo.set-aside-2"]


def commit(folder: Path, *steps: int) -> None:
    for step in steps:
        CheckpointStore(folder).begin(step).commit()


def test_resuming_from_a_checkpoint_gives_up_everything_later(tmp_path: Path):
    path = tmp_path / "mine"
    with open_run(path) as run:
        for number, label in ((1, "sft"), (2, "rlvr"), (3, "evaluate")):
            commit(run.stage(number, label).path / "checkpoints", 10, 20)
            run.stage(number, label).finish({})
    checkpoint = path / "02-rlvr" / "checkpoints" / "step_000010"
    with open_run(path, resume=str(checkpoint)) as run:
        assert run.stage(1, "sft").result == {}
        assert run.stage(2, "rlvr").result is None
        assert CheckpointStore(run.stage(1, "sft").path / "checkpoints").steps == [10, 20]
        assert CheckpointStore(run.stage(2, "rlvr").path / "checkpoints").steps == [10]
        assert (path / "03-evaluate.set-aside-1").is_dir() and not (path / "03-evaluate").exists()


def test_resuming_from_what_is_no_checkpoint_of_this_run_is_refused(tmp_path: Path, monkeypatch):
    for name in ("mine", "other"):
        with open_run(tmp_path / name) as run:
            commit(run.stage(1, "sft").path / "checkpoints", 1)
    checkpoints = tmp_path / "mine" / "01-sft" / "checkpoints"
    (checkpoints / "step_000002").mkdir()
    for wrong, message in (
        (tmp_path / "nowhere", "auto, never or the folder"),
        (checkpoints, "auto, never or the folder"),
        (checkpoints / "step_000002", "damaged or none"),
        (tmp_path / "other" / "01-sft" / "checkpoints" / "step_000001", "not of the run"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_run(tmp_path / "mine", resume=str(wrong))
    monkeypatch.setattr(Path, "is_dir", lambda path: True)
    with pytest.raises(CheckpointError, match="not of the run"):
        RunFolder.check(tmp_path / "mine", resume="/step_000001")
    monkeypatch.undo()
    open_run(tmp_path / "mine").close()  # the lock was let go each time


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written to"):
        open_run(tmp_path / "file" / "mine")
    with pytest.raises(CheckpointError, match="not a run folder"):
        open_run(tmp_path / "file")


def test_a_check_finds_what_a_start_would_and_makes_nothing(tmp_path: Path):
    path = tmp_path / "mine"
    assert RunFolder.check(path, resume="auto") == ([], None) and not path.exists()
    with open_run(path) as run:
        commit(run.stage(1, "sft").path / "checkpoints", 1)
    before = tree(path)
    checkpoint = path / "01-sft" / "checkpoints" / "step_000001"
    starts, found = RunFolder.check(path, resume=str(checkpoint))
    assert (len(starts), found) == (1, checkpoint) and tree(path) == before
    with pytest.raises(CheckpointError, match="the run folder exists"):
        RunFolder.check(path, resume="never")
