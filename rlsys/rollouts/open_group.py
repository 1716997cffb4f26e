"""A group of samples while an engine samples it: from the first token of one to the last token of all."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.partial_group import PartialResponse, Response
from rlsys.types import FinishReason, PolicyVersion, Rollout


@dataclass(frozen=True, slots=True)
class FinishedGroup:
    """All samples of one prompt, by sample index."""

    key: int
    """What `SamplingEngine.add_group` returned."""
    rollouts: tuple[Rollout, ...]


@dataclass(slots=True)
class OpenSample:
    """One response, from its first token to its last."""

    group: "OpenGroup"
    index: int
    seed: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def extend(self, token_ids: Sequence[int], logprobs: Sequence[float], version: PolicyVersion) -> None:
        """Takes new tokens, all of one version."""
        self.token_ids += token_ids
        self.logprobs += logprobs
        self.versions += [version] * len(token_ids)

    def go_on_from(self, begun: Response, *, room: int) -> None:
        """Takes over what there is of the response; one that fills its `room` of tokens is cut there, and done."""
        self.token_ids = begun.response_ids.tolist()
        self.logprobs = begun.logprobs.tolist()
        self.versions = begun.versions.tolist()
        if isinstance(begun, Rollout):
            self.finish_reason = begun.finish_reason
        elif len(self.token_ids) >= room:
            self.finish_reason = "length"

    def response(self, ordinal: int) -> Response:
        """The response as far as it is sampled."""
        ids, versions = np.array(self.token_ids, np.int32), np.array(self.versions, np.int32)
        logprobs = np.array(self.logprobs, np.float32)
        if self.finish_reason is None:
            return PartialResponse(self.index, ids, logprobs, versions)
        return Rollout(ordinal, self.index, ids, logprobs, versions, self.finish_reason)


@dataclass(slots=True)
class OpenGroup:
    """The samples of one prompt."""

    key: int
    ordinal: int
    prompt_ids: list[int]
    sampling: SamplingSettings
    samples: list[OpenSample] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether every sample is."""
        return all(sample.finish_reason is not None for sample in self.samples)

    def responses(self) -> tuple[Response, ...]:
        """All of them as far as they are sampled, by sample index."""
        return tuple(sample.response(self.ordinal) for sample in self.samples)

    def finished(self) -> FinishedGroup:
        """The group when it is done."""
        rollouts = tuple(response for response in self.responses() if isinstance(response, Rollout))
        assert len(rollouts) == len(self.samples), "every sample has a finish reason"
        return FinishedGroup(self.key, rollouts)
