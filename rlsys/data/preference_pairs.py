"""Verifier-decided preference pairs: a right sample is preferred to a wrong one of the same prompt."""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

_RIGHT_SCORE = 1.0
"""The least that counts as right; anything under it is wrong."""


class ScoredSample(NamedTuple):
    """One sampled response and what the verifiers said of it; a plain 3-tuple serves as well.

    >>> ScoredSample(np.array([5, 2], np.int32), 1.0).masked
    False
    """

    response_ids: np.ndarray
    """`[T]` int32, the end token included."""
    score: float
    """In [0, 1]; may be NaN where masked."""
    masked: bool = False
    """A verifier failed on it: neither right nor wrong, so it is in no pair."""


PromptGroup: TypeAlias = tuple[str, Sequence[tuple[np.ndarray, float, bool]]]
"""(prompt id, its samples)."""


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A preference between two samples of one prompt, as token ids."""

    prompt_id: str
    chosen_ids: np.ndarray
    """`[T]` int32."""
    rejected_ids: np.ndarray
    """`[T]` int32."""
    chosen_sample: int
    """Index of the chosen response in its group."""
    rejected_sample: int
    chosen_score: float
    rejected_score: float


def verifier_pairs(groups: Iterable[PromptGroup], *, seed: int) -> list[TokenPair]:
    """One pair for each prompt that has both right and wrong samples; masked samples are never used.

    The draw depends on (seed, prompt id, the group's own samples) alone: neither the order of the prompts nor which
    other prompts there are changes a pair.

    Args:
        groups: (prompt id, samples) for each prompt, such as `mapping.items()`.
        seed: of the draw of one right and one wrong sample.

    Returns:
        The pairs, in the order of the prompts.

    Raises:
        ValueError: a prompt id came twice, or an unmasked score is outside [0, 1].
    """
    pairs: list[TokenPair] = []
    seen: set[str] = set()
    for prompt_id, samples in groups:
        if prompt_id in seen:
            raise ValueError(f"prompt {prompt_id!r} came twice; merge its samples into one group")
        seen.add(prompt_id)
        right, wrong = _split(prompt_id, samples)
        if not right or not wrong:
            continue
        draw = seeded_random(seed, prompt_id)
        chosen, rejected = draw.choice(right), draw.choice(wrong)
        pairs.append(
            TokenPair(
                prompt_id=prompt_id,
                chosen_ids=samples[chosen][0],
                rejected_ids=samples[rejected][0],
                chosen_sample=chosen,
                rejected_sample=rejected,
                chosen_score=samples[chosen][1],
                rejected_score=samples[rejected][1],
            )
        )
    return pairs


def count_groups(groups: Iterable[PromptGroup]) -> dict[str, int]:
    """How many prompts are `mixed` (they give a pair), `all_right`, `all_wrong` or `all_masked`, and masked samples.

    >>> count_groups([("a", [ScoredSample(np.array([2]), 1.0), ScoredSample(np.array([3]), 0.0)])])["mixed"]
    1
    """
    counts: Counter[str] = Counter(mixed=0, all_right=0, all_wrong=0, all_masked=0, masked_samples=0)
    for prompt_id, samples in groups:
        right, wrong = _split(prompt_id, samples)
        kind = {(True, True): "mixed", (True, False): "all_right", (False, True): "all_wrong"}
        counts[kind.get((bool(right), bool(wrong)), "all_masked")] += 1
        counts["masked_samples"] += len(samples) - len(right) - len(wrong)
    return dict(counts)


def seeded_random(seed: int, *keys: str) -> random.Random:
    """A generator that depends on the seed and the keys alone, the same in every process and Python version."""
    digest = hashlib.sha256("\x1f".join((str(seed), *keys)).encode("utf-8", "surrogatepass")).digest()
    return random.Random(int.from_bytes(digest, "big"))


def _split(prompt_id: str, samples: Sequence[tuple[np.ndarray, float, bool]]) -> tuple[list[int], list[int]]:
    right: list[int] = []
    wrong: list[int] = []
    for index, (_, score, masked) in enumerate(samples):
        if masked:
            continue
        if math.isnan(score) or not 0.0 <= score <= 1.0:
            raise ValueError(
                f"score of sample {index} of prompt {prompt_id!r} must be in [0, 1] or masked; got {score}"
            )
        (right if score >= _RIGHT_SCORE else wrong).append(index)
    return right, wrong
