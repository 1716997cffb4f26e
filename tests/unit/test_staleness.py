"""The staleness arithmetic by hand."""

import pytest
from chain_audit import audit_ends

from rlsys.rollouts.staleness import free_places, oldest_trainable


@pytest.mark.parametrize(
    "k, version, trained, left, untrained, expected",
    [
        (0, 0, 0, 9, 0, 4),  # (0 + 0 + 1)·4 - 0
        (0, 0, 1, 8, 0, 0),  # trained, not yet published: (0 + 0 + 1)·4 - 4
        (0, 1, 1, 8, 3, 1),  # (0 + 1 + 1)·4 - (4 + 3)
        (2, 5, 6, 9, 8, 0),  # (2 + 5 + 1)·4 - (24 + 8)
        (2, 5, 5, 9, 8, 4),  # (2 + 5 + 1)·4 - (20 + 8)
        (2, 5, 5, 1, 3, 1),  # one batch is left to train
        (1, 5, 6, 9, 7, -3),  # more under way than a lowered k allows
    ],
)
def test_free_places_is_the_formula_of_the_design(k, version, trained, left, untrained, expected):
    assert expected == free_places(
        batch_groups=4,
        max_staleness=k,
        version=version,
        num_trained_batches=trained,
        num_batches_left=left,
        num_untrained=untrained,
    )


@pytest.mark.parametrize("batch, k, expected", [(0, 0, 0), (3, 0, 3), (3, 2, 1), (1, 4, 0)])
def test_the_oldest_trainable_version(batch, k, expected):
    assert oldest_trainable(batch, k) == expected


@pytest.mark.parametrize(
    "records, message",
    [
        ([[0, "trained", 1], [0, "trained", 2]], "ordinal 0 ended twice"),
        ([[0, "trained", 1], [2, "trained", 2]], r"ordinals below 3 without an end: \[1\]"),
    ],
)
def test_the_audit_finds_ordinals_that_ended_twice_or_never(records, message):
    with pytest.raises(AssertionError, match=message):
        audit_ends(records, low_water_mark=3)
    assert audit_ends([[4, "expired", 3], [0, "trained", 1]], low_water_mark=1) == {"trained": 1, "expired": 1}
