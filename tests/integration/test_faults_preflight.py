"""A recipe that the cluster cannot hold is refused in seconds, naming the bundle and what would fit."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from tiny_recipe import tiny_recipe

from actors.cluster import reserve, uses_gpus
from actors.data_tasks import prepare_model
from launch.recipe import running
from rlsys.errors import PlacementError
from rlsys.recipe.data import DataSettings
from rlsys.scaling.placement import placement_plan

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def two_cpus() -> Iterator[None]:
    ray.init(address="local", include_dashboard=False, num_cpus=2, num_gpus=0, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_bundle_without_room_is_named_with_what_would_fit(two_cpus: None, tmp_path: Path):
    recipe = tiny_recipe(tmp_path, "cluster.oversubscribe_cpus=false", "cluster.cpus_per_rank=4.0")
    started = time.monotonic()
    with pytest.raises(PlacementError) as refused:
        reserve(placement_plan(recipe, use_gpus=False), timeout_s=60.0)
    assert time.monotonic() - started < 10
    assert "no room for learner[0] (learner, value, reference), which needs 12 CPUs" in str(refused.value)
    assert "1 node(s) have 2 CPUs and 0 GPUs in all; what would fit: " in str(refused.value)
    assert "lower cluster.cpus_per_*, or set cluster.oversubscribe_cpus=true" in refused.value.fix


def test_a_run_that_does_not_fit_is_refused_before_its_model_is_prepared(two_cpus: None, tmp_path: Path):
    recipe = tiny_recipe(tmp_path, "cluster.oversubscribe_cpus=false", "cluster.cpus_per_rank=4.0")
    with pytest.raises(PlacementError, match=r"no room for learner\[0\]"), running(recipe, tmp_path / "run"):
        pass
    assert not (tmp_path / "run" / "model").exists()


def test_data_is_read_on_a_cluster_that_the_actors_fill(two_cpus: None, tmp_path: Path):
    group = placement_group([{"CPU": 2.0}])
    assert group.wait(30)
    recipe = tiny_recipe(tmp_path)
    ref = prepare_model.remote(recipe.model, DataSettings(), str(tmp_path / "model"))
    assert ray.get(ref, timeout=120).folder == str(tmp_path / "model")
    remove_placement_group(group)


def test_gpus_that_are_not_there_are_refused(two_cpus: None, tmp_path: Path):
    with pytest.raises(PlacementError, match="the cluster has no GPU"):
        uses_gpus(tiny_recipe(tmp_path, 'cluster.device="gpu"').cluster)


def test_room_that_others_hold_is_an_error_at_the_deadline_and_nothing_stays_reserved(two_cpus: None, tmp_path: Path):
    others = placement_group([{"CPU": 2.0}])
    assert others.wait(30)
    earlier = set(placement_group_table())
    plan = placement_plan(tiny_recipe(tmp_path), use_gpus=False)
    started = time.monotonic()
    with pytest.raises(PlacementError, match=r"learner\[0\] found no room within 2 s .*other jobs hold it"):
        reserve(plan, timeout_s=2.0)
    assert time.monotonic() - started < 15
    table = placement_group_table()
    states = [table[key]["state"] for key in table.keys() - earlier]
    assert states == ["REMOVED"]
