"""Exact and near duplicates: of each group the first row stays."""

import hashlib
import re

import numpy as np

from rlsys.data.filters import contents
from rlsys.data.row import Row
from rlsys.recipe.data import DuplicateScope, NearDuplicateSettings

_SPACE = re.compile(r"\s+")
_WORD = re.compile(r"\w+")
_SCHEME = "affine32"
"""Of datasketch: 32-bit hashes."""


def fingerprint(row: Row, scope: DuplicateScope) -> str:
    """Hash of a row's roles and contents (of its prompt alone in scope `prompt`); white space and case do not count."""
    if row.text is not None or scope == "prompt":
        texts = [row.text] if row.text is not None else [message["content"] for message in row.prompt]
    else:
        texts = contents(row)
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(_SPACE.sub(" ", text).strip().casefold().encode() + b"\0")
    return digest.hexdigest()


def signature(row: Row, settings: NearDuplicateSettings) -> np.ndarray:
    """MinHash of the row's word n-grams, `[num_permutations]` uint32; shorter texts count as one n-gram."""
    from datasketch import MinHash

    texts = contents(row) if settings.scope == "row" else [row.text or ""] * (row.text is not None)
    texts = texts or [message["content"] for message in row.prompt]
    words = _WORD.findall(" ".join(texts).casefold())
    size = settings.ngram_words
    grams = {" ".join(words[start : start + size]).encode() for start in range(max(len(words) - size, 0) + 1)}
    sketch = MinHash(num_perm=settings.num_permutations, seed=1, scheme=_SCHEME)
    sketch.update_batch(sorted(grams))
    return np.asarray(sketch.hashvalues, np.uint32)


class DuplicateIndex:
    """Remembers the rows that stayed, in order, and tells whether the next one repeats any of them."""

    def __init__(self, near: NearDuplicateSettings | None) -> None:
        self._seen: set[str] = set()
        self._near = None if near is None else _NearIndex(near)

    def reason_to_remove(self, exact: str | None, near: np.ndarray | None) -> str | None:
        """`exact_duplicate`, `near_duplicate` or None; a row that stays is remembered.

        Args:
            exact: its fingerprint, if exact duplicates are removed.
            near: its signature, if near duplicates are.
        """
        if exact is not None and exact in self._seen:
            return "exact_duplicate"
        if near is not None and self._near is not None and self._near.repeats(near):
            return "near_duplicate"
        if exact is not None:
            self._seen.add(exact)
        return None


class _NearIndex:
    def __init__(self, settings: NearDuplicateSettings) -> None:
        from datasketch import MinHashLSH

        self._threshold = settings.threshold
        self._index = MinHashLSH(threshold=settings.threshold, num_perm=settings.num_permutations)
        self._signatures: list[np.ndarray] = []

    def repeats(self, signature: np.ndarray) -> bool:
        """Whether a remembered signature agrees in at least the threshold's share of places; if none, remembers it."""
        from datasketch import MinHash

        sketch = MinHash(seed=1, hashvalues=signature, scheme=_SCHEME)
        for candidate in self._index.query(sketch):
            if np.mean(self._signatures[int(candidate)] == signature) >= self._threshold:  # pyright: ignore[reportArgumentType]
                return True
        self._index.insert(len(self._signatures), sketch, check_duplication=False)
        self._signatures.append(signature)
        return False
