"""Whether a text is new: its longest common subsequence with everything before it."""

import re
from collections import Counter

_WORD = re.compile(r"\w+")


class NoveltyFilter:
    """Remembers texts and refuses those too like one of them.

    ROUGE-L is the F-measure of the longest common subsequence of words: 2 L / (m + n).

    >>> novelty = NoveltyFilter(0.7)
    >>> novelty.admit("Write a poem about the sea."), novelty.admit("Write a poem about the sky.")
    (True, False)
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._known: list[tuple[list[str], Counter[str]]] = []

    def __len__(self) -> int:
        return len(self._known)

    def admit(self, text: str) -> bool:
        """Whether the text is new; if so, it is remembered."""
        words = _WORD.findall(text.casefold())
        counts = Counter(words)
        if any(self._reaches(words, counts, other, other_counts) for other, other_counts in self._known):
            return False
        self._known.append((words, counts))
        return True

    def _reaches(
        self, left: list[str], left_counts: Counter[str], right: list[str], right_counts: Counter[str]
    ) -> bool:
        needed = self._threshold * (len(left) + len(right)) / 2
        # No common subsequence is longer than the shorter text, or than the words that both have.
        if min(len(left), len(right)) < needed or (left_counts & right_counts).total() < needed:
            return False
        return common_subsequence(left, right) >= needed


def rouge_l(left: str, right: str) -> float:
    """ROUGE-L F-measure of two texts, in [0, 1] (Lin 2004); 0 where one has no words."""
    first, second = _WORD.findall(left.casefold()), _WORD.findall(right.casefold())
    return 2 * common_subsequence(first, second) / (len(first) + len(second)) if first and second else 0.0


def common_subsequence(left: list[str], right: list[str]) -> int:
    """Length of the longest common subsequence, one bit a word of `left` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(left):
        places[word] = places.get(word, 0) | 1 << place
    whole = (1 << len(left)) - 1
    row = whole
    for word in right:
        matches = row & places.get(word, 0)
        row = (row + matches | row - matches) & whole
    return len(left) - row.bit_count()
