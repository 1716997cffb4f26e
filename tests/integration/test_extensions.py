"""DeepSpeed's kernels are compiled once, and a process killed while it compiled them stops nobody."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlsys.errors import TrainingError
from rlsys.models.extensions import extensions_folder, load_cpu_collectives

LOAD = "from rlsys.models.extensions import load_cpu_collectives as load; load(timeout_s=200); load(timeout_s=1)"


def test_a_dead_builders_guard_is_removed():
    kernel = extensions_folder() / "deepspeed_shm_comm"
    kernel.mkdir(exist_ok=True)
    guard = kernel / "lock"
    guard.touch()  # what PyTorch's guard leaves when its process is killed: without our lock the load below waits on
    load(PATH=os.defpath)
    assert not guard.exists()
    compiled = (kernel / "deepspeed_shm_comm.so").stat().st_mtime_ns
    load(PATH=os.pathsep.join([str(Path(sys.executable).parent), os.defpath]))
    assert (kernel / "deepspeed_shm_comm.so").stat().st_mtime_ns == compiled, "compiled anew in an activated shell"


def load(**environment: str) -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", **environment}
    subprocess.run([sys.executable, "-c", LOAD], env=environment, check=True, timeout=240)


def test_a_build_that_hangs_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSYS_EXTENSIONS_DIR", str(tmp_path))
    with (extensions_folder() / "build.flock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TrainingError, match=r"compiled DeepSpeed's kernels for over 0\.2 s"):
            load_cpu_collectives(timeout_s=0.2)
