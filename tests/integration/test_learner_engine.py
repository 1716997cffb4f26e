"""The learner's update is that of plain PyTorch, whatever the ranks, micro-batches, packing and ZeRO stage."""

import itertools
import time

import numpy as np
import pytest
import torch
from learner_ranks import (
    Ranks,
    load,
    make_experience,
    master_weights,
    num_targets,
    oracle_loss,
    oracle_model,
    plain_sgd,
    random_rows,
    ranks,  # noqa: F401
    share,
    squared_values,
    tiny_model,
    weighted_logprobs,
    whole_weights,
)

from actors.rank import Rank
from rlsys.algorithms.step_guard import ADVANTAGE, ALL_MASKED, GRADIENT, LOSS, StepReport
from rlsys.data.packing import Row
from rlsys.models.engine import StepInput
from rlsys.models.policy import AdvantageInputs, PolicyInputs, advantages, shard_logprobs, train_policy
from rlsys.models.value import ValueInputs, shard_values, train_value
from rlsys.recipe.algorithm import AlgorithmSettings
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings
from rlsys.rollouts.experience_buffer import balance
from rlsys.types import Experience

pytestmark = pytest.mark.integration


def one_step(rank: Rank, model: ModelSettings, learner: LearnerSettings, rows: list[Row], temperature: float):
    rank.load(model=model, learner=learner)
    before = whole_weights(rank)
    units = share(rank, rows)
    denominators = {"tokens": num_targets(units)}
    report = rank.engine.train_step(
        units, weighted_logprobs, lr=1.0, denominators=denominators, temperature=temperature
    )
    after = whole_weights(rank)
    return {name: after[name] - before[name] for name in before}, before, report


def assert_updates_equal_gradient(update: dict[str, np.ndarray], oracle) -> None:
    for name, parameter in oracle.named_parameters():
        gradient = parameter.grad.numpy()
        expected = -gradient / (np.abs(gradient) + 1.0)
        assert np.abs(gradient).max() > 1e-3, f"{name}: nothing to compare"
        np.testing.assert_allclose(update[name], expected, atol=1e-5, rtol=0, err_msg=name)


CASES = {
    1: [plain_sgd(), plain_sgd(tokens_per_micro_batch=48), plain_sgd(gradient_checkpointing=True, zero_stage=1)],
    2: [
        plain_sgd(tokens_per_micro_batch=48),
        plain_sgd(tokens_per_micro_batch=96, packing="bucketed", gradient_checkpointing=True),
        plain_sgd(tokens_per_micro_batch=200, row_length=100, zero_stage=2),
        plain_sgd(tokens_per_micro_batch=50, row_length=50, sequence_parallel=2),
        plain_sgd(packing="bucketed", gradient_checkpointing=True, zero_stage=2, sequence_parallel=2),
    ],
    4: [
        plain_sgd(tokens_per_micro_batch=64),
        plain_sgd(packing="bucketed"),
        plain_sgd(tokens_per_micro_batch=51, row_length=51, sequence_parallel=2),
        plain_sgd(sequence_parallel=4),
    ],
}


@pytest.mark.parametrize("num_ranks", CASES)
@pytest.mark.parametrize("tied", [True, False])
def test_update_equals_float64_pytorch(ranks: Ranks, num_ranks: int, tied: bool):  # noqa: F811
    model, rows, temperature = tiny_model(tied), random_rows(13), 0.8
    oracle = None
    for learner in CASES[num_ranks]:
        update, before, report = ranks.run(
            num_ranks, one_step, model=model, learner=learner, rows=rows, temperature=temperature
        )[0]
        if oracle is None:
            oracle = oracle_model(model, before)
            oracle_loss(oracle, rows, temperature).backward()
        assert report.fault is None
        assert_updates_equal_gradient(update, oracle)
        norm = np.sqrt(sum((p.grad.numpy() ** 2).sum() for p in oracle.parameters()))
        assert report.metrics["optim/grad_norm"] == pytest.approx(norm, rel=1e-5)


