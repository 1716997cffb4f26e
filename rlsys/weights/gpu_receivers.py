"""The engine's end between GPUs (NCCL) and on one GPU (CUDA IPC): vLLM's own engines carry the bytes of each bucket."""

from typing import TYPE_CHECKING

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.ipc_engine import (
    IPCWeightTransferEngine,
    IPCWeightTransferInitInfo,
    IPCWeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from rlsys.weights.channel import BucketHeader, HeaderStore
from rlsys.weights.gpu_transports import NCCL_PORT, copied_key, within
from rlsys.weights.ipc_handle import from_json
from rlsys.weights.receiver import BucketReceiver, GroupInfo

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.config.weight_transfer import WeightTransferConfig


class Collector(torch.nn.Module):
    """Stands where vLLM's engines expect the model, and keeps the tensors that they would have loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[tuple[str, torch.Tensor]] = []

    def load_weights(self, weights: list[tuple[str, torch.Tensor]]) -> None:
        self.tensors += weights

    def take(self) -> list[tuple[str, torch.Tensor]]:
        """What came since the last call."""
        tensors, self.tensors = self.tensors, []
        return tensors


class UpstreamReceiver(BucketReceiver):
    """Receives through one of vLLM's own engines."""

    upstream_class: type[WeightTransferEngine]

    def __init__(
        self,
        config: "WeightTransferConfig",
        vllm_config: "VllmConfig",
        device: torch.device,
        model: torch.nn.Module,
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._collector = Collector()
        self._upstream = self.upstream_class(config, vllm_config, device, self._collector)

    def shutdown(self) -> None:
        self._upstream.shutdown()
        super().shutdown()


class NcclReceiver(UpstreamReceiver):
    """For engines on GPUs of their own."""

    upstream_class = NCCLWeightTransferEngine
    _deadline_s = 0.0

    def join(self, info: GroupInfo, *, rank: int, headers: HeaderStore) -> None:
        self._deadline_s = info.deadline_s
        meeting = NCCLWeightTransferInitInfo(
            master_address=info.host,
            master_port=headers.get_value(NCCL_PORT),
            rank_offset=info.rank_offset,
            world_size=info.world_size,
            # A bucket is one broadcast: our sender cuts the stream, not vLLM's packing.
            packed=True,
            packed_buffer_size_bytes=1 << 62,
            packed_num_buffers=1,
        )
        within(
            info.deadline_s,
            lambda: self._upstream.init_transfer_engine(meeting),
            what="joining the NCCL group",
        )

    def receive(self, header: BucketHeader, fields: dict) -> list[tuple[str, torch.Tensor]]:
        announced = NCCLWeightTransferUpdateInfo(
            list(header.names), list(header.dtypes), list(map(list, header.shapes))
        )
        # vLLM receives on a stream of its own and waits for it, so the bucket is whole when it comes back. But it may
        # reuse the memory of the one before, which this stream can still be loading from: an allocation waits only for
        # the stream that it was made on.
        torch.cuda.current_stream().synchronize()
        within(
            self._deadline_s,
            lambda: self._upstream.receive_weights(announced),
            what="receiving a bucket",
            abort=self._upstream.shutdown,
        )
        return self._collector.take()


class IpcReceiver(UpstreamReceiver):
    """For engines on the learner's GPU."""

    upstream_class = IPCWeightTransferEngine
    _rank = 0

    def join(self, info: GroupInfo, *, rank: int, headers: HeaderStore) -> None:
        self._rank = rank
        self._upstream.init_transfer_engine(IPCWeightTransferInitInfo(packed=True))

    def receive(self, header: BucketHeader, fields: dict) -> list[tuple[str, torch.Tensor]]:
        assert self._headers is not None
        announced = IPCWeightTransferUpdateInfo(
            names=list(header.names),
            dtype_names=list(header.dtypes),
            shapes=[list(shape) for shape in header.shapes],
            ipc_handles={gpu: from_json(handle) for gpu, handle in fields["ipc"].items()},
            tensor_sizes=header.sizes,
        )
        self._upstream.receive_weights(announced)
        torch.cuda.current_stream().synchronize()
        self._headers.put_value(copied_key(fields["number"], self._rank), True)
        return self._collector.take()

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        # All that this does upstream is to let go of the last bucket's memory, which the learner has back only then.
        self._upstream.shutdown()
