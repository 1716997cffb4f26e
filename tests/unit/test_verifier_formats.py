"""R1 formats, strings, choices and lengths, by hand."""

import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.boxes import find_boxes
from rlsys.verifiers.length import check_max_length_ground_truth, verify_max_length
from rlsys.verifiers.match import (
    check_multiple_choice_ground_truth,
    check_string_ground_truth,
    verify_multiple_choice,
    verify_string,
)
from rlsys.verifiers.r1 import check_format_ground_truth, check_r1_ground_truth, verify_format, verify_r1

R1 = "<think>\nfour,\nsurely\n</think>\n<answer>{}</answer>"


@pytest.mark.parametrize("answer", ["4", "$4$", r"\boxed{4}", " 2^2 ", r"It is \boxed{4}."])
def test_r1_pays_a_right_answer_in_the_format(answer: str):
    assert verify_r1(R1.format(answer), "4", "reward").outcome == "correct"
    assert verify_format(R1.format(answer), None, "reward").outcome == "correct"


@pytest.mark.parametrize(
    "response",
    [
        "4",
        r"\boxed{4}",
        "<answer>4</answer>",
        "<think>x</think>4",
        "<think></think><answer>4</answer>",
        "<think>x</think><answer></answer>",
        "<think>x</think> so <answer>4</answer>",
        "<think>x</think><answer>4</answer> and more",
        "<think>x</think><answer>4</answer><answer>5</answer>",
        "<think>x</think><think>x</think><answer>4</answer>",
        "<answer>4</answer><think>x</think>",
        "<think>x<answer>4</answer></think>",
        "<think>x</think><answer>4",
        "Sure! <think>x</think><answer>4</answer>",
        "<THINK>x</THINK><ANSWER>4</ANSWER>",
    ],
)
def test_any_other_format_is_paid_by_neither(response: str):
    assert verify_r1(response, "4", "reward").score == 0.0
    assert verify_format(response, None, "reward").score == 0.0


def test_r1_judges_by_the_verifier_that_its_ground_truth_names():
    truth = {"verifier": "gsm8k", "ground_truth": "1,000"}
    check_r1_ground_truth(truth)
    assert verify_r1(R1.format("$1000.00"), truth, "reward").outcome == "correct"
    assert verify_r1(R1.format("$1001"), truth, "reward").outcome == "wrong"
    assert verify_r1(R1.format("5"), "4", "reward").outcome == "wrong"


def test_a_think_block_may_be_opened_by_the_prompt():
    response = "four, surely</think><answer>4</answer>"
    assert verify_format(response, {"think_opened": True}, "reward").outcome == "correct"
    assert verify_format(response, None, "reward").outcome == "wrong"
    assert verify_format("<think>" + response, {"think_opened": True}, "reward").outcome == "wrong"


@pytest.mark.parametrize(
    "truth", [{"verifier": "r1", "ground_truth": "4"}, {"verifier": "math"}, "", {"verifier": "no"}]
)
def test_r1_refuses_ground_truths(truth: object):
    with pytest.raises(VerifierError):
        check_r1_ground_truth(truth)


@pytest.mark.parametrize("truth", ["yes", {"think_opened": 1}, {"opened": True}])
def test_format_refuses_ground_truths(truth: object):
    with pytest.raises(VerifierError, match="ground truth of format"):
        check_format_ground_truth(truth)


@pytest.mark.parametrize(
    ("response", "truth", "right"),
    [
        ("Paris", "paris", True),
        ("  **Paris.** ", "Paris", True),
        ("<think>Rome?</think> Paris", "Paris", True),
        (r"The capital is \boxed{\text{Paris}}.", "Paris", True),
        ("<think>x</think><answer> New   York </answer>", "new york", True),
        ("Paris or Rome", "Paris", False),
        ("The capital is Paris", "Paris", False),
        ("Rome <answer>Paris</answer> <answer>Rome</answer>", "Paris", False),
        ("<think>Paris", "Paris", False),
        ("", "Paris", False),
        ("y", {"any_of": ["yes", "y"]}, True),
        ("paris", {"any_of": ["Paris"], "case_sensitive": True}, False),
    ],
)
def test_strings(response: str, truth: object, right: bool):
    check_string_ground_truth(truth)
    assert (verify_string(response, truth, "reward").outcome == "correct") is right


