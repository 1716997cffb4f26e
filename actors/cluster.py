"""Attaching to Ray, checking that a recipe fits, and reserving its bundles."""

import logging
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from rlsys.errors import ActorError, PlacementError, RlsysError
from rlsys.recipe.cluster import ClusterSettings
from rlsys.scaling.placement import Bundle, PlacementPlan, check_fits

NAMESPACE = "rlsys"


def attach(settings: ClusterSettings) -> bool:
    """Connects this process to the recipe's cluster, or starts one here.

    A process that is attached already (an interactive session, a job) stays where it is.

    Returns:
        Whether a cluster was started, so that the caller ends it.

    Raises:
        RlsysError: there is no cluster at the address.
    """
    if ray.is_initialized():
        return False
    try:
        ray.init(
            address=settings.address,
            namespace=NAMESPACE,
            include_dashboard=False if settings.address == "local" else None,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:  # a plain one where a node of Ray's own was not up in 30 s
        fix = "start one with `ray start --head`, or set cluster.address=local"
        if settings.address == "local":
            fix = "run it again when the machine is less busy; what failed is in session_latest/logs of Ray's folder"
        raise RlsysError(f"no Ray cluster could be reached: {error}", value=settings.address, fix=fix) from error
    return settings.address == "local"


def link_logs(folder: Path) -> None:
    """Makes `logs/ray` of a run folder point to the actors' logs, where they are on this machine."""
    link = folder / "logs" / "ray"
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())  # pyright: ignore
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(logs)


def uses_gpus(settings: ClusterSettings) -> bool:
    """Whether training runs on GPUs: as the recipe says, or where the cluster has any."""
    has_gpus = num_gpus() > 0
    if settings.device == "gpu" and not has_gpus:
        raise PlacementError(
            "cluster.device is gpu and the cluster has no GPU", fix="set cluster.device to cpu or auto"
        )
    return has_gpus if settings.device == "auto" else settings.device == "gpu"


def num_gpus() -> float:
    """Of the whole cluster."""
    return ray.cluster_resources().get("GPU", 0.0)


def node_resources() -> list[Mapping[str, float]]:
    """Total resources of every living node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def require_node() -> None:
    """Call it in a wait for actors to start, which no cluster without a node ends.

    Raises:
        ActorError: every node is gone; a driver outlives the raylet beside it.
    """
    if ray.is_initialized() and not node_resources():
        raise ActorError("no node of the cluster is left", fix="start it again; the same command then goes on")


def reserve(plan: PlacementPlan, *, timeout_s: float) -> tuple[PlacementGroup | None, list[PlacementGroup]]:
    """Reserves one group for all training bundles, and one for every rollout worker, so that workers can come and go.

    Raises:
        PlacementError: the nodes cannot hold the plan, or not before the deadline: others hold what it needs.
    """
    check_fits(plan.bundles, node_resources())
    made: list[PlacementGroup] = []
    training = None
    try:
        if plan.training:
            training = _group(plan.training, timeout_s)
            made.append(training)
        rollout = []
        for bundle in plan.rollout:
            rollout.append(_group((bundle,), timeout_s))
            made.append(rollout[-1])
    except PlacementError:
        for group in made:
            remove_placement_group(group)
        raise
    return training, rollout


def _group(bundles: tuple[Bundle, ...], timeout_s: float) -> PlacementGroup:
    group = placement_group([bundle.resources for bundle in bundles], strategy="PACK")
    if not group.wait(timeout_s):
        remove_placement_group(group)
        names = ", ".join(bundle.name for bundle in bundles)
        raise PlacementError(
            f"{names} found no room within {timeout_s:g} s although the cluster is large enough: other jobs hold it",
            value=ray.available_resources(),
            fix="wait for them, or raise cluster.start_timeout_s",
        )
    return group
