"""Verifier-decided pairs against hand-worked groups."""

from collections import Counter

import numpy as np
import pytest

from rlsys.data.preference_pairs import ScoredSample, count_groups, verifier_pairs

NAN = float("nan")


def _samples(*scores: float | None) -> list[ScoredSample]:
    """Sample i has ids [10 + i, 2]; None is a masked one, whose score is NaN."""
    return [
        ScoredSample(np.array([10 + index, 2], np.int32), NAN if score is None else score, score is None)
        for index, score in enumerate(scores)
    ]


def test_only_mixed_prompts_give_a_pair_and_the_chosen_is_the_right_one():
    groups = {
        "mixed": _samples(0.0, 1.0),
        "right": _samples(1.0, 1.0),
        "wrong": _samples(0.0, 0.0),
        "masked": _samples(None, None),
        "right and masked": _samples(1.0, None),
        "empty": [],
    }
    (pair,) = verifier_pairs(groups.items(), seed=0)
    assert (pair.prompt_id, pair.chosen_sample, pair.rejected_sample) == ("mixed", 1, 0)
    assert pair.chosen_ids.tolist() == [11, 2]
    assert pair.rejected_ids.tolist() == [10, 2]
    assert (pair.chosen_score, pair.rejected_score) == (1.0, 0.0)
    assert count_groups(groups.items()) == {
        "mixed": 1, "all_right": 2, "all_wrong": 1, "all_masked": 2, "masked_samples": 3,
    }  # fmt: skip


def test_every_right_and_wrong_sample_is_drawn_evenly_and_masked_never():
    groups = [(f"p{index}", _samples(1.0, None, 0.0, 1.0, 0.25)) for index in range(4000)]
    pairs = verifier_pairs(groups, seed=7)
    assert len(pairs) == 4000
    counts = Counter((pair.chosen_sample, pair.rejected_sample) for pair in pairs)
    assert set(counts) == {(0, 2), (0, 4), (3, 2), (3, 4)}
    assert all(abs(count - 1000) < 150 for count in counts.values())


def test_a_pair_depends_on_seed_and_its_own_prompt_alone():
    groups = {f"p{index}": _samples(1.0, 1.0, 0.0, 0.0) for index in range(50)}
    drawn = {
        pair.prompt_id: (pair.chosen_sample, pair.rejected_sample) for pair in verifier_pairs(groups.items(), seed=3)
    }
    backwards = verifier_pairs(reversed(list(groups.items())), seed=3)
    assert {pair.prompt_id: (pair.chosen_sample, pair.rejected_sample) for pair in backwards} == drawn
    (alone,) = verifier_pairs([("p17", groups["p17"])], seed=3)
    assert (alone.chosen_sample, alone.rejected_sample) == drawn["p17"]
    other = verifier_pairs(groups.items(), seed=4)
    assert {pair.prompt_id: (pair.chosen_sample, pair.rejected_sample) for pair in other} != drawn


def test_plain_tuples_serve_and_half_right_is_wrong():
    samples = [(np.array([1]), 0.5, False), (np.array([2]), 0.4, False)]
    assert verifier_pairs([("p", samples)], seed=0) == []
    (pair,) = verifier_pairs([("p", [samples[0], (np.array([3]), 1.0, False)])], seed=0)
    assert (pair.chosen_score, pair.rejected_score) == (1.0, 0.5)


def test_an_unmasked_score_that_is_no_score_is_refused():
    with pytest.raises(ValueError, match="sample 1 of prompt 'p'"):
        verifier_pairs([("p", [ScoredSample(np.array([1]), 1.0), ScoredSample(np.array([2]), NAN)])], seed=0)


def test_a_prompt_that_comes_twice_is_refused():
    with pytest.raises(ValueError, match="came twice"):
        verifier_pairs([("p", _samples(1.0)), ("p", _samples(0.0))], seed=0)
