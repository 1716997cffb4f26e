"""How buckets of weights get from the sender to every receiver: a store for their headers, a broadcast for their bytes.

    sender  (rank 0)      receivers (ranks 1 ..)
    ----------------      ----------------------
    store: header i  -->  names, dtypes, shapes of bucket i       JSON, through a TCPStore that the sender hosts
    broadcast        -->  its bytes                               gloo here; NCCL and CUDA IPC in vLLM's own engines
    ...
    store: header n  -->  null: that was the last bucket

A header tells the receiver what to expect, so that the sender needs no list of its tensors beforehand; a TCPStore has
time limits on everything, so that a dead peer is an error and never a wait.
"""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist
from torch._C._distributed_c10d import PrefixStore, ProcessGroupGloo, Store, TCPStore

from rlsys.errors import WeightTransferError
from rlsys.weights.records import Rendezvous

Bucket = Sequence[tuple[str, torch.Tensor]]
"""Checkpoint-format names with full tensors."""


@dataclass(frozen=True, slots=True)
class BucketHeader:
    """The tensors of one bucket, in order. Their bytes lie one after the other without padding."""

    names: tuple[str, ...]
    dtypes: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each tensor."""
        return [
            torch.empty(shape, dtype=getattr(torch, dtype), device="meta").nbytes
            for dtype, shape in zip(self.dtypes, self.shapes, strict=True)
        ]

    @classmethod
    def of(cls, bucket: Bucket) -> "BucketHeader":
        """The header of a bucket about to be sent."""
        names, tensors = zip(*bucket, strict=True)
        dtypes = tuple(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
        return cls(names, dtypes, tuple(tuple(tensor.shape) for tensor in tensors))


def header_json(header: BucketHeader) -> dict:
    """As it is put in the store."""
    return {"names": header.names, "dtypes": header.dtypes, "shapes": header.shapes}


def header_from_json(fields: dict) -> BucketHeader:
    """The inverse of `header_json`; what a transport has added is ignored."""
    return BucketHeader(tuple(fields["names"]), tuple(fields["dtypes"]), tuple(map(tuple, fields["shapes"])))


class HeaderStore:
    """The headers of one group, by transfer and bucket number."""

    def __init__(self, rendezvous: Rendezvous, *, is_sender: bool) -> None:
        self.timeout = timedelta(seconds=rendezvous.deadline_s)
        self._counts: dict[int, int] = {}
        self.store = TCPStore(
            rendezvous.host,
            rendezvous.port,
            world_size=None,
            is_master=is_sender,
            timeout=self.timeout,
            wait_for_workers=False,
        )

    def put(self, transfer: int, index: int, header: dict | None) -> None:
        """Publishes header `index`; None says that there is no more."""
        self.put_value(f"{transfer}/{index}", header)
        self._counts[transfer] = index + 1

    def get(self, transfer: int, index: int) -> dict | None:
        """Waits for header `index`.

        Raises:
            WeightTransferError: the sender is gone, or did not send it in time.
        """
        return self.get_value(f"{transfer}/{index}")

    def put_value(self, key: str, value: Any) -> None:
        """Publishes a JSON value of either side."""
        self.store.set(key, json.dumps(value))

    def get_value(self, key: str) -> Any:
        """Waits for a value of the other side.

        Raises:
            WeightTransferError: the other side is gone, or did not publish it in time.
        """
        try:
            self.store.wait([key], self.timeout)
            return json.loads(self.store.get(key))
        except RuntimeError as error:
            raise WeightTransferError(
                f"the other side of a weight transfer did not say {key!r}: {first_line(error)}",
                fix="see whether learner and rollout workers are alive; the next publication builds a new group",
            ) from error

    def take_value(self, key: str) -> Any:
        """As `get_value`, and forgets it."""
        value = self.get_value(key)
        self.store.delete_key(key)
        return value

    def forget_before(self, transfer: int) -> None:
        """Deletes the headers of earlier transfers, which are over, so that the store does not grow."""
        for old in [number for number in self._counts if number < transfer]:
            for index in range(self._counts.pop(old)):
                self.store.delete_key(f"{old}/{index}")


def gloo_group(store: Store, *, rank: int, rendezvous: Rendezvous) -> ProcessGroupGloo:
    """A gloo group of its own, beside any default group of the process; returns when all its ranks are there.

    Raises:
        WeightTransferError: not every rank came before the deadline.
    """
    options = ProcessGroupGloo._Options()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    options._timeout = timedelta(seconds=rendezvous.deadline_s)
    try:
        # Of its own accord gloo offers what the host's name resolves to, which other nodes need not reach.
        device = ProcessGroupGloo.create_device(hostname=_own_address(rendezvous.host))  # pyright: ignore
        options._devices = [device]
        return ProcessGroupGloo(PrefixStore("gloo", store), rank, rendezvous.world_size, options)
    except (OSError, RuntimeError) as error:
        raise WeightTransferError(
            f"rank {rank} of {rendezvous.world_size} could not join the weight group: {first_line(error)}",
            fix="see whether every rollout worker is alive; the next publication builds a new group",
        ) from error


def _own_address(peer: str) -> str:
    """The address of this node on the way to a peer; nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(peer, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(address)
        return probe.getsockname()[0]


def broadcast(group: ProcessGroupGloo, buffer: torch.Tensor, *, deadline_s: float) -> None:
    """Sends rank 0's bytes to all.

    Raises:
        WeightTransferError: a peer died or was too slow.
    """
    options = dist.BroadcastOptions()
    options.rootRank = 0
    options.rootTensor = 0
    options.timeout = timedelta(seconds=deadline_s)
    try:
        work = group.broadcast([buffer], options)  # pyright: ignore[reportAttributeAccessIssue]
        work.wait(timedelta(seconds=deadline_s))
    except RuntimeError as error:
        raise WeightTransferError(
            f"a peer was lost while weights were sent: {first_line(error)}",
            fix="see which rollout worker died; the next publication builds a new group",
        ) from error


def pack(bucket: Bucket) -> torch.Tensor:
    """The bytes of a bucket, one tensor after the other, on the tensors' device: `[bytes]` uint8."""
    return torch.cat([tensor.detach().contiguous().reshape(-1).view(torch.uint8) for _, tensor in bucket])


def unpack(header: BucketHeader, buffer: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The tensors of a received bucket. They are copies where their place in the buffer is not aligned."""
    parts = []
    start = 0
    for name, dtype, shape, size in zip(header.names, header.dtypes, header.shapes, header.sizes, strict=True):
        kind = getattr(torch, dtype)
        raw = buffer[start : start + size]
        if start % kind.itemsize:
            raw = raw.clone()
        parts.append((name, raw.view(kind).view(shape)))
        start += size
    return parts


def first_line(error: BaseException) -> str:
    """What an exception says, without torch's C++ stack trace."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
