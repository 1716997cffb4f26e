"""Metric sums of the ranks to metrics, and reports of several steps to one."""

from collections.abc import Mapping, Sequence

import torch

from rlsys.algorithms.metric_sums import finish_sums
from rlsys.models.engine import StepReport
from rlsys.models.process_group import ProcessGroup


def finish_over_ranks(sums: Mapping[str, torch.Tensor | float], group: ProcessGroup) -> dict[str, float]:
    """Metrics of the union of all ranks' sums, the same on each. Collective; a rank may lack keys that others have."""
    everyone = group.gather({key: float(value) for key, value in sums.items()})
    keys = {key for part in everyone for key in part}
    return finish_sums({key: sum(part.get(key, 0.0) for part in everyone) for key in keys})


def mean_metrics(reports: Sequence[StepReport]) -> dict[str, float]:
    """The mean of each metric over the steps that have it, and `optim/skipped` as their number."""
    keys = {key for report in reports for key in report.metrics}
    columns = {key: [report.metrics[key] for report in reports if key in report.metrics] for key in keys}
    means = {key: sum(column) / len(column) for key, column in columns.items()}
    return means | {"optim/skipped": float(sum(report.fault is not None for report in reports))}
