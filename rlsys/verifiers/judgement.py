"""What a verifier function says of one response, before the pool adds the clock."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from rlsys.types import Outcome

VerifyMode: TypeAlias = Literal["eval", "reward"]
"""`eval` is faithful to the published reference; `reward` is stricter wherever the reference pays for nothing."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """An outcome, a score in [0, 1] and whatever explains them.

    >>> Judgement("correct", 1.0).score
    1.0
    """

    outcome: Outcome
    score: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    """JSON values only; NaN and infinity are none."""
