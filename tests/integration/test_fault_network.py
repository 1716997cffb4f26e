"""The network between two nodes is cut while RLVR runs over both: the run goes on with the node that it can reach.

The nodes are raylets in two network namespaces with a virtual cable between them; it needs root, as `make faults` says.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
from fault_lab import Faults, assert_whole, fault_context, train

from actors.learner import Learner

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.timeout(1200)]

RAY = str(Path(sys.executable).with_name("ray"))
NAMESPACE, HERE, THERE = "rlsys-far", "10.77.0.1", "10.77.0.2"
PORT = "46379"


def sh(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def far_node(tmp_path_factory) -> Iterator[None]:
    """A head node here and another one behind a cable, whose near end is called `rlsys-near`."""
    if os.geteuid() or sh("ip", "netns", "add", NAMESPACE).returncode:
        pytest.skip("no network namespace can be made here: it needs root and iproute2")
    try:
        for command in (
            f"ip link add rlsys-near type veth peer name rlsys-end netns {NAMESPACE}",
            f"ip addr add {HERE}/24 dev rlsys-near",
            "ip link set rlsys-near up",
            f"ip -n {NAMESPACE} addr add {THERE}/24 dev rlsys-end",
            f"ip -n {NAMESPACE} link set rlsys-end up",
            f"ip -n {NAMESPACE} link set lo up",
        ):
            done = sh(*command.split())
            assert done.returncode == 0, done.stderr
        common = ("--disable-usage-stats", "--object-store-memory=200000000")
        head = (RAY, "start", "--head", f"--node-ip-address={HERE}", f"--port={PORT}", "--include-dashboard=false")
        far = ("ip", "netns", "exec", NAMESPACE, RAY, "start", f"--address={HERE}:{PORT}", f"--node-ip-address={THERE}")
        for command in ((*head, "--num-cpus=7", *common), (*far, "--num-cpus=3", *common)):
            # As this process, which asks for a token from its first cluster of its own on, where the user has one. Left
            # to themselves a head would do so too, and a node that joins it would not look for one.
            environment = {"RAY_AUTH_MODE": "disabled"} | os.environ
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stdout + done.stderr
        yield
    finally:
        ray.shutdown()
        for process in psutil.process_iter(["cmdline"]):  # whose command names one of the two nodes, and no other
            words = " ".join(process.info["cmdline"] or [])
            if process.pid != os.getpid() and any(f"={node}" in words for node in (HERE, THERE)):
                process.kill()
        sh("ip", "link", "del", "rlsys-near")
        sh("ip", "netns", "del", NAMESPACE)


def test_a_cut_cable_costs_a_worker_and_not_the_run(far_node: None, tmp_path: Path, monkeypatch):
    """Room for one rollout worker on each node, everything else here."""
    overrides = (
        f'cluster.address="{HERE}:{PORT}"', "cluster.oversubscribe_cpus=false", "cluster.cpus_per_rollout_worker=2.5",
        "cluster.cpus_per_verifier_worker=0.5", "cluster.operation_timeout_s=240.0", "deterministic=false",
        "rlvr.max_staleness=1", "rlvr.batches=6", "rlvr.group_timeout_s=60.0",
    )  # fmt: skip
    faults = Faults()

    def cut(call: int) -> None:
        if call == 2:
            assert sh("ip", "link", "set", "rlsys-near", "down").returncode == 0
            faults.injected.append("the cable")

    with fault_context(tmp_path, *overrides) as context:
        nodes = {
            ray.get(worker.__ray_call__.remote(lambda _: ray.util.get_node_ip_address()), timeout=120)
            for worker in context.crew.workers
        }
        assert nodes == {HERE, THERE}
        faults.around(monkeypatch, Learner, "train_policy", after=cut)
        run = train(context, "cut")
        assert faults.injected == ["the cable"]
        assert_whole(run)
        assert run.rows[0]["perf/rollout_workers"] == 2
        assert run.rows[-1]["perf/rollout_workers"] == 1
        assert run.rows[-1]["perf/rollbacks"] == 0
