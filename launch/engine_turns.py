"""Models that take turns on the rollout workers' places: the run's policy, and others that are only asked for texts.

    Turn("sft", None)  --\\                 the policy: the run's own engines, published to
    Turn("big", path)  ---> EngineTurns --> another model: engines that load it themselves, in the same places
    Turn("judge", path) -/                  one at a time, in the order of asking; nothing is started for nothing

consumes: questions     produces: answers     waits for: its turn, then engines
Endpoints are no part of this: they are asked meanwhile.
"""

import asyncio
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from actors.rollout_texts import RolloutTexts, RosterTexts
from launch.context import RunContext
from rlsys.data.judge_backend import Answer, LocalBackend, Question
from rlsys.recipe.data import TemplatingSettings
from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.sampling_engine_settings import EngineSettings


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One model that takes turns."""

    name: str
    """Under which its answers are kept."""
    path: str | None
    """What the recipe calls it; None is the run's policy."""
    sampling: SamplingSettings
    timeout_s: float
    """Of one batch."""
    seed: int
    batch_size: int = 256
    """Questions that each engine is given at a time: what is lost with a kill, and sampled again."""
    vllm: Mapping[str, Any] = field(default_factory=dict)
    """Over the run's own engine settings."""


class EngineTurns:
    """Gives the rollout workers' places to one model after another. To be made within an event loop, and closed.

    Args:
        context: of the run.
        policy: the exported folder of the policy; None is the recipe's own model.
    """

    def __init__(self, context: RunContext, policy: Path | None) -> None:
        self._context, self._policy = context, policy
        self._free = asyncio.Lock()
        self._loaded: EngineSettings = context.crew.engine
        self.failures: dict[str, Counter[str]] = {}
        """Batches by model and what went wrong."""

    def backend(self, model: ServedModel) -> "Turn":
        """A `TextBackend` that waits for its turn."""
        return Turn(self, model)

    async def answer_all(self, model: ServedModel, questions: list[Question]) -> AsyncIterator[tuple[Question, Answer]]:
        """Every question with its answer, when the turn has come."""
        async with self._free:
            print(f"{model.name}: {len(questions)} questions", flush=True)
            texts, num_engines = await asyncio.to_thread(self._start, model)
            backend = LocalBackend(
                texts,
                name=model.name,
                batch_size=model.batch_size * num_engines,
                # A batch that lost a worker waits for another one and is sampled again.
                deadline_s=3 * (model.timeout_s + self._context.recipe.cluster.start_timeout_s),
            )
            failures = self.failures.setdefault(model.name, Counter())
            async for question, answer in backend.answer_all(questions):
                yield question, answer
            failures.update(backend.failures)

    def close(self) -> None:
        """Gives the places back to the run's own engines."""
        self._load(self._context.crew.engine)

    def _start(self, model: ServedModel) -> tuple[RosterTexts, int]:
        context = self._context
        if model.path is None:
            self._load(context.crew.engine)
            context.bring_policy(self._policy)
            tokenizer = context.model.folder
        else:
            tokenizer = str(context.resolve(model.path, "hf"))
            self._load(self._engine_of(tokenizer, model))
        roster = context.crew.workers
        texts = RolloutTexts([], tokenizer, sampling=model.sampling, seed=model.seed, timeout_s=model.timeout_s)
        refill = context.reinforce if model.path is None else roster.wait_for_one
        hang_timeout_s = context.recipe.cluster.hang_timeout_s
        return RosterTexts(texts, roster, refill=refill, timeout_s=hang_timeout_s), len(roster)

    def _engine_of(self, folder: str, model: ServedModel) -> EngineSettings:
        from rlsys.data.chat import ChatTokenizer  # with transformers, which a driver needs for nothing else
        from rlsys.data.prepare import load_tokenizer

        own = self._context.crew.engine
        ends = ChatTokenizer(load_tokenizer(folder), TemplatingSettings()).end_ids
        return dataclasses.replace(
            own, model=folder, end_token_ids=tuple(ends), load_format="safetensors", vllm={**own.vllm, **model.vllm}
        )

    def _load(self, engine: EngineSettings) -> None:
        if engine != self._loaded:
            self._context.swap_engines(engine)
            self._loaded = engine


@dataclass(frozen=True, slots=True)
class Turn:
    """A `TextBackend`: one model of `EngineTurns`."""

    turns: EngineTurns
    model: ServedModel

    @property
    def name(self) -> str:
        """Under which its answers are kept."""
        return self.model.name

    async def answer_all(self, questions: Iterable[Question]) -> AsyncIterator[tuple[Question, Answer]]:
        """Each question once; no engine is started where there is none."""
        waiting = list(questions)
        if not waiting:
            return
        async for question, answer in self.turns.answer_all(self.model, waiting):
            yield question, answer
