"""Weights out of a partitioned model, a bucket at a time: to the engines, and to a Hugging Face folder.

No rank ever holds more than one bucket of gathered weights. Adapters are merged into their layers on the way.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlsys.checkpoint.durable_file import sync
from rlsys.errors import CheckpointError
from rlsys.models.engine import TrainEngine
from rlsys.models.loading import ScalarModel, is_partitioned, whole, whole_size
from rlsys.models.lora import adapted_layer, adapter_parameters, is_adapter, merged
from rlsys.models.token_logprobs import TokenLogprobModel

NamedTensor = tuple[str, Tensor]


@dataclass(frozen=True, slots=True)
class Weight:
    """One tensor of a checkpoint and where it comes from."""

    name: str
    parameter: nn.Parameter
    adapted: nn.Module | None = None
    """The layer whose adapters are to be merged into it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor, however it is partitioned."""
        parameter = self.parameter
        return tuple(parameter.ds_shape if is_partitioned(parameter) else parameter.shape)  # pyright: ignore

    @property
    def num_bytes(self) -> int:
        """Of the whole tensor."""
        return whole_size(self.parameter) * self.parameter.element_size()

    @property
    def sources(self) -> list[nn.Parameter]:
        """What must be gathered for `tensor`."""
        return [self.parameter, *([] if self.adapted is None else adapter_parameters(self.adapted))]

    @property
    def tensor(self) -> Tensor:
        """The whole tensor; its sources must be gathered."""
        return self.parameter.detach() if self.adapted is None else merged(self.parameter.detach(), self.adapted)


def weights_of(engine: TrainEngine) -> list[Weight]:
    """Every weight of a checkpoint, in the order of `weight_buckets`; not collective.

    A tied parameter comes once, under its first name, which is its input embedding's.
    """
    model = hf_model(engine)
    weights = []
    for name, parameter in model.named_parameters():
        if not is_adapter(name):
            checkpoint_name, layer = adapted_layer(model, name)
            weights.append(Weight(checkpoint_name, parameter, layer))
    return weights


def weight_buckets(engine: TrainEngine, cap_bytes: int) -> Iterator[list[NamedTensor]]:
    """Every weight in checkpoint format, gathered from the ranks bucket by bucket. Collective: exhaust it on all ranks.

    Args:
        engine: of the model.
        cap_bytes: of the weights gathered at a time; a single larger weight makes a bucket of its own.

    Yields:
        On rank 0 named tensors, valid until the next bucket is asked for; on other ranks empty lists, as often.
    """
    for bucket in _buckets(weights_of(engine), cap_bytes):
        with torch.no_grad(), whole([parameter for weight in bucket for parameter in weight.sources]):
            yield [(weight.name, weight.tensor) for weight in bucket] if engine.group.rank == 0 else []


def export_hf(
    engine: TrainEngine, folder: str | Path, tokenizer: PreTrainedTokenizerBase, *, max_shard_bytes: int = 2 << 30
) -> None:
    """Write the folder that `from_pretrained` and `vllm serve` open. Collective; rank 0 writes.

    Args:
        engine: of the model.
        folder: made if need be.
        tokenizer: saved beside the weights with its chat template.
        max_shard_bytes: of one safetensors file, which is what rank 0 holds at a time.

    Raises:
        CheckpointError: it cannot be written, the disk is full, say. On every rank, after all gathers.
    """
    folder = Path(folder)
    shards = list(_buckets(weights_of(engine), max_shard_bytes))
    files = [f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" for index in range(len(shards))]
    files = files if len(files) > 1 else ["model.safetensors"]
    problems: list[Exception] = []

    def write(work: Callable[[], None]) -> None:
        """On rank 0, unless something failed before: a rank that stops alone leaves the others in their gathers."""
        if engine.group.rank == 0 and not problems:
            try:
                work()
            except Exception as error:  # raised again below, by every rank
                problems.append(error)

    write(lambda: folder.mkdir(parents=True, exist_ok=True))
    for file, tensors in zip(files, weight_buckets(engine, max_shard_bytes), strict=True):
        write(partial(_save_shard, folder / file, tensors))
    if len(shards) > 1:
        write(partial(_save_index, folder, dict(zip(files, shards, strict=True))))
    write(partial(_save_configuration, hf_model(engine), folder, tokenizer))
    write(partial(_sync, folder))
    if problem := engine.group.gather(str(problems[0]) if problems else "")[0]:
        raise CheckpointError(
            f"the model's folder cannot be written: {problem}",
            value=str(folder),
            fix="make room, or move the runs to another disk",
        )


def hf_model(engine: TrainEngine) -> PreTrainedModel:
    """The transformers model inside the engine's module."""
    module = engine.module
    if isinstance(module, ScalarModel):
        return module.model
    assert isinstance(module, TokenLogprobModel)
    assert isinstance(module.causal_lm, PreTrainedModel)
    return module.causal_lm


def _save_shard(path: Path, tensors: Sequence[NamedTensor]) -> None:
    on_cpu = {name: tensor.to("cpu").contiguous() for name, tensor in tensors}
    save_file(on_cpu, path, metadata={"format": "pt"})


def _save_index(folder: Path, shards: Mapping[str, Sequence[Weight]]) -> None:
    weight_map = {weight.name: file for file, shard in shards.items() for weight in shard}
    total = sum(weight.num_bytes for shard in shards.values() for weight in shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        sync(file)
    sync(folder)


def _save_configuration(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        generation = model.generation_config
        assert generation is not None
        generation.eos_token_id = _end_tokens(generation.eos_token_id, cast(int | None, tokenizer.eos_token_id))
        if generation.pad_token_id is None:
            generation.pad_token_id = tokenizer.pad_token_id
        generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _end_tokens(of_model: int | list[int] | None, of_tokenizer: int | None) -> int | list[int] | None:
    """The model's own, and the tokenizer's, which is what training taught the model to end with."""
    known = [of_model] if isinstance(of_model, int) else list(of_model or ())
    if of_tokenizer is not None and of_tokenizer not in known:
        known.append(of_tokenizer)
    return known[0] if len(known) == 1 else known or None


def _buckets(weights: Sequence[Weight], cap_bytes: int) -> Iterator[list[Weight]]:
    bucket: list[Weight] = []
    held = 0
    for weight in weights:
        if bucket and held + weight.num_bytes > cap_bytes:
            yield bucket
            bucket, held = [], 0
        bucket.append(weight)
        held += weight.num_bytes
    if bucket:
        yield bucket
