"""The recipe's sections for preference data: the pool of models, the judge, and what is asked of them."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlsys.recipe.data import Names
from rlsys.recipe.section import Section

AspectName: TypeAlias = Literal["helpfulness", "instruction_following", "honesty", "truthfulness"]
ASPECTS: tuple[AspectName, ...] = ("helpfulness", "instruction_following", "honesty", "truthfulness")

AspectNames = Annotated[tuple[AspectName, ...], Field(strict=False)]


class EndpointSettings(Section):
    """A server that speaks the OpenAI chat protocol."""

    model: str
    """As the server calls it."""
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server other than OpenAI's may need none."""
    max_concurrent: PositiveInt = 32
    """Calls in flight."""
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    """Prompt and completion tokens together."""
    deadline_s: PositiveFloat = 120.0
    """Of one call."""
    max_attempts: PositiveInt = 6
    """Calls for one answer, while they fail in ways that pass: time, connection, status 408, 409, 429 and 5xx."""
    backoff_s: PositiveFloat = 1.0
    """Before the second attempt; doubled for each further one, with jitter."""
    max_backoff_s: PositiveFloat = 60.0
    temperature: float = Field(default=0.0, ge=0.0)
    max_tokens: PositiveInt = 1024
    """Of a completion."""
    prompt_price: float = Field(default=0.0, ge=0.0)
    """US dollars for a million prompt tokens."""
    completion_price: float = Field(default=0.0, ge=0.0)
    """US dollars for a million completion tokens."""
    max_cost: PositiveFloat | None = None
    """US dollars after which no further call is made; what was answered is kept."""


class JudgeSettings(Section):
    """Who rates responses, and on what: an endpoint, or a model on local rollout workers."""

    endpoint: EndpointSettings | None = None
    local_model: str | None = None
    """A folder or hub name that a rollout worker loads."""
    aspects: AspectNames = Field(default=ASPECTS, min_length=1)
    not_applicable: AspectNames = ("honesty",)
    """Aspects that the judge may call not applicable; they then do not count in the mean."""
    max_asks: PositiveInt = 3
    """Readable answers are asked for so often; a rating that stays unreadable is counted and keeps its response out."""
    batch_size: PositiveInt = 256
    """Questions that a local model is given at a time."""
    deadline_s: PositiveFloat = 600.0
    """Of one batch of a local model."""

    @model_validator(mode="after")
    def _one_judge(self) -> Self:
        if (self.endpoint is None) == (self.local_model is None):
            raise ValueError("a judge is an endpoint or a local_model; give one of them")
        stray = set(self.not_applicable) - set(self.aspects)
        if stray - {"honesty"}:
            raise ValueError(f"not_applicable names aspects that are not rated: {sorted(stray)}; remove them")
        return self


class PromptSelectionSettings(Section):
    """How many prompts of each kind are answered; what a kind cannot give is counted, not replaced."""

    reused: NonNegativeInt = 0
    """Drawn from the prompts of the SFT data."""
    unused: NonNegativeInt = 0
    """Drawn from sources whose prompts are not in the SFT data."""
    constrained: NonNegativeInt = 0
    """Drawn from the SFT prompts that are not reused, with verifiable constraints added."""
    max_constraints: PositiveInt = 3
    """A constrained prompt has 1 to this many."""
    constraint_ids: Names = ()
    """Which ones are added, by the ids of `rlsys.verifiers.ifeval.instruction_ids()`; IFEval's 25 unless given."""
    seed: int = 0


class PoolModelSettings(Section):
    """One model that answers prompts."""

    name: str
    """In the records; unique in the pool."""
    local_model: str | None = None
    """A folder or hub name that rollout workers load."""
    endpoint: EndpointSettings | None = None
    on_policy: bool = False
    """The SFT model: one of the responses to every prompt is its."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.endpoint is None) == (self.local_model is None):
            raise ValueError(f"model {self.name!r} is an endpoint or a local_model; give one of them")
        return self


class JudgedPreferenceSettings(Section):
    """Pairs by a judge: responses of several models, rated on several aspects, binarised."""

    pool: Annotated[tuple[PoolModelSettings, ...], Field(strict=False, min_length=1)]
    judge: JudgeSettings
    selection: PromptSelectionSettings = PromptSelectionSettings()
    responses_per_prompt: int = Field(default=4, ge=2)
    """Each from another model, as long as the pool has one."""
    seed: int = 0

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [model.name for model in self.pool]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two models of the pool are called {', '.join(twice)}; rename one")
        if sum(model.on_policy for model in self.pool) > 1:
            raise ValueError("more than one model of the pool is on_policy; mark the SFT model alone")
        return self
