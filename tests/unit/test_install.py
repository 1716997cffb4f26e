"""What a newcomer's machine may lack: one clear sentence each from the installer, and `rlsys doctor`."""

import os
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch

from launch import doctor

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the installer reads, without .venv."""
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def run_installer(checkout: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/sh", "requirements/install.sh"],
        cwd=checkout,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


def install(checkout: Path, **environment: str) -> list[str]:
    """What it complains of."""
    done = run_installer(checkout, **environment)
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


def python_but(checkout: Path, case: str) -> str:
    """This Python, but for the arguments that match a shell's case."""
    return script(checkout / "python3.12", f'case "$*" in {case};; esac; exec {sys.executable} "$@"')


def gpu_with_driver(checkout: Path, version: str) -> None:
    """Two GPUs on the PATH of `machine_with`."""
    answer = f"printf '{version}\\n{version}\\n'"
    script(checkout / "bin" / "nvidia-smi", f'[ "$1" = -L ] && echo "GPU 0: a" && exit 0; {answer}')


def test_missing_headers_are_named_with_the_package_of_that_python(checkout: Path):
    path = machine_with(checkout, free_gib=20)
    bare = python_but(checkout, "*get_path*) echo /nowhere/python3.12; exit")
    (line,) = install(checkout, PATH=path, PYTHON=bare)
    assert "needs Python's headers" in line and "found no /nowhere/python3.12/Python.h" in line
    assert line.endswith("install them (Debian: apt-get install python3.12-dev)")
    assert not (checkout / ".venv").exists()


def test_a_missing_libnuma_is_named_where_the_cpu_build_needs_it(checkout: Path):
    path = machine_with(checkout, free_gib=2)
    without = python_but(checkout, "*libnuma*) exit 1")
    (line,) = install(checkout, PATH=path, PYTHON=without)
    assert "needs libnuma.so.1 (vLLM's CPU kernels are linked against it)" in line
    assert line.endswith("install it (Debian: apt-get install libnuma1)")
    gpu_with_driver(checkout, "580.65.06")
    (line,) = install(checkout, PATH=path, PYTHON=without)
    assert "needs 20 GiB of free disk" in line, "the CUDA build does not need it"


def test_a_driver_that_is_too_old_for_cuda_13_is_told_and_the_given_way_out_works(checkout: Path):
    path = machine_with(checkout, free_gib=2)
    gpu_with_driver(checkout, "535.104.05")
    (line,) = install(checkout, PATH=path, PYTHON=sys.executable)
    assert "needs NVIDIA driver 580 or newer, and nvidia-smi reports 535.104.05; update the driver, or" in line
    assert "ln -s /bin/false hidden/nvidia-smi && export PATH=$PWD/hidden:$PATH CUDA_VISIBLE_DEVICES=" in line
    (checkout / "hidden").mkdir()
    (checkout / "hidden" / "nvidia-smi").symlink_to("/bin/false")
    (line,) = install(checkout, PATH=f"{checkout}/hidden:{path}", PYTHON=sys.executable)
    assert "needs 6 GiB of free disk" in line, "the CPU build"


@pytest.mark.parametrize("version", ["580.65.06", "610.10", "[N/A]"])
def test_a_driver_that_may_do_passes(checkout: Path, version: str):
    path = machine_with(checkout, free_gib=2)
    gpu_with_driver(checkout, version)
    (line,) = install(checkout, PATH=path, PYTHON=sys.executable)
    assert "needs 20 GiB of free disk" in line


