"""One candidate a response: which text is the answer, and which responses are hedges."""

import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.math import check_math_ground_truth, verify_math

MINERVA = "Final Answer: The final answer is ${}$. I hope it is correct."


def outcome(response: str, gold: str = "4", mode: str = "reward") -> str:
    return verify_math(response, gold, mode).outcome  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    "response",
    [
        r"\boxed{3}, no: \boxed{4}",
        r"\fbox{4}",
        r"\boxed{\boxed{4}}",
        r"{{{{ \boxed{4}",
        r"\\boxed{4}",
        r"\boxed 4",
        r"\boxed{4} and once more \boxed{4}",
        r"$\boxed{4}$ or $\boxed{2^2}$",
        r"\boxed{4}. " + MINERVA.format("4"),
        MINERVA.format("4"),
        r"<think>\boxed{5}?</think> \boxed{4}",
        r"reasoning of a prompt that opened the block \boxed{5} </think> \boxed{4}",
    ],
)
def test_the_answer_is_found_in_both_modes(response: str):
    assert outcome(response, mode="reward") == outcome(response, mode="eval") == "correct"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("", "unparsable"),
        (r"\boxed{}", "unparsable"),
        (r"\boxed{4", "unparsable"),
        (r"\boxed{3} or \boxed{4}", "wrong"),
        (r"\boxed{3} $\text{ and }$ \boxed{4}", "wrong"),
        (r"\boxed{3} \boxed{4}", "wrong"),
        (r"\boxed{3 \text{ or } 4}", "wrong"),
        (r"\boxed{3, 4}", "wrong"),
        (" ".join(rf"or maybe it is \boxed{{{n}}}." for n in range(30, 3, -1)), "unparsable"),
        (" ".join(rf"\boxed{{{n}}}" for n in range(5)), "wrong"),
        (r"\boxed{5} " + MINERVA.format("4"), "wrong"),
        (r"\boxed{4} " + MINERVA.format("5"), "wrong"),
        (r"\boxed{5} (a typo; the answer is 4)", "wrong"),
        (r"\boxed{5=4}", "wrong"),
        (r"\boxed{" + "=".join(map(str, range(1, 5))) + "}", "wrong"),
        (r"\boxed{4 = 5 = 4}", "wrong"),
        (r"\boxed{\sqrt{2} = 4}", "wrong"),
        (r"<think>so \boxed{4}</think> I am not sure.", "unparsable"),
        (r"<think>so \boxed{4}", "unparsable"),
        (r"\boxed{4} <think> or \boxed{5}", "unparsable"),
        (r"<think>a</think>\boxed{4}</think>\boxed{5}", "wrong"),
        (r"\boxed{4 \text{ (or 5)}}", "unparsable"),
        (r"\boxed{4 \text{ not } 5}", "unparsable"),
        (r"\boxed{\text{the correct answer}}", "wrong"),
        (r"\boxed{x}", "wrong"),
        (r"\boxed{4, 4, 5}", "wrong"),
    ],
)
def test_hedges_and_empty_answers_are_never_paid(response: str, expected: str):
    assert outcome(response, mode="reward") == expected
    assert verify_math(response, "4", "eval").score == 0.0


@pytest.mark.parametrize(
    "response",
    [
        "4",
        "The answer is 4.",
        "$x = 4$",
        r"so \(2 + 2 = 4\)",
        "The length is [4.0].",
        "It is 4 apples in all.",
        "**4**",
    ],
)
def test_the_last_mathematics_counts_in_evaluation_only(response: str):
    assert outcome(response, mode="eval") == "correct"
    assert outcome(response, mode="reward") == "unparsable"


def test_boxes_side_by_side_are_one_answer():
    response = r"The solutions are $\boxed{(1, 2)}, \boxed{(2, 1)}$ and $\boxed{(3, 0)}$."
    assert outcome(response, "(3,0),(2,1),(1,2)") == "correct"
    assert outcome(response, "(3,0)") == "wrong"


def test_a_worked_solution_serves_as_ground_truth():
    solution = r"Since $25<30<36$, it lies between $\boxed{12\text{ and }13}$. To be precise, $\sqrt{50}>7$."
    check_math_ground_truth(solution)
    assert outcome(r"\boxed{13, 12}", solution) == "correct"
    assert outcome(r"\boxed{12}", solution) == "wrong"


@pytest.mark.parametrize(
    "ground_truth",
    [
        "",
        "  ",
        r"\boxed{}",
        "$",
        r"\frac{1}{0}",
        r"\frac{0}{0}",
        "0^0",
        "1" * 5000,
        None,
        4,
        ["4"],
        r"\unknown{",
        "x" * 9999,
    ],
)
def test_a_ground_truth_that_cannot_be_judged_by_is_refused(ground_truth: object):
    with pytest.raises(VerifierError, match="ground truth of math"):
        check_math_ground_truth(ground_truth)


@pytest.mark.parametrize(
    "ground_truth",
    ["4", r"$\frac12$", r"\text{(B)}", r"\{1\pm\sqrt5,-2\}", "x^2+1", r"\sum_{n=1}^{\infty} \frac{1}{n^2}", "3^{2007}"],
)
def test_a_ground_truth_that_can_be_read_is_accepted(ground_truth: str):
    check_math_ground_truth(ground_truth)
