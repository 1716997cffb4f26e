"""The policy of RLVR on one rank: logprobs and advantages of the shards that it was given, updates on those of all.

Collective, as the engine is: every rank calls, in the same order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rlsys.algorithms.advantages import should_whiten, token_advantages, token_rewards
from rlsys.algorithms.kl import KL_ESTIMATORS
from rlsys.algorithms.lag_correction import lag_correction
from rlsys.algorithms.metric_sums import MetricSums, add_sums, count, masked_sum
from rlsys.algorithms.policy_loss import PolicyBatch, policy_loss
from rlsys.algorithms.sequences import count_denominator
from rlsys.algorithms.step_guard import StepReport
from rlsys.algorithms.whitening import Moments, combine_moments, moments, whiten
from rlsys.models.engine import StepInput, TrainEngine
from rlsys.models.experience_rows import (
    Ragged,
    Sample,
    Shard,
    experiences_of,
    pad,
    response_lengths,
    response_rows,
    responses_of,
    sampled_versions,
    samples_of,
    trained_mask,
    unpad,
)
from rlsys.models.metrics import finish_over_ranks
from rlsys.models.minibatches import minibatches
from rlsys.models.process_group import ProcessGroup
from rlsys.recipe.algorithm import AlgorithmSettings


@dataclass(frozen=True, slots=True)
class PolicyInputs:
    """One shard with what was computed for its response tokens, ready for the update."""

    shard: Shard
    advantages: Ragged
    """Whitened where the algorithm asks for it."""
    proximal_logprobs: Ragged | None = None
    """The learner's at the start of the batch; the sampler's own are taken where absent."""
    reference_logprobs: Ragged | None = None


@dataclass(frozen=True, slots=True)
class AdvantageInputs:
    """One shard with what its advantages are made of."""

    shard: Shard
    proximal_logprobs: Ragged | None = None
    reference_logprobs: Ragged | None = None
    values: Ragged | None = None


def shard_logprobs(engine: TrainEngine, shards: Sequence[Shard], *, temperature: float = 1.0) -> list[Ragged]:
    """Log-probabilities of the response tokens of each shard."""
    experiences = [experiences_of(shard) for shard in shards]
    rows = [row for members in experiences for row in response_rows(members)]
    computed = iter(engine.logprobs(rows, temperature=temperature))
    return [responses_of(members, [next(computed) for _ in members]) for members in experiences]


def advantages(
    inputs: Sequence[AdvantageInputs],
    settings: AlgorithmSettings,
    group: ProcessGroup,
    *,
    oldest_version: int | None = None,
) -> tuple[list[Ragged], list[Ragged], dict[str, float]]:
    """Advantages, value targets and metrics of the shards; whitened with the moments of all ranks' shards.

    Masked experiences have advantage 0 and take no part in baselines and moments.
    """
    unwhitened: list[torch.Tensor] = []
    returns: list[Ragged] = []
    masks: list[torch.Tensor] = []
    parts: list[Moments] = []
    all_lengths: list[np.ndarray] = []
    sums: list[MetricSums] = []
    for item in inputs:
        experiences = experiences_of(item.shard)
        lengths = response_lengths(experiences)
        mask = pad(trained_mask(experiences, oldest_version), lengths)
        rewards, shard_sums = _rewards(item, settings, lengths, mask)
        values = None if item.values is None else pad(item.values, lengths)
        shard_advantages, shard_returns = token_advantages(rewards, values, mask, settings)
        unwhitened.append(shard_advantages)
        returns.append(unpad(shard_returns, lengths))
        masks.append(mask)
        all_lengths.append(lengths)
        parts.append(moments(shard_advantages, mask))
        sums.append(shard_sums)
    if should_whiten(settings):
        total = _moments_of_all_ranks(parts, group)
        unwhitened = [whiten(x, total, mask) for x, mask in zip(unwhitened, masks, strict=True)]
    metrics = finish_over_ranks(add_sums(sums), group)
    return [unpad(x, n) for x, n in zip(unwhitened, all_lengths, strict=True)], returns, metrics


def _moments_of_all_ranks(parts: Sequence[Moments], group: ProcessGroup) -> Moments:
    """Combined in the same order on every rank, so that each gets the same bits."""
    everyone = group.gather([[float(x) for x in part] for part in parts])
    numbers = [part for rank_parts in everyone for part in rank_parts]
    return combine_moments(Moments(*torch.tensor(part, dtype=torch.float64)) for part in numbers)


def _rewards(
    item: AdvantageInputs, settings: AlgorithmSettings, lengths: np.ndarray, mask: torch.Tensor
) -> tuple[torch.Tensor, MetricSums]:
    """Per-token rewards `[N, T]`, and how far the policy is from the reference."""
    experiences = experiences_of(item.shard)
    keep = torch.tensor([not experience.masked for experience in experiences], dtype=torch.bool)
    kl = None
    sums: MetricSums = {}
    if item.reference_logprobs is not None:
        proximal = pad(_proximal(item.shard, item.proximal_logprobs), lengths)
        reference = pad(item.reference_logprobs, lengths)
        k1 = KL_ESTIMATORS["k1"](proximal, reference)
        sums = {"policy/kl@tokens": masked_sum(k1, mask), "@tokens": count(mask)}
        sums |= {"policy/kl_per_response@responses": masked_sum(k1, mask), "@responses": keep.sum().double()}
        if settings.kl_in == "reward":
            kl = KL_ESTIMATORS[settings.kl_estimator](proximal, reference)
    rewards = token_rewards(
        torch.tensor([experience.reward for experience in experiences], dtype=torch.float64),
        mask,
        settings,
        group_ids=torch.repeat_interleave(torch.tensor([len(group) for group in item.shard], dtype=torch.int64)),
        keep=keep,
        kl=kl,
        responses=pad(trained_mask(experiences), lengths),
    )
    return rewards, sums


def train_policy(
    engine: TrainEngine,
    inputs: Sequence[PolicyInputs],
    settings: AlgorithmSettings,
    *,
    lrs: Sequence[float],
    seed: int,
    max_response_length: int,
    temperature: float = 1.0,
    version: int | None = None,
    oldest_version: int | None = None,
) -> list[StepReport]:
    """`epochs_per_batch` passes of `minibatches` optimizer steps each (`rlsys.models.minibatches`).

    Args:
        engine: of the policy.
        inputs: every shard of the batch, in the same order on every rank, which trains on its part of each minibatch.
        settings: the algorithm.
        lrs: learning rate of each optimizer step, `epochs_per_batch x minibatches` of them.
        seed: of the minibatches; give another one for every batch.
        max_response_length: tokens; for Dr. GRPO's fixed length.
        temperature: what the responses were sampled at.
        version: the learner's, so that metrics can tell the engine's mismatch from the lag of older weights.
        oldest_version: tokens sampled before it are masked.
    """
    group = engine.group
    samples: list[Sample] = []
    lag_sums = []
    for item in inputs:
        experiences = experiences_of(item.shard)
        mask = trained_mask(experiences, oldest_version)
        fields, sums = _policy_fields(item, mask, settings, version)
        samples += samples_of(experiences, fields)
        lag_sums.append(sums)

    def objective(step: StepInput) -> tuple[torch.Tensor, MetricSums]:
        assert step.logprobs is not None
        batch = PolicyBatch(
            logprobs=step.logprobs,
            entropy=step.entropy,
            sequence_ids=step.document_ids,
            **{name: values for name, values in step.fields.items()},
        )
        return policy_loss(batch, settings, denominator=step.denominators["policy"], max_length=max_response_length)

    reports = []
    for lr, members in minibatches(samples, lrs, settings, group, seed=seed):
        denominator = sum(
            float(count_denominator(torch.from_numpy(sample.fields["mask"])[None], settings.aggregation))
            for sample in members
        )
        reports.append(
            engine.train_step(
                [[sample.row()] for sample in members],
                objective,
                lr=lr,
                denominators={"policy": denominator},
                temperature=temperature,
            )
        )
    return _with_lag_metrics(reports, lag_sums[group.rank :: group.world_size], group)


def _policy_fields(
    item: PolicyInputs, mask: Ragged, settings: AlgorithmSettings, version: int | None
) -> tuple[dict[str, Ragged], Mapping[str, torch.Tensor]]:
    """The fields of `PolicyBatch` but for those that the forward pass gives, and the metrics of the lag."""
    lengths = response_lengths(experiences_of(item.shard))
    behaviour = _proximal(item.shard, None)
    proximal = _proximal(item.shard, item.proximal_logprobs)
    weights, sums = lag_correction(
        pad(proximal, lengths),
        pad(behaviour, lengths),
        pad(mask, lengths),
        settings.lag_correction,
        lag_steps=None if version is None else pad(version - sampled_versions(item.shard), lengths),
    )
    fields = {
        "mask": mask,
        "advantages": item.advantages,
        "old_logprobs": proximal,
        "lag_weights": unpad(weights, lengths),
    }
    if item.reference_logprobs is not None:
        fields["reference_logprobs"] = item.reference_logprobs
    return fields, sums


def _proximal(shard: Shard, proximal: Ragged | None) -> Ragged:
    """The learner's logprobs where they were computed, else the sampler's."""
    if proximal is not None:
        return proximal
    return np.concatenate([np.zeros(0, np.float32), *(e.rollout.logprobs for e in experiences_of(shard))])


def _with_lag_metrics(
    reports: list[StepReport], lag_sums: Sequence[Mapping[str, torch.Tensor]], group: ProcessGroup
) -> list[StepReport]:
    """The first report also tells how far sampler and learner were apart before the batch."""
    metrics = finish_over_ranks(add_sums(lag_sums), group)
    first, *rest = reports
    return [StepReport(first.metrics | metrics, first.fault), *rest]
