"""From verdicts to a reward, by hand."""

import math

import pytest

from rlsys.recipe.verifiers import VerifierSettings
from rlsys.types import Check, Outcome, Verdict
from rlsys.verifiers.reward import response_reward

SETTINGS = VerifierSettings()


def verdict(outcome: Outcome, score: float, name: str = "math") -> Verdict:
    return Verdict(name, outcome, score, 0.01)


def test_tulu_rewards():
    checks = (Check("math", "4"),)
    assert response_reward([verdict("correct", 1.0)], checks, "stop", SETTINGS) == 10.0
    assert response_reward([verdict("wrong", 0.0)], checks, "stop", SETTINGS) == 0.0
    assert response_reward([verdict("unparsable", 0.0)], checks, "stop", SETTINGS) == 0.0
    assert response_reward([verdict("correct", 1.0)], checks, "length", SETTINGS) == -10.0
    no_penalty = VerifierSettings(no_end_token_reward="none")
    assert response_reward([verdict("correct", 1.0)], checks, "length", no_penalty) == 10.0


def test_the_score_is_the_weighted_mean_of_the_checks():
    checks = (Check("math", "4", weight=3.0), Check("format", None, weight=1.0))
    verdicts = [verdict("correct", 1.0), verdict("wrong", 0.0, "format")]
    assert response_reward(verdicts, checks, "stop", SETTINGS) == pytest.approx(7.5)
    half = VerifierSettings(reward_scale=1.0)
    assert response_reward([verdict("wrong", 0.25), verdict("correct", 1.0, "format")], checks, "stop", half) == 0.4375


@pytest.mark.parametrize("outcome", ["timeout", "error"])
@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_a_failed_verifier_masks_the_response(outcome: Outcome, finish_reason):
    checks = (Check("math", "4"), Check("format", None))
    verdicts = [verdict("correct", 1.0), verdict(outcome, 0.0, "format")]
    assert math.isnan(response_reward(verdicts, checks, finish_reason, SETTINGS, reward_model_score=3.0))


def test_a_reward_model_is_added_or_stands_alone():
    checks = (Check("math", "4"),)
    assert response_reward([verdict("correct", 1.0)], checks, "stop", SETTINGS, reward_model_score=-2.5) == 7.5
    assert response_reward([], (), "stop", SETTINGS, reward_model_score=-2.5) == -2.5
    assert response_reward([], (), "length", SETTINGS, reward_model_score=-2.5) == -10.0


def test_what_cannot_be_rewarded_is_refused():
    with pytest.raises(ValueError, match="without checks"):
        response_reward([], (), "stop", SETTINGS)
    with pytest.raises(ValueError, match="score is nan"):
        response_reward([verdict("correct", 1.0)], (Check("math", "4"),), "stop", SETTINGS, reward_model_score=math.nan)
    with pytest.raises(ValueError, match="do not belong"):
        response_reward([], (Check("math", "4"),), "stop", SETTINGS)
    with pytest.raises(ValueError, match="do not belong"):
        response_reward([verdict("correct", 1.0, "gsm8k")], (Check("math", "4"),), "stop", SETTINGS)
    with pytest.raises(ValueError, match="at least one must be positive"):
        response_reward([verdict("correct", 1.0)], (Check("math", "4", weight=0.0),), "stop", SETTINGS)
