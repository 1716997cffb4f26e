"""A group that was under way: what a checkpoint keeps of it, and what an engine goes on from."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from rlsys.types import PolicyVersion, Prompt, Rollout


@dataclass(frozen=True, slots=True)
class PartialResponse:
    """A response that was still being sampled. T counts the tokens so far, and may be 0.

    >>> PartialResponse(0, np.array([5], np.int32), np.array([-0.5], np.float32), np.array([2], np.int32)).sample_index
    0
    """

    sample_index: int
    response_ids: np.ndarray
    """`[T]` int32."""
    logprobs: np.ndarray
    """`[T]` float32, of the distribution that was sampled from."""
    versions: np.ndarray
    """`[T]` int32."""


Response: TypeAlias = Rollout | PartialResponse
"""One sample of a group, done or not."""


@dataclass(frozen=True, slots=True)
class PartialGroup:
    """A group that was running: some responses done and perhaps not verified, the others begun."""

    prompt: Prompt
    finished: tuple[Rollout, ...]
    unfinished: tuple[PartialResponse, ...]

    @classmethod
    def of(cls, prompt: Prompt, responses: Iterable[Response]) -> "PartialGroup":
        """Sorts a prompt's responses into those that are done and those that are not."""
        responses = tuple(responses)
        return cls(
            prompt,
            tuple(response for response in responses if isinstance(response, Rollout)),
            tuple(response for response in responses if isinstance(response, PartialResponse)),
        )

    @property
    def responses(self) -> tuple[Response, ...]:
        """All of them, by sample index."""
        return tuple(sorted((*self.finished, *self.unfinished), key=lambda response: response.sample_index))

    @property
    def num_begun(self) -> int:
        """Responses with at least one token."""
        return sum(len(response.response_ids) > 0 for response in self.responses)

    @property
    def oldest_version(self) -> PolicyVersion:
        """The version of the oldest token; a group without any has none and raises ValueError."""
        return min(int(response.versions.min()) for response in self.responses if len(response.versions))

    def fits(self, prompt: Prompt, *, num_samples: int, max_tokens: int) -> bool:
        """Whether it is what is asked for now: the same prompt's samples, none longer than it may be.

        A recipe may change between two starts of a run.
        """
        return (
            np.array_equal(self.prompt.token_ids, prompt.token_ids)
            and [response.sample_index for response in self.responses] == list(range(num_samples))
            and all(len(response.response_ids) <= max_tokens for response in self.responses)
        )
