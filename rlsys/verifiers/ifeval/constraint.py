"""A constraint on a response: its instruction text, its arguments, and how it is checked in either mode."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeAlias

from rlsys.verifiers.ifeval.arguments import Argument
from rlsys.verifiers.judgement import VerifyMode

Check: TypeAlias = Callable[..., bool]
"""`check(response, **arguments)`: pure, of linear time in the response, never raising for any response."""

Sampler: TypeAlias = Callable[[Random, str], dict[str, Any]]
"""`sample(rng, prompt)`: a full set of arguments; the prompt is the request that the constraint is added to."""


def _no_arguments(rng: Random, prompt: str) -> dict[str, Any]:
    return {}


def _possible(**arguments: Any) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Constraint:
    """One verifiable instruction, under the id that upstream gave it.

    Where a check splits a response in ways that only the published reference does, `eval_check` does the same, its
    oddities included. `reward_check` is what a policy is paid for: never satisfied by what says nothing.
    """

    id: str
    instruction: str
    """What the model is told; `{name}` stands for an argument."""
    eval_check: Check
    reward_check: Check
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    sample: Sampler = _no_arguments
    impossible: Callable[..., str | None] = _possible
    """`impossible(**arguments)`: why no response can satisfy arguments that are each valid alone, or None."""

    def check(self, mode: VerifyMode) -> Check:
        """The check of a mode."""
        return self.eval_check if mode == "eval" else self.reward_check

    def describe(self, arguments: Mapping[str, Any]) -> str:
        """The instruction text with its arguments filled in."""
        shown = {name: _shown(value) for name, value in arguments.items()}
        return self.instruction.format(**shown)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(str(item) for item in value)
    return str(value)
