"""What a run that was killed may not leave on its machine: processes, listening TCP ports, entries of /dev/shm."""

import json
import os
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")
LIMIT_S = 120.0
"""Ray's own agents take a minute to notice that their node is gone."""
CLOCK_S = 2.0
"""Two readings of when a process began may differ by so much."""


def shared_memory() -> set[str]:
    """Names in /dev/shm."""
    return {entry.name for entry in os.scandir(SHARED_MEMORY)}


def unused_shared_memory(before: Collection[str]) -> set[str]:
    """Names that have come since and that no living process holds: whoever made them is gone."""
    found = shared_memory() - set(before)
    for maps in Path("/proc").glob("[0-9]*/maps") if found else ():
        with suppress(OSError):
            text = maps.read_text()
            found -= {name for name in found if f"{SHARED_MEMORY}/{name}" in text}
    return found


def listening() -> dict[int, int | None]:
    """TCP port to the process that listens on it."""
    return {c.laddr.port: c.pid for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


@dataclass(frozen=True, slots=True)
class Traces:
    """A driver and everything it has started, at one moment of its life."""

    began: float
    """When the driver did, Unix seconds."""
    seen: float
    """When this was noted, Unix seconds."""
    processes: dict[int, float]
    """When each began, by pid."""
    ports: tuple[int, ...]

    @classmethod
    def of(cls, driver_pid: int) -> "Traces":
        """Of a living driver."""
        driver = psutil.Process(driver_pid)
        processes = {process.pid: process.create_time() for process in (driver, *driver.children(recursive=True))}
        ports = tuple(port for port, pid in listening().items() if pid in processes)
        return cls(driver.create_time(), time.time(), processes, ports)

    @classmethod
    def from_json(cls, line: str) -> "Traces":
        """As printed by a driver that then kills itself."""
        tree = json.loads(line)
        return cls(**tree | {"processes": {int(pid): began for pid, began in tree["processes"].items()}})

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    def left(self) -> list[str]:
        """What is there still, in words."""
        found = []
        for pid, began in self.processes.items():
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if abs(process.create_time() - began) < CLOCK_S and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"process {pid} {' '.join(process.cmdline())[:100]}")
        for port, pid in listening().items():
            # Whoever began before the driver or after its death is none of its own, and free to take the port.
            if port in self.ports and self.began <= _began(pid) <= self.seen:
                found.append(f"port {port} of process {pid}")
        return found


def _began(pid: int | None) -> float:
    try:
        return psutil.Process(pid).create_time() if pid else 0.0
    except psutil.NoSuchProcess:
        return 0.0


def assert_nothing_left(traces: Traces, shared_memory_before: Collection[str]) -> None:
    """Within two minutes nothing of a dead driver is left.

    Args:
        traces: noted before its death.
        shared_memory_before: `shared_memory()` before its start.
    """
    assert traces.processes and traces.ports, "a run has both"
    deadline = time.monotonic() + LIMIT_S
    while left := [*traces.left(), *sorted(unused_shared_memory(shared_memory_before))]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