def one_step_of_master_weights(rank: Rank, learner: LearnerSettings, rows: list[Row]):
    rank.load(model=tiny_model(), learner=learner)
    before = whole_weights(rank), master_weights(rank)
    units = share(rank, rows)
    report = rank.engine.train_step(units, weighted_logprobs, lr=1.0, denominators={"tokens": num_targets(units)})
    return *before, master_weights(rank), report


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_an_update_in_bfloat16_is_that_of_float64_up_to_its_rounding(ranks: Ranks, zero_stage: int):  # noqa: F811
    """Its steps are 2^-8 of a number, through some twenty operations; the optimizer's weights have float32's."""
    rows, learner = random_rows(13), plain_sgd(dtype="bfloat16", zero_stage=zero_stage, tokens_per_micro_batch=48)
    weights, before, after, report = ranks.run(2, one_step_of_master_weights, learner=learner, rows=rows)[0]
    oracle = oracle_model(tiny_model(), weights)
    oracle_loss(oracle, rows, 1.0).backward()
    for name, parameter in oracle.named_parameters():
        assert np.array_equal(weights[name], before[name]), name
        gradient = parameter.grad.numpy()
        expected = -gradient / (np.abs(gradient) + 1.0)
        error = np.linalg.norm(after[name] - before[name] - expected) / np.linalg.norm(expected)
        assert 1e-4 < error < 0.05, f"{name}: {error}"
    norm = np.sqrt(sum((p.grad.numpy() ** 2).sum() for p in oracle.parameters()))
    assert report.metrics["optim/grad_norm"] == pytest.approx(norm, rel=0.02)


def many_steps(rank: Rank, learner: LearnerSettings, num_steps: int):
    rank.load(model=tiny_model(), learner=learner)
    before = whole_weights(rank)
    for step in range(num_steps):
        units = share(rank, random_rows(8, seed=step))
        rank.engine.train_step(units, weighted_logprobs, lr=3e-3, denominators={"tokens": num_targets(units)})
    return before, whole_weights(rank)


def test_zero3_on_two_ranks_equals_plain_adamw_after_20_steps(ranks: Ranks):  # noqa: F811
    learner = LearnerSettings(eps=1e-5, weight_decay=0.1, max_grad_norm=0.5, betas=(0.9, 0.95))
    before, after = ranks.run(2, many_steps, learner=learner, num_steps=20)[0]
    oracle = oracle_model(tiny_model(), before, torch.float32)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=3e-3, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.1)
    clipped = 0
    for step in range(20):
        oracle_loss(oracle, random_rows(8, seed=step), 1.0).backward()
        clipped += torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.5).item() > 0.5
        optimizer.step()
        optimizer.zero_grad()
    assert clipped > 0, "the clip never acted"
    for name, parameter in oracle.named_parameters():
        assert np.abs(after[name] - before[name]).max() > 1e-2, f"{name} hardly moved"
        np.testing.assert_allclose(after[name], parameter.detach().numpy(), atol=1e-6, rtol=0, err_msg=name)


def poisoned_steps(rank: Rank, learner: LearnerSettings):
    """A good step, every kind of bad one on rank 1 alone, the good step's successor; reports and weights."""
    on_rank_1 = rank.group.rank == rank.group.world_size - 1
    rank.load(model=tiny_model(), learner=learner)
    units = share(rank, random_rows(6))
    counts = {"tokens": num_targets(units)}

    def step(objective=weighted_logprobs, units=units, denominators=counts) -> StepReport:
        return rank.engine.train_step(units, objective, lr=1e-2, denominators=denominators)

    def nan_loss(inputs: StepInput):
        loss, sums = weighted_logprobs(inputs)
        return (loss + torch.nan if on_rank_1 else loss), sums

    def infinite_gradient(inputs: StepInput):
        loss, sums = weighted_logprobs(inputs)
        root = (inputs.logprobs.sum() * 0.0).abs().sqrt() if on_rank_1 else 0.0  # value 0, gradient infinite
        return loss + root, sums

    bad_field = [[Row(unit[0].token_ids, unit[0].fields | {"advantages": unit[0].fields["advantages"] + np.nan})]
                 for unit in units]  # fmt: skip
    step()
    before = master_weights(rank)
    faults = [
        step(nan_loss).fault,
        step(infinite_gradient).fault,
        step(units=bad_field if on_rank_1 else units).fault,
        step(units=[], denominators={"tokens": 0.0}).fault,
    ]
    unchanged = master_weights(rank)
    assert all(np.array_equal(before[name], unchanged[name]) for name in before)
    last = step()
    return faults, last, master_weights(rank)


