"""The learner's end of a publication: buckets of full tensors, sent once to every engine.

sender = WeightSender("gloo")                       on every rank of the learner; only rank 0 opens it
rendezvous = sender.open(host="10.0.0.1", num_receivers=2, deadline_s=60)
sender.join()                                       while the receivers connect to `rendezvous`
manifest = sender.send(weight_buckets(cap_bytes), transfer=7)       while they receive transfer 7
"""

from collections.abc import Callable, Iterable
from typing import Literal, Protocol, TypeAlias

import torch

from rlsys.weights.channel import (
    Bucket,
    BucketHeader,
    HeaderStore,
    broadcast,
    first_line,
    gloo_group,
    header_json,
    pack,
)
from rlsys.weights.digest import digest_tensor
from rlsys.weights.gpu_transports import IpcTransport, NcclTransport
from rlsys.weights.records import DigestName, Manifest, Rendezvous, TensorDigest

TransferBackend: TypeAlias = Literal["gloo", "nccl", "ipc"]


class Transport(Protocol):
    """Carries the bytes of a bucket whose header was just made."""

    def describe(self, packed: torch.Tensor) -> dict:
        """What the header must say beside names, dtypes and shapes."""
        ...

    def send(self, packed: torch.Tensor) -> None:
        """Returns when the buffer may be freed.

        Raises:
            WeightTransferError: a receiver died or was too slow.
        """
        ...

    def close(self) -> None:
        """Leaves the group."""
        ...


class WeightSender:
    """Sends weights to one group of receivers at a time.

    After any error the group is of no more use: `open` makes another. Nothing here is a collective of the learner's
    ranks but the iteration of `buckets`, which every rank must do to its end.
    """

    def __init__(self, backend: TransferBackend, *, digest: DigestName = "fold64") -> None:
        self.backend: TransferBackend = backend
        self.digest: DigestName = digest
        self._headers: HeaderStore | None = None
        self._transport: Transport | None = None
        self._rendezvous: Rendezvous | None = None

    def open(self, *, host: str, num_receivers: int, deadline_s: float) -> Rendezvous:
        """Starts to listen for a new group and leaves the one before. Rank 0 only; does not wait for anyone.

        Args:
            host: the address under which receivers reach this process.
            num_receivers: engines x tensor-parallel size.
            deadline_s: the longest that any one wait may last, on both sides.
        """
        self.close()
        here = Rendezvous(host, 0, 1 + num_receivers, deadline_s)
        self._headers = HeaderStore(here, is_sender=True)
        self._rendezvous = Rendezvous(host, self._headers.store.port, 1 + num_receivers, deadline_s)
        return self._rendezvous

    def join(self) -> None:
        """Returns when every receiver has joined the group.

        Raises:
            WeightTransferError: not all of them came before the deadline.
        """
        assert self._headers is not None and self._rendezvous is not None, "open() comes first"
        self._transport = TRANSPORTS[self.backend](self._headers, self._rendezvous)

    def send(self, buckets: Iterable[Bucket], *, transfer: int) -> Manifest | None:
        """Sends all buckets. A rank that has not opened the sender only iterates and gets None.

        Args:
            buckets: lists of (checkpoint-format name, full tensor); empty on ranks other than 0.
            transfer: the number under which the receivers wait, not used before in this group.

        Raises:
            WeightTransferError: a receiver was lost; `buckets` is iterated to its end all the same. What `buckets`
                raises passes through. Receivers are told first.
        """
        if self._headers is None:
            for _ in buckets:
                pass
            return None
        assert self._transport is not None, "join() comes first"
        digests: list[TensorDigest] = []
        num_sent = 0
        gathered = iter(buckets)
        try:
            for bucket in gathered:
                digests += [digest_tensor(name, tensor, kind=self.digest) for name, tensor in bucket]
                self._send_bucket(bucket, transfer=transfer, index=num_sent)
                num_sent += 1
        except BaseException as error:
            self._headers.put(transfer, num_sent, {"error": first_line(error)})
            self.close()
            for _ in gathered:  # collectives: the other ranks are in them, and the next transfer begins with the first
                pass
            raise
        self._headers.put(transfer, num_sent, None)
        self._headers.forget_before(transfer)
        return Manifest(transfer, tuple(digests))

    def close(self) -> None:
        """Leaves the group, if there is one."""
        if self._transport is not None:
            self._transport.close()
        self._transport = self._headers = self._rendezvous = None

    def _send_bucket(self, bucket: Bucket, *, transfer: int, index: int) -> None:
        assert self._headers is not None and self._transport is not None
        packed = pack(bucket)
        header = header_json(BucketHeader.of(bucket)) | self._transport.describe(packed)
        self._headers.put(transfer, index, header)
        self._transport.send(packed)


class GlooTransport:
    """Through the CPU: for engines on CPU."""

    def __init__(self, headers: HeaderStore, rendezvous: Rendezvous) -> None:
        self._deadline_s = rendezvous.deadline_s
        self._group = gloo_group(headers.store, rank=0, rendezvous=rendezvous)

    def describe(self, packed: torch.Tensor) -> dict:
        return {}

    def send(self, packed: torch.Tensor) -> None:
        broadcast(self._group, packed.cpu(), deadline_s=self._deadline_s)

    def close(self) -> None:
        self._group.abort()


TRANSPORTS: dict[TransferBackend, Callable[[HeaderStore, Rendezvous], Transport]] = {
    "gloo": GlooTransport,
    "nccl": NcclTransport,
    "ipc": IpcTransport,
}
