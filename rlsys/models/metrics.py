"""Metric sums of the ranks to metrics."""

from collections.abc import Mapping

import torch

from rlsys.algorithms.metric_sums import finish_sums
from rlsys.models.process_group import ProcessGroup


def finish_over_ranks(sums: Mapping[str, torch.Tensor | float], group: ProcessGroup) -> dict[str, float]:
    """Metrics of the union of all ranks' sums, the same on each. Collective; a rank may lack keys that others have."""
    everyone = group.gather({key: float(value) for key, value in sums.items()})
    keys = {key for part in everyone for key in part}
    return finish_sums({key: sum(part.get(key, 0.0) for part in everyone) for key in keys})
