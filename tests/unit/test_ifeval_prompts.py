"""Instruction texts, drawn arguments, and the table of conflicts."""

import json
import re
from random import Random

import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.ifeval import (
    check_ifeval_ground_truth,
    conflicts,
    describe,
    instruction_ids,
    sample_kwargs,
    verify_ifeval,
)
from rlsys.verifiers.ifeval.conflicts import ASPECTS

REQUEST = "Write a story about an old dog, a cat and the sea."

# Upstream's table of IFEval's conflicts: ours must hold each of them.
UPSTREAM_CONFLICTS = {
    "language:response_language": (
        "detectable_format:multiple_sections keywords:existence keywords:frequency keywords:forbidden_words "
        "startend:end_checker change_case:english_capital change_case:english_lowercase"
    ),
    "length_constraints:number_paragraphs": (
        "length_constraints:nth_paragraph_first_word length_constraints:number_sentences"
    ),
    "detectable_format:multiple_sections": "detectable_format:number_highlighted_sections",
    "change_case:capital_word_frequency": "change_case:english_lowercase change_case:english_capital",
    "change_case:english_lowercase": "change_case:english_capital",
    "startend:quotation": "detectable_format:title",
}


@pytest.mark.parametrize("id", instruction_ids())
def test_drawn_arguments_load_and_are_named_in_the_text(id: str):
    for seed in range(20):
        drawn = sample_kwargs(id, Random(seed), prompt=REQUEST)
        assert drawn == sample_kwargs(id, Random(seed), prompt=REQUEST)
        assert json.loads(json.dumps(drawn)) == drawn
        check_ifeval_ground_truth({"instruction_id_list": [id], "kwargs": [drawn]})
        text = describe(id, drawn)
        shown = [value for value in drawn.values() if isinstance(value, int)]
        assert set(map(str, shown)) <= set(re.findall(r"\d+", text))


def test_texts_show_lists_languages_and_braces_as_words():
    assert describe("keywords:existence", {"keywords": ["cat", "sea"]}).endswith("cat, sea.")
    assert "Hebrew" in describe("language:response_language", {"language": "he"})
    assert "[brackets {and braces}]" in describe("format:parentheses", {})


def test_a_text_needs_valid_arguments():
    with pytest.raises(VerifierError, match="num_bullets must be an integer"):
        describe("detectable_format:number_bullet_lists", {"num_bullets": "two"})


def test_what_repeats_the_request_needs_one():
    with pytest.raises(ValueError, match="pass the prompt"):
        sample_kwargs("combination:repeat_prompt", Random(0))


def test_every_constraint_is_in_the_table_of_conflicts():
    assert set(ASPECTS) == set(instruction_ids())


def test_conflicts_are_mutual_and_hold_upstreams():
    for one in instruction_ids():
        assert one in conflicts(one)
        assert all(one in conflicts(other) for other in conflicts(one))
    for one, others in UPSTREAM_CONFLICTS.items():
        assert conflicts(one) >= set(others.split())
    assert conflicts("detectable_format:constrained_response") == set(instruction_ids())
    assert "punctuation:no_comma" not in conflicts("change_case:english_capital")


def test_constraints_that_do_not_conflict_can_be_followed_together():
    together = {
        "change_case:english_lowercase": {},
        "punctuation:no_comma": {},
        "detectable_format:number_bullet_lists": {"num_bullets": 2},
        "keywords:existence": {"keywords": ["river", "stone"]},
        "startend:end_checker": {"end_phrase": "That is all."},
    }
    for one in together:
        assert conflicts(one).isdisjoint(together.keys() - {one})
    truth = {"instruction_id_list": list(together), "kwargs": list(together.values())}
    response = "* a river ran\n* a stone lay\nthat is all."
    assert verify_ifeval(response, truth, "reward").outcome == "correct"
    assert verify_ifeval(response.title(), truth, "reward").detail["strict"] == [False, True, True, True, True]
