"""The buffer holds what it is told to; balancing keeps counts equal and tokens even."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.errors import LedgerError
from rlsys.rollouts.experience_buffer import ExperienceBuffer, balance
from rlsys.types import GroupSummary


def summary(ordinal: int, *lengths: int) -> GroupSummary:
    n = len(lengths)
    return GroupSummary(ordinal, lengths, 3, 0, 0, ("stop",) * n, (0.0,) * n, ((),) * n)


def filled() -> ExperienceBuffer[str]:
    buffer = ExperienceBuffer[str]()
    for ordinal in (5, 2, 9):
        buffer.put(summary(ordinal, ordinal, 1), f"ref {ordinal}")
    return buffer


def test_take_gives_groups_in_the_order_of_the_batch():
    buffer = filled()
    assert [group.reference for group in buffer.take((9, 2))] == ["ref 9", "ref 2"]
    assert [group.summary.ordinal for group in buffer.groups()] == [5]


def test_take_is_all_or_nothing():
    buffer = filled()
    with pytest.raises(LedgerError, match=r"\[3\]"):
        buffer.take((9, 3))
    assert len(buffer) == 3


def test_retain_lets_go_of_what_the_ledger_no_longer_has_and_a_new_attempt_replaces_the_old():
    buffer = filled()
    buffer.put(summary(5, 50), "second attempt")
    assert buffer.retain([5, 9, 77]) == [2]
    assert [group.reference for group in buffer.groups()] == ["second attempt", "ref 9"]


@settings(deadline=None)
@given(st.lists(st.integers(1, 4096), max_size=40), st.integers(1, 9))
def test_balance_is_a_partition_with_even_counts_and_a_bounded_spread(lengths: list[int], num_shards: int):
    shards = balance(lengths, num_shards)
    assert sorted(index for shard in shards for index in shard) == list(range(len(lengths)))
    counts = [len(shard) for shard in shards]
    assert len(shards) == num_shards and max(counts) - min(counts) <= 1
    tokens = [sum(lengths[index] for index in shard) for shard in shards]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)
    assert shards == balance(lengths, num_shards)


def test_balance_is_near_the_best_two_way_split_of_equal_counts():
    lengths = [812, 33, 507, 490, 1500, 1499, 20, 777, 64, 305]
    best = min(
        abs(sum(lengths) - 2 * sum(lengths[i] for i in chosen)) for chosen in combinations(range(len(lengths)), 5)
    )
    first, second = (sum(lengths[i] for i in shard) for shard in balance(lengths, 2))
    assert best <= abs(first - second) <= best + 60


def test_balance_is_within_one_percent_at_the_size_of_the_largest_recipe():
    lengths = [int(n) for n in np.random.default_rng(0).gamma(2.0, 300.0, 1856)]
    loads = [sum(lengths[i] for i in shard) for shard in balance(lengths, 232)]
    assert max(loads) < 1.01 * sum(loads) / 232


def test_balance_refuses_no_shards():
    with pytest.raises(ValueError, match="num_shards"):
        balance([1], 0)
