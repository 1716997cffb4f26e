"""Experience as rows to train on, and per-token results as ragged arrays.

A batch travels as shards, each a list of groups of Experience. What is computed for the response tokens of a shard is
one flat array: the responses of its experiences, in order of groups and samples, one after the other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from rlsys.data.packing import Row
from rlsys.types import Experience, PolicyVersion

Shard: TypeAlias = Sequence[Sequence[Experience]]
Ragged: TypeAlias = np.ndarray
"""`[sum of T]` float32: all response tokens of a shard."""


def experiences_of(shard: Shard) -> list[Experience]:
    """In order of groups and samples."""
    return [experience for group in shard for experience in group]


def response_lengths(experiences: Sequence[Experience]) -> np.ndarray:
    """`[N]` int64."""
    return np.array([len(experience.rollout.response_ids) for experience in experiences], np.int64)


@dataclass(frozen=True, slots=True)
class Sample:
    """One experience with what is known of its response tokens."""

    experience: Experience
    fields: Mapping[str, np.ndarray]
    """`[T]` float32 each, parts of the shard's flat arrays."""

    @property
    def place(self) -> tuple[int, int]:
        """In the order of all samples: the prompt's ordinal, and which of its samples."""
        return self.experience.rollout.ordinal, self.experience.rollout.sample_index

    @property
    def num_tokens(self) -> int:
        """Of prompt and response."""
        return len(self.experience.prompt.token_ids) + len(self.experience.rollout.response_ids)

    def row(self) -> Row:
        """Prompt and response; the fields are 0 at prompt tokens."""
        prompt = self.experience.prompt.token_ids
        padding = np.zeros(len(prompt), np.float32)
        return Row(
            np.concatenate([prompt, self.experience.rollout.response_ids]).astype(np.int32),
            {name: np.concatenate([padding, values]) for name, values in self.fields.items()},
        )


def samples_of(experiences: Sequence[Experience], fields: Mapping[str, Ragged]) -> list[Sample]:
    """The experiences of one shard, each with its part of the shard's flat arrays."""
    samples, start = [], 0
    for experience in experiences:
        stop = start + len(experience.rollout.response_ids)
        samples.append(Sample(experience, {name: values[start:stop] for name, values in fields.items()}))
        start = stop
    return samples


def response_rows(experiences: Sequence[Experience]) -> list[Row]:
    """Prompt and response of each experience, with the field `mask`: 1 at response tokens."""
    ones = np.ones(response_lengths(experiences).sum(), np.float32)
    return [sample.row() for sample in samples_of(experiences, {"mask": ones})]


def responses_of(experiences: Sequence[Experience], per_row: Sequence[np.ndarray]) -> Ragged:
    """The response part of arrays `[prompt + response]`, flat."""
    lengths = response_lengths(experiences)
    parts = [values[len(values) - length :] for values, length in zip(per_row, lengths, strict=True)]
    return np.concatenate([np.zeros(0, np.float32), *parts]).astype(np.float32)


def trained_mask(experiences: Sequence[Experience], oldest_version: PolicyVersion | None = None) -> Ragged:
    """Flat 0/1: response tokens of experiences whose verdicts stand, sampled at `oldest_version` or later."""
    parts = [np.zeros(0, np.float32)]
    for experience in experiences:
        versions = experience.rollout.versions
        mask = np.zeros(len(versions), np.float32) if experience.masked else np.ones(len(versions), np.float32)
        parts.append(mask if oldest_version is None else mask * (versions >= oldest_version))
    return np.concatenate(parts)


def sampled_versions(shard: Shard) -> Ragged:
    """Flat: the policy version that sampled each response token."""
    return np.concatenate([np.zeros(0, np.float32), *(e.rollout.versions for e in experiences_of(shard))])


def pad(flat: Ragged, lengths: np.ndarray) -> Tensor:
    """`[N, max length]` float32 of the flat array, padded with 0 on the right."""
    padded = np.zeros((len(lengths), max(int(lengths.max(initial=0)), 1)), np.float32)
    padded[np.arange(padded.shape[1]) < lengths[:, None]] = flat
    return torch.from_numpy(padded)


def unpad(padded: Tensor, lengths: np.ndarray) -> Ragged:
    """The inverse of `pad`."""
    return padded.numpy()[np.arange(padded.shape[1]) < lengths[:, None]]
