"""`[evaluation]`: held-out sets, decided by the verifiers."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from rlsys.recipe.section import Section
from rlsys.telemetry.names import name_part


class EvaluationSettings(Section):
    """Test sets are read at the end of a stage; development sets choose the checkpoint that RLVR exports."""

    test: dict[str, str] = Field(default_factory=dict)
    """Set name to prompt file (or `stage:NAME/FILE`). Accuracy is reported for the set and for each `source` in it."""
    development: dict[str, str] = Field(default_factory=dict)
    """The same for development sets."""
    temperatures: tuple[NonNegativeFloat, ...] = (1.0, 0.0)
    """Each is evaluated; the first one decides the best checkpoint. 0 is greedy."""
    mode: Literal["eval", "reward"] = "eval"
    """How verifiers judge: as the published reference does, or as they reward."""
    limit: PositiveInt | None = None
    """At most so many prompts of each set: the first ones after it is shuffled by the data's seed."""
    development_limit: PositiveInt | None = None
    """The same for development sets, which are evaluated many times; absent, `limit` holds for them too."""
    max_tokens: PositiveInt = 1024
    """The longest response."""
    max_prompt_length: PositiveInt | None = None
    """Tokens of a prompt; what is longer is cut on the left. Absent: as many as the engines have room for."""
    samples: PositiveInt = 1
    """Responses for each prompt at temperatures above 0; accuracy is their mean."""
    every: NonNegativeInt = 0
    """In RLVR: development sets every so many batches; 0 is only at the end."""

    def _faults(self) -> Iterator[str]:
        for key, sets in (("test", self.test), ("development", self.development)):
            for name in sets:
                if name_part(name) != name:
                    why = "which names its folder and metrics"
                    yield f"{key} calls a set {name!r}, {why}; use letters, digits, _ . = -"
        if not self.temperatures:
            yield "temperatures is empty; name at least one, such as 1.0"
