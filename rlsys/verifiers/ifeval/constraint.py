"""A constraint on a response: its instruction text, its arguments, and how it is checked in either mode."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from random import Random
from typing import Any, TypeAlias

from rlsys.verifiers.ifeval.arguments import Argument
from rlsys.verifiers.ifeval.words import says_something
from rlsys.verifiers.judgement import VerifyMode

Check: TypeAlias = Callable[..., bool]
"""`check(response, **arguments)`: pure, of linear time in the response, never raising for any response."""

Sampler: TypeAlias = Callable[[Random, str], dict[str, Any]]
"""`sample(rng, prompt)`: a full set of arguments; the prompt is the request that the constraint is added to."""


def _no_arguments(rng: Random, prompt: str) -> dict[str, Any]:
    return {}


def _nothing_more(response: str, **arguments: Any) -> bool:
    return True


def _possible(**arguments: Any) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Constraint:
    """One verifiable instruction, under the id that upstream gave it.

    Eval mode asks for `check`: what the published reference asks, its oddities included. Reward mode asks for `demand`
    too, so that a policy is never paid for what says nothing; it pays for nothing that eval mode refuses, but for the
    few constraints with an `instead`.
    """

    id: str
    instruction: str
    """What the model is told; `{name}` stands for an argument."""
    check: Check
    _: KW_ONLY
    demand: Check = _nothing_more
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    sample: Sampler = _no_arguments
    impossible: Callable[..., str | None] = _possible
    """`impossible(**arguments)`: why no response can satisfy arguments that are each valid alone, or None."""
    instead: Check | None = None
    """Reward mode's check in place of `check`, where that is slow or contradicts its own instruction."""

    def holds(self, response: str, arguments: Mapping[str, Any], *, mode: VerifyMode) -> bool:
        """Whether a response follows this constraint; one that is blank (in reward mode: says nothing) does not."""
        if mode == "eval":
            return bool(response.strip()) and self.check(response, **arguments)
        check = self.instead or self.check
        return says_something(response) and check(response, **arguments) and self.demand(response, **arguments)

    def describe(self, arguments: Mapping[str, Any]) -> str:
        """The instruction text with parsed arguments filled in."""
        return self.instruction.format(**{name: self.arguments[name].show(value) for name, value in arguments.items()})
