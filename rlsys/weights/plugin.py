"""Makes rlsys' transfer engines known to vLLM, in every process that holds a part of an engine.

vLLM calls `register` itself, through the entry point group `vllm.general_plugins`, in engine cores and in the worker
processes of tensor parallelism; a process that builds an engine for itself calls it first.
"""

BACKENDS = {"gloo": "GlooReceiver", "nccl": "NcclReceiver", "ipc": "IpcReceiver"}
PREFIX = "rlsys-"
"""vLLM has engines named `nccl` and `ipc` of its own; ours wrap those."""


def register() -> None:
    """Registers `rlsys-gloo`, `rlsys-nccl` and `rlsys-ipc`. Calling it again does nothing."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for name, class_name in BACKENDS.items():
        if PREFIX + name not in WeightTransferEngineFactory._registry:
            module = "rlsys.weights.receiver" if name == "gloo" else "rlsys.weights.gpu_receivers"
            WeightTransferEngineFactory.register_engine(PREFIX + name, module, class_name)
