"""An index of evaluation instances, through which training instances are streamed one by one.

Memory grows with the evaluation sets alone and time with the training rows alone, so that any training set fits.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.data.decontamination_text import Instance, exact_key, tokens, turns
from rlsys.recipe.decontamination import Mode

_UNKNOWN = 0xFFFFFFFF
_UNIT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Match:
    """An evaluation instance and how much of it one training instance holds."""

    instance: int
    """Index over the instances of all evaluation sets, in the order given to the index."""
    matched: int
    """Units (tokens, characters, or 1 for a whole) of the evaluation instance that match."""
    units: int
    """Units of the evaluation instance."""

    @property
    def fraction(self) -> float:
        """In (0, 1]."""
        return self.matched / self.units


class EvalIndex:
    """Every n-gram of the evaluation instances, with the places where it stands.

    An instance's text is its user turns joined by a line break. In mode `ngram` the units are the tokens of
    `decontamination_text.tokens`, in `char-ngram` the characters of those tokens joined by single spaces. Instances of
    fewer units than n, and every instance in mode `exact`, match only as a whole: when `exact_key` of the training
    instance, or of one of its turns, is theirs.

    Args:
        instances: of all evaluation sets, one after the other.
        mode: what the units are.
        ngram: n, in units; ignored in mode `exact`.
    """

    def __init__(self, instances: Sequence[Instance], *, mode: Mode, ngram: int) -> None:
        self._mode, self._ngram = mode, ngram
        self._vocabulary: dict[str, int] = {}
        self._whole: dict[str, list[int]] = {}
        self._places: dict[bytes, list[int]] = {}
        lengths = array("l")
        start = 0
        for index, instance in enumerate(instances):
            text = "\n".join(turns(instance))
            units = b"" if mode == "exact" else self._encode(text, grow=True)
            length = len(units) // _UNIT_BYTES
            if length < ngram or mode == "exact":
                key = exact_key(text)
                if key:
                    self._whole.setdefault(key, []).append(index)
                length = 1
            else:
                for place, gram in enumerate(self._grams(units)):
                    self._places.setdefault(gram, []).append(start + place)
            lengths.append(length)
            start += length
        self._lengths = np.array(lengths, np.int64)
        self._instance_at = np.repeat(np.arange(len(lengths), dtype=np.int32), self._lengths)

    def matches(self, training: Instance) -> list[Match]:
        """The evaluation instances that share an n-gram, or all, with one training instance, by index."""
        parts = turns(training)
        text = "\n".join(parts)
        found: list[Match] = []
        if self._whole:
            keys = {exact_key(text), *(exact_key(part) for part in parts)} if len(parts) > 1 else {exact_key(text)}
            wholes = {index for key in keys for index in self._whole.get(key, ())}
            found += [Match(index, 1, 1) for index in wholes]
        if self._places:
            found += self._partial_matches(self._encode(text, grow=False))
        found.sort(key=lambda match: match.instance)
        return found

    def _partial_matches(self, units: bytes) -> list[Match]:
        places: list[int] = []
        for gram in set(self._grams(units)):
            if gram in self._places:
                places += self._places[gram]
        if not places:
            return []
        starts = np.array(places, np.int64)
        starts.sort()
        instances = self._instance_at[starts]
        # Every n-gram covers n units, less those that the next one in the same instance covers as well.
        covered = np.full(len(starts), self._ngram, np.int64)
        same = instances[1:] == instances[:-1]
        covered[:-1][same] = np.minimum(self._ngram, np.diff(starts))[same]
        firsts = np.flatnonzero(np.concatenate(([True], ~same)))
        matched = np.add.reduceat(covered, firsts)
        owners = instances[firsts]
        return [
            Match(int(owner), int(count), int(self._lengths[owner]))
            for owner, count in zip(owners, matched, strict=True)
        ]

    def _encode(self, text: str, *, grow: bool) -> bytes:
        """Units as consecutive uint32: an n-gram is then a slice of bytes, which hashes faster than a tuple.

        Tokens that no evaluation instance holds share one id; no n-gram of the index contains it.
        """
        words = tokens(text)
        if self._mode == "char-ngram":
            return " ".join(words).encode("utf-32-le", "surrogatepass")
        vocabulary = self._vocabulary
        if grow:
            return array("I", [vocabulary.setdefault(word, len(vocabulary)) for word in words]).tobytes()
        return array("I", [vocabulary.get(word, _UNKNOWN) for word in words]).tobytes()

    def _grams(self, units: bytes) -> Iterator[bytes]:
        width = self._ngram * _UNIT_BYTES
        return (units[at : at + width] for at in range(0, len(units) - width + 1, _UNIT_BYTES))
