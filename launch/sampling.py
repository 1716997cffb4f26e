"""Sampling and verifying a list of prompts once, with the weights that the engines hold: evaluation, preferences."""

import math
from collections import Counter

from actors.pump import RolloutPump
from actors.pump_records import LostGroups, VerifiedGroup
from launch.context import RunContext
from launch.progress import progress
from rlsys.errors import ActorError

MAX_GROUPS_PER_CALL = 32
MAX_ATTEMPTS = 3
"""For one prompt: what hundreds of prompts lose with one worker counts once for each of them."""


def groups_per_call(num_prompts: int, num_workers: int) -> int:
    """Prompts of one call: many, as a call costs something, and few enough that every engine has some."""
    return max(1, min(MAX_GROUPS_PER_CALL, math.ceil(num_prompts / num_workers)))


def sample_all(context: RunContext, pump: RolloutPump, num_prompts: int, *, what: str) -> list[VerifiedGroup]:
    """The groups of ordinals 0 to `num_prompts` - 1, in this order; those that are lost are sampled again.

    Raises:
        ActorError: a prompt was lost `MAX_ATTEMPTS` times, or no worker is left.
    """
    done: dict[int, VerifiedGroup] = {}
    attempts: Counter[int] = Counter()
    pump.start(range(num_prompts))
    try:
        with progress(what, num_prompts, shown=context.recipe.tracking.console) as advance:
            while pump.num_running:
                context.reinforce(pump)
                for group in pump.poll(timeout_s=context.recipe.cluster.operation_timeout_s):
                    if not isinstance(group, LostGroups):
                        done[group.summary.ordinal] = group
                        advance(1)
                        continue
                    attempts.update(group.ordinals)
                    if max(attempts[ordinal] for ordinal in group.ordinals) >= MAX_ATTEMPTS:
                        raise ActorError(f"{what} failed: {group.reason}", value=str(group.error))
                    pump.start(group.ordinals)
    finally:
        pump.abort()  # after an error: workers that live on would otherwise be counted as busy with it for good
    return [done[ordinal] for ordinal in range(num_prompts)]
