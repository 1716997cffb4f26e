"""vLLM's engine, stepped by its owner, so that the version of every sampled token is exact.

    engine = SamplingEngine(settings)
    engine.add_group([5, 6, 7], ordinal=0, num_samples=4, seeds=[1, 2, 3, 4], sampling=SamplingSettings(max_tokens=64))
    while engine.has_work:
        for group in engine.step():
            ...

The weights change only between two steps: `receive_weights`, then `canary_logprobs`, then `commit_version`, with no
step in between. Requests are handed to vLLM's engine core as token ids and its raw outputs are read, past the part of
vLLM that builds text and one dictionary of logprobs for each token, which costs more than the model where it is small.
"""

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

import numpy as np

from rlsys.errors import DataError, RlsysError, WeightTransferError
from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.engine_shared_memory import forget_names
from rlsys.rollouts.open_group import FinishedGroup, OpenGroup, OpenSample
from rlsys.rollouts.partial_group import Response
from rlsys.rollouts.sampling_engine_settings import EngineSettings, engine_arguments, engine_environment
from rlsys.types import FinishReason, PolicyVersion
from rlsys.weights.records import DigestName, Receipt, Rendezvous

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core_client import InprocClient

PLUGIN_GROUP = "vllm.general_plugins"


class PromptRefused(DataError, ValueError):
    """A prompt that no engine of these settings can sample: its own fault, and not the engine's."""


