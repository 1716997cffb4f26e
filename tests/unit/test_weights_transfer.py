"""Buckets from a sender to receivers over real gloo groups and TCP stores: bytes, deadlines, failures."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch

from rlsys.errors import WeightTransferError
from rlsys.weights.channel import (
    BucketHeader,
    HeaderStore,
    broadcast,
    gloo_group,
    header_from_json,
    header_json,
    pack,
    unpack,
)
from rlsys.weights.digest import digest_tensor
from rlsys.weights.ipc_handle import from_json, to_json
from rlsys.weights.records import Rendezvous
from rlsys.weights.sender import WeightSender

HOST = "127.0.0.1"
SHORT_S = 4.0


@pytest.fixture
def background() -> Iterator[Callable[..., Future]]:
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


class Receiver:
    """The receiving half of the protocol, without vLLM."""

    def __init__(self, rendezvous: Rendezvous, rank: int) -> None:
        self.rendezvous = rendezvous
        self.headers = HeaderStore(rendezvous, is_sender=False)
        self.group = gloo_group(self.headers.store, rank=rank, rendezvous=rendezvous)
        self.bucket_bytes: list[int] = []

    def receive(self, transfer: int, *, most: int = 1000) -> dict[str, torch.Tensor]:
        """Takes at most `most` buckets."""
        tensors: dict[str, torch.Tensor] = {}
        for index in range(most):
            fields = self.headers.get(transfer, index)
            if fields is None:
                break
            if "error" in fields:
                raise WeightTransferError(fields["error"])
            header = header_from_json(fields)
            buffer = torch.empty(sum(header.sizes), dtype=torch.uint8)
            self.bucket_bytes.append(len(buffer))
            broadcast(self.group, buffer, deadline_s=self.rendezvous.deadline_s)
            tensors |= dict(unpack(header, buffer))
        return tensors


def connect(background: Callable[..., Future], num_receivers: int, deadline_s: float = 20.0):
    sender = WeightSender("gloo", digest="sha256")
    rendezvous = sender.open(host=HOST, num_receivers=num_receivers, deadline_s=deadline_s)
    joining = [background(Receiver, rendezvous, rank) for rank in range(1, num_receivers + 1)]
    sender.join()
    return sender, [future.result() for future in joining]


BUCKETS = [
    [("a", torch.arange(3, dtype=torch.uint8)), ("b", torch.tensor([[1.5, -2.0]]))],
    [("c", torch.tensor([0.5, 1e-30], dtype=torch.bfloat16)), ("d", torch.tensor(7, dtype=torch.int64))],
]


def test_every_receiver_gets_every_byte_and_the_manifest_says_so(background):
    sender, receivers = connect(background, 2)
    taking = [background(receiver.receive, 1) for receiver in receivers]
    manifest = sender.send(iter(BUCKETS), transfer=1)
    assert manifest is not None
    for future in taking:
        got = future.result()
        for name, tensor in [pair for bucket in BUCKETS for pair in bucket]:
            assert got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)
    assert manifest.tensors == tuple(digest_tensor(n, t, kind="sha256") for bucket in BUCKETS for n, t in bucket)
    assert [receiver.bucket_bytes for receiver in receivers] == [[11, 12]] * 2, "never more at once than was gathered"


def test_headers_of_earlier_transfers_are_deleted(background):
    sender, (receiver,) = connect(background, 1)
    for transfer in (1, 2, 3):
        taking = background(receiver.receive, transfer)
        sender.send(iter(BUCKETS), transfer=transfer)
        taking.result()
    store = receiver.headers.store
    kept = [f"{transfer}/{index}" for transfer in (1, 2, 3) for index in (0, 1, 2)]
    assert [key for key in kept if store.check([key])] == ["3/0", "3/1", "3/2"]


def test_a_rank_that_is_not_the_sender_only_gathers():
    seen = []
    assert WeightSender("gloo").send((seen.append(i) or [] for i in range(3)), transfer=1) is None
    assert seen == [0, 1, 2]


def test_a_receiver_that_never_comes_is_an_error_at_the_deadline():
    sender = WeightSender("gloo")
    sender.open(host=HOST, num_receivers=1, deadline_s=SHORT_S)
    started = time.monotonic()
    with pytest.raises(WeightTransferError, match="rank 0 of 2 could not join"):
        sender.join()
    assert time.monotonic() - started < 5 * SHORT_S


def test_a_sender_that_never_comes_is_an_error_at_the_deadline(background):
    _, (receiver,) = connect(background, 1, SHORT_S)
    started = time.monotonic()
    with pytest.raises(WeightTransferError, match=r"did not say '1/0'"):
        receiver.receive(1)
    assert SHORT_S / 2 < time.monotonic() - started < 5 * SHORT_S


def test_a_receiver_that_stops_taking_part_is_an_error_at_the_deadline(background):
    sender, (receiver,) = connect(background, 1, SHORT_S)
    taking = background(receiver.receive, 1, most=1)
    gathered = []

    def large():
        for index in range(8):
            gathered.append(index)
            yield [(f"t{index}", torch.zeros(1 << 20))]

    started = time.monotonic()
    with pytest.raises(WeightTransferError, match="a peer was lost"):
        sender.send(large(), transfer=1)
    assert time.monotonic() - started < 5 * SHORT_S
    assert gathered == list(range(8)), "the learner's other ranks gather to the end"
    assert set(taking.result()) == {"t0"}


def test_what_gathering_raises_passes_through_and_receivers_hear_of_it_at_once(background):
    sender, (receiver,) = connect(background, 1)

    def buckets():
        yield BUCKETS[0]
        raise RuntimeError("a rank is gone")

    taking = background(receiver.receive, 1)
    started = time.monotonic()
    with pytest.raises(RuntimeError, match="a rank is gone"):
        sender.send(buckets(), transfer=1)
    with pytest.raises(WeightTransferError, match="a rank is gone"):
        taking.result()
    assert time.monotonic() - started < 5


def test_a_group_is_built_again_after_a_failure(background):
    sender, _ = connect(background, 1, SHORT_S)
    with pytest.raises(WeightTransferError):
        sender.send(iter([[("t", torch.zeros(4 << 20))]]), transfer=1)
    rendezvous = sender.open(host=HOST, num_receivers=1, deadline_s=20.0)
    joining = background(Receiver, rendezvous, 1)
    sender.join()
    taking = background(joining.result().receive, 2)
    sender.send(iter(BUCKETS), transfer=2)
    assert torch.equal(taking.result()["b"], BUCKETS[0][1][1])


def test_unpack_gives_back_what_was_packed_where_bytes_are_not_aligned():
    bucket = [("byte", torch.tensor([7], dtype=torch.uint8)), ("float", torch.tensor([1.0, 2.0]))]
    header = header_from_json(header_json(BucketHeader.of(bucket)))
    assert header.sizes == [1, 8]
    assert [(name, tensor.tolist()) for name, tensor in unpack(header, pack(bucket))] == [
        ("byte", [7]),
        ("float", [1.0, 2.0]),
    ]


def test_an_ipc_handle_survives_json():
    handle = (
        torch.Tensor,
        torch.Size([4]),
        (1,),
        0,
        torch.UntypedStorage,
        torch.uint8,
        0,
        b"\x00\xff",
        4,
        0,
        False,
        b"ref",
        2,
        b"event",
        True,
    )
    assert from_json(to_json(handle)) == handle
    with pytest.raises(TypeError, match="complex"):
        to_json((1j,))
