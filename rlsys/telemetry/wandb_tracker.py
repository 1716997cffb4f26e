"""Weights & Biases, from a thread of its own: no failure or delay of it reaches the run."""

import queue
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlsys.telemetry.tracker import Position

_CLOSE_TIMEOUT_S = 60.0


class WandbTracker:
    """Sends each step to wandb; offline when nobody is logged in.

    A thread does all the talking. `problems` counts what went wrong, by the exception's name, or `dropped` where the
    queue was full or the thread gone; `close` tells it. The run never waits, except in `close`, a minute at most.

    wandb's own step may only grow, and a resumed run repeats steps: the step is the metric `step`, on the x-axis of all
    others, and repeated points replace nothing but lie on the same place.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        project: str,
        name: str,
        mode: str = "auto",
        config: Mapping[str, Any] | None = None,
        queue_length: int = 1000,
    ) -> None:
        """
        Args:
            folder: where wandb writes (it makes `wandb/` there).
            mode: `auto`, `online` or `offline`.
            config: the resolved recipe.
            queue_length: steps that may wait for wandb before further ones are dropped.
        """
        self.problems: Counter[str] = Counter()
        self._first_error = ""
        self.run_id = ""
        """wandb's id of the run, empty until it has started."""
        self._options = {"dir": str(folder), "project": project, "name": name, "config": dict(config or {})}
        self._mode = mode
        self._queue: queue.Queue[dict[str, float] | None] = queue.Queue(queue_length)
        self._thread: threading.Thread | None = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues one step. The first call starts wandb, so that `restore` may name the run to go on with."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait({"step": step, **metrics})
        except queue.Full:
            self.problems["dropped"] += 1

    def position(self) -> Position:
        """The run's id, with which a resumed run goes on in the same place."""
        return {"run_id": self.run_id}

    def restore(self, position: Position) -> None:
        """Takes the run's id, unless wandb has started one: a stage that goes back goes on in its own."""
        if self._thread is None:
            self.run_id = position["run_id"]

    def close(self) -> None:
        """Waits, a minute at most, until all is sent; prints one line if not all was."""
        if self._thread is None:
            return
        deadline = time.monotonic() + _CLOSE_TIMEOUT_S
        try:
            self._queue.put(None, timeout=_CLOSE_TIMEOUT_S)
            self._thread.join(deadline - time.monotonic())
        except queue.Full:
            pass  # the thread hangs, which the next line counts
        if self._thread.is_alive():
            self.problems["close_timeout"] += 1
        self._thread = None
        if self.problems:
            counts = ", ".join(f"{name} {count}" for name, count in self.problems.most_common())
            why = f"; first {self._first_error}" if self._first_error else ""
            print(f"wandb did not get everything: {counts}{why}; metrics.jsonl has it all", flush=True)

    def _count(self, error: Exception) -> None:
        kind = type(error).__name__
        self.problems[kind] += 1
        self._first_error = self._first_error or f"{kind}: {error}".partition("\n")[0]

    def _work(self) -> None:
        run = self._start()
        while (item := self._queue.get()) is not None:
            if run is None:
                self.problems["dropped"] += 1
                continue
            try:
                run.log(item)
            except Exception as error:  # isolation boundary: tracking must not stop training
                self._count(error)
        if run is not None:
            try:
                run.finish()
            except Exception as error:  # isolation boundary
                self._count(error)

    def _start(self) -> Any:
        try:
            import wandb  # slow to import, and not needed by a run without it

            mode = self._mode if self._mode != "auto" else ("online" if wandb.login(prompt=False) else "offline")
            run = wandb.init(
                **self._options,
                mode=mode,  # pyright: ignore[reportArgumentType]
                id=self.run_id or None,
                resume="allow",
                settings=wandb.Settings(console="off", silent=True, init_timeout=_CLOSE_TIMEOUT_S),
            )
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            self.run_id = run.id
            return run
        except Exception as error:  # isolation boundary
            self._count(error)
            return None
