"""Shared memory of an engine with several processes, made such that no kill leaves it behind.

vLLM's processes share rings, locks and buffers through files in /dev/shm, hundreds of megabytes of them, whose names
somebody must take away at the end: nobody does when all are killed at once. A file that is mapped needs no name. Once
every process of the engine has mapped it, the name can go, and the memory goes with the last process.
"""

import os
from pathlib import Path

import psutil

FOLDER = "/dev/shm/"
OF_ENGINES = ("psm_", "sem.mp-", "sem.loky-")
"""How multiprocessing's names begin."""
OF_CPU_ENGINES = "-cpushm"
"""What vLLM's own names on CPU contain."""


def forget_names() -> list[str]:
    """Takes away the names of what this process and all that it started have mapped, and returns them.

    To be called when whoever opens those names has done so: when the engine is built.
    """
    own = psutil.Process()
    pids = [own.pid, *(child.pid for child in own.children(recursive=True))]
    forgotten = []
    for path, inode in sorted({mapped for pid in pids for mapped in _mapped(pid)}):
        name = path.removeprefix(FOLDER)
        if not name.startswith(OF_ENGINES) and OF_CPU_ENGINES not in name:
            continue
        try:
            found = os.stat(path)
            if (found.st_ino, found.st_uid) == (inode, os.geteuid()):
                os.unlink(path)
                forgotten.append(name)
        except FileNotFoundError:  # whoever made it was faster
            continue
    return forgotten


def _mapped(pid: int) -> set[tuple[str, int]]:
    """Path and inode of every named file in /dev/shm that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:  # it has ended
        return set()
    fields = [line.split(maxsplit=5) for line in lines if FOLDER in line]
    return {(f[5], int(f[4])) for f in fields if f[5].startswith(FOLDER) and not f[5].endswith(" (deleted)")}
