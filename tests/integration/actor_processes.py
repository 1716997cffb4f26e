"""Which processes hold the actors of this process's cluster; imports nothing that takes seconds."""

import os
from typing import Any

import psutil
import ray


def pid_of(handle: Any) -> int:
    """The process of an actor that is not busy."""
    return ray.get(handle.__ray_call__.remote(lambda self: os.getpid()), timeout=60)


def pids_of(kind: str) -> list[int]:
    """Processes of this process's cluster that hold an actor of a class, busy or not."""
    return [process.pid for process in psutil.Process().children(recursive=True) if holds(process, kind)]


def holds(process: psutil.Process, kind: str) -> bool:
    """Whether a process is that of an actor of a class."""
    try:
        return (process.cmdline() or [""])[0].startswith(f"ray::{kind}")
    except psutil.NoSuchProcess:  # it has just ended
        return False
