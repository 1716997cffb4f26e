"""A server that speaks the OpenAI chat protocol, with retries, a pace, deadlines and an account of what it cost.

Every failed call is counted under one of `FAILURES`; none of them is ever an answer.
"""

import asyncio
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from rlsys.data.judge_backend import Answer, Question
from rlsys.data.judge_limits import RateLimiter
from rlsys.data.preference_pairs import seeded_random
from rlsys.errors import RlsysError
from rlsys.recipe.preferences import EndpointSettings

FAILURES = ("timeout", "connection", "rate_limit", "server_error", "bad_answer", "refused")
"""All but `refused` (the server will not answer this request, status 400 and its like) are tried again."""

_CHARACTERS_PER_TOKEN = 3.5


class EndpointError(RlsysError):
    """No call to the endpoint can succeed, or may be made: a wrong key, an unknown model, a spent budget."""


@dataclass(slots=True)
class EndpointCounts:
    """What the calls to one endpoint came to."""

    calls: int = 0
    answered: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Calls by kind of failure."""
    given_up: int = 0
    """Questions without an answer after every attempt."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    """US dollars."""

    def to_json(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "calls": self.calls,
            "answered": self.answered,
            "failures": dict(self.failures),
            "given_up": self.given_up,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": self.cost,
        }


class Endpoint:
    """Asks questions, many at a time, each again while it fails in a way that passes. To be used as `async with`.

    Args:
        settings: where, how fast, how often, at what price.

    Raises:
        EndpointError: the environment lacks the key.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings = settings
        self.counts = EndpointCounts()
        self._limiter = RateLimiter(
            requests_per_minute=settings.requests_per_minute, tokens_per_minute=settings.tokens_per_minute
        )
        self._client: Any = None

    @property
    def name(self) -> str:
        """The model's name, under which its answers are kept."""
        return self.settings.model

    async def __aenter__(self) -> Self:
        import openai

        self._client = openai.AsyncOpenAI(
            api_key=self._api_key(),
            base_url=self.settings.base_url,
            timeout=self.settings.deadline_s,
            max_retries=0,  # retries are ours, so that each failure is counted
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.close()

    async def answer_all(self, questions: Iterable[Question]) -> AsyncIterator[tuple[Question, Answer]]:
        """Each question with its answer, as they come.

        Raises:
            EndpointError: no call can succeed; what is in flight is given up.
        """
        waiting = iter(questions)
        running: dict[asyncio.Task[Answer], Question] = {}
        try:
            while True:
                while len(running) < self.settings.max_concurrent and (question := next(waiting, None)) is not None:
                    running[asyncio.create_task(self.answer(question))] = question
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield running.pop(task), task.result()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def answer(self, question: Question) -> Answer:
        """One question, asked until it is answered, refused or out of attempts.

        Raises:
            EndpointError: no call can succeed.
        """
        jitter = seeded_random(0, question.key)
        failure = ""
        for attempt in range(self.settings.max_attempts):
            if attempt:
                backoff = min(self.settings.backoff_s * 2 ** (attempt - 1), self.settings.max_backoff_s)
                await asyncio.sleep(backoff * jitter.uniform(0.5, 1.0))
            answer, retry_after_s = await self._call(question)
            if answer.failure is None:
                return answer
            failure = answer.failure
            if failure == "refused":
                break
            await asyncio.sleep(min(retry_after_s, self.settings.max_backoff_s))
        self.counts.given_up += 1
        return Answer(None, failure)

    async def _call(self, question: Question) -> tuple[Answer, float]:
        """One call: an answer or a counted failure, and how long the server asks to be left alone, in seconds."""
        self._require_budget()
        estimated = _estimate_tokens(question) + self.settings.max_tokens
        await asyncio.sleep(self._limiter.reserve(estimated))
        self.counts.calls += 1
        answer, retry_after_s = await self._send(question)
        if answer.failure is None:
            self._limiter.settle(estimated=estimated, used=answer.prompt_tokens + answer.completion_tokens)
            self.counts.answered += 1
        else:
            self.counts.failures[answer.failure] += 1
        self._charge(answer)
        return answer, retry_after_s

    async def _send(self, question: Question) -> tuple[Answer, float]:
        import openai

        try:
            async with asyncio.timeout(self.settings.deadline_s):
                completion = await self._client.chat.completions.create(
                    model=self.settings.model,
                    messages=[dict(message) for message in question.messages],
                    temperature=self.settings.temperature,
                    max_tokens=self.settings.max_tokens,
                    extra_headers={"Idempotency-Key": question.key},
                )
        except (TimeoutError, openai.APITimeoutError):
            return Answer(None, "timeout"), 0.0
        except openai.APIConnectionError:
            return Answer(None, "connection"), 0.0
        except openai.APIStatusError as error:
            return Answer(None, self._status_failure(error)), _retry_after_s(error)
        except (openai.APIResponseValidationError, ValueError):  # a body that is no JSON
            return Answer(None, "bad_answer"), 0.0
        return _read(completion, question), 0.0

    def _status_failure(self, error: Any) -> str:
        """The kind of failure that a status is; EndpointError where no call can succeed."""
        status = error.status_code
        if status in (401, 403, 404) or error.code == "insufficient_quota":
            raise EndpointError(
                f"{self.settings.base_url} refuses every call for model {self.settings.model} with status {status}",
                value=error.message[:300],
                fix=f"check base_url, model and the key in {self.settings.api_key_env}",
            ) from error
        if status == 429:
            return "rate_limit"
        return "server_error" if status in (408, 409) or status >= 500 else "refused"

    def _charge(self, answer: Answer) -> None:
        self.counts.prompt_tokens += answer.prompt_tokens
        self.counts.completion_tokens += answer.completion_tokens
        prompt_cost = answer.prompt_tokens * self.settings.prompt_price
        self.counts.cost += (prompt_cost + answer.completion_tokens * self.settings.completion_price) / 1e6

    def _require_budget(self) -> None:
        limit = self.settings.max_cost
        if limit is not None and self.counts.cost >= limit:
            raise EndpointError(
                f"the budget for {self.settings.model} is spent",
                value=f"${self.counts.cost:.2f} of ${limit:.2f}",
                fix="raise max_cost and start again: nothing that was answered is asked for twice",
            )

    def _api_key(self) -> str:
        key = os.environ.get(self.settings.api_key_env)
        if key:
            return key
        if self.settings.base_url == EndpointSettings.model_fields["base_url"].default:
            raise EndpointError(
                "OpenAI's endpoint needs a key", fix=f"set the environment variable {self.settings.api_key_env}"
            )
        return "none"


def _read(completion: Any, question: Question) -> Answer:
    """The text of a completion; a body without one is a failure of the server. The client does not check types."""
    from openai.types import CompletionUsage
    from openai.types.chat import ChatCompletion, ChatCompletionMessage
    from openai.types.chat.chat_completion import Choice

    choices = completion.choices if isinstance(completion, ChatCompletion) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    message = first.message if isinstance(first, Choice) else None
    text = message.content if isinstance(message, ChatCompletionMessage) else None
    if not isinstance(text, str) or not text:
        return Answer(None, "bad_answer")
    cut = isinstance(first, Choice) and first.finish_reason == "length"
    usage = completion.usage
    if isinstance(usage, CompletionUsage):
        used = (usage.prompt_tokens, usage.completion_tokens)
        if all(isinstance(count, int) and count >= 0 for count in used):
            return Answer(text, None, cut, *used)
    return Answer(text, None, cut, _estimate_tokens(question), math.ceil(len(text) / _CHARACTERS_PER_TOKEN))


def _estimate_tokens(question: Question) -> int:
    return math.ceil(sum(len(message["content"]) for message in question.messages) / _CHARACTERS_PER_TOKEN)


def _retry_after_s(error: Any) -> float:
    try:
        return max(0.0, float(error.response.headers.get("retry-after", 0)))
    except ValueError:  # a date: the backoff has to do
        return 0.0
