"""What is left out of a data set, and why: nothing disappears without a reason and a count."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rlsys.errors import DataError

_MAX_EXAMPLES = 5
"""Of one reason."""


class RowRefused(DataError):
    """One row cannot be used. `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, problem: str, *, fix: str = "") -> None:
        super().__init__(problem, fix=fix)
        self.reason = reason


@dataclass
class DropLog:
    """Counts dropped rows by reason and keeps the first few of each as examples.

    >>> log = DropLog()
    >>> log.add("invalid_json", "train.jsonl:3", "Expecting value")
    >>> log.as_manifest()["by_reason"]
    {'invalid_json': 1}
    """

    by_reason: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)

    def add(self, reason: str, where: str, problem: str) -> None:
        self.by_reason[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < _MAX_EXAMPLES:
            kept.append({"where": where, "problem": problem[:300]})

    @property
    def total(self) -> int:
        return sum(self.by_reason.values())

    def as_manifest(self) -> dict[str, Any]:
        """JSON object: total, counts by reason in alphabetical order, examples with file and line."""
        return {
            "total": self.total,
            "by_reason": dict(sorted(self.by_reason.items())),
            "examples": {reason: list(kept) for reason, kept in sorted(self.examples.items())},
        }

    def merge(self, manifest: dict[str, Any]) -> None:
        """Adds what another log's `as_manifest` counted."""
        self.by_reason.update(manifest["by_reason"])
        for reason, examples in manifest["examples"].items():
            kept = self.examples.setdefault(reason, [])
            kept.extend(examples[: _MAX_EXAMPLES - len(kept)])
