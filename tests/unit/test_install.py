"""What a newcomer's machine may lack: one clear sentence each from the installer, and `rlsys doctor`."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from launch import doctor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the installer reads, without .venv."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def install(checkout: Path, **environment: str) -> list[str]:
    """What it complains of."""
    done = subprocess.run(
        ["/bin/sh", "requirements/install.sh"],
        cwd=checkout,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stderr.splitlines()


def tools(folder: Path, *names: str) -> str:
    """A PATH with these alone."""
    folder.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return str(folder)


def script(path: Path, text: str) -> str:
    path.write_text("#!/bin/sh\n" + text)
    path.chmod(0o755)
    return str(path)


def test_a_python_that_is_too_old_is_named_with_the_way_out(checkout: Path):
    old = script(checkout / "python3.8", "[ $1 = --version ] && echo Python 3.8.1 && exit 0; exit 1")
    (line,) = install(checkout, PYTHON=old)
    assert f"needs Python 3.11 or 3.12, and {old} is Python 3.8.1" in line
    assert "make install PYTHON=/path/to/python3.12" in line
    (line,) = install(checkout, PYTHON="/nowhere/python3")
    assert "/nowhere/python3 is missing" in line


def test_a_missing_compiler_is_named_with_the_package_that_has_it(checkout: Path):
    path = tools(checkout / "bin", "sh", "dirname", "cat", "cksum", "cut", "df", "awk")
    (line,) = install(checkout, PATH=path, PYTHON=sys.executable)
    assert "found neither c++ nor g++; install g++ (Debian: apt-get install g++)" in line


def machine_with(checkout: Path, *, free_gib: int) -> str:
    """A PATH with what the installer needs, and no GPU."""
    path = tools(checkout / "bin", "sh", "dirname", "cat", "cksum", "cut", "awk", "c++")
    lines = f"echo 'Filesystem 1024-blocks Used Available'; echo 'disk 9 9 {free_gib * 2**20}'"
    script(checkout / "bin" / "df", lines)
    return path


def test_a_full_disk_is_told_before_anything_is_downloaded(checkout: Path):
    path = machine_with(checkout, free_gib=2)
    (line,) = install(checkout, PATH=path, PYTHON=sys.executable)
    assert "needs 6 GiB of free disk in" in line and "found 2 GiB" in line
    assert not (checkout / ".venv").exists()


def test_a_half_made_environment_is_made_anew_and_what_pip_lacks_is_named(checkout: Path):
    """As where venv was interrupted before pip; then an index that has nothing."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", ".venv"], cwd=checkout, check=True, timeout=60)
    path = machine_with(checkout, free_gib=20)
    nothing = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": path}
    *above, line = install(checkout, PATH=path, PYTHON=sys.executable, **nothing)
    assert "No matching distribution found for torch==2.13.0" in above[-1]
    assert line == (
        "rlsys install: pip could not install torch==2.13.0: see above (network? index?); "
        "then give the same command again"
    )
    pip = [checkout / ".venv/bin/python", "-m", "pip", "--version"]
    assert subprocess.run(pip, capture_output=True, text=True, timeout=60).stdout.startswith("pip ")
    assert not list((checkout / ".venv").glob(".installed-*"))


def test_a_python_that_cannot_make_an_environment_is_named_with_the_package_it_lacks(checkout: Path):
    bare = script(checkout / "python3.12", "[ $1 = -m ] && exit 1; echo Python 3.12.0")
    (line,) = install(checkout, PATH=machine_with(checkout, free_gib=20), PYTHON=bare)
    assert line == f"rlsys install: could not make .venv with {bare}; on Debian install python3-venv"


def test_the_doctor_tries_the_backend_and_says_what_is_missing():
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    lines = {line[5:20].strip(): line for line in done.stdout.splitlines()}
    assert "works (all-reduce gave [1.0, 1.0])" in lines["gloo"]
    assert lines["vllm"].startswith("ok") and "0.32.0" in lines["vllm"]
    assert lines["c++ compiler"].startswith("ok")
    assert done.returncode == 0 and "everything that a run needs is here" in done.stdout


def test_the_doctor_of_a_python_without_packages_names_each_and_goes_on():
    done = subprocess.run(
        [sys.executable, "-S", "-m", "launch.cli", "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    lines = {line[5:20].strip(): line for line in done.stdout.splitlines()}
    assert lines["torch"] == "MISS torch          not installed; run make install"
    for name in ("gpus", "gloo", "nccl"):
        assert lines[name] == f"MISS {name:14} ModuleNotFoundError: No module named 'torch'"
    assert lines["c++ compiler"].startswith("ok")
    assert "wandb login" in lines, "it stopped at a check"
    assert done.returncode == 1 and "11 thing(s) missing: see MISS above" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError("the server socket cannot listen\nframe #0: c10d"), "the server socket cannot listen"),
        (OSError(24, "Too many open files"), "[Errno 24] Too many open files"),
        (AttributeError("module 'torch' has no attribute 'cuda'"), "module 'torch' has no attribute 'cuda'"),
    ],
)
def test_the_doctor_tells_in_one_line_how_a_backend_failed(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail() -> str:
        raise error

    monkeypatch.setattr(doctor, "_gloo", fail)
    assert doctor.run(Namespace()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"MISS gloo           {type(error).__name__}: {told}" in lines
    assert lines[-1] == "1 thing(s) missing: see MISS above"
