"""Synthetic data: prompts written from personas, and tasks grown from seed tasks."""

from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveInt

from rlsys.recipe.data import NearDuplicateSettings
from rlsys.recipe.decontamination import Decontamination
from rlsys.recipe.preferences import EndpointSettings
from rlsys.recipe.section import Section

PersonaTaskName: TypeAlias = Literal["math", "grade_school_math", "algebra", "code", "instruction"]
PERSONA_TASKS: tuple[PersonaTaskName, ...] = ("math", "grade_school_math", "algebra", "code", "instruction")
PersonaTaskNames = Annotated[tuple[PersonaTaskName, ...], Field(strict=False, min_length=1)]

Fraction = Annotated[float, Field(gt=0, le=1)]


class WriterSettings(Section):
    """The model that writes: an endpoint, or a folder that a rollout worker loads."""

    endpoint: EndpointSettings | None = None
    local_model: str | None = None
    """A Hugging Face folder."""
    max_tokens: PositiveInt = 1024
    """Of one answer of a local model."""
    temperature: Annotated[float, Field(ge=0)] = 1.0
    """Of a local model."""
    deadline_s: Annotated[float, Field(gt=0)] = 600.0
    """Of one batch of a local model."""

    def _faults(self) -> Iterator[str]:
        if (self.endpoint is None) == (self.local_model is None):
            yield "the writer is an endpoint or a local_model; give one of them"


class PersonaSettings(Section):
    """Prompts in the voice of personas, with answers that the verifiers accept."""

    writer: WriterSettings
    personas: str
    """One persona a line, or JSON lines with the key `persona`."""
    tasks: PersonaTaskNames = PERSONA_TASKS
    """What prompts are asked for, each in the voice of every persona drawn for it."""
    prompts_per_task: PositiveInt
    """Personas drawn for each task; what their prompts lose on the way is counted, not replaced."""
    answers: PositiveInt = 3
    """Asked for each prompt."""
    min_agreeing: PositiveInt = 2
    """So many answers to a maths problem must agree on the result, which is then taken for right."""
    max_constraints: PositiveInt = 3
    """Of a prompt for precise instruction following."""
    similarity: Fraction = 0.7
    """A prompt whose ROUGE-L with an earlier one of its task reaches this is no new prompt."""
    near_duplicates: NearDuplicateSettings | None = None
    """A MinHash pass over the prompts of all tasks at the end."""
    decontamination: Decontamination | None = None
    seed: NonNegativeInt = 0
    """Of the draws."""

    def _faults(self) -> Iterator[str]:
        if self.min_agreeing > self.answers:
            yield f"min_agreeing is {self.min_agreeing}, of {self.answers} answers; ask for more answers"


class SelfInstructSettings(Section):
    """New tasks from old ones (Wang et al., arXiv 2212.10560), answered and filtered for novelty."""

    writer: WriterSettings
    seeds: str
    """A file of seed tasks, in any form of conversation."""
    target: PositiveInt
    """New tasks wanted; growth ends there."""
    max_rounds: PositiveInt = 50
    """Growth ends after so many rounds, whatever it found."""
    requests_per_round: PositiveInt = 8
    """Asked at once; what comes back is examined before the next round."""
    seed_examples: NonNegativeInt = 6
    """Shown in each request, drawn from the seed tasks."""
    grown_examples: NonNegativeInt = 2
    """Shown in each request, drawn from tasks grown before; seed tasks take their place while there are none."""
    tasks_per_request: PositiveInt = 8
    """New tasks that each request asks for."""
    similarity: Fraction = 0.7
    """A task whose ROUGE-L with any seed task or earlier one reaches this is no new task."""
    min_words: PositiveInt = 3
    """A shorter task is refused and counted."""
    max_words: PositiveInt = 150
    """A longer one is."""
    decontamination: Decontamination | None = None
    seed: NonNegativeInt = 0
    """Of the draws."""

    def _faults(self) -> Iterator[str]:
        if not self.seed_examples + self.grown_examples:
            yield "a request must show examples; set seed_examples above 0"
        if self.min_words > self.max_words:
            yield f"min_words is {self.min_words} and max_words {self.max_words}; exchange them"
