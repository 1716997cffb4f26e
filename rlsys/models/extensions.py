"""DeepSpeed's kernels, which PyTorch compiles at first use: compiled once a node, and never waited for without end.

PyTorch guards a build with a file that only its maker removes, and every other process waits for that file without
a deadline: a rank killed while it compiles would stop all later runs on its node, in silence. So rlsys compiles
under a lock that the kernel frees when its holder dies, in a folder of its own, where a guard that is found by
the lock's holder is a dead process's and can be removed.
"""

import fcntl
import os
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlsys.errors import TrainingError


def load_cpu_collectives(*, timeout_s: float) -> None:
    """Compile, at the first call on a node, and load the shared-memory collectives that DeepSpeed joins CPU ranks with.

    Args:
        timeout_s: of the wait for another process that compiles them now.

    Raises:
        TrainingError: another process held the build for longer.
    """
    folder = extensions_folder()
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
    # The pinned ninja, also where the environment is not activated: another version would compile all anew.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    with _alone(folder / "build.flock", timeout_s):
        for guard in folder.glob("*/lock"):
            guard.unlink(missing_ok=True)
        from deepspeed.comm.torch import build_shm_op

        build_shm_op()  # DeepSpeed keeps what was loaded: init_distributed does not build again


def extensions_folder() -> Path:
    """Where this environment's kernels lie: below `$RLSYS_EXTENSIONS_DIR`, else the user's cache.

    Paths are part of a build: two environments that shared a folder would compile anew at each turn.
    """
    import torch

    assert torch.__file__ is not None
    environment = zlib.crc32(torch.__file__.encode())

    root = os.environ.get("RLSYS_EXTENSIONS_DIR") or Path.home() / ".cache" / "rlsys" / "extensions"
    folder = Path(root) / f"torch{torch.__version__}-{environment:08x}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _alone(path: Path, timeout_s: float) -> Iterator[None]:
    deadline = time.monotonic() + timeout_s
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TrainingError(
                        f"another process has compiled DeepSpeed's kernels for over {timeout_s:g} s",
                        value=str(path),
                        fix="end the process that holds this file (fuser names it), and start again",
                    ) from None
                time.sleep(0.1)
        yield