@pytest.mark.parametrize(
    "truth", ["", "  ", "...", None, 4, {"any_of": []}, {"any_of": ["a"], "x": 1}, {"any_of": [1]}]
)
def test_string_refuses_ground_truths(truth: object):
    with pytest.raises(VerifierError, match="ground truth of string"):
        check_string_ground_truth(truth)


@pytest.mark.parametrize(
    ("response", "mode", "expected"),
    [
        ("B", "reward", "correct"),
        ("(b).", "reward", "correct"),
        (r"\boxed{\text{(B)}}", "reward", "correct"),
        ("<think>A?</think> The answer is (B).", "reward", "correct"),
        ("Answer: B", "reward", "correct"),
        ("The answer is C.", "reward", "wrong"),
        ("The answer is B or C.", "reward", "unparsable"),
        ("A, B, C, D", "reward", "unparsable"),
        (r"\boxed{A, B}", "reward", "unparsable"),
        ("I would go with (B) here", "reward", "unparsable"),
        ("I would go with (B) here", "eval", "correct"),
        ("The answer is because of physics", "reward", "unparsable"),
        ("", "reward", "unparsable"),
    ],
)
def test_multiple_choice(response: str, mode, expected: str):
    for truth in ("B", "(b)"):
        check_multiple_choice_ground_truth(truth)
        assert verify_multiple_choice(response, truth, mode).outcome == expected


@pytest.mark.parametrize("truth", ["", "BC", "1", None, ["B"]])
def test_multiple_choice_refuses_ground_truths(truth: object):
    with pytest.raises(VerifierError, match="one letter"):
        check_multiple_choice_ground_truth(truth)


def test_maximum_length():
    assert verify_max_length("one two three", {"max_words": 3}, "reward").outcome == "correct"
    assert verify_max_length("one two three four", {"max_words": 3}, "reward").outcome == "wrong"
    assert verify_max_length("<think>a b c d e</think> one", {"max_words": 1}, "reward").outcome == "correct"
    assert verify_max_length("abcde", {"max_chars": 5}, "reward").outcome == "correct"
    assert verify_max_length("abcdef", {"max_chars": 5}, "reward").outcome == "wrong"
    assert verify_max_length("   ", {"max_words": 3}, "reward").outcome == "unparsable"


@pytest.mark.parametrize("truth", [3, {}, {"max_words": 0}, {"max_words": True}, {"max_words": 3, "max_chars": 3}])
def test_maximum_length_refuses_ground_truths(truth: object):
    with pytest.raises(VerifierError, match="ground truth of max_length"):
        check_max_length_ground_truth(truth)


def test_boxes_are_found_whatever_surrounds_them():
    def contents(text: str) -> list[str]:
        return [box.content for box in find_boxes(text)]

    assert contents(r"\boxed{1} \fbox {\{2\}} \boxed{\frac{1}{2}}") == ["1", r"\{2\}", r"\frac{1}{2}"]
    assert contents(r"\boxed{\boxed{4}}") == [r"\boxed{4}"]
    assert contents(r"}}{ \boxed{1} {{ \boxed{2") == ["1"]
    assert contents(r"\\boxed{\\frac{1}{2}}") == [r"\frac{1}{2}"]
    assert contents(r"so \boxed 4$.") == ["4"]
    assert contents("nothing") == []
    text = r"ab\boxed{12}c"
    assert [(box.start, box.end) for box in find_boxes(text)] == [(2, 12)]
