"""The records of preference data: prompts with added constraints, responses, their ratings, pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, TypeAlias

from rlsys.types import Check, Message

PromptKind: TypeAlias = Literal["reused", "unused", "constrained", "relaxed", "persona"]
RELAXED_KINDS: tuple[PromptKind, ...] = ("relaxed", "persona")
"""Their pairs are decided by whether the constraints are kept; no judge is asked."""
RatingStatus: TypeAlias = Literal["rated", "not_applicable", "malformed", "failed"]


@dataclass(frozen=True, slots=True)
class AddedConstraint:
    """A verifiable instruction that was added to a prompt.

    >>> AddedConstraint("punctuation:no_comma", {}, "Do not use commas.").text
    'Do not use commas.'
    """

    instruction_id: str
    """Of the `ifeval` verifier."""
    arguments: Mapping[str, Any]
    text: str
    """What the model is told."""


@dataclass(frozen=True, slots=True)
class PreferencePrompt:
    """A prompt that models of the pool answer.

    >>> prompt = PreferencePrompt("a", ({"role": "user", "content": "Name a fruit."},), "toy", "constrained",
    ...     (AddedConstraint("punctuation:no_comma", {}, "Do not use commas."),))
    >>> prompt.messages[-1]["content"]
    'Name a fruit. Do not use commas.'
    """

    id: str
    request: tuple[Message, ...]
    """What is asked, without the added constraints; ends with a user's turn."""
    source: str
    kind: PromptKind
    constraints: tuple[AddedConstraint, ...] = ()
    own_checks: tuple[Check, ...] = ()
    """Checks that the source gave the request."""

    @property
    def messages(self) -> tuple[Message, ...]:
        """What the models are given: the request, the texts of the constraints after its last turn."""
        if not self.constraints:
            return self.request
        *before, last = self.request
        content = " ".join([last["content"].rstrip(), *(constraint.text for constraint in self.constraints)])
        return (*before, {**last, "content": content})

    @property
    def checks(self) -> tuple[Check, ...]:
        """The source's own checks, and one of all added constraints."""
        added = self.constraint_check
        return self.own_checks if added is None else (*self.own_checks, added)

    @property
    def constraint_check(self) -> Check | None:
        """The check of all added constraints; None where there are none."""
        if not self.constraints:
            return None
        truth = {
            "instruction_id_list": [constraint.instruction_id for constraint in self.constraints],
            "kwargs": [dict(constraint.arguments) for constraint in self.constraints],
        }
        return Check("ifeval", truth)


@dataclass(frozen=True, slots=True)
class Response:
    """One model's answer to a prompt."""

    prompt_id: str
    model: str
    """Its name in the pool."""
    sample: int
    text: str
    on_policy: bool = False

    @property
    def name(self) -> str:
        """Unique among the responses to a prompt."""
        return f"{self.model}#{self.sample}"


@dataclass(frozen=True, slots=True)
class Rating:
    """What a judge made of a response on one aspect, in the end."""

    status: RatingStatus
    value: int | None = None
    """1 to 5 where rated."""
    num_asked: int = 1


@dataclass(frozen=True, slots=True)
class RatedResponse:
    """A response and its ratings by aspect.

    >>> rated = RatedResponse(Response("a", "sft", 0, "Plum."), {"helpfulness": Rating("rated", 4),
    ...     "honesty": Rating("not_applicable"), "truthfulness": Rating("rated", 5)})
    >>> rated.mean
    Fraction(9, 2)
    """

    response: Response
    ratings: Mapping[str, Rating] = field(default_factory=dict)

    @property
    def mean(self) -> Fraction | None:
        """Mean over the rated aspects, exact, so that equal means are ties; None unless the judge settled every aspect.

        A failed or unreadable rating says nothing about the response: it is left out, not marked down.
        """
        if any(rating.status in ("malformed", "failed") for rating in self.ratings.values()):
            return None
        values = [rating.value for rating in self.ratings.values() if rating.value is not None]
        return Fraction(sum(values), len(values)) if values else None


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A preference between two responses to one prompt."""

    prompt: PreferencePrompt
    chosen: Response
    rejected: Response
    chosen_score: float
    """A mean rating, or what verifiers gave."""
    rejected_score: float
    decided_by: Literal["judge", "relaxed"]

    def to_json(self) -> dict[str, Any]:
        """A JSON object that the data reader takes for a pair, with where both responses come from."""
        return {
            "id": self.prompt.id,
            "source": self.prompt.source,
            "kind": self.prompt.kind,
            "messages": [dict(message) for message in self.prompt.messages],
            "chosen": [{"role": "assistant", "content": self.chosen.text}],
            "rejected": [{"role": "assistant", "content": self.rejected.text}],
            "chosen_model": self.chosen.model,
            "rejected_model": self.rejected.model,
            "chosen_score": self.chosen_score,
            "rejected_score": self.rejected_score,
            "decided_by": self.decided_by,
            "checks": [
                {"verifier": check.verifier, "ground_truth": check.ground_truth, "weight": check.weight}
                for check in self.prompt.checks
            ],
        }
