"""A node is lost with groups on it that were finished: the run goes back, and goes on with the node that is left."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from fault_lab import Faults, assert_whole, fault_context, train
from ray.cluster_utils import Cluster

from launch.rlvr_recovery import LOST_GROUPS
from rlsys.rollouts.experience_buffer import ExperienceBuffer
from rlsys.types import GroupSummary

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(600)]

ROOM = {"rollout": 3, "verifier": 2, "ranks": 3}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Room for a rollout worker and a verifier worker on each of two nodes, and for the ranks on the first.

    Results stay in the object store of the node that made them, as those of long responses do; small ones travel in the
    answer to a call.
    """
    head = {"num_cpus": sum(ROOM.values()), "_system_config": {"max_direct_call_object_size": 1}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=ROOM["rollout"] + ROOM["verifier"])
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_groups_that_are_lost_with_their_node_take_the_run_back(cluster: Cluster, tmp_path, monkeypatch):
    (far,) = cluster.worker_nodes
    overrides = (
        f'cluster.address="{cluster.address}"', "cluster.oversubscribe_cpus=false", "cluster.verifier_workers=2",
        f"cluster.cpus_per_rollout_worker={ROOM['rollout']}", f"cluster.cpus_per_verifier_worker={ROOM['verifier']}",
        "deterministic=false", "rlvr.max_staleness=1", "rlvr.batches=6", "rlvr.group_timeout_s=60.0",
    )  # fmt: skip
    faults, put = Faults(), ExperienceBuffer.put

    def put_and_lose(buffer: ExperienceBuffer[Any], summary: GroupSummary, reference: Any) -> None:
        put(buffer, summary, reference)
        if not faults.injected and summary.ordinal >= 4 * 8:  # of the fifth batch: after a checkpoint
            held_by = ray.experimental.get_object_locations([reference.chunk])[reference.chunk]["node_ids"]
            if held_by == [far.node_id]:
                cluster.remove_node(far, allow_graceful=False)
                faults.injected.append("the node")

    monkeypatch.setattr(ExperienceBuffer, "put", put_and_lose)
    with fault_context(tmp_path, *overrides) as context:
        run = train(context, "lost")
        assert faults.injected == ["the node"]
        assert_whole(run)
        assert context.crew.restarts.counts[LOST_GROUPS] == run.rows[-1]["perf/rollbacks"] == 1
        assert [run.rows[place]["perf/rollout_workers"] for place in (0, -1)] == [2, 1]
