"""Times the pure maths of the learner on one CPU thread: `OMP_NUM_THREADS=1 python bench/algorithms.py`."""

import time
from collections.abc import Callable

import torch

from rlsys.algorithms.advantages import ADVANTAGES
from rlsys.algorithms.gae import gae
from rlsys.algorithms.policy_loss import POLICY_LOSSES, PolicyBatch, policy_loss
from rlsys.recipe.algorithm import AlgorithmSettings


def best_ms(function: Callable[[], object], repeats: int = 5) -> float:
    """Milliseconds of the fastest of several calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds)


def time_gae(num_responses: int = 224, length: int = 2048) -> None:
    """A Tülu 3 8B batch, one response a row."""
    rewards, values = torch.randn(2, num_responses, length)
    mask = torch.ones(num_responses, length)
    print(f"gae [{num_responses}, {length}]: {best_ms(lambda: gae(rewards, values, mask, 1.0, 0.95)):.0f} ms")


def time_policy_losses(num_rows: int = 4, length: int = 2048) -> None:
    """Forward and backward of each loss."""
    logprobs = torch.randn(num_rows, length, requires_grad=True)
    batch = PolicyBatch(
        logprobs=logprobs,
        old_logprobs=logprobs.detach() + 0.1,
        advantages=torch.randn(num_rows, length),
        mask=torch.ones(num_rows, length),
        sequence_ids=torch.arange(num_rows)[:, None].expand(num_rows, length),
    )
    for name in POLICY_LOSSES:
        settings = AlgorithmSettings(policy_loss=name, kl_in="none")  # pyright: ignore[reportArgumentType]
        elapsed = best_ms(lambda: policy_loss(batch, settings, denominator=num_rows * length)[0].backward(), 20)  # noqa: B023
        print(f"{name}, {num_rows * length} tokens: {elapsed:.2f} ms")


def time_baselines(num_groups: int = 640, group_size: int = 16) -> None:
    """Each estimator's baseline."""
    scores = torch.randn(num_groups * group_size)
    groups = torch.arange(num_groups).repeat_interleave(group_size)
    keep = torch.ones_like(scores, dtype=torch.bool)
    for name, estimator in ADVANTAGES.items():
        elapsed = best_ms(lambda: estimator.baseline(scores, groups, keep))  # noqa: B023
        print(f"baseline {name}, {len(scores)} scores: {elapsed:.2f} ms")


if __name__ == "__main__":
    torch.manual_seed(0)
    time_gae()
    time_policy_losses()
    time_baselines()