def test_a_second_install_does_nothing(checkout: Path):
    read = "cat requirements/cpu.txt requirements/test.txt requirements/*/pyproject.toml pyproject.toml"
    rule = f"{read} requirements/install.sh | cksum | cut -d' ' -f1"
    done = subprocess.run(["/bin/sh", "-c", rule], cwd=checkout, capture_output=True, text=True, check=True, timeout=60)
    stamp = checkout / ".venv" / f".installed-run-{done.stdout.strip()}"
    stamp.parent.mkdir()
    stamp.touch()
    path = machine_with(checkout, free_gib=0)
    done = run_installer(checkout, PATH=path, PYTHON=sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(stamp.parent.iterdir()) == [stamp]
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# another pin\n")
    (line,) = install(checkout, PATH=path, PYTHON=sys.executable)
    assert "needs 6 GiB of free disk" in line, "the stamp is of other pins"


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
    bare = python_but(checkout, "*venv*) exit 1")
    (line,) = install(checkout, PATH=machine_with(checkout, free_gib=20), PYTHON=bare)
    assert line == f"rlsys install: could not make .venv with {bare}; on Debian install python3-venv"


def test_the_doctor_tries_the_libraries_and_says_what_is_missing():
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "doctor"], cwd=ROOT, capture_output=True, text=True, timeout=400
    )
    lines = {line[5:20].strip(): line for line in done.stdout.splitlines()}
    assert "works (all-reduce gave [1.0, 1.0])" in lines["gloo"]
    assert lines["vllm"].startswith("ok") and "0.32.0" in lines["vllm"] and lines["vllm"].endswith("), imports")
    assert lines["deepspeed"].startswith("ok") and lines["deepspeed"].endswith((", collectives compiled", ", imports"))
    assert lines["c++ compiler"].startswith("ok")
    assert done.returncode == 0 and "everything that a run needs is here" in done.stdout


def test_the_doctor_tells_why_vllm_does_not_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another package of that name stands for one whose kernels do not link."""
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text("raise ImportError('libnuma.so.1: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    with pytest.raises(doctor._Missing) as caught:
        doctor._vllm()
    have, _, rest = str(caught.value).partition(", but ")
    assert have.startswith("0.32.0")
    assert rest == f"ImportError: libnuma.so.1: cannot open shared object file; {doctor.RECHECK}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the collectives are those of CPUs")
def test_the_doctor_tells_the_compilers_error_not_the_build_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    error = "shm.cpp:6:10: fatal error: Python.h: No such file or directory"
    compiler = script(
        tmp_path / "c++",
        'case "$*" in *NAME=deepspeed_shm_comm*) '
        f'echo "{error}" >&2; echo "compilation terminated." >&2; exit 1;; esac; '
        f'exec {shutil.which("c++") or shutil.which("g++")} "$@"',
    )
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("RLSYS_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    with pytest.raises(doctor._Missing) as caught:
        doctor._deepspeed()
    assert str(caught.value) == f"0.19.8, but {error}; {doctor.RECHECK}"


def test_a_library_that_ends_the_process_does_not_end_the_doctor():
    def crash() -> str: ...

    crash.__name__ = "os.abort"  # the child calls doctor.os.abort
    with pytest.raises(doctor._Missing, match=r"^1\.0, but died with exit status -6; mend it$"):
        doctor._in_child(crash, "1.0", "mend it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends GPUs that torch cannot use")
def test_gpus_that_torch_cannot_use_are_missing_unless_that_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script(tmp_path / "nvidia-smi", "echo 'GPU 0: a (UUID: GPU-1)'; echo '  MIG 1g'; echo 'GPU 1: a (UUID: GPU-2)'")
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), os.environ["PATH"]]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def told() -> doctor._Missing:
        with pytest.raises(doctor._Missing) as caught:
            doctor._gpus()
        return caught.value

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert str(told()) == (
        "nvidia-smi lists 2, but torch can use none: the driver is too old for CUDA 13.0; update it "
        "(CUDA 13 needs 580 or newer)"
    )
    assert told().needed
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert str(told()).startswith("2 hidden by CUDA_VISIBLE_DEVICES") and not told().needed
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert str(told()).startswith("nvidia-smi lists 2, but torch is its CPU build: CUDA_VISIBLE_DEVICES= hides them")
    assert told().needed, "a run would choose them"


def test_the_all_reduce_of_the_doctor_adds_up():
    """On the backend that every machine has; NCCL differs by the two names."""
    assert doctor.all_reduce_on_gpu("gloo", "cpu") == "works (all-reduce gave [1.0, 1.0])"


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends a GPU without NCCL")
def test_a_gpu_whose_nccl_fails_is_missing_with_its_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.nccl.version", lambda: (2, 29, 7))
    with pytest.raises(doctor._Missing, match=r"^2\.29\.7, but \w+Error: ") as caught:
        doctor._nccl()
    assert caught.value.needed


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

    monkeypatch.setattr(doctor, "_in_child", lambda check, have, fix: have)  # the tests above try them
    monkeypatch.setattr(doctor, "_gloo", fail)
    assert doctor.run(Namespace()) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"MISS gloo           {type(error).__name__}: {told}" in lines
    assert lines[-1] == "1 thing(s) missing: see MISS above"
