"""How much memory this process has used."""

import resource

import torch


def peak_memory_bytes(device: torch.device) -> int:
    """Most GPU memory allocated so far; on CPU the most resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
