"""What the case tables of IFEval, IFEvalG and IFBench say of each constraint."""

import pytest
from constraint_verdicts import follows
from test_ifbench_constraints import CASES as IFBENCH
from test_ifeval_constraints import CASES as IFEVAL
from test_ifeval_training import CASES as TRAINING

CASES = [
    pytest.param(*case, id=f"{table} {case[0]} {number}")
    for table, cases in (("ifeval", IFEVAL), ("training", TRAINING), ("ifbench", IFBENCH))
    for number, case in enumerate(cases)
]


@pytest.mark.parametrize("mode", ["eval", "reward"])
@pytest.mark.parametrize(("id", "arguments", "good", "bad", "hollow"), CASES)
def test_what_follows_and_what_does_not(id, arguments, good, bad, hollow, mode):
    assert follows(id, arguments, good, mode=mode)
    assert not follows(id, arguments, bad, mode=mode)


@pytest.mark.parametrize(("id", "arguments", "good", "bad", "hollow"), CASES)
def test_reward_mode_does_not_pay_for_what_says_nothing(id, arguments, good, bad, hollow):
    if hollow is not None:
        assert follows(id, arguments, hollow, mode="eval")
        assert not follows(id, arguments, hollow, mode="reward")
