"""Bundles of recipes, and the preflight that says what does not fit."""

import pytest

from rlsys.errors import PlacementError
from rlsys.recipe.load import load_recipe
from rlsys.scaling.placement import Bundle, check_fits, placement_plan


def test_the_8b_recipe_fits_seven_learners_and_one_engine():
    plan = placement_plan(load_recipe("configs/tulu3/8b/rlvr.toml"), use_gpus=True)
    assert [bundle.name for bundle in plan.training] == [f"learner[{rank}]" for rank in range(7)]
    assert all(bundle.actors == ("learner", "value", "reference") for bundle in plan.training)
    assert plan.gpus_per_actor("value") == pytest.approx(1 / 3)
    assert plan.bundle_index("reference", 6) == 6
    assert sum(bundle.gpus for bundle in plan.bundles) == 8
    check_fits(plan.bundles, [{"CPU": 64.0, "GPU": 8.0}])


def test_groups_that_do_not_share_get_bundles_of_their_own():
    recipe = load_recipe("configs/tulu3/8b/rlvr.toml", ["cluster.colocate=['reference']", "cluster.value_ranks=2"])
    plan = placement_plan(recipe, use_gpus=True)
    assert [bundle.name for bundle in plan.training[-2:]] == ["value[0]", "value[1]"]
    assert plan.bundle_index("value", 1) == 8
    assert plan.gpus_per_actor("learner") == 0.5


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        ([{"CPU": 64.0, "GPU": 7.0}], "add GPUs"),
        ([{"CPU": 4.0, "GPU": 8.0}], "oversubscribe_cpus"),
        ([{"CPU": 6.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 7.0}, {"CPU": 40.0}], "no single node"),
    ],
)
def test_preflight_names_the_bundle_and_the_fix(nodes, named):
    plan = placement_plan(load_recipe("configs/tulu3/8b/rlvr.toml"), use_gpus=True)
    with pytest.raises(PlacementError, match=r"no room for (learner|rollout|verifier)\[\d\]") as error:
        check_fits(plan.bundles, nodes)
    assert named in error.value.fix


def test_bundles_go_where_they_leave_the_least():
    """The two-GPU bundle must not be crowded out by the small one placed before it."""
    bundles = [Bundle("small", ("learner",), 1, 1), Bundle("large", ("rollout",), 1, 2)]
    check_fits(bundles, [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}])
