"""The recipe section `[verifiers]`: the pool that scores responses, and how scores become rewards."""

from typing import Literal

from pydantic import Field

from rlsys.recipe.section import Section


class VerifierSettings(Section):
    """How responses are verified and rewarded. Limits hold for one verdict each."""

    workers: int = Field(default=2, ge=1)
    """Processes of the pool that each verifier worker has."""
    cpu_limit_s: float = Field(default=5.0, gt=0)
    """CPU seconds that one verdict may cost, counted from when its scoring starts."""
    wall_limit_s: float = Field(default=20.0, gt=0)
    """Backstop on the clock, for a verifier that waits instead of computing."""
    memory_limit_mib: int = Field(default=2048, ge=256)
    """Address space of one pool process, the libraries included."""
    mode: Literal["eval", "reward"] = "reward"
    """`reward` is stricter than `eval` wherever the published reference pays for nothing."""
    modules: tuple[str, ...] = Field(default=(), strict=False)
    """Dotted names of modules that register verifiers of your own."""
    reward_scale: float = Field(default=10.0, gt=0)
    """Reward of a response that passes all its checks."""
    no_end_token_reward: float | Literal["none"] = -10.0
    """Reward of a response that was cut before its end token, whatever its answer; "none" (Tülu 3.1): no penalty."""
    alarm_failed_frac: float = Field(default=0.01, ge=0, le=1)
    """Share of timeouts and errors among a verifier's verdicts above which an alarm is raised, so that hanging it never
    pays."""
