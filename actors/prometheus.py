"""Metrics on the cluster's own Prometheus exporter, through `ray.util.metrics`."""

from collections.abc import Mapping

from ray.util.metrics import Gauge

from rlsys.telemetry.names import describe, prometheus_name
from rlsys.telemetry.tracker import Position


class PrometheusTracker:
    """Sets a gauge for each metric, by its name in Prometheus' alphabet, tagged with run and stage."""

    def __init__(self, *, run: str, stage: str) -> None:
        self._tags = {"run": run, "stage": stage}
        self._gauges: dict[str, Gauge] = {}

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Sets every gauge to the step's value."""
        for name, value in {"step": float(step), **metrics}.items():
            if name not in self._gauges:
                exported = "rlsys_step" if name == "step" else prometheus_name(name)
                self._gauges[name] = Gauge(exported, description=describe(name), tag_keys=("run", "stage"))
            self._gauges[name].set(value, tags=self._tags)

    def position(self) -> Position:
        """A gauge has no history."""
        return {}

    def restore(self, position: Position) -> None:
        """Nothing to take back."""

    def close(self) -> None:
        """Nothing to close: gauges keep their last value while the driver lives."""
