"""Which rows make a step, and how flat response arrays map to rows."""

from itertools import chain

import numpy as np

from rlsys.models.experience_rows import pad, response_rows, responses_of, samples_of, trained_mask, unpad
from rlsys.models.row_order import balanced_parts, rows_of_step, steps_per_epoch
from rlsys.types import Experience, Prompt, Rollout, Verdict


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
    rows = [sample.row() for sample in samples_of(EXPERIENCES, {"advantages": flat})]
    assert [row.token_ids.tolist() for row in rows] == [[1, 2, 3, 4, 5], [1, 2], [9, 8, 7]]
    assert rows[2].fields["advantages"].tolist() == [0, 5, 6]
    to_score = response_rows(EXPERIENCES)
    assert [row.token_ids.tolist() for row in to_score] == [row.token_ids.tolist() for row in rows]
    assert [row.fields["mask"].tolist() for row in to_score] == [[0, 0, 1, 1, 1], [0, 1], [0, 1, 1]]
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
