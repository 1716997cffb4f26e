"""The ranks of one model: their rendezvous, and the few small collectives that training needs beside DeepSpeed's."""

import datetime
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from rlsys.models.extensions import load_cpu_collectives


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process among the ranks that hold one model, of which a process has one: DeepSpeed keeps it in module state;
    or among a part of them."""

    rank: int
    world_size: int
    device: torch.device
    timeout_s: float = 1800.0
    """Of every collective."""
    handle: dist.ProcessGroup | None = None
    """torch's, of a part of the ranks; None for all of them."""

    def part(self, size: int) -> "ProcessGroup":
        """This rank among the `size` neighbours that it is in one part with; `size` divides the ranks. Collective."""
        handle = None
        if size > 1:
            handle, _ = dist.new_subgroups(size, timeout=datetime.timedelta(seconds=self.timeout_s))
            assert isinstance(handle, dist.ProcessGroup)
        return ProcessGroup(self.rank % size, size, self.device, self.timeout_s, handle)

    def gather(self, item: Any) -> list[Any]:
        """The small picklable `item` of every rank, in order of ranks. Collective."""
        if self.world_size == 1:
            return [item]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, item, group=self.handle)
        return gathered

    def barrier(self) -> None:
        """Returns when every rank has called it."""
        self.gather(None)


def join_process_group(
    *, address: str, port: int, rank: int, world_size: int, device: torch.device, timeout_s: float
) -> ProcessGroup:
    """Meet the other ranks at rank 0's address; gloo between CPUs, NCCL between GPUs.

    Args:
        address: of rank 0's node.
        port: free on that node.
        rank: this process's place.
        world_size: ranks that meet.
        device: where this rank computes.
        timeout_s: of the meeting and of every collective after it.

    Raises:
        torch.distributed.DistError: the ranks did not meet in time.
        TrainingError: DeepSpeed's kernels were not compiled in time.
    """
    import deepspeed

    os.environ["LOCAL_RANK"] = str(device.index or 0)  # zero.Init reads its device from there
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        load_cpu_collectives(timeout_s=timeout_s)
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo",
        auto_mpi_discovery=False,
        init_method=f"tcp://{address}:{port}",
        rank=rank,
        world_size=world_size,
        timeout=datetime.timedelta(seconds=timeout_s),
        verbose=False,
    )
    return ProcessGroup(rank, world_size, device, timeout_s)
