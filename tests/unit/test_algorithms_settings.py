"""The recipe's names against the registries, its refusals and the schedule."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from rlsys.algorithms.advantages import ADVANTAGES
from rlsys.algorithms.kl import KL_ESTIMATORS
from rlsys.algorithms.lag_correction import LAG_CORRECTIONS
from rlsys.algorithms.policy_loss import POLICY_LOSSES
from rlsys.algorithms.preference_loss import PREFERENCE_LOSSES
from rlsys.algorithms.schedule import learning_rate, num_warmup_steps
from rlsys.recipe import algorithm
from rlsys.recipe.algorithm import AlgorithmSettings, LagCorrectionSettings, PreferenceLossSettings, ScheduleSettings

NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("literal", "registry"),
    [
        (algorithm.PolicyLossName, POLICY_LOSSES),
        (algorithm.AdvantageName, ADVANTAGES),
        (algorithm.KlEstimator, KL_ESTIMATORS),
        (algorithm.LagCorrectionName, LAG_CORRECTIONS),
        (algorithm.PreferenceLossName, PREFERENCE_LOSSES),
    ],
)
def test_literals_agree_with_registries(literal, registry):
    assert set(get_args(literal)) == set(registry)


@pytest.mark.parametrize(
    "module",
    ["rlsys.recipe.algorithm", "rlsys.algorithms.schedule", "rlsys.algorithms.shaping", "rlsys.algorithms.step_guard"],
)
def test_what_drivers_import_does_not_pull_in_torch(module: str):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize(
    ("section", "values", "problem"),
    [
        (AlgorithmSettings, {"kl_in": "loss", "kl_estimator": "k1"}, "k1 as a loss has a gradient of mean zero"),
        (AlgorithmSettings, {"kl_in": "reward", "kl_beta": 0.0}, "kl_beta = 0 does nothing"),
        (AlgorithmSettings, {"clip": 1.5}, "clip must be below 1; got 1.5"),
        (AlgorithmSettings, {"policy_loss": "cispo", "dual_clip": 3.0}, "'cispo' has no dual clip"),
        (AlgorithmSettings, {"advantage": "grpo", "value_lam": 1.0}, "'grpo' has no value model"),
        (AlgorithmSettings, {"filter_equal_groups": True}, "'gae' has no groups"),
        (AlgorithmSettings, {"advantage": "rloo", "value_warmup_batches": 2}, "remove value_warmup_batches"),
        (AlgorithmSettings, {"policy_los": "ppo_clip"}, "Extra inputs are not permitted"),
        (AlgorithmSettings, {"advantage": "GRPO"}, "Input should be 'gae', 'grpo'"),
        (AlgorithmSettings, {"gamma": NAN}, "less than or equal to 1|finite"),
        (LagCorrectionSettings, {"lower": 2.0, "upper": 2.0}, "lower must be below upper; got 2.0 and 2.0"),
        (PreferenceLossSettings, {"name": "ipo", "label_smoothing": 0.1}, "ipo has no label smoothing"),
        (ScheduleSettings, {"warmup_fraction": 0.1, "warmup_steps": 3}, "not both"),
    ],
)
def test_impossible_settings_are_refused(section, values: dict, problem: str):
    with pytest.raises(ValidationError, match=problem):
        section(**values)


def test_cispo_may_have_no_lower_clip():
    assert AlgorithmSettings(policy_loss="cispo", clip=1.0, clip_high=4.0).clip == 1.0


def test_every_algorithm_of_the_docs_loads():
    page = (Path(__file__).parents[2] / "docs" / "algorithms.md").read_text()
    table = page.split("| algorithm | settings |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    loaded = []
    for row in table:
        values = tomllib.loads("\n".join(re.findall(r"`([a-z_.]+ = [^`]+)`", row)))
        loaded.append(AlgorithmSettings(**values))
    assert {settings.policy_loss for settings in loaded} == set(POLICY_LOSSES) - {"reinforce"}
    assert {settings.advantage for settings in loaded} == set(ADVANTAGES) - {"reinforce_pp_baseline"}


def rates(settings: ScheduleSettings, total: int, until: int | None = None) -> list[float]:
    return [learning_rate(step, 8.0, settings, total_steps=total) for step in range(until or total)]


def test_schedules_by_hand():
    linear = ScheduleSettings(kind="linear", warmup_steps=2)
    assert rates(linear, 6, 8) == [4, 8, 8, 6, 4, 2, 0, 0]
    assert rates(ScheduleSettings(kind="linear", final_fraction=0.5), 4, 6) == [8, 7, 6, 5, 4, 4]
    assert rates(ScheduleSettings(kind="constant", warmup_steps=4), 6) == [2, 4, 6, 8, 8, 8]
    cosine = ScheduleSettings(kind="cosine", final_fraction=0.25)
    assert rates(cosine, 4, 5) == pytest.approx([8, 2 + 6 * (2 + 2**0.5) / 4, 5, 2 + 6 * (2 - 2**0.5) / 4, 2])


def test_warmup_is_stated_in_steps_or_as_a_fraction_rounded_up():
    assert num_warmup_steps(ScheduleSettings(warmup_fraction=0.03), 101) == 4
    assert num_warmup_steps(ScheduleSettings(warmup_steps=7), 101) == 7
    assert num_warmup_steps(ScheduleSettings(), 101) == 0
    with pytest.raises(ValueError, match="negative; got -1"):
        learning_rate(-1, 1.0, ScheduleSettings(), total_steps=5)


@pytest.mark.parametrize(
    ("kind", "theirs"), [("linear", get_linear_schedule_with_warmup), ("cosine", get_cosine_schedule_with_warmup)]
)
def test_schedules_equal_those_of_transformers(kind, theirs):
    """From the end of warm-up on; within it ours is one step ahead, because theirs wastes the first step at rate 0."""
    import torch

    warmup, total = 10, 60
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    scheduler = theirs(optimizer, warmup, total)
    wanted = []
    for _ in range(total):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    settings = ScheduleSettings(kind=kind, warmup_steps=warmup)
    ours = [learning_rate(step, 3e-4, settings, total_steps=total) for step in range(total)]
    assert ours[warmup:] == pytest.approx(wanted[warmup:], rel=1e-9)
    assert ours[: warmup - 1] == pytest.approx(wanted[1:warmup], rel=1e-9)
