"""Which checkpoints stay."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retention:
    """The newest `keep_last`, and every one whose step is a multiple of `keep_every`.

    >>> sorted(Retention(keep_last=2, keep_every=100).steps_to_remove([50, 100, 150, 200, 250]))
    [50, 150]
    """

    keep_last: int = 2
    """With 1, a damaged newest checkpoint leaves none to fall back to."""
    keep_every: int = 0
    """0: none for its step's sake."""

    def __post_init__(self) -> None:
        if self.keep_last < 1 or self.keep_every < 0:
            raise ValueError(
                f"keep_last must be at least 1 and keep_every at least 0; got {self.keep_last} and {self.keep_every}"
            )

    def steps_to_remove(self, steps: Collection[int]) -> set[int]:
        """Of the committed steps."""
        newest = set(sorted(steps)[-self.keep_last :])
        regular = {step for step in steps if self.keep_every and step % self.keep_every == 0}
        return set(steps) - newest - regular
