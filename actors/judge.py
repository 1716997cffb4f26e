"""Judges as actors: each asks an endpoint, or an engine that generates text, and streams its replies.

    driver: rate_responses(JudgeGroup) --requests--> JudgeWorker xN --replies, one by one--> the driver's store

consumes: requests      produces: replies, the unreadable ones too
waits for: an answer, each under its own deadline; the group waits for the next reply under `reply_timeout_s`
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from rlsys.data.judge import Judge, RatingRequest, Reply, judge_name
from rlsys.data.judge_backend import LocalBackend, Question, TextBackend, TextGenerator
from rlsys.data.judge_endpoint import Endpoint
from rlsys.errors import ActorError, RlsysError
from rlsys.recipe.preferences import JudgeSettings


class Judging:
    """A judge as the recipe describes it, over its endpoint or over an engine that is handed in.

    Args:
        settings: the recipe's section.
        texts: generates texts for questions, where the judge is a local model; see `actors.rollout_texts`.

    Raises:
        ValueError: an engine for an endpoint's judge, or none for a local one.
    """

    def __init__(self, settings: JudgeSettings, texts: TextGenerator | None = None) -> None:
        if (texts is None) != (settings.local_model is None):
            raise ValueError("a judge with a local_model needs an engine, one with an endpoint takes none")
        self._settings, self._texts = settings, texts
        self._stack = AsyncExitStack()
        self._judge: Judge | None = None
        self._backend: Endpoint | LocalBackend | None = None

    async def rate(self, requests: Sequence[RatingRequest]) -> AsyncIterator[Reply]:
        """Every reply as it comes; see `Judge.rate`."""
        if self._judge is None:
            self._judge = Judge(
                await self._open(), not_applicable=self._settings.not_applicable, max_asks=self._settings.max_asks
            )
        async for reply in self._judge.rate(requests):
            yield reply

    def stats(self) -> dict[str, Any]:
        """Replies by status; of an endpoint calls, failures, tokens and cost; of an engine failed batches."""
        replies = dict(self._judge.counts) if self._judge else {}
        if isinstance(self._backend, Endpoint):
            return {"replies": replies, **self._backend.counts.to_json()}
        return {"replies": replies, "failures": dict(self._backend.failures) if self._backend else {}}

    async def close(self) -> None:
        """Closes connections; the next request opens them again."""
        await self._stack.aclose()
        self._judge = self._backend = None

    async def _open(self) -> TextBackend:
        settings = self._settings
        if settings.endpoint is not None:
            self._backend = await self._stack.enter_async_context(Endpoint(settings.endpoint))
        else:
            assert self._texts is not None and settings.local_model is not None
            self._backend = LocalBackend(
                self._texts,
                name=settings.local_model,
                render=_whole,
                batch_size=settings.batch_size,
                deadline_s=settings.deadline_s,
            )
        return self._backend


@ray.remote
class JudgeWorker:
    """A `Judging` as an actor. See there for arguments and errors."""

    def __init__(self, settings: JudgeSettings, texts: TextGenerator | None = None) -> None:
        self._judging = Judging(settings, texts)

    async def rate(self, requests: list[RatingRequest]) -> AsyncIterator[Reply]:
        """A stream of references, one a reply."""
        async for reply in self._judging.rate(requests):
            yield reply

    async def stats(self) -> dict[str, Any]:
        """Counters since the start."""
        return self._judging.stats()

    async def close(self) -> None:
        """Closes connections."""
        await self._judging.close()


class JudgeGroup:
    """The driver's end: shares requests out evenly and merges the streams. A `Rater` for `rate_responses`.

    Where a worker dies the driver calls `rate_responses` again: what came is in its store and not asked for again.

    Args:
        workers: `JudgeWorker` actors with the same settings.
        settings: theirs.
        reply_timeout_s: the longest time between two replies of a worker: longer than all attempts at one answer.
    """

    def __init__(self, workers: Sequence[Any], settings: JudgeSettings, *, reply_timeout_s: float) -> None:
        model = settings.endpoint.model if settings.endpoint is not None else settings.local_model
        assert model is not None
        self.name = judge_name(model)
        self.max_asks = settings.max_asks
        self._workers, self._reply_timeout_s = list(workers), reply_timeout_s

    async def rate(self, requests: Iterable[RatingRequest]) -> AsyncIterator[Reply]:
        """Every reply of every worker as it comes.

        Raises:
            ActorError: a worker died, or sent no reply in time.
            RlsysError: raised by a worker on purpose, such as a spent budget.
        """
        waiting = list(requests)
        replies: asyncio.Queue[Reply | None] = asyncio.Queue()
        shares = [waiting[index :: len(self._workers)] for index in range(len(self._workers))]
        streams = [
            asyncio.create_task(self._stream(index, share, replies)) for index, share in enumerate(shares) if share
        ]
        num_open = len(streams)
        try:
            while num_open:
                reply = await replies.get()
                if reply is None:
                    num_open -= 1
                    continue
                yield reply
            await asyncio.gather(*streams)
        finally:
            for stream in streams:
                stream.cancel()
            await asyncio.gather(*streams, return_exceptions=True)

    async def _stream(self, index: int, share: list[RatingRequest], replies: asyncio.Queue[Reply | None]) -> None:
        try:
            stream = self._workers[index].rate.remote(share)
            while True:
                async with asyncio.timeout(self._reply_timeout_s):
                    reply = await (await anext(stream))
                replies.put_nowait(reply)
        except StopAsyncIteration:
            return
        except TimeoutError:
            limit = f"{self._reply_timeout_s:g} s"
            raise ActorError(
                f"judge {index} sent no reply", value=limit, fix="raise its deadline, or look at its log"
            ) from None
        except RayTaskError as error:
            if isinstance(error.cause, RlsysError):
                raise error.cause from error
            raise ActorError(f"judge {index} failed: {error.cause!r}") from error
        except RayActorError as error:
            raise ActorError(f"judge {index} died: {error}", fix="start again: what was answered is kept") from error
        finally:
            replies.put_nowait(None)


def _whole(question: Question) -> Question:
    return question
