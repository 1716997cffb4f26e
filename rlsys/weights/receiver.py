"""The engine's end of a publication: a weight-transfer engine of vLLM that says what arrived and what was loaded.

vLLM calls `init_transfer_engine`, then for each publication `start_weight_update`, `update_weights` and
`finish_weight_update`, in each worker process. A fault in what arrived (wrong shape, unknown name, a parameter that
nothing was sent for) is written in the receipt and the rest is still received, so that the group stays usable; only a
lost or slow sender raises.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch._C._distributed_c10d import ProcessGroupGloo
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rlsys.errors import WeightTransferError
from rlsys.weights.channel import BucketHeader, HeaderStore, broadcast, first_line, gloo_group, header_from_json, unpack
from rlsys.weights.digest import digest_tensor
from rlsys.weights.records import DigestName, Receipt, Rendezvous, TensorDigest

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.weight_transfer import WeightTransferConfig

WITHOUT_WEIGHTS = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
"""Endings of checkpoint names that engines compute for themselves: sent or not, they need no parameter."""


@dataclass
class GroupInfo(WeightTransferInitInfo):
    """How a worker joins a group."""

    host: str
    port: int
    world_size: int
    deadline_s: float
    rank_offset: int
    """The group rank of the engine's first worker."""
    digest: DigestName = "fold64"

    @property
    def rendezvous(self) -> Rendezvous:
        return Rendezvous(self.host, self.port, self.world_size, self.deadline_s)


@dataclass
class TransferInfo(WeightTransferUpdateInfo):
    """Which transfer of the group is to be received."""

    transfer: int


