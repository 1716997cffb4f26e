"""Child processes that kill themselves at a chosen system event: kill -9 without waiting and without chance.

They are forked from a server without threads: a fork of the test process itself could hang on a lock that some thread
of an earlier test holds.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable

CONTEXT = multiprocessing.get_context("forkserver")
# Imported once, in the server: a child then starts in a few milliseconds.
CONTEXT.set_forkserver_preload(["pytest", "rlsys.checkpoint.run_folder", "rlsys.checkpoint.saved_rollouts"])
TIMEOUT_S = 120


def run_child(task: Callable[..., object], *arguments: object) -> int:
    """Runs a module's function in a child; gives its exit code: 0, 1 after an exception, -9 after SIGKILL."""
    child = CONTEXT.Process(target=task, args=arguments)
    child.start()
    child.join(TIMEOUT_S)
    if child.exitcode is None:
        child.kill()
        raise AssertionError(f"the child did not end within {TIMEOUT_S} s")
    return child.exitcode


def die_at_event(number: int) -> Callable[..., None]:
    """From here on the process counts opens, renames, makes and removes of files among other events, and sends itself
    SIGKILL at the given one. The result counts one more event when called."""
    seen = 0

    def count(*_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)  # cannot be taken back, but the process is of use for nothing else
    return count
