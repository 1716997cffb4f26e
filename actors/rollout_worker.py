"""The rollout worker: one vLLM engine, stepped in a thread of its own, behind an asyncio actor.

    worker = RolloutWorker.options(num_cpus=1).remote(settings, name="rollout-0")
    ray.get(worker.ready.remote())
    ... publish weights to it, unless it loaded them itself ...
    done, rollouts = worker.generate.remote(prompts, num_samples=4, sampling=SamplingSettings(64), seed=1)

`generate` returns two references: the driver waits for the first, of None; the second goes to the verifiers unread.
"""

import asyncio
import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import ray
import ray.exceptions

from rlsys.errors import ActorError
from rlsys.recipe.rollout import SamplingSettings, UpdateMode
from rlsys.rollouts.partial_group import PartialGroup, Response
from rlsys.rollouts.prompt_stream import sample_seed
from rlsys.rollouts.sampling_engine import SamplingEngine
from rlsys.rollouts.sampling_engine_loop import EngineLoop, GroupRequest
from rlsys.rollouts.sampling_engine_settings import EngineSettings, engine_environment
from rlsys.rollouts.vllm_build import check_build
from rlsys.telemetry.trace import Span
from rlsys.types import PolicyVersion, Prompt, Rollout
from rlsys.weights.publisher import Reception
from rlsys.weights.records import DigestName, Rendezvous

BEGUN_DEADLINE_S = 30.0
"""To fetch what a checkpoint holds of a group, from another node at worst; later the group is begun anew."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A group of a `generate` call that is not over."""

    prompt: Prompt
    rollouts: "Future[tuple[Rollout, ...]]"