def two_good_steps(rank: Rank, learner: LearnerSettings):
    rank.load(model=tiny_model(), learner=learner)
    units = share(rank, random_rows(6))
    for _ in range(2):
        rank.engine.train_step(units, weighted_logprobs, lr=1e-2, denominators={"tokens": num_targets(units)})
    return master_weights(rank)


@pytest.mark.parametrize(
    "settings",
    [
        {"zero_stage": 1},
        {"zero_stage": 3},
        {"zero_stage": 3, "sequence_parallel": 2},
        {"zero_stage": 1, "dtype": "bfloat16"},
        {"zero_stage": 3, "dtype": "bfloat16"},
    ],
)
def test_a_step_that_is_not_finite_is_skipped_on_every_rank_and_leaves_no_trace(ranks: Ranks, settings: dict):  # noqa: F811
    learner = LearnerSettings(tokens_per_micro_batch=32, **settings)
    clean = ranks.run(2, two_good_steps, learner=learner)[0]
    for faults, last, weights in ranks.run(2, poisoned_steps, learner=learner):
        assert faults == [LOSS, GRADIENT, ADVANTAGE, ALL_MASKED]
        assert last.fault is None and last.metrics["optim/skipped"] == 0.0
        for name in weights:
            assert np.array_equal(weights[name], clean[name]), name


def only_rank_0_works(rank: Rank):
    rank.load(model=tiny_model(), learner=plain_sgd(tokens_per_micro_batch=32))
    units = [[row] for row in random_rows(9)] if rank.group.rank == 0 else []
    report = rank.engine.train_step(units, weighted_logprobs, lr=1.0, denominators={"tokens": num_targets(units)})
    return report, whole_weights(rank), [values.tolist() for values in rank.engine.logprobs([u[0] for u in units])]


