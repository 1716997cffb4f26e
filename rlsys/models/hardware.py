"""What a rank's device has used, and what it could do."""

import resource

import torch

PEAK_BFLOAT16 = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""FLOP/s of dense bfloat16 matrix products by part of the name: vendors' data sheets, SXM where forms differ."""


def peak_memory_bytes(device: torch.device) -> int:
    """Most GPU memory allocated so far; on CPU the most resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of `PEAK_BFLOAT16`; None for a device that is not in it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_BFLOAT16.items() if part in name), None)


def model_flop_utilisation(num_parameters: int, num_tokens: int, *, seconds: float, peak: float) -> float:
    """Share of the peak that training reached: 6 FLOPs a parameter and token (arXiv 2204.02311, appendix B, without
    attention's own).

    Args:
        num_parameters: of the whole model.
        num_tokens: positions of all ranks.
        seconds: in which they were trained on.
        peak: FLOP/s of all ranks together.

    >>> round(model_flop_utilisation(8_000_000_000, 100_000, seconds=2.0, peak=7 * 989e12), 3)
    0.347
    """
    return 6 * num_parameters * num_tokens / (seconds * peak)
