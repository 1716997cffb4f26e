"""Reads a run's chain file and says whether every ordinal ended exactly once."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any


def audit_ends(records: Iterable[Sequence[Any]], low_water_mark: int) -> Counter[str]:
    """Checks the chain of committed checkpoints against the ledger's promise.

    Args:
        records: of `End.record`, oldest first: `ChainFile(folder / "ends.jsonl").records()`.
        low_water_mark: of the newest checkpoint's ledger; every ordinal below it must have an end.

    Returns:
        How many ordinals ended in which way.
    """
    kinds: dict[int, str] = {}
    for ordinal, kind, detail in records:
        assert ordinal not in kinds, f"ordinal {ordinal} ended twice: {kinds[ordinal]}, {kind} {detail}"
        kinds[ordinal] = kind
    missing = [ordinal for ordinal in range(low_water_mark) if ordinal not in kinds]
    assert not missing, f"ordinals below {low_water_mark} without an end: {missing}"
    return Counter(kinds.values())
