"""A judge: rates responses on several aspects, asks again where a rating cannot be read, and guesses nothing.

requests -> Judge.rate -> replies        consumes requests, produces a reply for each time a judge answered or failed
              |    ^
              v    | unreadable, asked again up to max_asks times
           JudgeBackend                  an Endpoint, or a LocalBackend over an engine that generates text
"""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal, Protocol, TypeAlias

from rlsys.data.judge_endpoint import Answer, Question
from rlsys.data.judge_prompt import form_digest, judge_text
from rlsys.data.judge_rating import parse_rating
from rlsys.recipe.preferences import AspectName
from rlsys.types import Message

ReplyStatus: TypeAlias = Literal["rated", "not_applicable", "malformed", "failed"]


class TextGenerator(Protocol):
    """Anything that turns prompts into texts, such as a rollout worker's engine."""

    def generate_text(self, prompts: Sequence[Any], /) -> Sequence[str]:
        """One text a prompt, in their order."""
        ...


class JudgeBackend(Protocol):
    """Where a judge's answers come from."""

    @property
    def name(self) -> str:
        """The model's name, under which its ratings are kept."""
        ...

    def answer_all(self, questions: Iterable[Question]) -> AsyncIterator[tuple[Question, Answer]]:
        """Each question once with its answer or failure, in any order."""
        ...


@dataclass(frozen=True, slots=True)
class RatingRequest:
    """One response to be rated on one aspect."""

    prompt_id: str
    messages: tuple[Message, ...]
    response: str
    aspect: AspectName
    num_asked: int = 0
    """Unreadable answers that there are already, from before a restart."""

    @property
    def digest(self) -> str:
        """Of request and response: equal responses to a prompt are rated once, changed ones anew."""
        content = repr([(message["role"], message["content"]) for message in self.messages]) + "\0" + self.response
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a judge said, or that it failed to."""

    request: RatingRequest
    judge: str
    ask: int
    """From 0: which time this request was asked."""
    status: ReplyStatus
    value: int | None = None
    """1 to 5 where rated."""
    text: str = ""
    """The judge's words; of a failure, its kind."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def key(self) -> tuple[str | int, ...]:
        """(prompt id, digest of the response, judge, aspect, ask): under which the reply is stored."""
        return (self.request.prompt_id, self.request.digest, self.judge, self.request.aspect, self.ask)


class Judge:
    """Rates on each aspect that it is asked for.

    Args:
        backend: where answers come from.
        not_applicable: aspects for which N/A is an answer.
        max_asks: times that a request is asked while its rating cannot be read.
    """

    def __init__(
        self, backend: JudgeBackend, *, not_applicable: Sequence[AspectName] = ("honesty",), max_asks: int = 3
    ) -> None:
        if max_asks < 1:
            raise ValueError(f"max_asks must be 1 or more; got {max_asks}")
        self._backend, self._not_applicable, self._max_asks = backend, frozenset(not_applicable), max_asks
        self.name = f"{backend.name}#{form_digest()}"
        """The model and the version of what it is asked."""
        self.counts: Counter[str] = Counter()
        """Replies by status."""

    async def rate(self, requests: Iterable[RatingRequest]) -> AsyncIterator[Reply]:
        """Every reply as it comes. A request's last one is rated, not_applicable, failed, or malformed for good.

        Requests that were asked `max_asks` times already give no reply.
        """
        pending = [request for request in requests if request.num_asked < self._max_asks]
        while pending:
            again: list[RatingRequest] = []
            by_key = {self._key(request): request for request in pending}
            questions = (self._question(key, request) for key, request in by_key.items())
            async for question, answer in self._backend.answer_all(questions):
                reply = self._reply(by_key[question.key], answer)
                self.counts[reply.status] += 1
                if reply.status == "malformed" and reply.ask + 1 < self._max_asks:
                    again.append(replace(reply.request, num_asked=reply.ask + 1))
                yield reply
            pending = again

    def _question(self, key: str, request: RatingRequest) -> Question:
        text = judge_text(
            request.messages,
            request.response,
            aspect=request.aspect,
            allow_not_applicable=request.aspect in self._not_applicable,
            ask=request.num_asked,
        )
        return Question(key, ({"role": "user", "content": text},))

    def _key(self, request: RatingRequest) -> str:
        parts = (request.prompt_id, request.digest, self.name, request.aspect, str(request.num_asked))
        return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def _reply(self, request: RatingRequest, answer: Answer) -> Reply:
        if answer.text is None:
            return Reply(request, self.name, request.num_asked, "failed", text=answer.failure or "")
        parsed = parse_rating(answer.text, allow_not_applicable=request.aspect in self._not_applicable)
        return Reply(
            request,
            self.name,
            request.num_asked,
            parsed.status,
            parsed.value,
            answer.text,
            answer.prompt_tokens,
            answer.completion_tokens,
        )


class LocalBackend:
    """A judge on an engine of ours: batches of prompts in, texts out, in a thread, each batch with a deadline.

    A batch that fails or is late is a failure of its questions, never an answer.

    Args:
        generator: the engine.
        name: of its model.
        render: from messages to what the generator takes; the text of the last message unless given.
        batch_size: questions at a time.
        deadline_s: of one batch, in seconds.
    """

    def __init__(
        self,
        generator: TextGenerator,
        *,
        name: str,
        render: Callable[[Sequence[Message]], Any] = lambda messages: messages[-1]["content"],
        batch_size: int = 256,
        deadline_s: float = 600.0,
    ) -> None:
        self._generator, self._name, self._render = generator, name, render
        self._batch_size, self._deadline_s = batch_size, deadline_s
        self.failures: Counter[str] = Counter()
        """Batches by what went wrong."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self._name

    async def answer_all(self, questions: Iterable[Question]) -> AsyncIterator[tuple[Question, Answer]]:
        """Each question with its text, batch by batch."""
        for batch in _batches(questions, self._batch_size):
            answers = await self._answer(batch)
            for question, answer in zip(batch, answers, strict=True):
                yield question, answer

    async def _answer(self, batch: list[Question]) -> list[Answer]:
        prompts = [self._render(question.messages) for question in batch]
        try:
            async with asyncio.timeout(self._deadline_s):
                texts = await asyncio.to_thread(self._generator.generate_text, prompts)
        except TimeoutError:
            failure = "timeout"
        except Exception as error:  # isolation boundary: one batch of one judge
            failure = type(error).__name__
        else:
            if len(texts) == len(batch):
                return [Answer(text) for text in texts]
            failure = f"{len(texts)} texts for {len(batch)} prompts"
        self.failures[failure] += 1
        return [Answer(None, failure)] * len(batch)


def _batches(questions: Iterable[Question], size: int) -> Iterator[list[Question]]:
    waiting = iter(questions)
    while batch := list(islice(waiting, size)):
        yield batch
