"""What answers questions: the interface, and the backend over an engine that generates text."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple, Protocol

from rlsys.errors import ActorError
from rlsys.types import Message


class Question(NamedTuple):
    """One request for a completion."""

    key: str
    """Names the question for good: sent as the idempotency key, and seeds the jitter of its retries."""
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a question: a text, or the kind of its last failure."""

    text: str | None
    failure: str | None = None
    cut: bool = False
    """Whether the text was ended by the limit of tokens: no model said that it is over."""
    prompt_tokens: int = 0
    completion_tokens: int = 0


class TextGenerator(Protocol):
    """Anything that turns questions into texts, such as a rollout worker's engine."""

    def generate_text(self, questions: Sequence[Question], /) -> Sequence[Answer]:
        """One text a question, in their order."""
        ...


class TextBackend(Protocol):
    """A model that answers questions, wherever it runs: an `Endpoint` or a `LocalBackend`."""

    @property
    def name(self) -> str:
        """The model's name, under which its answers are kept."""
        ...

    def answer_all(self, questions: Iterable[Question]) -> AsyncIterator[tuple[Question, Answer]]:
        """Each question once with its answer or failure, in any order."""
        ...


class LocalBackend:
    """A model on an engine of ours: batches of questions in, texts out, in a thread, each batch with a deadline.

    A batch that fails is asked again in halves, so that a question that the engine cannot take fails alone. What fails
    or is late is a failure, never an answer. Where no engine is left (ActorError) nothing more is asked.

    Args:
        generator: the engine.
        name: of its model.
        batch_size: questions at a time.
        deadline_s: of one batch, in seconds.
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        name: str,
        batch_size: int = 256,
        deadline_s: float = 600.0,
    ) -> None:
        self._generator, self._name = generator, name
        self._batch_size, self._deadline_s = batch_size, deadline_s
        self.failures: Counter[str] = Counter()
        """Batches by what went wrong."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    async def answer_all(self, questions: Iterable[Question]) -> AsyncIterator[tuple[Question, Answer]]:
        """Each question with its text, batch by batch.

        Raises:
            ActorError: no engine is left.
        """
        for batch in _batches(questions, self._batch_size):
            answers = await self._answer(batch)
            for question, answer in zip(batch, answers, strict=True):
                yield question, answer

    async def _answer(self, batch: list[Question]) -> list[Answer]:
        try:
            async with asyncio.timeout(self._deadline_s):
                answers = await asyncio.to_thread(self._generator.generate_text, batch)
        except TimeoutError:
            failure = "timeout"
        except ActorError:
            raise
        except Exception as error:  # isolation boundary: one batch of one model
            failure = type(error).__name__
            if len(batch) > 1:
                self.failures[failure] += 1
                half = len(batch) // 2
                return await self._answer(batch[:half]) + await self._answer(batch[half:])
        else:
            if len(answers) == len(batch):
                return list(answers)
            failure = f"{len(answers)} texts for {len(batch)} prompts"
        self.failures[failure] += 1
        return [Answer(None, failure)] * len(batch)


def _batches(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    waiting = iter(questions)
    while batch := list(islice(waiting, size)):
        yield batch
