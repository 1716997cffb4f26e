"""DeepSpeed's checkpoint files: taken into memory while training waits, written to the disk while it goes on.

They are digested as they were in memory: whoever reads them later knows whether they are what training had.
"""

import hashlib
import io
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine

from rlsys.checkpoint.seal import FileDigest


class StateWriter(TorchCheckpointEngine):
    """A checkpoint engine of DeepSpeed's: the same bytes in the same files, written by one thread.

    Args:
        config: DeepSpeed's, of the engine that it writes for.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="state-writer")
        self._writes: list[Future[None]] = []
        self.digests: dict[Path, FileDigest] = {}
        """Of files that are on the disk, since the last `drop`."""

    def save(self, state_dict: Any, path: str | Path) -> None:
        """Takes the file's bytes now; what training changes from here on is not in them."""
        taken = io.BytesIO()
        torch.save(state_dict, taken, _use_new_zipfile_serialization=self.zipfile_serialization)
        self._writes.append(self._thread.submit(self._write, Path(path), taken))

    def written(self) -> bool:
        """Whether everything that was taken is in its file; never waits. After an error there is nothing more to write.

        Raises:
            OSError: a file could not be written.
        """
        while self._writes and self._writes[0].done():
            try:
                self._writes.pop(0).result()
            except OSError:
                self.drop()
                raise
        return not self._writes

    def drop(self) -> None:
        """Forgets what is not written yet, waits for the file under way, and forgets all digests."""
        waiting, self._writes = self._writes, []
        for write in waiting:
            if not write.cancel():
                write.exception()
        self.digests = {}

    def _write(self, path: Path, taken: io.BytesIO) -> None:
        with open(path, "wb") as file, taken.getbuffer() as content:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            self.digests[path] = FileDigest(len(content), hashlib.sha256(content).hexdigest())