class BucketReceiver(WeightTransferEngine[GroupInfo, TransferInfo]):
    """What all backends share: headers, digests, layerwise loading and the receipt."""

    init_info_cls = GroupInfo
    update_info_cls = TransferInfo

    def __init__(
        self,
        config: "WeightTransferConfig",
        vllm_config: "VllmConfig",
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._headers: HeaderStore | None = None
        self._digest: DigestName = "fold64"
        self._tensors: list[TensorDigest] = []
        self._problems: list[str] = []

    @abstractmethod
    def join(self, info: GroupInfo, *, rank: int, headers: HeaderStore) -> None:
        """Joins the group that carries the bytes; returns when all ranks are there."""

    @abstractmethod
    def receive(self, header: BucketHeader, fields: dict) -> list[tuple[str, torch.Tensor]]:
        """The tensors of the bucket that was announced, on the engine's device."""

    @property
    def receipt(self) -> Receipt:
        """What happened since `start_weight_update`."""
        return Receipt(tuple(self._tensors), tuple(self._problems))

    def init_transfer_engine(self, init_info: GroupInfo) -> None:
        """Joins a group, leaving the one before.

        Raises:
            WeightTransferError: not every rank came before the deadline.
        """
        self.shutdown()
        self._digest = init_info.digest
        self._headers = HeaderStore(init_info.rendezvous, is_sender=False)
        parallel = self.parallel_config
        rank = init_info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.join(init_info, rank=rank, headers=self._headers)

    def start_weight_update(self) -> None:
        """Opens every layer for loading. What a transfer that failed has left behind is dropped first."""
        self._tensors, self._problems = [], []
        self._drop_unfinished()
        initialize_layerwise_reload(self.model)

    def update_weights(self, update_info: dict) -> None:
        """As the base class, which would synchronize an accelerator that a CPU engine does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: TransferInfo) -> None:
        """Receives and loads every bucket of a transfer.

        Raises:
            WeightTransferError: the sender died, was too slow, or gave up.
        """
        if self._headers is None:
            raise WeightTransferError("weights were announced to an engine that has joined no group")
        index = 0
        while (fields := self._headers.get(update_info.transfer, index)) is not None:
            if "error" in fields:
                raise WeightTransferError(f"the sender gave up at bucket {index}: {fields['error']}")
            header = header_from_json(fields)
            for name, tensor in self.receive(header, fields):
                self._load(name, tensor)
            index += 1

    def finish_weight_update(self) -> None:
        """Checks that every parameter was loaded and puts the layers back in use."""
        self._problems += [f"no weights arrived for {name}" for name in self._unloaded()]
        finalize_layerwise_reload(self.model, self.model_config)
        self._retie_head()

    def shutdown(self) -> None:
        """Leaves the group."""
        self._headers = None

    def _load(self, name: str, tensor: torch.Tensor) -> None:
        self._tensors.append(digest_tensor(name, tensor, kind=self._digest))
        try:
            loaded = self.model.load_weights([(name, tensor)])  # pyright: ignore[reportCallIssue]
        except Exception as error:  # any of vLLM's loaders; counted in the receipt, which fails the publication
            why = first_line(error)[:200]
            self._problems.append(f"tensor {name} of shape {tuple(tensor.shape)} was refused: {why}")
            return
        if loaded is not None and not loaded and not self._needs_no_parameter(name):
            self._problems.append(f"tensor {name} arrived and the model has no place for it")

    def _needs_no_parameter(self, name: str) -> bool:
        return name.endswith(WITHOUT_WEIGHTS) or (self._tied and name.startswith("lm_head."))

    @property
    def _tied(self) -> bool:
        return bool(self.model_config.hf_text_config.tie_word_embeddings)

    def _unloaded(self) -> list[str]:
        """Layers that were opened for loading and did not get all of their elements."""
        missing = []
        for name, layer in self.model.named_modules():
            info = get_layerwise_info(layer)
            if not info.can_load() or is_deferred_attention_layer(layer):
                continue
            if isinstance(layer, ParallelLMHead) and self._tied:
                continue
            expected = sum(_loadable_elements(layer, key, p) for key, p in layer._parameters.items() if p is not None)
            if info.load_numel < expected:
                missing.append(f"{name} ({info.load_numel} of {expected} elements)")
        return missing

    def _drop_unfinished(self) -> None:
        unfinished = False
        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            if info.can_load():
                info.loaded_weights.clear()
                info.load_numel = 0
                unfinished = True
        if unfinished:
            finalize_layerwise_reload(self.model, self.model_config)

    def _retie_head(self) -> None:
        """Gives a tied head the new embedding: layerwise loading leaves it the packed copy of the old one on CPU."""
        if not self._tied:
            return
        modules = list(self.model.modules())
        heads = [module for module in modules if isinstance(module, ParallelLMHead)]
        embeddings = [
            module
            for module in modules
            if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead)
        ]
        for head in heads:
            head.tie_weights(embeddings[0])
            head.quant_method.process_weights_after_loading(head)


def _loadable_elements(layer: torch.nn.Module, key: str, parameter: torch.Tensor) -> int:
    """Elements of a parameter that a checkpoint fills; the rows that pad a vocabulary are none of them."""
    if isinstance(layer, VocabParallelEmbedding):
        rows = layer.shard_indices.num_org_elements
        return rows * (parameter.numel() // parameter.shape[0])
    return parameter.numel()


class GlooReceiver(BucketReceiver):
    """For engines on CPU."""

    _group: ProcessGroupGloo | None = None
    _deadline_s = 0.0

    def join(self, info: GroupInfo, *, rank: int, headers: HeaderStore) -> None:
        self._deadline_s = info.deadline_s
        self._group = gloo_group(headers.store, rank=rank, rendezvous=info.rendezvous)

    def receive(self, header: BucketHeader, fields: dict) -> list[tuple[str, torch.Tensor]]:
        assert self._group is not None
        buffer = torch.empty(sum(header.sizes), dtype=torch.uint8)
        broadcast(self._group, buffer, deadline_s=self._deadline_s)
        return [(name, tensor.to(self.device)) for name, tensor in unpack(header, buffer)]

    def shutdown(self) -> None:
        self._group = None
        super().shutdown()
