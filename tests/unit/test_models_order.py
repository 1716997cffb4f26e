"""Which rows and samples make a step, and how flat response arrays map to rows."""

from itertools import chain

import numpy as np
import torch

from rlsys.models.experience_rows import pad, response_rows, responses_of, trained_mask, unpad
from rlsys.models.minibatches import Minibatches, locate_samples
from rlsys.models.process_group import ProcessGroup
from rlsys.models.row_order import balanced_parts, rows_of_step, steps_per_epoch
from rlsys.types import Experience, Prompt, Rollout, Verdict


class RecordedGroup(ProcessGroup):
    """One rank of several whose others' answers are written down."""

    def __init__(self, rank: int, everyone: list) -> None:
        object.__setattr__(self, "_everyone", everyone)
        super().__init__(rank, len(everyone), torch.device("cpu"))

    def gather(self, item):
        assert item == self._everyone[self.rank]
        return self._everyone

    _everyone: list


def test_steps_take_every_row_once_an_epoch_and_another_order_in_the_next():
    steps = steps_per_epoch(10, 4)
    assert steps == 3
    first = [rows_of_step(10, batch_size=4, step=step, seed=1).tolist() for step in range(3)]
    second = [rows_of_step(10, batch_size=4, step=step, seed=1).tolist() for step in range(3, 6)]
    assert [len(part) for part in first] == [4, 4, 2]
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(10))
    assert first != second
    assert first[1] == rows_of_step(10, batch_size=4, step=1, seed=1).tolist()
    assert first[1] != rows_of_step(10, batch_size=4, step=1, seed=2).tolist()


def test_balanced_parts_by_hand():
    """9 | 8, then 7 joins 8 (15), 3 joins 9 (12) and 2 joins 12 (14)."""
    assert balanced_parts([9, 8, 7, 3, 2], 2) == [[0, 3, 4], [1, 2]]
    assert balanced_parts([5], 3) == [[0], [], []]


def test_places_of_samples_go_through_the_shards_in_the_drivers_order():
    """Three shards over two ranks: rank 0 has shards 0 and 2, rank 1 shard 1. Dropped samples have no place."""
    everyone = [[[True, False], [True]], [[True, True]]]
    first = locate_samples([np.array(s) for s in everyone[0]], RecordedGroup(0, everyone))
    second = locate_samples([np.array(s) for s in everyone[1]], RecordedGroup(1, everyone))
    # Places: shard 0 sample 0 -> 0; shard 1 samples -> 1, 2; shard 2 sample 0 -> 3.
    assert (first.local_of, first.num_global) == ({0: 0, 3: 2}, 4)
    assert (second.local_of, second.num_global) == ({1: 0, 2: 1}, 4)


def test_minibatches_partition_each_epoch_over_any_number_of_ranks():
    everyone = [[[True] * 4, [True] * 3], [[True] * 5]]
    locations = [
        locate_samples([np.array(s) for s in everyone[rank]], RecordedGroup(rank, everyone)) for rank in (0, 1)
    ]
    steps = [list(Minibatches(location, seed=3, epochs=2, parts=3).local_members()) for location in locations]
    assert [len(a) + len(b) for a, b in zip(*steps, strict=True)] == [4] * 6
    for epoch in (slice(0, 3), slice(3, 6)):
        assert sorted(chain(*steps[0][epoch])) == list(range(7))
        assert sorted(chain(*steps[1][epoch])) == list(range(5))
    order = np.random.default_rng((3, 0)).permutation(12)
    places = {place: (0, local) for place, local in locations[0].local_of.items()}
    places |= {place: (1, local) for place, local in locations[1].local_of.items()}
    expected = [places[int(place)] for place in order[:4]]
    assert sorted(expected) == sorted([(0, i) for i in steps[0][0]] + [(1, i) for i in steps[1][0]])


def experience(prompt: list[int], response: list[int], versions: list[int], masked: bool = False) -> Experience:
    length = len(response)
    rollout = Rollout(0, 0, np.array(response, np.int32), np.zeros(length, np.float32), np.array(versions), "stop")
    verdict = Verdict("math", "error" if masked else "correct", 0.0, 0.0)
    return Experience(Prompt(0, "x", (), np.array(prompt, np.int32)), rollout, (verdict,), 1.0)


EXPERIENCES = [
    experience([1, 2], [3, 4, 5], [6, 7, 7]),
    experience([1], [2], [7], masked=True),
    experience([9], [8, 7], [7, 7]),
]


def test_rows_and_flat_arrays_are_inverse():
    flat = np.arange(1, 7, dtype=np.float32)
    rows = response_rows(EXPERIENCES, {"advantages": flat})
    assert [row.token_ids.tolist() for row in rows] == [[1, 2, 3, 4, 5], [1, 2], [9, 8, 7]]
    assert [row.fields["mask"].tolist() for row in rows] == [[0, 0, 1, 1, 1], [0, 1], [0, 1, 1]]
    assert rows[2].fields["advantages"].tolist() == [0, 5, 6]
    assert responses_of(EXPERIENCES, [row.fields["advantages"] for row in rows]).tolist() == flat.tolist()


def test_failed_verdicts_and_tokens_sampled_too_long_ago_are_masked():
    assert trained_mask(EXPERIENCES).tolist() == [1, 1, 1, 0, 1, 1]
    assert trained_mask(EXPERIENCES, oldest_version=7).tolist() == [0, 1, 1, 0, 1, 1]
    assert trained_mask([]).tolist() == []


def test_padding_is_undone():
    lengths = np.array([3, 1, 2])
    padded = pad(np.arange(1, 7, dtype=np.float32), lengths)
    assert padded.tolist() == [[1, 2, 3], [4, 0, 0], [5, 6, 0]]
    assert unpad(padded, lengths).tolist() == [1, 2, 3, 4, 5, 6]
    assert pad(np.zeros(0, np.float32), np.zeros(0, np.int64)).shape == (0, 1)
