"""Weights out of a partitioned model, a bucket at a time: to the engines, and to a Hugging Face folder.

No rank ever holds more than one bucket of gathered weights.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlsys.models.engine import TrainEngine
from rlsys.models.loading import ScalarModel, is_partitioned, whole
from rlsys.models.token_logprobs import TokenLogprobModel

NamedTensor = tuple[str, Tensor]


def weight_names(engine: TrainEngine) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Checkpoint name, type and whole shape of what `weight_buckets` yields, in its order. Not collective."""
    return [(name, parameter.dtype, _shape(parameter)) for name, parameter in _named_parameters(engine)]


def weight_buckets(engine: TrainEngine, cap_bytes: int) -> Iterator[list[NamedTensor]]:
    """Every weight in checkpoint format, gathered from the ranks bucket by bucket. Collective: exhaust it on all ranks.

    Args:
        engine: of the model.
        cap_bytes: of the weights gathered at a time; a single larger weight makes a bucket of its own.

    Yields:
        On rank 0 named tensors, valid until the next bucket is asked for; on other ranks empty lists, as often.
        Tied weights come once, under the name that a checkpoint has.
    """
    for bucket in _buckets(_named_parameters(engine), cap_bytes):
        with torch.no_grad(), whole([parameter for _, parameter in bucket]):
            yield [(name, parameter.detach()) for name, parameter in bucket] if engine.group.rank == 0 else []


def export_hf(
    engine: TrainEngine, folder: str | Path, tokenizer: PreTrainedTokenizerBase, *, max_shard_bytes: int = 2 << 30
) -> None:
    """Write the folder that `from_pretrained` and `vllm serve` open. Collective; rank 0 writes.

    Args:
        engine: of the model.
        folder: made if need be.
        tokenizer: saved beside the weights with its chat template.
        max_shard_bytes: of one safetensors file, which is what rank 0 holds at a time.
    """
    folder = Path(folder)
    model = hf_model(engine)
    shards = list(_buckets(_named_parameters(engine), max_shard_bytes))
    weight_map: dict[str, str] = {}
    total = 0
    if engine.group.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
    for index, (shard, tensors) in enumerate(zip(shards, weight_buckets(engine, max_shard_bytes), strict=True)):
        file = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        weight_map |= {name: file for name, _ in shard}
        total += sum(_num_bytes(parameter) for _, parameter in shard)
        if engine.group.rank == 0:
            on_cpu = {name: tensor.to("cpu").contiguous() for name, tensor in tensors}
            save_file(on_cpu, folder / file, metadata={"format": "pt"})
    if engine.group.rank == 0:
        if len(shards) > 1:
            index_file = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index_file, indent=2) + "\n")
        _save_configuration(model, folder, tokenizer)
    engine.group.barrier()


def hf_model(engine: TrainEngine) -> PreTrainedModel:
    """The transformers model inside the engine's module."""
    module = engine.module
    if isinstance(module, ScalarModel):
        return module.model
    assert isinstance(module, TokenLogprobModel)
    assert isinstance(module.causal_lm, PreTrainedModel)
    return module.causal_lm


def _save_configuration(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = model.config
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        generation = model.generation_config
        assert generation is not None
        if generation.eos_token_id is None:
            generation.eos_token_id = tokenizer.eos_token_id
        if generation.pad_token_id is None:
            generation.pad_token_id = tokenizer.pad_token_id
        generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _named_parameters(engine: TrainEngine) -> list[tuple[str, nn.Parameter]]:
    """Checkpoint names; a tied parameter once, under its first name, which is its input embedding's."""
    return list(hf_model(engine).named_parameters())


def _buckets(
    parameters: Sequence[tuple[str, nn.Parameter]], cap_bytes: int
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    bucket: list[tuple[str, nn.Parameter]] = []
    held = 0
    for name, parameter in parameters:
        size = _num_bytes(parameter)
        if bucket and held + size > cap_bytes:
            yield bucket
            bucket, held = [], 0
        bucket.append((name, parameter))
        held += size
    if bucket:
        yield bucket


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    shape = parameter.ds_shape if is_partitioned(parameter) else parameter.shape  # pyright: ignore
    return tuple(shape)


def _num_bytes(parameter: nn.Parameter) -> int:
    numel = parameter.ds_numel if is_partitioned(parameter) else parameter.numel()  # pyright: ignore
    return numel * parameter.element_size()
