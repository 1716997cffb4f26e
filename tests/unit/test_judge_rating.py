"""A judge's words against the rating that a person reads in them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.data.judge_rating import ParsedRating, parse_rating

RATED = {
    "Rating: 4": 4,
    "Good work.\n\n**Rating:** 3": 3,
    "**Rating: 5**": 5,
    "rating = 2.": 2,
    "Rating: 4/5": 4,
    "Rating: 4 / 5, since one step is missing": 4,
    "Rating: 4 out of 5": 4,
    "Rating: [1]": 1,
    "Rating: <2>": 2,
    "Rating: 4.0": 4,
    "The rating is 5.": 5,
    "Score: 3": 3,
    "Rating (1-5): 4": 4,
    "Rating [1 to 5]: 2": 2,
    "Rating - 3": 3,
    '{"reason": "fine", "rating": 4}': 4,
    '{"rating": "4"}': 4,
    "```\nRating: 2\n```": 2,
    "Rating：４": 4,
    "<think>Rating: 1, or rather 2</think>\nRating: 5": 5,
    "4": 4,
    " **3** ": 3,
    "5/5": 5,
    "2.": 2,
    "A rating of 5 needs sources.\nRating: 3": 3,
    "Rating: 3\nOn reflection:\nRating: 4": 4,
    "Rating: 3\nRating: 3\nThat is all.": 3,
    "Rating: 5\n(I have read 3 of its 4 parts twice.)": 5,
}
MALFORMED = [
    "",
    "   ",
    "I cannot rate this.",
    "Rating:",
    "Rating: excellent",
    "Rating: 0",
    "Rating: 6",
    "Rating: 45",
    "Rating: -1",
    "Rating: 3.5",
    "Rating: 3-4",
    "Rating: 3 or 4",
    "Rating: 3, 4",
    "Rating: 3 to 4",
    "Rating: 8/10",
    "Rating: 4/10",
    "10",
    "3 4",
    "4 of the 5 claims are true.",
    "There are 3 mistakes.",
    "Rating: 3\nRating: 5\nTake either.",
    "<think>Rating: 4",
    "Rating: 4</think>",
    "Rating: five",
]


@pytest.mark.parametrize(("text", "value"), RATED.items())
def test_ratings_in_every_usual_dress(text, value):
    assert parse_rating(text, allow_not_applicable=False) == ParsedRating("rated", value)
    assert parse_rating(text, allow_not_applicable=True) == ParsedRating("rated", value)


@pytest.mark.parametrize("text", MALFORMED)
def test_what_is_no_plain_rating_is_malformed(text):
    assert parse_rating(text, allow_not_applicable=False) == ParsedRating("malformed")
    assert parse_rating(text, allow_not_applicable=True) == ParsedRating("malformed")


@pytest.mark.parametrize("text", ["Rating: N/A", "rating: n/a.", "N/A", "**Rating:** Not applicable", "Rating: N / A"])
def test_not_applicable_counts_only_where_it_is_allowed(text):
    assert parse_rating(text, allow_not_applicable=True) == ParsedRating("not_applicable")
    assert parse_rating(text, allow_not_applicable=False) == ParsedRating("malformed")


@given(st.text(alphabet=st.sampled_from(list("Rating: scoe1-5/NA.*\n<thk>（４ \ud800")), max_size=60))
def test_no_text_makes_it_crash_or_leave_the_scale(text):
    parsed = parse_rating(text, allow_not_applicable=True)
    assert parsed.value in (1, 2, 3, 4, 5) if parsed.status == "rated" else parsed.value is None
