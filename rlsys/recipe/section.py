"""The base of every recipe section."""

from pydantic import BaseModel, ConfigDict

PREVIOUS = "previous"
"""The newest output of the wanted kind (policy, pairs or reward model) that an earlier stage made."""


class Section(BaseModel):
    """Frozen, refuses unknown keys, never coerces a type silently, and validates defaults too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, use_attribute_docstrings=True
    )
