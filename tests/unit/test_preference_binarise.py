"""Binarisation against hand-worked ratings."""

from collections import Counter
from fractions import Fraction

import pytest

from rlsys.data.preference_binarise import binarise
from rlsys.data.preference_records import PreferencePrompt, RatedResponse, Rating, Response
from rlsys.recipe.preferences import ASPECTS

NA = Rating("not_applicable")
FAILED = Rating("failed")
MALFORMED = Rating("malformed")


def _prompt(id: str = "p") -> PreferencePrompt:
    return PreferencePrompt(id, ({"role": "user", "content": f"{id}?"},), "toy", "reused")


def _rated(model: str, *ratings: int | Rating, prompt: str = "p", text: str | None = None) -> RatedResponse:
    values = [rating if isinstance(rating, Rating) else Rating("rated", rating) for rating in ratings]
    return RatedResponse(
        Response(prompt, model, 0, f"{model} says" if text is None else text), dict(zip(ASPECTS, values, strict=True))
    )


def _pair_of(*responses: RatedResponse, seed: int = 0) -> tuple[str, str, float, float] | None:
    pairs, _ = binarise([(_prompt(), responses)], seed=seed)
    if not pairs:
        return None
    (pair,) = pairs
    return pair.chosen.model, pair.rejected.model, pair.chosen_score, pair.rejected_score


def test_chosen_is_the_highest_mean_and_rejected_is_any_lower_one():
    responses = (_rated("a", 3, 3, 3, 3), _rated("b", 5, 5, 5, 4), _rated("c", 1, 1, 1, 1), _rated("d", 5, 4, 5, 4))
    found = Counter(_pair_of(*responses, seed=seed) for seed in range(600))
    assert set(found) == {("b", "a", 4.75, 3.0), ("b", "c", 4.75, 1.0), ("b", "d", 4.75, 4.5)}
    assert all(150 < count < 250 for count in found.values())


def test_rejected_never_shares_the_highest_mean():
    responses = (_rated("a", 4, 4, 4, 4), _rated("b", 5, 3, 5, 3), _rated("c", 2, 4, 2, 4))
    found = {_pair_of(*responses, seed=seed) for seed in range(200)}
    assert found == {("a", "c", 4.0, 3.0), ("b", "c", 4.0, 3.0)}


def test_ties_are_no_pair():
    pairs, counts = binarise([(_prompt(), [_rated("a", 4, 4, 4, 4), _rated("b", 5, 3, 4, 4)])], seed=0)
    assert pairs == []
    assert counts == {"pairs": 0, "tied": 1, "too_few": 0, "unsettled": 0, "malformed": 0, "failed": 0}


def test_not_applicable_leaves_the_mean_to_the_other_aspects():
    assert _rated("a", 5, 4, NA, 5).mean == Fraction(14, 3)
    assert _pair_of(_rated("a", 5, 4, NA, 5), _rated("b", 5, 4, 4, 5)) == ("a", "b", pytest.approx(14 / 3), 4.5)
    assert _pair_of(_rated("a", 4, 4, NA, 4), _rated("b", 4, 4, 4, 4)) is None
    assert _rated("a", NA, NA, NA, NA).mean is None


def test_equal_means_are_ties_whatever_floats_make_of_them():
    third = RatedResponse(Response("p", "a", 0, "x"), {str(i): Rating("rated", v) for i, v in enumerate((1, 1, 2))})
    sixth = RatedResponse(
        Response("p", "b", 0, "y"), {str(i): Rating("rated", v) for i, v in enumerate((2, 1, 1, 1, 1, 2))}
    )
    assert _pair_of(third, sixth) is None


@pytest.mark.parametrize("broken", [FAILED, MALFORMED])
def test_a_rating_that_failed_keeps_its_response_out_and_never_marks_it_down(broken):
    best, low, lower = _rated("best", 5, 5, 5, broken), _rated("low", 2, 2, 2, 2), _rated("lower", 1, 2, 2, 2)
    pairs, counts = binarise([(_prompt(), [best, low, lower])], seed=0)
    assert [(pair.chosen.model, pair.rejected.model) for pair in pairs] == [("low", "lower")]
    assert counts["unsettled"] == counts[broken.status] == 1
    pairs, counts = binarise([(_prompt(), [best, low])], seed=0)
    assert (pairs, counts["too_few"]) == ([], 1)


def test_the_same_text_is_never_on_both_sides():
    twin = _rated("b", 1, 1, 1, 1, text="a says")
    assert _pair_of(_rated("a", 5, 5, 5, 5), twin) is None


def test_a_draw_depends_on_seed_prompt_and_its_responses_alone():
    def responses(id: str) -> list[RatedResponse]:
        return [_rated(model, *[value] * 4, prompt=id) for model, value in zip("abcd", (5, 3, 2, 1), strict=True)]

    whole = [(_prompt(f"p{index}"), responses(f"p{index}")) for index in range(40)]
    drawn = {pair.prompt.id: pair.rejected.model for pair in binarise(whole, seed=5)[0]}
    shuffled = [(prompt, answers[::-1]) for prompt, answers in whole[::-1]]
    assert {pair.prompt.id: pair.rejected.model for pair in binarise(shuffled, seed=5)[0]} == drawn
    assert set(drawn.values()) == {"b", "c", "d"}
    assert {pair.prompt.id: pair.rejected.model for pair in binarise(whole, seed=6)[0]} != drawn
