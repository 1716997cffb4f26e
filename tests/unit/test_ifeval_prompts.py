"""Instruction texts, drawn arguments, and the table of conflicts."""

import copy
import json
import re
from collections import Counter
from itertools import combinations
from random import Random

import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.ifeval import (
    add_constraints,
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


def test_added_constraints_do_not_conflict_and_their_truth_loads():
    counted: Counter[str] = Counter()
    for seed in range(200):
        made = add_constraints(REQUEST, Random(seed), count=3)
        ids = made.ground_truth["instruction_id_list"]
        assert len(ids) == 3
        assert not any(two in conflicts(one) for one, two in combinations(ids, 2))
        check_ifeval_ground_truth(made.ground_truth)
        assert made.prompt.startswith(REQUEST + "\n\n")
        counted.update(ids)
    # IFBench's constraints are a test set; the rest is all drawn at some time, but for what stands alone.
    assert not any(id.startswith(("custom:", "ratio:", "format:")) for id in counted)
    assert len(counted) >= 40


def test_a_request_with_constraints_is_verified_by_its_truth():
    ids = ["change_case:english_lowercase", "punctuation:no_comma", "detectable_format:number_bullet_lists"]
    made = add_constraints(REQUEST, Random(4), count=3, among=ids)
    truth = copy.deepcopy(dict(made.ground_truth))
    place = truth["instruction_id_list"].index("detectable_format:number_bullet_lists")
    bullets = "\n".join(["- a word"] * truth["kwargs"][place]["num_bullets"])
    assert verify_ifeval(bullets, made.ground_truth, "reward").outcome == "correct"
    assert verify_ifeval(bullets.title(), made.ground_truth, "reward").outcome == "wrong"
    assert made.ground_truth == truth


def test_too_many_constraints_are_refused():
    with pytest.raises(VerifierError, match="2 constraints without conflict"):
        add_constraints(REQUEST, Random(0), count=2, among=["copy:copy", "punctuation:no_comma"])
