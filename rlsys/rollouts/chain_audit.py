"""Reads a run's chain file and says whether every ordinal ended exactly once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rlsys.errors import LedgerError
from rlsys.rollouts.ledger_records import End


def end_record(ordinal: int, end: End) -> list[int | str]:
    """An end as a record of the chain file.

    >>> end_record(7, End("trained", 12))
    [7, 'trained', 12]
    """
    return [ordinal, end.kind, end.detail]


def audit_ends(records: Iterable[Sequence[Any]], low_water_mark: int) -> Counter[str]:
    """Checks the chain of committed checkpoints against the ledger's promise.

    Args:
        records: of `end_record`, oldest first: `ChainFile(stage.ends).records()`.
        low_water_mark: of the newest checkpoint's ledger; every ordinal below it must have an end.

    Returns:
        How many ordinals ended in which way.

    Raises:
        LedgerError: an ordinal ended twice, or one below the mark never did.

    >>> audit_ends([[1, "trained", 1], [0, "filtered", "equal rewards"]], low_water_mark=2)
    Counter({'trained': 1, 'filtered': 1})
    """
    kinds: dict[int, str] = {}
    for ordinal, kind, detail in records:
        if ordinal in kinds:
            raise LedgerError(f"ordinal {ordinal} ended twice", value=[kinds[ordinal], kind, detail])
        kinds[ordinal] = kind
    if missing := [ordinal for ordinal in range(low_water_mark) if ordinal not in kinds]:
        raise LedgerError(f"{len(missing)} ordinals below {low_water_mark} have no end", value=missing[:10])
    return Counter(kinds.values())