@ray.remote
class RolloutWorker:
    """Samples for whoever asks. Every method but `ready` answers at once or when its own work is done.

    Args:
        settings: of the engine.
        name: in messages and logs.
    """

    def __init__(self, settings: EngineSettings, *, name: str = "rollout-0") -> None:
        import torch

        # torch sees other actors' GPUs too: Ray hides them only from an actor that has some of its own.
        on_cpu = not (torch.cuda.is_available() and ray.get_gpu_ids())
        os.environ.update(engine_environment(settings, on_cpu=on_cpu))
        # At each update vLLM warns of every layer that has no weights of its own.
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

        def build() -> SamplingEngine:
            check_build(on_cpu=on_cpu)
            return SamplingEngine(settings)

        self._loop = EngineLoop(build, name=name)
        self._unfinished: dict[tuple[str, int], _Asked] = {}
        """By tag and ordinal."""
        self._num_aborts = 0
        """Of everything."""
        self._name = name

    async def ready(self) -> str:
        """Returns the worker's name when the engine is built.

        Raises:
            RlsysError: it could not be built.
        """
        await asyncio.wrap_future(self._loop.ready)
        return self._name

    @ray.method(num_returns=2)  # pyright: ignore[reportCallIssue, reportArgumentType]
    async def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingSettings,
        seed: int,
        tag: str = "train",
        begun: Sequence[Any] = (),
    ) -> tuple[None, list[list[Rollout]]]:
        """Samples every prompt; resolves when all are done. Many calls may be under way at once.

        The prompts of one call enter the engine between the same two steps.

        Args:
            prompts: with token ids.
            num_samples: responses to each.
            sampling: of all of them.
            seed: of the run; a sample's own seed is `sample_seed(seed, ordinal, sample)`.
            tag: by which `abort` and `begun` tell groups of the same ordinal apart: `train`, `eval` or another word.
            begun: for each prompt a reference to a `PartialGroup` to go on from, or None. One that cannot be fetched
                or is not what is asked for is left aside.

        Returns:
            Nothing, to wait for without fetching a token; and the rollouts by prompt and sample index.

        Raises:
            PromptRefused: the engine has no room for a prompt.
            RlsysError: the engine failed.
        """
        responses: list[Sequence[Response]] = [()] * len(prompts)
        if begun:
            num_aborts = self._num_aborts
            responses = await self._fetch(begun, prompts, num_samples=num_samples, max_tokens=sampling.max_tokens)
            if self._num_aborts > num_aborts:
                raise ActorError(f"{self._name} was told to abort the request")
        requests = [
            GroupRequest(
                prompt_ids=prompt.token_ids.tolist(),
                ordinal=prompt.ordinal,
                seeds=[sample_seed(seed, prompt.ordinal, sample) for sample in range(num_samples)],
                sampling=sampling,
                begun=of_prompt,
            )
            for prompt, of_prompt in zip(prompts, responses, strict=True)
        ]
        asked = [_Asked(prompt, future) for prompt, future in zip(prompts, self._loop.add(requests), strict=True)]
        self._unfinished |= {(tag, each.prompt.ordinal): each for each in asked}
        try:
            groups = await asyncio.gather(*(asyncio.wrap_future(each.rollouts) for each in asked))
        finally:
            for each in asked:
                key = (tag, each.prompt.ordinal)
                if self._unfinished.get(key) is each:
                    del self._unfinished[key]
        return None, [list(group) for group in groups]

    async def abort(self, ordinals: Sequence[int] | None = None, *, tag: str = "train") -> None:
        """Ends the unfinished groups of these ordinals, or all groups of whatever tag; their `generate` calls fail."""
        self._num_aborts += ordinals is None
        wanted = None if ordinals is None else {(tag, ordinal) for ordinal in ordinals}
        futures = [asked.rollouts for key, asked in self._unfinished.items() if wanted is None or key in wanted]
        await asyncio.wrap_future(self._loop.abort(futures))

    async def begun(self, *, tag: str = "train") -> list[PartialGroup]:
        """What there is of the groups whose `generate` call is not over, all at the same moment between two steps.

        Groups of which no token is sampled are left out.

        Raises:
            RlsysError: the engine failed.
        """
        asked = [each for (of_tag, _), each in self._unfinished.items() if of_tag == tag]
        responses = await asyncio.wrap_future(self._loop.begun([each.rollouts for each in asked]))
        groups = [PartialGroup.of(each.prompt, so_far) for each, so_far in zip(asked, responses, strict=True)]
        return [group for group in groups if group.num_begun]

    # --- weights: see rlsys.weights.publisher for the order -----------------------------------------------------

    async def prepare_update(self, mode: UpdateMode) -> None:
        """Returns when the engine is ready to take weights."""
        await asyncio.wrap_future(self._loop.prepare(mode))

    async def connect_weights(self, rendezvous: Rendezvous, *, rank_offset: int, digest: DigestName) -> None:
        """Joins a weight group."""
        joining = self._loop.call(lambda e: e.connect_weights(rendezvous, rank_offset=rank_offset, digest=digest))
        await asyncio.wrap_future(joining)

    async def receive_weights(self, transfer: int, *, canary_ids: Sequence[int] = ()) -> Reception:
        """Receives a transfer, and tells what the engine makes of a text with it."""
        return await asyncio.wrap_future(self._loop.call(lambda engine: receive(engine, transfer, canary_ids)))

    async def commit_version(self, version: PolicyVersion) -> None:
        """Flips the version and goes on sampling; also makes weights current that the engine loaded itself."""
        await asyncio.wrap_future(self._loop.commit(version))

    async def abandon_update(self) -> None:
        """Goes on with the old weights, if they were not touched."""
        await asyncio.wrap_future(self._loop.abandon())

    # --- supervision -------------------------------------------------------------------------------------------

    async def stats(self) -> dict[str, float]:
        """The counters of `LoopStats`: a probe for whoever watches or tests a worker; a run asks for `health` alone."""
        return asdict(self._loop.stats())

    async def drain_spans(self) -> list[Span]:
        """`sampling` and `update` spans since the last call."""
        return self._loop.drain_spans()

    async def health(self) -> float:
        """Seconds since the engine's thread last said that it lives; an idle engine says nothing.

        Raises:
            RlsysError: the engine failed.
        """
        self._loop.check()
        stats = self._loop.stats()
        return stats.beat_age_s if stats.num_unfinished else 0.0

    async def close(self) -> None:
        """Ends the engine with its processes. What is unfinished fails."""
        await asyncio.get_running_loop().run_in_executor(None, self._loop.close)

    async def _fetch(
        self, begun: Sequence[Any], prompts: Sequence[Prompt], *, num_samples: int, max_tokens: int
    ) -> list[Sequence[Response]]:
        found = await asyncio.gather(*map(_fetch_or_none, begun))
        return [
            group.responses if group and group.fits(prompt, num_samples=num_samples, max_tokens=max_tokens) else ()
            for group, prompt in zip(found, prompts, strict=True)
        ]


async def _fetch_or_none(reference: Any) -> PartialGroup | None:
    """None for None, and for what is lost: the group is begun anew, as it would be without a checkpoint of it."""
    if reference is None:
        return None
    try:
        return await asyncio.wait_for(reference, BEGUN_DEADLINE_S)
    except (ray.exceptions.RayError, TimeoutError) as error:
        print(f"a group is begun anew, as what there was of it cannot be fetched: {error!r}", flush=True)
        return None


def receive(engine: SamplingEngine, transfer: int, canary_ids: Sequence[int]) -> Reception:
    """One engine's part in the first phase of a publication."""
    receipts = engine.receive_weights(transfer)
    canary = engine.canary_logprobs(canary_ids) if canary_ids else np.empty(0, np.float32)
    return Reception(tuple(receipts), canary)
