"""A tiny Llama, a process with an engine to run functions in, and a sender in this process."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlsys.rollouts.sampling_engine import SamplingEngine
from rlsys.rollouts.sampling_engine_settings import EngineSettings, engine_environment
from rlsys.types import Rollout
from rlsys.weights.channel import Bucket
from rlsys.weights.records import Manifest
from rlsys.weights.sender import WeightSender

VOCABULARY = 400
END = 2
CANARY = list(range(5, 60))
PARITY = 1e-4
"""Between float32 logprobs of two implementations of the same weights."""
ENGINE = {"max_model_len": 256, "kv_cache_memory_bytes": 32 << 20, "block_size": 32}


def tiny_llama(*, tied: bool, seed: int = 0) -> LlamaForCausalLM:
    """Two layers of width 64, with weights large enough that every one of them matters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        bos_token_id=1,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config).eval()


@torch.no_grad()
def change(model: LlamaForCausalLM, *, seed: int, scale: float = 0.05) -> None:
    """What a training step does, only more of it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


@torch.no_grad()
def hf_logprobs(model: LlamaForCausalLM, token_ids: Sequence[int], *, temperature: float = 1.0) -> np.ndarray:
    """`[T - 1]`: of each token after the first."""
    logits = model(torch.tensor([list(token_ids)])).logits[0, :-1].float() / temperature
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0].numpy()


def rollout_logprobs(model: LlamaForCausalLM, prompt: Sequence[int], rollout: Rollout, **settings) -> np.ndarray:
    """`[T]`: of each response token, computed in one pass over the whole text."""
    return hf_logprobs(model, [*prompt, *rollout.response_ids.tolist()], **settings)[len(prompt) - 1 :]


def buckets_of(model: LlamaForCausalLM, *, num_buckets: int = 3) -> list[Bucket]:
    """All parameters, cut somewhere."""
    named = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    size = -(-len(named) // num_buckets)
    return [named[start : start + size] for start in range(0, len(named), size)]


class EngineProcess:
    """A spawned process whose main thread owns an engine and runs what it is given."""

    def __init__(self, settings: EngineSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(settings, theirs))
        self._process.start()
        self._await()

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(engine, *arguments)` in the process."""
        self._pipe.send_bytes(cloudpickle.dumps((function, arguments)))
        return self._await()

    @property
    def pid(self) -> int:
        pid = self._process.pid
        assert pid is not None
        return pid

    def close(self) -> None:
        self._pipe.send_bytes(cloudpickle.dumps(None))
        self._process.join(30)
        assert self._process.exitcode == 0

    def _await(self, timeout_s: float = 240.0) -> Any:
        assert self._pipe.poll(timeout_s), "the engine's process did not answer"
        result, error = cloudpickle.loads(self._pipe.recv_bytes())
        if error is not None:
            raise error
        return result


def _serve(settings: EngineSettings, pipe: Connection) -> None:
    os.environ.update(engine_environment(settings, on_cpu=True), VLLM_LOGGING_LEVEL="ERROR", OMP_NUM_THREADS="1")
    engine = SamplingEngine(settings)
    pipe.send_bytes(cloudpickle.dumps((None, None)))
    while (command := cloudpickle.loads(pipe.recv_bytes())) is not None:
        function, arguments = command
        try:
            answer = (function(engine, *arguments), None)
        except Exception as error:  # told to the test, which expects it or fails
            answer = (None, error)
        pipe.send_bytes(cloudpickle.dumps(answer))
    engine.close()


class Lab:
    """A model here, an engine in a process, and a group between them."""

    def __init__(self, folder: Path, *, tied: bool, num_ranks: int = 1, **settings: Any) -> None:
        self.model = tiny_llama(tied=tied)
        self.model.save_pretrained(folder)
        vllm = ENGINE | settings.pop("vllm", {})
        self.engine = EngineProcess(
            EngineSettings(model=str(folder), end_token_ids=(END, *range(300, 320)), vllm=vllm, **settings)
        )
        self.sender = WeightSender("gloo", digest="sha256")
        self.num_ranks = num_ranks
        self._transfer = 0
        self._connect()

    def update(self, *, version: int) -> list:
        """Sends the model as it is, checks the receipts, and flips; returns the receipts."""
        manifest, receipts = self.transfer(buckets_of(self.model))
        for receipt in receipts:
            assert receipt.problems == () and receipt.tensors == manifest.tensors
        self.engine.run(lambda engine: engine.commit_version(version))
        return receipts

    def transfer(self, buckets: Sequence[Bucket]) -> tuple[Manifest, list]:
        """Sends buckets while the engine receives them."""
        self._transfer += 1
        transfer = self._transfer
        with _aside(lambda: self.engine.run(lambda engine: engine.receive_weights(transfer))) as answer:
            manifest = self.sender.send(iter(buckets), transfer=transfer)
        assert manifest is not None
        return manifest, answer[0]

    def canary(self) -> np.ndarray:
        """The engine's logprobs of the canary."""
        return self.engine.run(lambda engine: engine.canary_logprobs(CANARY))

    def close(self) -> None:
        self.sender.close()
        self.engine.close()

    def _connect(self) -> None:
        rendezvous = self.sender.open(host="127.0.0.1", num_receivers=self.num_ranks, deadline_s=30)
        with _aside(lambda: self.engine.run(lambda e: e.connect_weights(rendezvous, rank_offset=1, digest="sha256"))):
            self.sender.join()


@contextmanager
def _aside(work: Callable[[], Any]) -> Iterator[list]:
    """Runs work in a thread beside the block; its result is in the list when the block is over."""
    answer: list = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            answer.append(work())
        except BaseException as error:  # raised again below
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield answer
    finally:
        thread.join(60)
    if errors:
        raise errors[0]
