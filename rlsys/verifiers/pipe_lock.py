"""Locks between processes that have no name, and so leave nothing behind.

multiprocessing's own locks are files in /dev/shm wherever processes are more than plain forks. Their names are taken
away by a process that waits for the end of all others: killed together with them, it leaves the files for good.
"""

import math
import os
import select
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext


class PipeLock:
    """A recursive lock: a pipe with one byte in it, which whoever holds the lock has taken out.

    It can be given to processes as they are started. As with any such lock, one that is killed while it holds it keeps
    it.
    """

    def __init__(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.write(writer, b"\0")
        self.__setstate__((Connection(reader, writable=False), Connection(writer, readable=False)))

    def __getstate__(self) -> tuple[Connection, Connection]:
        return self._reader, self._writer

    def __setstate__(self, state: tuple[Connection, Connection]) -> None:
        self._reader, self._writer = state
        """Connections, as descriptors that multiprocessing gives to another process."""
        self._holder: int | None = None
        """The thread of this process that holds it."""
        self._depth = 0

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        """Whether this thread holds the lock now; `timeout` in seconds, None for ever."""
        if self._holder != threading.get_ident():
            if not self._take(timeout_s=0.0 if not block else math.inf if timeout is None else timeout):
                return False
            self._holder = threading.get_ident()
        self._depth += 1
        return True

    def release(self) -> None:
        """Undoes one `acquire` of this thread."""
        assert self._holder == threading.get_ident(), "a lock is released by the thread that holds it"
        self._depth -= 1
        if not self._depth:
            self._holder = None
            os.write(self._writer.fileno(), b"\0")

    def _take(self, *, timeout_s: float) -> bool:
        descriptor, deadline = self._reader.fileno(), time.monotonic() + timeout_s
        while True:
            try:
                return bool(os.read(descriptor, 1))
            except BlockingIOError:  # another has it, or was faster
                left_s = deadline - time.monotonic()
            if left_s <= 0:
                return False
            waiting = select.poll()
            waiting.register(descriptor, select.POLLIN)
            waiting.poll(None if math.isinf(left_s) else left_s * 1000)


class NamelessContext(ForkServerContext):
    """multiprocessing's fork server with such locks."""

    def RLock(self) -> PipeLock:  # pyright: ignore[reportIncompatibleMethodOverride]  # what pebble uses of it
        """In place of a named semaphore."""
        return PipeLock()
