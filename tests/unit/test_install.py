"""What a newcomer's machine may lack: one clear sentence each from the installer, and `rlsys doctor`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the installer reads, without .venv."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def install(checkout: Path, **environment: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "requirements/install.sh"],
        cwd=checkout,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    return line


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
    line = install(checkout, PYTHON=old)
    assert f"needs Python 3.11 or 3.12, and {old} is Python 3.8.1" in line
    assert "make install PYTHON=/path/to/python3.12" in line
    assert "is missing" in install(checkout, PYTHON="/nowhere/python3")


def test_a_missing_compiler_is_named_with_the_package_that_has_it(checkout: Path):
    path = tools(checkout / "bin", "sh", "dirname", "cat", "cksum", "cut", "df", "awk")
    line = install(checkout, PATH=path, PYTHON=sys.executable)
    assert "found neither c++ nor g++; install g++ (Debian: apt-get install g++)" in line


def test_a_full_disk_is_told_before_anything_is_downloaded(checkout: Path):
    path = tools(checkout / "bin", "sh", "dirname", "cat", "cksum", "cut", "awk", "c++")
    script(checkout / "bin" / "df", "echo 'Filesystem 1024-blocks Used Available'; echo 'disk 9 9 2097152'")
    line = install(checkout, PATH=path, PYTHON=sys.executable)
    assert "needs 6 GiB of free disk in" in line and "found 2 GiB" in line
    assert not (checkout / ".venv").exists()


def test_the_doctor_tries_the_backend_and_says_what_is_missing():
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    lines = {line[5:20].strip(): line for line in done.stdout.splitlines()}
    assert "works (all-reduce gave [1.0, 1.0])" in lines["gloo"]
    assert lines["vllm"].startswith("ok") and "0.32.0" in lines["vllm"]
    assert lines["c++ compiler"].startswith("ok")
    assert done.returncode == 0 and "everything that a run needs is here" in done.stdout
