"""The sender's end between GPUs (NCCL) and on one GPU (CUDA IPC)."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import torch

from rlsys.errors import WeightTransferError
from rlsys.weights.channel import HeaderStore
from rlsys.weights.ipc_handle import to_json
from rlsys.weights.records import Rendezvous

T = TypeVar("T")
NCCL_PORT = "nccl-port"


class NcclTransport:
    """One broadcast a bucket, over the communicator that vLLM's `nccl` engines join."""

    def __init__(self, headers: HeaderStore, rendezvous: Rendezvous) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init
        from vllm.utils.network_utils import get_open_port

        port = get_open_port()
        headers.put_value(NCCL_PORT, port)
        self._deadline_s = rendezvous.deadline_s
        meeting = {"master_address": rendezvous.host, "master_port": port, "world_size": rendezvous.world_size}
        self._group = within(self._deadline_s, lambda: trainer_init(meeting), what="joining the NCCL group")

    def describe(self, packed: torch.Tensor) -> dict:
        return {}

    def send(self, packed: torch.Tensor) -> None:
        # Named, or vLLM would make a stream of its own the current one of this thread, and training would go on in it.
        self._group.broadcast(packed, src=0, stream=torch.cuda.current_stream())
        sent = torch.cuda.Event()
        sent.record()
        ends_at = time.monotonic() + self._deadline_s
        while not sent.query():
            if time.monotonic() > ends_at:
                self.close()
                raise WeightTransferError(
                    "an engine did not take part in a broadcast",
                    value=f"{self._deadline_s:g} s",
                    fix="see which rollout worker died; the next publication builds a new group",
                )
            time.sleep(1e-4)

    def close(self) -> None:
        self._group.destroy()


class IpcTransport:
    """Hands each bucket's memory to engines on the same GPU, which copy it and say so."""

    def __init__(self, headers: HeaderStore, rendezvous: Rendezvous) -> None:
        self._headers = headers
        self._receivers = range(1, rendezvous.world_size)
        self._sent = 0

    def describe(self, packed: torch.Tensor) -> dict:
        from torch.multiprocessing.reductions import reduce_tensor

        torch.cuda.current_stream().synchronize()
        gpu = str(torch.cuda.get_device_properties(packed.device).uuid)
        _, handle = reduce_tensor(packed)
        return {"ipc": {gpu: to_json(handle)}, "number": self._sent}

    def send(self, packed: torch.Tensor) -> None:
        for rank in self._receivers:
            self._headers.take_value(copied_key(self._sent, rank))
        self._sent += 1

    def close(self) -> None:
        pass


def copied_key(number: int, rank: int) -> str:
    """Under which a receiver says that it has copied a bucket."""
    return f"copied/{number}/{rank}"


def within(deadline_s: float, work: Callable[[], T], *, what: str, abort: Callable[[], None] = lambda: None) -> T:
    """Does work that cannot be given a deadline, in a thread that is left behind when it takes too long.

    Args:
        deadline_s: for how long.
        work: what to do; runs with this thread's CUDA device.
        what: it is, for the error.
        abort: called when it took too long, to end it if that can be done.

    Raises:
        WeightTransferError: it took too long. Anything that `work` raises passes through.
    """
    device = torch.cuda.current_device()
    outcome: list[tuple[T | None, BaseException | None]] = []

    def run() -> None:
        try:
            torch.cuda.set_device(device)
            outcome.append((work(), None))
        except BaseException as error:  # raised again in the thread that waits
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True, name=what)
    thread.start()
    thread.join(deadline_s)
    if not outcome:
        abort()
        raise WeightTransferError(
            f"{what} took too long", value=f"{deadline_s:g} s", fix="see whether every rollout worker is alive"
        )
    result, error = outcome[0]
    if error is not None:
        raise error
    return result  # pyright: ignore[reportReturnType]
