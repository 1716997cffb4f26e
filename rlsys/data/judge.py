"""A judge: rates responses on several aspects, asks again where a rating cannot be read, and guesses nothing.

requests -> Judge.rate -> replies        consumes requests, produces a reply for each time a judge answered or failed
              |    ^
              v    | unreadable, asked again up to max_asks times
           TextBackend                  an Endpoint, or a LocalBackend over an engine that generates text
"""

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from rlsys.data.judge_backend import Answer, Question, TextBackend
from rlsys.data.judge_prompt import form_digest, judge_text
from rlsys.data.judge_rating import parse_rating
from rlsys.data.preference_records import RatingStatus
from rlsys.recipe.preferences import AspectName
from rlsys.types import Message


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
    status: RatingStatus
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


class Rater(Protocol):
    """Who rates: a `Judge`, or a group of actors that each have one."""

    @property
    def name(self) -> str:
        """Under which ratings are kept."""
        ...

    @property
    def max_asks(self) -> int:
        """Times that a request is asked while its rating cannot be read."""
        ...

    def rate(self, requests: Iterable[RatingRequest]) -> AsyncIterator[Reply]:
        """Every reply as it comes."""
        ...


def judge_name(model: str) -> str:
    """A judge's name: its model, and the version of what it is asked."""
    return f"{model}#{form_digest()}"


class Judge:
    """Rates on each aspect that it is asked for.

    Args:
        backend: where answers come from.
        not_applicable: aspects for which N/A is an answer.
        max_asks: times that a request is asked while its rating cannot be read.
    """

    def __init__(
        self, backend: TextBackend, *, not_applicable: Sequence[AspectName] = ("honesty",), max_asks: int = 3
    ) -> None:
        if max_asks < 1:
            raise ValueError(f"max_asks must be 1 or more; got {max_asks}")
        self._backend, self._not_applicable = backend, frozenset(not_applicable)
        self.max_asks = max_asks
        self.name = judge_name(backend.name)
        self.counts: Counter[str] = Counter()
        """Replies by status."""

    async def rate(self, requests: Iterable[RatingRequest]) -> AsyncIterator[Reply]:
        """Every reply as it comes. A request's last one is rated, not_applicable, failed, or malformed for good.

        Requests that were asked `max_asks` times already give no reply.
        """
        pending = [request for request in requests if request.num_asked < self.max_asks]
        while pending:
            again: list[RatingRequest] = []
            by_key = {self._key(request): request for request in pending}
            questions = (self._question(key, request) for key, request in by_key.items())
            async for question, answer in self._backend.answer_all(questions):
                reply = self._reply(by_key[question.key], answer)
                self.counts[reply.status] += 1
                if reply.status == "malformed" and reply.ask + 1 < self.max_asks:
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
