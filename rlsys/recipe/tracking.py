"""`[tracking]`: where metrics go besides metrics.jsonl, which is always written."""

from typing import Literal

from rlsys.recipe.section import Section


class TrackingSettings(Section):
    """Weights & Biases and Prometheus; both carry the names of metrics.jsonl."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """`auto` is online when somebody is logged in and offline otherwise."""
    wandb_project: str = "rlsys"
    """Where its run appears."""
    prometheus: bool = True
    """Through `ray.util.metrics`, on the cluster's own exporter."""
    console: bool = True
    """One live line a step."""