class SamplingEngine:
    """One engine in this process. Not thread-safe: one thread calls it.

    Args:
        settings: what to build.

    Raises:
        RlsysError: the environment of `engine_environment` was not set before vLLM was imported.
        RecipeError: an engine setting cannot be used.
    """

    def __init__(self, settings: EngineSettings) -> None:
        from vllm import EngineArgs, LLMEngine
        from vllm.platforms import current_platform

        from rlsys.weights.plugin import register

        self.settings = settings
        self.on_cpu = current_platform.is_cpu()
        _check_environment(settings, on_cpu=self.on_cpu)
        register()
        arguments = engine_arguments(settings, on_cpu=self.on_cpu)
        self._llm: LLMEngine = LLMEngine.from_engine_args(EngineArgs(**arguments))
        self._client: InprocClient = self._llm.engine_core  # pyright: ignore[reportAttributeAccessIssue]
        if self.world_size > 1:
            forget_names()
        assert self._client.engine_core.batch_queue is None, "a step may be in flight between two calls of step()"
        self._scheduler: Scheduler = self._client.engine_core.scheduler  # pyright: ignore[reportAttributeAccessIssue]
        self.max_model_len: int = self._llm.model_config.max_model_len
        """The longest prompt with its response, in tokens."""
        self.version: PolicyVersion = 0
        self._num_flips = 0
        self.updating = settings.awaits_weights
        """Weights are random, on their way or unchecked: nothing may be sampled before `commit_version`."""
        self.num_tokens = 0
        """Response tokens sampled since the start."""
        self._samples: dict[str, OpenSample] = {}
        """Unfinished ones, by request."""
        self._complete: list[OpenGroup] = []
        """Groups that came with nothing left to sample; the next step gives them back."""
        self._next_key = 0
        self._next_request = 0
        self._canaries = 0

    @property
    def has_work(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._samples or self._complete)

    @property
    def num_unfinished(self) -> int:
        """Samples not finished yet."""
        return len(self._samples)

    def add_group(
        self,
        prompt_ids: Sequence[int],
        *,
        ordinal: int,
        num_samples: int,
        seeds: Sequence[int],
        sampling: SamplingSettings,
        begun: Sequence[Response] = (),
    ) -> int:
        """Queues one prompt's samples.

        Args:
            prompt_ids: `[P]`, with the generation prompt.
            ordinal: goes into the rollouts.
            num_samples: how many.
            seeds: one for each sample; a seed decides its sample alone (of the same weights and settings).
            sampling: the same for all.
            begun: what there is of some samples already, none longer than `sampling` allows; they go on from there,
                with their tokens, logprobs and versions as they are.

        Returns:
            The key under which `step` returns the group.

        Raises:
            PromptRefused: no prompt, one that leaves no room for a response, or not one seed for each sample.
        """
        limit = self.max_model_len
        if not 0 < len(prompt_ids) < limit:
            raise PromptRefused(
                f"a prompt needs 1 to {limit - 1} tokens (max_model_len - 1)",
                value=len(prompt_ids),
                fix="leave out longer prompts (max_prompt_length), or raise rollout.vllm.max_model_len",
            )
        if num_samples < 1 or len(seeds) != num_samples:
            raise PromptRefused(f"a group needs one seed for each of its samples; got {len(seeds)} for {num_samples}")
        group = OpenGroup(self._next_key, ordinal, [int(token) for token in prompt_ids], sampling)
        self._next_key += 1
        group.samples += [OpenSample(group, index, int(seed)) for index, seed in enumerate(seeds)]
        room = min(sampling.max_tokens, limit - len(prompt_ids))
        for response in begun:
            group.samples[response.sample_index].go_on_from(response, room=room)
        for sample in group.samples:
            if sample.finish_reason is None:
                self._submit(sample)
        if group.done:
            self._complete.append(group)
        return group.key

    def step(self) -> list[FinishedGroup]:
        """Runs one engine step and returns the groups that it has finished.

        Raises:
            WeightTransferError: an update is not complete.
        """
        if self.updating:
            raise WeightTransferError(
                "the engine has no weights that were checked", fix="publish weights to it before it samples"
            )
        finished = [group.finished() for group in self._complete]
        self._complete = []
        for output in self._client.get_output().outputs if self._samples else ():
            sample = self._samples[output.request_id]
            count = len(output.new_token_ids)
            if count:
                assert output.new_logprobs is not None, "every request asks for logprobs"
                sample.extend(output.new_token_ids, output.new_logprobs.logprobs[:, 0].tolist(), self.version)
                self.num_tokens += count
            if output.finish_reason is not None:
                del self._samples[output.request_id]
                sample.finish_reason = _finish_reason(str(output.finish_reason), output.request_id)
                if sample.group.done:
                    finished.append(sample.group.finished())
        return finished

    def begun(self) -> dict[int, tuple[Response, ...]]:
        """The responses of every group that `step` has not returned, as far as they are, by the group's key."""
        unfinished = {sample.group.key: sample.group for sample in self._samples.values()}
        return {key: group.responses() for key, group in unfinished.items()} | {
            group.key: group.responses() for group in self._complete
        }

    # --- weights -----------------------------------------------------------------------------------------------

    @property
    def world_size(self) -> int:
        """Worker processes of this engine: how many ranks of a weight group it takes."""
        return self._llm.vllm_config.parallel_config.world_size

    def connect_weights(self, rendezvous: Rendezvous, *, rank_offset: int, digest: DigestName = "fold64") -> None:
        """Joins a weight group; returns when all its ranks are there.

        Args:
            rank_offset: the group rank of this engine's first worker.

        Raises:
            WeightTransferError: not all of them came before the deadline.
        """
        info = {
            "host": rendezvous.host,
            "port": rendezvous.port,
            "world_size": rendezvous.world_size,
            "deadline_s": rendezvous.deadline_s,
            "rank_offset": rank_offset,
            "digest": digest,
        }
        self._llm.collective_rpc("init_weight_transfer_engine", kwargs={"init_info": info})

    def receive_weights(self, transfer: int) -> list[Receipt]:
        """Receives and loads one transfer; from here to `commit_version` the engine does not sample.

        Returns:
            One receipt for each worker process.

        Raises:
            WeightTransferError: the sender was lost or too slow. Another transfer, in a new group, mends the engine.
        """
        self.updating = True
        self._llm.collective_rpc("start_weight_update")
        self._llm.collective_rpc("update_weights", kwargs={"update_info": {"transfer": transfer}})
        self._llm.collective_rpc("finish_weight_update")
        return self._llm.collective_rpc(_read_receipt)

    def canary_logprobs(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logprobs of a text's tokens under the weights the engine holds now, without touching its requests.

        Args:
            token_ids: `[T]`, T >= 2.

        Returns:
            `[T - 1]` float32, of each token after the first given those before it, at temperature 1.

        Raises:
            ValueError: the text is too short or too long for the engine.
        """
        if not 2 <= len(token_ids) < self.max_model_len:
            raise ValueError(f"a canary needs 2 to {self.max_model_len - 1} tokens; got {len(token_ids)}")
        self._canaries += 1
        params = self._sampling_params(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        request_id = f"canary-{self._canaries}"
        with self._parked(num_tokens=len(token_ids) + 1):
            self._client.add_request(self._request(request_id, token_ids, params, cache_salt=request_id))
            while self._scheduler.has_requests():
                outputs = self._client.get_output().outputs
                for output in outputs:
                    if output.new_prompt_logprobs_tensors is not None:
                        return output.new_prompt_logprobs_tensors.logprobs[:, 0].float().cpu().numpy().copy()
                if not outputs:
                    break
            self._client.abort_requests([request_id])
        raise WeightTransferError("the engine gave no logprobs for the canary", fix="set rollout.canary_tokens lower")

    def commit_version(self, version: PolicyVersion) -> None:
        """Every token sampled from here on carries `version`."""
        if self.settings.kv_on_update == "recompute":
            self._llm.reset_prefix_cache(reset_running_requests=True)
        self.version = version
        self._num_flips += 1
        for request in self._scheduler.waiting:
            # The hashes of a waiting request name the old version: they would find keys and values of old weights.
            request.cache_salt = self._salt
            request.block_hashes.clear()
            request.update_block_hashes()
        self.updating = False

    def restart_requests(self) -> int:
        """Ends every unfinished request and asks for the rest of its response anew, keeping its tokens so far.

        Returns:
            How many were restarted.
        """
        unfinished = list(self._samples.items())
        self._client.abort_requests([request_id for request_id, _ in unfinished])
        self._samples.clear()
        for _, sample in unfinished:
            self._submit(sample)
        return len(unfinished)

    def abort_groups(self, keys: Collection[int]) -> None:
        """Ends groups, by what `add_group` returned; `step` will not return them."""
        self._complete = [group for group in self._complete if group.key not in keys]
        doomed = [request_id for request_id, sample in self._samples.items() if sample.group.key in keys]
        self._client.abort_requests(doomed)
        for request_id in doomed:
            del self._samples[request_id]

    def close(self) -> None:
        """Ends the engine and its worker processes. Calling it again does nothing."""
        self._client.shutdown()

    # --- vLLM's side -------------------------------------------------------------------------------------------

    @property
    def _salt(self) -> str:
        # The count as well: a later stage of a run starts at version 0 again, with other weights.
        return f"v{self.version}-{self._num_flips}"

    def _submit(self, sample: OpenSample) -> None:
        group = sample.group
        request_id = f"{group.key}-{sample.index}-{self._next_request}"
        self._next_request += 1
        params = self._sampling_params(
            max_tokens=group.sampling.max_tokens - len(sample.token_ids),
            temperature=group.sampling.temperature,
            top_p=group.sampling.top_p,
            logprobs=0,
            # The generator of an ended request is gone: one that goes on draws from a seed of its own.
            seed=(sample.seed + 0x9E3779B97F4A7C15 * len(sample.token_ids)) % (1 << 63),
            stop_token_ids=[] if group.sampling.ignore_end else list(self.settings.end_token_ids),
        )
        self._samples[request_id] = sample
        self._client.add_request(
            self._request(request_id, group.prompt_ids + sample.token_ids, params, cache_salt=self._salt)
        )

    def _sampling_params(self, **fields: Any) -> "SamplingParams":
        from vllm import SamplingParams

        return SamplingParams(detokenize=False, **fields)

    def _request(self, request_id: str, token_ids: Sequence[int], params: "SamplingParams", *, cache_salt: str):
        from vllm.v1.engine import EngineCoreRequest

        return EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=[int(token) for token in token_ids],
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=cache_salt,
            data_parallel_rank=None,
        )

    @contextmanager
    def _parked(self, *, num_tokens: int) -> Iterator[None]:
        """Hides every request from the scheduler, with its keys and values, so that a step runs none of them.

        When they leave no room for `num_tokens` more, they give up theirs and compute them anew later.
        """
        from vllm.v1.core.sched.request_queue import create_request_queue

        scheduler = self._scheduler
        manager = scheduler.kv_cache_manager
        blocks_needed = manager.num_kv_cache_groups * -(-num_tokens // scheduler.block_size)
        if manager.block_pool.get_num_free_blocks() < blocks_needed:
            self._llm.reset_prefix_cache(reset_running_requests=True)
        running, waiting = scheduler.running, scheduler.waiting
        scheduler.running, scheduler.waiting = [], create_request_queue(scheduler.policy)
        try:
            yield
        finally:
            scheduler.running, scheduler.waiting = running, waiting


def _check_environment(settings: EngineSettings, *, on_cpu: bool) -> None:
    for name, value in engine_environment(settings, on_cpu=on_cpu).items():
        if os.environ.get(name) != value:
            raise RlsysError(
                f"{name} must be {value!r} before vLLM is imported",
                value=os.environ.get(name),
                fix="set the variables of engine_environment() first thing in the process",
            )
    tensor_parallel = settings.vllm.get("tensor_parallel_size", 1) > 1
    if tensor_parallel and not any(found.value.startswith("rlsys.") for found in entry_points(group=PLUGIN_GROUP)):
        raise RlsysError(
            f"rlsys is installed without its entry point {PLUGIN_GROUP}: worker processes cannot receive weights",
            fix="run `make install` again",
        )


def _read_receipt(worker: Any) -> Receipt:
    """Runs in an engine's worker process."""
    return worker.weight_transfer_engine.receipt


def _finish_reason(reason: str, request_id: str) -> FinishReason:
    if reason == "stop":
        return "stop"
    if reason == "length":
        return "length"
    raise RlsysError(f"request {request_id} ended with an engine error", value=reason, fix="see the engine's log")
