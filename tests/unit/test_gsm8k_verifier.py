"""GSM8K answers by hand: numbers, marks, and what is no answer."""

import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.gsm8k import check_gsm8k_ground_truth, verify_gsm8k


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("#### 18", "18"),
        ("#### 18.00", "18"),
        ("#### +5", "5"),
        ("#### -5", "-5"),
        ("#### \u22125", "-5"),
        ("#### $-5", "-5"),
        ("#### 1,000", "1000"),
        ("#### 1000", "1,000"),
        ("#### $18", "18"),
        ("#### 18.", "18"),
        ("#### 18%", "18"),
        ("#### 0.5", "1/2"),
        ("#### 1/2", "0.5"),
        ("#### 1 1/2", "1.5"),
        ("#### 1e3", "1000"),
        ("#### 50-8=42", "42"),
        ("#### 18 apples in 2 days", "18"),
        ("The answer is 18 apples in 2 days.", "18"),
        ("The answer is **$1,234.00**.", "1234"),
        ("**Answer:** 18 eggs", "18"),
        ("A: 320", "320"),
        (r"\boxed{\$1{,}000}", "1000"),
        (r"\boxed{18\text{ dollars}}", "18"),
        (r"\boxed{\frac{1}{2}}", "0.5"),
        ("So 50-8=42", "42"),
        ("It costs $1,234.00", "1234"),
        ("First 20, then 42", "42"),
        ("- 18 dollars", "18"),
        ("Total:\n- 18 eggs", "18"),
        ("Answer:\n- 18 eggs", "18"),
        ("The answer is - 18", "-18"),
        ("10\n- 18", "18"),
        ("Step 2)\n- 18", "18"),
        ("Total of 20%\n- 18", "18"),
        ("x = $ - 18", "-18"),
        ("Profit - $18", "18"),
        ("Profit: -$18", "-18"),
        ("Profit = - 18", "-18"),
        ("#### - 18", "-18"),
        ("Total after week 4: 18 dollars.", "18"),
        ("Step 5: 18", "18"),
        ("#### 20, wait, no:\n#### 18", "18"),
        ("He needs 3. #### 18\nThat took 2 days.", "18"),
        ("<think>#### 20</think>#### 18", "18"),
        ("18", 18),
        ("18", 18.0),
        ("#### 18", "Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\n#### 18"),
    ],
)
def test_the_right_number_is_correct(response: str, gold: object):
    for mode in ("eval", "reward"):
        assert verify_gsm8k(response, gold, mode).outcome == "correct", (response, mode)


@pytest.mark.parametrize(
    ("response", "gold", "expected"),
    [
        ("#### 17", "18", "wrong"),
        ("#### 1000000000000000000001", "1000000000000000000000", "wrong"),
        ("#### 18.0000001", "18", "wrong"),
        ("The answer is 18. #### 20", "18", "wrong"),
        ("#### 18 or 20", "18", "unparsable"),
        ("#### 18, 20", "18", "unparsable"),
        ("#### 18/0", "18", "unparsable"),
        ("#### 50-8", "42", "unparsable"),
        ("#### 2 x 9", "2", "unparsable"),
        ("#### 3,50", "3", "unparsable"),
        ("#### none", "18", "unparsable"),
        ("####", "18", "unparsable"),
        ("The total is 50-8", "8", "unparsable"),
        ("He has 3/4 left", "4", "wrong"),
        ("It is 12:30", "30", "unparsable"),
        ("It is 10 : 8", "8", "unparsable"),
        ("He lost - 18", "-18", "wrong"),
        ("H2O", "2", "unparsable"),
        ("", "18", "unparsable"),
        ("eighteen", "18", "unparsable"),
        ("<think>#### 18</think>", "18", "unparsable"),
        ("<think>#### 18", "18", "unparsable"),
        ("#### " + "9" * 5000, "18", "unparsable"),
        ("#### 1e999999", "18", "unparsable"),
    ],
)
def test_anything_else_scores_nothing(response: str, gold: str, expected: str):
    for mode in ("eval", "reward"):
        judgement = verify_gsm8k(response, gold, mode)
        assert (judgement.outcome, judgement.score) == (expected, 0.0), (response, mode, judgement)


def test_two_marks_that_disagree_are_a_hedge_in_reward_mode():
    assert verify_gsm8k("#### 18\n" + r"\boxed{20}", "18", "eval").outcome == "correct"
    assert verify_gsm8k("#### 18\n" + r"\boxed{20}", "18", "reward").outcome == "wrong"
    assert verify_gsm8k("#### 18\n" + r"\boxed{18.0}", "18", "reward").outcome == "correct"


@pytest.mark.parametrize("ground_truth", ["18", "1,000", "$5.50", "-3", 7, 2.5, "… <<3*6=18>>18\n#### 18"])
def test_a_numeric_ground_truth_is_accepted(ground_truth: object):
    check_gsm8k_ground_truth(ground_truth)


@pytest.mark.parametrize("ground_truth", ["", "x", "18 or 20", "#### ", None, True, [18], {"answer": 18}, "1/0"])
def test_any_other_ground_truth_is_refused(ground_truth: object):
    with pytest.raises(VerifierError, match="ground truth of gsm8k"):
        check_gsm8k_ground_truth(ground_truth)
