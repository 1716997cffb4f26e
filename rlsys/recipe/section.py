"""The base of every recipe section."""

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

PREVIOUS = "previous"
"""The newest output of the wanted kind (policy, pairs or reward model) that an earlier stage made."""

PolicyReference = Annotated[
    str,
    Field(
        description="The policy that the stage starts from: `stage:NAME`, a folder, or `previous`, that of the newest "
        "stage that trains one (the recipe's own model where there is none)."
    ),
]


class Section(BaseModel):
    """Frozen, refuses unknown keys, never coerces a type silently, and validates defaults too."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    def _faults(self) -> Iterable[str]:
        """What is wrong between the section's keys, each with its fix."""
        return ()

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if faults := list(self._faults()):
            raise ValueError("\n".join(faults))  # all of them at once: `rlsys.recipe.load` tells them one by one
        return self
