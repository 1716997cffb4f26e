"""Judges at endpoints as actors: each asks, and streams its replies. A local judge needs none: see `EngineTurns`.

    driver: rate_responses(JudgeGroup) --requests--> JudgeWorker xN --replies, one by one--> the driver's store

consumes: requests      produces: replies, the unreadable ones too
waits for: an answer, each under its own deadline; the group waits for the next reply under `reply_timeout_s`
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import ray
from ray.exceptions import RayTaskError

from actors.deaths import DEATHS, told
from rlsys.data.judge import Judge, RatingRequest, Reply, judge_name
from rlsys.data.judge_endpoint import Endpoint
from rlsys.errors import ActorError
from rlsys.recipe.preferences import JudgeSettings


class Judging:
    """A judge at an endpoint, as the recipe describes it.

    Raises:
        ValueError: the judge is a local model.
    """

    def __init__(self, settings: JudgeSettings) -> None:
        if settings.endpoint is None:
            raise ValueError("only a judge at an endpoint is an actor of its own; a local_model is asked by the driver")
        self._settings, self._endpoint = settings, Endpoint(settings.endpoint)
        self._stack = AsyncExitStack()
        self._judge: Judge | None = None

    async def rate(self, requests: Sequence[RatingRequest]) -> AsyncIterator[Reply]:
        """Every reply as it comes; see `Judge.rate`."""
        if self._judge is None:
            await self._stack.enter_async_context(self._endpoint)
            self._judge = Judge(
                self._endpoint, not_applicable=self._settings.not_applicable, max_asks=self._settings.max_asks
            )
        async for reply in self._judge.rate(requests):
            yield reply

    def stats(self) -> dict[str, Any]:
        """Replies by status; calls, failures, tokens and cost."""
        return {"replies": dict(self._judge.counts) if self._judge else {}, **self._endpoint.counts.to_json()}

    async def close(self) -> None:
        """Closes connections; the next request opens them again."""
        await self._stack.aclose()
        self._judge = None


@ray.remote
class JudgeWorker:
    """A `Judging` as an actor. See there for arguments and errors."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._judging = Judging(settings)

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


class JudgeLostError(ActorError):
    """A judge died or fell silent: asking again goes on with what is in the store."""


class JudgeGroup:
    """The driver's end: shares requests out evenly and merges the streams. A `Rater` for `rate_responses`.

    Where a worker dies the driver calls `rate_responses` again: what came is in its store and not asked for again.

    Args:
        workers: `JudgeWorker` actors with the same settings.
        settings: theirs.
        reply_timeout_s: the longest time between two replies of a worker: longer than all attempts at one answer.
    """

    def __init__(self, workers: Sequence[Any], settings: JudgeSettings, *, reply_timeout_s: float) -> None:
        assert settings.endpoint is not None
        self.name = judge_name(settings.endpoint.model)
        self.max_asks = settings.max_asks
        self._workers, self._reply_timeout_s = list(workers), reply_timeout_s

    async def rate(self, requests: Iterable[RatingRequest]) -> AsyncIterator[Reply]:
        """Every reply of every worker as it comes.

        Raises:
            JudgeLostError: a worker died, or sent no reply in time.
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
            raise JudgeLostError(
                f"judge {index} sent no reply", value=limit, fix="raise its deadline, or look at its log"
            ) from None
        except RayTaskError as error:
            raise told(error, f"judge {index}") from error
        except DEATHS as error:
            raise JudgeLostError(
                f"judge {index} died: {error}", fix="start again: what was answered is kept"
            ) from error
        finally:
            replies.put_nowait(None)
