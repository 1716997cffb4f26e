"""What is refused when a data set loads, and the forms of ground truth that published sets have."""

import json

import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.ifbench import check_ifbench_ground_truth, verify_ifbench
from rlsys.verifiers.ifeval import check_ifeval_ground_truth, verify_ifeval

NO_COMMA = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}


def truth(id: str, **arguments) -> dict:
    return {"instruction_id_list": [id], "kwargs": [arguments]}


REFUSED = [
    (None, "not an object"),
    ("{", "not JSON"),
    ([], "not an object"),
    ({}, "instruction_id_list must be a list"),
    ({"instruction_id_list": [], "kwargs": []}, "at least one id"),
    ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "list of 1 objects"),
    ({**NO_COMMA, "scoring": "mean"}, "scoring must be"),
    ({**NO_COMMA, "score": 1}, "unknown keys"),
    (truth("no:such_instruction"), "unknown instruction id 'no:such_instruction'"),
    (truth("words:start_verb"), "not verified: telling a verb"),
    ({"instruction_id_list": [3], "kwargs": [{}]}, "unknown instruction id 3"),
    ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": [3]}, "must be an object, got 3"),
    (truth("punctuation:no_comma", num_words=3), "unknown argument 'num_words'"),
    (truth("length_constraints:number_words", relation="at least", num_words=None), "missing argument 'num_words'"),
    (truth("length_constraints:number_words", relation="at least", num_words=True), "num_words must be an integer"),
    (truth("length_constraints:number_words", relation="at least", num_words=0), "num_words must be an integer"),
    (truth("length_constraints:number_words", relation="at least", num_words=2.5), "num_words must be an integer"),
    (truth("length_constraints:number_words", relation="at least", num_words=float("nan")), "must be an integer"),
    (truth("length_constraints:number_words", relation="around", num_words=5), "relation must be one of"),
    (truth("keywords:existence", keywords=[]), "keywords must be a non-empty list"),
    (truth("keywords:existence", keywords="cat"), "keywords must be a non-empty list"),
    (truth("keywords:existence", keywords=["cat", " "]), "keywords must be a non-empty list"),
    (truth("keywords:existence", keywords=["x" * 201]), "keywords must be a non-empty list"),
    (truth("keywords:letter_frequency", letter="ab", let_relation="at least", let_frequency=1), "a single character"),
    (truth("language:response_language", language="xx"), "language must be one of"),
    (truth("startend:end_checker", end_phrase=" "), "end_phrase must be a string"),
    (truth("combination:repeat_prompt", prompt_to_repeat=""), "prompt_to_repeat must be a string"),
    (
        truth("length_constraints:nth_paragraph_first_word", num_paragraphs=2, nth_paragraph=3, first_word="a"),
        "nth_paragraph 3 lies beyond",
    ),
    (truth("count:word_count_range", min_words=9, max_words=2), "min_words 9 is over"),
    (truth("count:conjunctions", small_n=8), "an integer from 1 to 7"),
    (truth("count:count_increment_word", keyword1="cat", keyword2="cats"), "is part of keyword2"),
    (truth("new:copy_span_idx", prompt_to_repeat="Hi", n_start=1, n_end=9), "beyond its 2"),
    (truth("repeat:repeat_span", prompt_to_repeat="Hi you", n_start=1, n_end=2), "are not in prompt_to_repeat"),
    (truth("copy:repeat_phrase", phrase="two words", small_n=2), "three words or more"),
]


@pytest.mark.parametrize(("ground_truth", "message"), REFUSED)
def test_a_faulty_ground_truth_is_refused_at_load(ground_truth, message: str):
    with pytest.raises(VerifierError, match=message):
        check_ifeval_ground_truth(ground_truth)
    with pytest.raises(VerifierError, match=message):
        check_ifbench_ground_truth(ground_truth)


def test_every_fault_is_named():
    faulty = {
        "instruction_id_list": ["no:such", "length_constraints:number_words", "startend:end_checker"],
        "kwargs": [{}, {"relation": "around"}, {"end_phrase": 3}],
    }
    with pytest.raises(VerifierError) as caught:
        check_ifeval_ground_truth(faulty)
    for part in ("'no:such'", "got 'around'", "missing argument 'num_words'", "end_phrase must be"):
        assert part in str(caught.value)


def test_a_response_is_never_verified_against_a_faulty_ground_truth():
    with pytest.raises(VerifierError):
        verify_ifeval("hi", truth("length_constraints:number_words", relation="at least"), "reward")


def test_what_no_response_can_satisfy_is_wrong_when_it_was_not_refused_at_load():
    impossible = truth("length_constraints:nth_paragraph_first_word", num_paragraphs=2, nth_paragraph=3, first_word="a")
    assert verify_ifeval("a\n\na", impossible, "reward").outcome == "wrong"


@pytest.mark.parametrize(
    "form",
    [
        NO_COMMA,
        json.dumps(NO_COMMA),
        [NO_COMMA],
        json.dumps([{"instruction_id": ["punctuation:no_comma"], "kwargs": [None]}]),
        {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"num_words": None, "relation": None}]},
    ],
)
def test_the_forms_of_published_data_sets(form):
    check_ifeval_ground_truth(form)
    assert verify_ifeval("No comma.", form, "reward").score == 1
    assert verify_ifeval("One, two.", form, "reward").score == 0


def test_integral_floats_are_integers():
    floats = truth("count:numbers", N=2.0)
    check_ifbench_ground_truth(floats)
    assert verify_ifbench("1 and 2", floats, "eval").outcome == "correct"


def test_families_mix_in_one_list():
    mixed = {
        "instruction_id_list": ["punctuation:no_comma", "last_word:last_word_answer", "count:numbers"],
        "kwargs": [{}, {"last_word": "now"}, {"N": 1}],
    }
    for verify in (verify_ifeval, verify_ifbench):
        assert verify("Take 1 now.", mixed, "reward").detail["strict"] == [True, True, True]
        assert verify("Take 1, then 2.", mixed, "reward").detail["strict"] == [False, False, False]
