"""The records that travel between actors.

Token ids and sampler logprobs travel end to end: text is never tokenized a second time. Arrays are numpy, so that Ray
passes them by reference and without copies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

PolicyVersion: TypeAlias = int
"""How many rollout batches the published weights have consumed; skipped updates count, optimizer steps do not."""

FinishReason: TypeAlias = Literal["stop", "length"]
"""`stop`: the response ends with an end token, which is its last id. `length`: it was cut."""

Outcome: TypeAlias = Literal["correct", "wrong", "unparsable", "timeout", "error"]
"""`timeout` and `error` are failures of the verifier: masked from training and counted, never scored as wrong."""

MASKED_OUTCOMES: frozenset[Outcome] = frozenset({"timeout", "error"})

Message: TypeAlias = Mapping[str, Any]
"""A chat message: at least `role` and `content`; `weight` (float, default 1) scales its loss in training data."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing a response is verified for.

    >>> Check("gsm8k", "72").verifier
    'gsm8k'
    """

    verifier: str
    ground_truth: Any
    """JSON value, in the form that the verifier documents."""
    weight: float = 1.0
    """Its share of the reward: a response's verified score is the weighted mean of its checks' scores."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt at its place in the endless prompt stream.

    >>> Prompt(3, "gsm8k/17", ({"role": "user", "content": "1 + 1?"},), np.array([5, 6], np.int32)).ordinal
    3
    """

    ordinal: int
    """Place in the stream, which is a pure function of (seed, ordinal)."""
    id: str
    messages: tuple[Message, ...]
    token_ids: np.ndarray
    """`[P]` int32, the templated prompt with its generation prompt."""
    checks: tuple[Check, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response. T counts response tokens, the end token included."""

    ordinal: int
    sample_index: int
    response_ids: np.ndarray
    """`[T]` int32."""
    logprobs: np.ndarray
    """`[T]` float32, of the distribution that was sampled from."""
    versions: np.ndarray
    """`[T]` int32, the policy version that sampled each token."""
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one response.

    >>> Verdict("math", "correct", 1.0, 0.002).masked
    False
    """

    verifier: str
    outcome: Outcome
    score: float
    """In [0, 1]; 0 unless the outcome is `correct`, or `wrong` with partial credit."""
    seconds: float
    detail: Mapping[str, Any] = field(default_factory=dict)
    """JSON values only."""

    @property
    def masked(self) -> bool:
        """Whether the verifier failed, so that the response must not be trained on."""
        return self.outcome in MASKED_OUTCOMES


@dataclass(frozen=True, slots=True)
class Experience:
    """A rollout with its verdicts and reward, ready to train on."""

    prompt: Prompt
    rollout: Rollout
    verdicts: tuple[Verdict, ...]
    reward: float
    """The score of the whole response; NaN where any verdict is masked."""
    reward_model_score: float | None = None
    """As the reward model gave it, before its weight; None where none was asked."""

    @property
    def masked(self) -> bool:
        """Whether a verifier failed on it, or it has no token: it takes no part in loss, whitening, baselines or
        denominators."""
        return not len(self.rollout.response_ids) or any(verdict.masked for verdict in self.verdicts)


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """What the driver may know of a prompt's verified group of samples: metadata only, never tokens.

    Sequences are by sample index, of length n.
    """

    ordinal: int
    lengths: tuple[int, ...]
    """Response tokens."""
    prompt_length: int
    oldest_version: PolicyVersion
    newest_version: PolicyVersion
    finish_reasons: tuple[FinishReason, ...]
    rewards: tuple[float, ...]
    """NaN where masked."""
    verdicts: tuple[tuple[Verdict, ...], ...]
    """With `detail` emptied."""
    reward_model_scores: tuple[float, ...] = ()
    """Empty where no reward model was asked."""
    scores: tuple[float, ...] = ()
    """Rewards before the overlong penalty, NaN where masked; empty where none was added."""

    @property
    def num_masked(self) -> int:
        """Samples that are masked."""
        samples = zip(self.lengths, self.verdicts, strict=True)
        return sum(not length or any(verdict.masked for verdict in sample) for length, sample in samples)
