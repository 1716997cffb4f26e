"""The command line: where overrides may stand, what a dry run checks, and faults that are told before Ray starts."""

from pathlib import Path

import pytest

from launch.cli import main, parse
from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.checkpoint.run_folder import RunFolder

QUICKSTART = "configs/quickstart.toml"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.parametrize(
    "words",
    [
        ["run", "R", "seed=1", "name=b", "--dry-run"],
        ["run", "R", "seed=1", "--dry-run", "name=b"],
        ["run", "R", "--dry-run", "seed=1", "name=b"],
        ["run", "--dry-run", "R", "seed=1", "name=b"],
        ["run", "--resume", "auto", "R", "--dry-run", "seed=1", "--from", "sft", "name=b"],
        ["submit", "R", "--no-wait", "seed=1", "--retries", "0", "name=b"],
        ["evaluate", "M", "R", "seed=1", "name=b"],
    ],
)
def test_overrides_stand_before_and_after_options(words: list[str]):
    arguments = parse(words)
    assert (arguments.recipe, arguments.overrides) == ("R", ["seed=1", "name=b"])


@pytest.mark.parametrize(
    ("words", "unknown"),
    [
        (["run", "R", "--dryrun-all", "seed=1"], "--dryrun-all seed=1"),
        (["run", "R", "--dry-run", "seed=1", "-x"], "seed=1 -x"),
        (["doctor", "seed=1"], "seed=1"),
    ],
)
def test_unknown_options_are_refused(words: list[str], unknown: str, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert f"unrecognized arguments: {unknown}\n" in capsys.readouterr().err


def test_a_dry_run_checks_where_the_run_would_begin(tmp_path: Path, capsys):
    with RunFolder.open(tmp_path / "quickstart", resume="never", recipe_toml="", command=[]) as run:
        CheckpointStore(run.stage(2, "sft").path / "checkpoints").begin(1).commit()
    checkpoint = tmp_path / "quickstart" / "02-sft" / "checkpoints" / "step_000001"

    def dry_run(*options: str) -> tuple[int, str]:
        status = main(["run", QUICKSTART, "--dry-run", *options, f'runs="{tmp_path}"'])
        return status, capsys.readouterr().err

    assert dry_run("--from", "dpo", "--resume", str(checkpoint)) == (0, "")
    labels = "world, sft, preferences, reward, dpo, rlvr"
    assert dry_run("--from", "dpoo") == (2, f"rlsys: no such stage; got 'dpoo'; choose one of {labels}\n")
    status, told = dry_run("--resume", "/nowhere/step_000001")
    assert (status, told) == (
        1,
        "rlsys: --resume takes auto, never or the folder of a checkpoint; got '/nowhere/step_000001'; name a step_… "
        "folder\n",
    )
    status, told = dry_run("--resume", "never")
    assert status == 1 and told.startswith("rlsys: the run folder exists")


def test_a_model_that_is_not_there_is_told_before_anything_starts(tmp_path: Path, capsys):
    assert main(["evaluate", "/nowhere", QUICKSTART, f'runs="{tmp_path}"']) == 2
    assert capsys.readouterr().err == (
        "rlsys: MODEL cannot be evaluated: no such folder; got '/nowhere'; give one with config.json and safetensors, "
        "or hf:owner/name\n"
    )
    assert main(["evaluate", str(tmp_path), QUICKSTART, f'runs="{tmp_path}"']) == 2
    assert "MODEL cannot be evaluated: not a Hugging Face model folder; got" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_that_is_a_folder_is_one_sentence(capsys):
    assert main(["run", "."]) == 2
    assert capsys.readouterr().err == (
        "rlsys: the recipe . cannot be read; got 'Is a directory'; give the path of a readable .toml file\n"
    )