def test_a_rank_without_rows_takes_part_with_dummies(ranks: Ranks):  # noqa: F811
    (alone,) = ranks.run(1, only_rank_0_works)
    with_idle, idle = ranks.run(2, only_rank_0_works)
    assert idle[0].metrics == with_idle[0].metrics
    assert alone[0].metrics["optim/grad_norm"] == pytest.approx(with_idle[0].metrics["optim/grad_norm"], rel=1e-6)
    for name in alone[1]:
        np.testing.assert_allclose(alone[1][name], with_idle[1][name], atol=1e-6, rtol=0)
    for mine, theirs in zip(alone[2], with_idle[2], strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
    assert idle[2] == []


def forward_passes(rank: Rank, learner: LearnerSettings, rows: list[Row]):
    rank.load(model=tiny_model(), learner=learner)
    mine = [unit[0] for unit in share(rank, rows)]
    return whole_weights(rank), rank.engine.logprobs(mine, temperature=0.7)


@pytest.mark.parametrize("sequence_parallel", [1, 2])
def test_logprobs_are_those_of_the_model(ranks: Ranks, sequence_parallel: int):  # noqa: F811
    rows = random_rows(11)
    learner = plain_sgd(tokens_per_forward=64, row_length=41, sequence_parallel=sequence_parallel)
    answers = ranks.run(2, forward_passes, learner=learner, rows=rows)
    oracle = oracle_model(tiny_model(), answers[0][0])
    merged = [
        values for pair in itertools.zip_longest(answers[0][1], answers[1][1]) for values in pair if values is not None
    ]
    for row, values in zip(rows, merged, strict=True):
        ids = torch.from_numpy(row.token_ids).long()[None]
        expected = torch.log_softmax(oracle(input_ids=ids).logits[0, :-1] / 0.7, -1).gather(1, ids[0, 1:, None])[:, 0]
        mask = row.fields["mask"][1:]
        assert values[0] == 0.0
        np.testing.assert_allclose(values[1:], expected.detach().numpy() * mask, atol=1e-5, rtol=0)


def scalar_outputs(rank: Rank, learner: LearnerSettings, rows: list[Row]):
    """Values, scores and the update of a step on both; rank 1 of 2 has a single row."""
    load(rank, "scalar", tiny_model(), learner)
    mine = rows[:-1] if rank.group.rank == 0 else rows[-1:]
    outputs = [values.tolist() for values in rank.engine.values(mine)], rank.engine.scores(mine).tolist()
    before = whole_weights(rank)
    counts = {"rows": float(len(mine))}
    report = rank.engine.train_step([[row] for row in mine], squared_values, lr=1.0, denominators=counts)
    after = whole_weights(rank)
    metrics = {name: value for name, value in report.metrics.items() if not name.startswith("perf/")}
    return outputs, {name: after[name] - before[name] for name in after}, metrics


def test_values_and_scores_do_not_depend_on_who_shares_rows(ranks: Ranks):  # noqa: F811
    rows = random_rows(9)
    apart, together = (
        ranks.run(2, scalar_outputs, learner=plain_sgd(row_length=41, sequence_parallel=size), rows=rows)
        for size in (1, 2)
    )
    for ((values, scores), _, metrics), ((shared_values, shared_scores), _, shared) in zip(
        apart, together, strict=True
    ):
        for expected, got in zip(values, shared_values, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
        np.testing.assert_allclose(shared_scores, scores, atol=1e-5, rtol=0)
        assert shared == pytest.approx(metrics, rel=1e-5)
    for name, update in apart[0][1].items():
        assert np.abs(update).max() > 1e-3, f"{name}: nothing to compare"
        np.testing.assert_allclose(together[0][1][name], update, atol=1e-5, rtol=0, err_msg=name)


def rlvr_updates(rank: Rank, groups: list[list[Experience]]):
    """Updates of a policy and of a value model on a batch that is dealt to as many shards as there are ranks."""
    lengths = [sum(len(experience.rollout.response_ids) for experience in group) for group in groups]
    dealt = balance(lengths, rank.group.world_size)
    shards = [[groups[index] for index in indices] for indices in dealt]
    own = shards[rank.group.rank]
    settings = AlgorithmSettings(advantage="reinforce_pp", kl_in="none", epochs_per_batch=2, minibatches=2)
    learner, steps = LearnerSettings(eps=1e-3, tokens_per_micro_batch=64), {"lrs": [1e-2, 8e-3, 6e-3, 4e-3], "seed": 11}

    def of_all(computed: np.ndarray) -> list[np.ndarray]:
        return rank.group.gather(computed)

    rank.load(model=tiny_model(), learner=learner)
    before = whole_weights(rank)
    (logprobs,) = shard_logprobs(rank.engine, [own])
    (computed,), _, _ = advantages([AdvantageInputs(own, logprobs)], settings, rank.group)
    inputs = [PolicyInputs(*row) for row in zip(shards, of_all(computed), of_all(logprobs), strict=True)]
    reports = train_policy(rank.engine, inputs, settings, max_response_length=14, **steps)
    after = whole_weights(rank)
    updates = {name: after[name] - before[name] for name in before}
    load(rank, "scalar", tiny_model(), learner)
    before = whole_weights(rank)
    (values,) = shard_values(rank.engine, [own])
    inputs = [ValueInputs(*row) for row in zip(shards, of_all(values + logprobs), of_all(values), strict=True)]
    reports += train_value(rank.engine, inputs, settings, **steps)
    after = whole_weights(rank)
    return dealt, reports, updates | {f"value {name}": after[name] - before[name] for name in before}


def test_two_minibatches_are_the_same_update_on_1_2_and_4_ranks(ranks: Ranks):  # noqa: F811
    """Three groups: on four ranks one has nothing to score."""
    rng = np.random.default_rng(8)
    groups = [[make_experience(rng, ordinal, index) for index in range(4)] for ordinal in (4, 5, 6)]
    dealt, reports, alone = ranks.run(1, rlvr_updates, groups=groups)[0]
    assert dealt == [[0, 1, 2]]
    for num_ranks in (2, 4):
        dealt, same, together = ranks.run(num_ranks, rlvr_updates, groups=groups)[0]
        assert sorted(map(len, dealt)) == ([1, 2] if num_ranks == 2 else [0, 1, 1, 1])
        for name, update in alone.items():
            assert np.abs(update).max() > 1e-3, f"{name}: nothing to compare"
            np.testing.assert_allclose(together[name], update, atol=1e-5, rtol=0, err_msg=name)
        for one, other in zip(reports, same, strict=True):
            comparable = other.metrics | {"perf/peak_mem_gib": one.metrics["perf/peak_mem_gib"]}
            assert comparable == pytest.approx(one.metrics, rel=1e-4, abs=1e-6)


def stage_change(rank: Rank, first: LearnerSettings, second: LearnerSettings, in_place: bool, folder: str):
    """Two steps with `first`, then two with `second`, in place or through an exported folder."""
    rank.load(model=tiny_model(), learner=first)
    units = share(rank, random_rows(6))
    counts = {"tokens": num_targets(units)}
    for _ in range(2):
        rank.engine.train_step(units, weighted_logprobs, lr=1e-2, denominators=counts)
    if in_place:
        rank.begin_stage(learner=second)
    else:
        rank.export_hf(folder=folder)
        rank.load(model=ModelSettings(path=folder), learner=second)
    for _ in range(2):
        rank.engine.train_step(units, weighted_logprobs, lr=1e-2, denominators=counts)
    return whole_weights(rank)


def test_begin_stage_is_a_fresh_optimizer_on_the_same_weights(ranks: Ranks, tmp_path):  # noqa: F811
    first = LearnerSettings(betas=(0.5, 0.9), max_grad_norm=0.1)
    second = LearnerSettings(betas=(0.9, 0.95), eps=1e-4, weight_decay=0.2, max_grad_norm=0.3)
    stages = {"first": first, "second": second, "folder": str(tmp_path)}
    kept = ranks.run(2, stage_change, in_place=True, **stages)[0]
    reloaded = ranks.run(2, stage_change, in_place=False, **stages)[0]
    for name in kept:
        assert np.array_equal(kept[name], reloaded[name]), name


def offloaded_stages(rank: Rank, settings: LearnerSettings, folder: str):
    """Two steps, another stage, a checkpoint between two more, the last of them again from the checkpoint."""
    rank.load(model=tiny_model(), learner=settings)
    units = share(rank, random_rows(6))

    def step() -> None:
        rank.engine.train_step(units, weighted_logprobs, lr=1e-2, denominators={"tokens": num_targets(units)})

    step()
    step()
    rank.begin_stage(learner=settings.model_copy(update={"betas": (0.5, 0.9), "max_grad_norm": 0.1}))
    step()
    rank.save(folder=folder)
    while rank.saved_files(folder=folder) is None:
        time.sleep(0.01)
    step()
    straight = whole_weights(rank)
    rank.load(model=tiny_model().model_copy(update={"init_seed": 5}), learner=rank.engine.settings)
    rank.restore(folder=folder)
    step()
    return straight, whole_weights(rank)


def test_an_optimizer_that_is_offloaded_changes_nothing(ranks: Ranks, tmp_path):  # noqa: F811
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    here, there = (
        ranks.run(2, offloaded_stages, settings=LearnerSettings(deepspeed=native), folder=str(tmp_path / name))[0]
        for name, native in (("here", {}), ("there", offload))
    )
    for name in here[0]:
        np.testing.assert_allclose(there[0][name], here[0][name], atol=1e-6, rtol=0, err_msg=name)
        assert np.array_equal(there[0][name], there[1][name]), name
