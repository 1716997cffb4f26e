"""Digests against plain integers and hashlib; what a difference says."""

import hashlib
import struct

import pytest
import torch

from rlsys.weights import digest as module
from rlsys.weights.digest import digest_tensor, fold64, sha256
from rlsys.weights.records import TensorDigest, first_difference

MASK = (1 << 64) - 1


def fold64_by_hand(words: list[int]) -> str:
    """The docstring's sum in Python integers; words are signed, shifts arithmetic."""
    total = 0
    for place, word in enumerate(words):
        x = (word + place * 0x9E3779B97F4A7C15) & MASK
        x ^= (signed(x) >> 29) & MASK
        x = (x * 0xBF58476D1CE4E5B9) & MASK
        x ^= (signed(x) >> 32) & MASK
        total = (total + x) & MASK
    return f"{total:016x}"


def signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def test_fold64_equals_plain_integers():
    tensor = torch.tensor([[1.5, -2.0, 0.0], [3.25e8, -1e-20, 7.0]])
    words = list(struct.unpack("<6i", struct.pack("<6f", *tensor.flatten().tolist())))
    assert fold64(tensor) == fold64_by_hand(words)


def test_fold64_reads_bytes_where_words_do_not_fit():
    tensor = torch.tensor([1, 2, 255], dtype=torch.uint8)
    assert fold64(tensor) == fold64_by_hand([1, 2, 255])


def test_fold64_does_not_depend_on_the_chunk(monkeypatch):
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole = fold64(tensor)
    monkeypatch.setattr(module, "CHUNK_WORDS", 7)
    assert fold64(tensor) == whole


def test_fold64_of_a_view_is_that_of_its_rows():
    tensor = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert fold64(tensor.T) == fold64(tensor.T.contiguous()) != fold64(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_single_bit_changes_fold64(dtype: torch.dtype):
    tensor = torch.randn(8, generator=torch.Generator().manual_seed(1)).to(dtype)
    seen = {fold64(tensor)}
    raw = tensor.view(torch.uint8)
    for place in range(raw.numel()):
        for bit in range(8):
            raw[place] ^= 1 << bit
            seen.add(fold64(tensor))
            raw[place] ^= 1 << bit
    assert len(seen) == 1 + 8 * raw.numel()


def test_swapped_rows_change_fold64():
    tensor = torch.randn(16, 4, generator=torch.Generator().manual_seed(2))
    swapped = tensor[[1, 0, *range(2, 16)]]
    assert fold64(tensor) != fold64(swapped)


def test_sha256_is_hashlibs():
    tensor = torch.arange(6, dtype=torch.float32)
    assert sha256(tensor) == hashlib.sha256(struct.pack("<6f", *range(6))).hexdigest()


def test_digest_says_what_it_saw():
    seen = digest_tensor("a.b", torch.zeros(2, 3, dtype=torch.bfloat16), kind="sha256")
    assert seen == TensorDigest("a.b", "bfloat16", (2, 3), hashlib.sha256(bytes(12)).hexdigest())


SENT = [TensorDigest("a", "float32", (2,), "aa"), TensorDigest("b", "float32", (3,), "bb")]


@pytest.mark.parametrize(
    ("received", "said"),
    [
        (SENT, None),
        (SENT[::-1], None),
        (SENT[:1], "tensor b was sent and did not arrive"),
        ([*SENT, TensorDigest("c", "float32", (1,), "cc")], "tensor c arrived and was not sent"),
        ([SENT[0], TensorDigest("b", "float32", (3,), "xx")], "tensor b was sent with digest bb and arrived with xx"),
        (
            [SENT[0], TensorDigest("b", "bfloat16", (3,), "bb")],
            "tensor b was sent with dtype float32 and arrived with bfloat16",
        ),
        (
            [TensorDigest("a", "float32", (2, 1), "aa"), SENT[1]],
            "tensor a was sent with shape (2,) and arrived with (2, 1)",
        ),
    ],
)
def test_first_difference_names_the_tensor(received: list[TensorDigest], said: str | None):
    assert first_difference(SENT, received) == said
