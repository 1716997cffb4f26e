"""The recipe's sections for preference data: the pool of models, the judge, and what is asked of them."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from rlsys.recipe.data import Names
from rlsys.recipe.rollout import SamplingSettings, check_engine_settings
from rlsys.recipe.section import Section

AspectName: TypeAlias = Literal["helpfulness", "instruction_following", "honesty", "truthfulness"]
ASPECTS: tuple[AspectName, ...] = ("helpfulness", "instruction_following", "honesty", "truthfulness")

AspectNames = Annotated[tuple[AspectName, ...], Field(strict=False)]


class EndpointSettings(Section):
    """A server that speaks the OpenAI chat protocol."""

    model: str
    """As the server calls it."""
    base_url: str = "https://api.openai.com/v1"
    """Up to and with `/v1`."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; a server other than OpenAI's may need none."""
    max_concurrent: PositiveInt = 32
    """Calls in flight."""
    requests_per_minute: PositiveFloat | None = None
    """At most so many calls; no limit of ours when absent."""
    tokens_per_minute: PositiveFloat | None = None
    """Prompt and completion tokens together."""
    deadline_s: PositiveFloat = 120.0
    """Of one call."""
    max_attempts: PositiveInt = 6
    """Calls for one answer, while they fail in ways that pass: time, connection, status 408, 409, 429 and 5xx."""
    backoff_s: PositiveFloat = 1.0
    """Before the second attempt; doubled for each further one, with jitter."""
    max_backoff_s: PositiveFloat = 60.0
    """The longest wait between two attempts."""
    temperature: float = Field(default=0.0, ge=0.0)
    """Of the server's sampling."""
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
    """A folder, `hf:owner/name` or `stage:NAME` that the rollout workers load when everything is answered."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """Settings of a local model's engines, over those of `rollout.vllm`."""
    sampling: SamplingSettings = SamplingSettings(temperature=0.0)
    """Of a local model's answers."""
    aspects: AspectNames = Field(default=ASPECTS, min_length=1)
    """What each response is rated on, from 1 to 5; a response counts with the mean."""
    not_applicable: AspectNames = ("honesty",)
    """Aspects that the judge may call not applicable; they then do not count in the mean."""
    max_asks: PositiveInt = 3
    """Readable answers are asked for so often; a rating that stays unreadable is counted and keeps its response out."""
    batch_size: PositiveInt = 256
    """Questions that each engine of a local model is given at a time."""
    deadline_s: PositiveFloat = 600.0
    """Of one batch of a local model."""

    _ours_are_not_set = field_validator("vllm")(check_engine_settings)

    def _faults(self) -> Iterator[str]:
        if (self.endpoint is None) == (self.local_model is None):
            yield "a judge is an endpoint or a local_model; give one of them"
        stray = set(self.not_applicable) - set(self.aspects)
        if stray - {"honesty"}:
            yield f"not_applicable names aspects that are not rated: {sorted(stray)}; remove them"


class PromptSelectionSettings(Section):
    """How many prompts of each kind are answered; what a kind cannot give is counted, not replaced."""

    reused: NonNegativeInt = 0
    """Drawn from the prompts of the SFT data."""
    unused: NonNegativeInt = 0
    """Drawn from sources whose prompts are not in the SFT data."""
    constrained: NonNegativeInt = 0
    """Drawn from the SFT prompts that are not reused, with verifiable constraints added; a pair stays only where the
    chosen response keeps them (IF-augmented)."""
    relaxed: NonNegativeInt = 0
    """Drawn from the SFT prompts that are left, with constraints added: an answer to the prompt without one of them is
    rejected in favour of an answer that keeps all."""
    persona: NonNegativeInt = 0
    """Drawn from prompts that hold constraints in their own words: one is relaxed by rewriting (Persona-IF)."""
    max_constraints: PositiveInt = 3
    """A constrained prompt has 1 to this many."""
    constraint_ids: Names = ()
    """Which ones are added, by the ids of `rlsys.verifiers.ifeval.instruction_ids()`; IFEval's 25 unless given."""
    seed: int = 0
    """Of the draws."""

    @property
    def of_sft_prompts(self) -> int:
        """How many prompts are drawn from the SFT data."""
        return self.reused + self.constrained + self.relaxed

    @property
    def total(self) -> int:
        """Prompts of all kinds."""
        return self.of_sft_prompts + self.unused + self.persona


class PoolModelSettings(Section):
    """One model that answers prompts."""

    name: str
    """In the records; unique in the pool."""
    local_model: str | None = None
    """A folder, `hf:owner/name` or `stage:NAME` that the rollout workers load, one model after another."""
    endpoint: EndpointSettings | None = None
    on_policy: bool = False
    """The model that the pairs are for: one of the responses to every prompt is its. With neither local_model nor
    endpoint it is the stage's policy, published to the rollout workers."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """Settings of a local model's engines, over those of `rollout.vllm`."""

    _ours_are_not_set = field_validator("vllm")(check_engine_settings)

    @property
    def is_policy(self) -> bool:
        """Whether it is the stage's own policy."""
        return self.endpoint is None and self.local_model is None

    def _faults(self) -> Iterator[str]:
        if self.endpoint is not None and self.local_model is not None:
            yield f"model {self.name!r} is an endpoint or a local_model; give one of them"
        if self.is_policy and not self.on_policy:
            yield (f"model {self.name!r} needs an endpoint or a local_model; only the on_policy one can do without")


class JudgedPreferenceSettings(Section):
    """Pairs by a judge: responses of several models, rated on several aspects, binarised."""

    pool: Annotated[tuple[PoolModelSettings, ...], Field(strict=False, min_length=1)]
    """Who answers: `[[stage.pool]]`."""
    judge: JudgeSettings
    selection: PromptSelectionSettings = PromptSelectionSettings()
    responses_per_prompt: int = Field(default=4, ge=2)
    """Each from another model, as long as the pool has one."""
    rewriter: str | None = None
    """The pool's model that rewrites persona prompts with one constraint relaxed."""
    seed: int = 0
    """Of every draw; added to what follows from the recipe's seed and the place of the stage."""

    def _faults(self) -> Iterator[str]:
        names = [model.name for model in self.pool]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            yield f"two models of the pool are called {', '.join(twice)}; rename one"
        if sum(model.on_policy for model in self.pool) > 1:
            yield "more than one model of the pool is on_policy; mark the SFT model alone"
        if self.rewriter is not None and self.rewriter not in names:
            yield f"rewriter is no model of the pool; got {self.rewriter!r}; choose one of {names}"
        if self.selection.persona and self.rewriter is None:
            yield "selection.persona needs a model that rewrites; set rewriter to a model of the pool"

    @property
    def uses_policy(self) -> bool:
        """Whether the stage's own policy is in the pool."""
        return any(model.is_policy for model in self.pool)

    @property
    def local_models(self) -> tuple[PoolModelSettings | JudgeSettings, ...]:
        """What the rollout workers have to load."""
        return tuple(one for one in (*self.pool, self.judge) if one.local_model is not None)
