"""The policy's and the value model's part in RLVR on ranks that have few groups, or none."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rlsys.algorithms.advantages import ADVANTAGES
from rlsys.algorithms.step_guard import StepReport
from rlsys.models.policy import AdvantageInputs, PolicyInputs, advantages, train_policy
from rlsys.models.process_group import ProcessGroup
from rlsys.models.value import ValueInputs, train_value
from rlsys.recipe.algorithm import AlgorithmSettings
from rlsys.types import Experience, Prompt, Rollout, Verdict

ALONE = ProcessGroup(0, 1, torch.device("cpu"))
LENGTHS = (3, 1, 4, 2)
NOTHING = np.zeros(0, np.float32)


def make_group(ordinal: int) -> list[Experience]:
    """Four samples, of which the last one was not judged."""
    members = []
    for index, length in enumerate(LENGTHS):
        failed = index == 3
        tokens = np.arange(length, dtype=np.int32)
        rollout = Rollout(ordinal, index, tokens, np.full(length, -1.0, np.float32), np.zeros(length, np.int32), "stop")
        verdict = Verdict("math", "timeout" if failed else "correct", 0.0, 0.0)
        reward = math.nan if failed else 10.0 * (index + ordinal)
        members.append(Experience(Prompt(ordinal, "", (), tokens[:1]), rollout, (verdict,), reward))
    return members


def arrays(seed: int) -> np.ndarray:
    """Of the tokens of one group."""
    return np.random.default_rng(seed).normal(size=sum(LENGTHS)).astype(np.float32)


@pytest.mark.parametrize("name", sorted(ADVANTAGES))
def test_a_shard_without_groups_has_no_advantages_and_changes_none(name: str):
    settings = AlgorithmSettings(advantage=name, kl_in="reward")
    values = (lambda x: x) if settings.needs_values else (lambda _: None)
    full = [AdvantageInputs([make_group(o)], arrays(o), arrays(o + 9), values(arrays(o + 19))) for o in (0, 1)]
    empty = AdvantageInputs([], NOTHING, NOTHING, values(NOTHING))
    expected, expected_returns, expected_metrics = advantages(full, settings, ALONE)
    found, returns, metrics = advantages([full[0], empty, full[1]], settings, ALONE)
    assert [len(x) for x in found] == [len(x) for x in returns] == [sum(LENGTHS), 0, sum(LENGTHS)]
    for one, other in zip([*expected, *expected_returns], [*found[::2], *returns[::2]], strict=True):
        assert np.array_equal(one, other) and one.any()
    assert metrics == expected_metrics
    none, _, no_metrics = advantages([empty], settings, ALONE)
    assert (none[0].shape, no_metrics) == ((0,), {})


class RecordingEngine(SimpleNamespace):
    """Takes no step and remembers the rows of each."""

    def train_step(self, units: Any, objective: Callable[..., Any], **_: Any) -> StepReport:
        self.steps.append(sorted(unit[0].num_tokens for unit in units))
        return StepReport()


def test_a_rank_trains_on_its_part_of_each_minibatch_though_a_shard_may_be_empty():
    settings = AlgorithmSettings(epochs_per_batch=1, minibatches=2)
    shards = [[make_group(0)], [], [make_group(1)]]
    flat = [arrays(0) if shard else NOTHING for shard in shards]
    by_rank = []
    for rank in (0, 1):
        engine = RecordingEngine(group=Recorded(rank, 2, torch.device("cpu")), steps=[])
        inputs = [PolicyInputs(shard, x, x, x) for shard, x in zip(shards, flat, strict=True)]
        train_policy(engine, inputs, settings, lrs=[1.0, 1.0], seed=3, max_response_length=9)
        of_policy, engine.steps = engine.steps, []
        value_inputs = [ValueInputs(shard, x, x) for shard, x in zip(shards, flat, strict=True)]
        train_value(engine, value_inputs, settings, lrs=[1.0, 1.0], seed=3)
        assert engine.steps == of_policy
        by_rank.append(of_policy)
    together = sorted(tokens for steps in by_rank for step in steps for tokens in step)
    assert together == [2, 2, 4, 4, 5, 5], "prompts of one token; what was not judged is not trained on"
    assert [sum(map(len, parts)) for parts in zip(*by_rank, strict=True)] == [3, 3]


class Recorded(ProcessGroup):
    """Ranks that all answer the same."""

    def gather(self, item: Any) -> list[Any]:
        return [item] * self.world_size
