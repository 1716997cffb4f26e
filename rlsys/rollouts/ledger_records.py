"""What the ledger is told at the start, and what it tells: settings, batches and ends."""

from dataclasses import dataclass
from typing import Literal

from rlsys.types import PolicyVersion

OverAge = Literal["drop", "mask"]
EndKind = Literal["trained", "filtered", "masked", "expired"]

COUNTERS = (
    "admitted",  # groups started, reissued ones included
    "reissued",  # groups started again
    "finished",  # groups sampled, verified and accepted
    "late",  # reports about a group that was no longer running, ignored
    "failed",  # groups lost with their worker, or taken from one that was too slow
    "over_age_dropped",  # finished groups too old for the next batch
    "over_age_masked",  # groups trained on with their oldest tokens masked
    "filtered",  # the four ends, in groups
    "masked",
    "expired",
    "trained",
)


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """What the recipe decides of the accounting.

    >>> LedgerSettings(batch_groups=4, max_staleness=1, total_batches=10).max_attempts
    3
    """

    batch_groups: int
    """B: prompt groups in a batch."""
    max_staleness: int
    """k: a batch trained at version v holds no token sampled under a version below v - k. 0 is synchronous."""
    total_batches: int
    """The run ends when this many batches are trained on."""
    max_attempts: int = 3
    """Times a group may be started before it is given up; a resume does not count as one."""
    over_age: OverAge = "drop"
    """What happens to a finished group with tokens older than the bound: sampled again, or those tokens masked."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("batch_groups", self.batch_groups, 1),
            ("max_staleness", self.max_staleness, 0),
            ("total_batches", self.total_batches, 1),
            ("max_attempts", self.max_attempts, 1),
        ):
            if value < least:
                raise ValueError(f"{name} must be at least {least}; got {value}; raise it")
        if self.over_age not in ("drop", "mask"):
            raise ValueError(f"over_age must be 'drop' or 'mask'; got {self.over_age!r}; choose one of the two")


@dataclass(frozen=True, slots=True)
class End:
    """How an ordinal ended: trained(step), filtered(reason), masked(reason) or expired(attempts).

    >>> End("trained", 12)
    End(kind='trained', detail=12)
    """

    kind: EndKind
    detail: int | str

    def record(self, ordinal: int) -> list[int | str]:
        """A line of the stage's `ends.jsonl`.

        >>> End("trained", 12).record(7)
        [7, 'trained', 12]
        """
        return [ordinal, self.kind, self.detail]


@dataclass(frozen=True, slots=True)
class Batch:
    """What to train on next.

    >>> Batch(index=3, ordinals=(7, 9), min_version=2, masked=()).index
    3
    """

    index: int
    """The version at which it is trained: how many batches were trained on before it."""
    ordinals: tuple[int, ...]
    """Exactly B, oldest version first, then by ordinal."""
    min_version: PolicyVersion
    """Tokens sampled under an older version must be masked; with `over_age="drop"` there are none."""
    masked: tuple[int, ...]
    """Those of `ordinals` that hold such tokens."""
