"""Bundles of recipes, and the preflight that says what does not fit."""

import pytest

from launch import dry_run
from launch.dry_run import describe
from rlsys.errors import PlacementError, RecipeError
from rlsys.recipe.load import load_recipe
from rlsys.scaling.placement import Bundle, check_fits, placement_plan, weight_transfer


def test_the_8b_recipe_fits_seven_learners_and_one_engine():
    plan = placement_plan(load_recipe("configs/tulu3/8b/rlvr.toml"), use_gpus=True)
    assert [bundle.name for bundle in plan.training] == [f"learner[{rank}]" for rank in range(7)]
    assert all(bundle.actors == ("learner", "value", "reference") for bundle in plan.training)
    assert plan.gpus_per_actor("value") == pytest.approx(1 / 3)
    assert plan.bundle_index("reference", 6) == 6
    assert sum(bundle.gpus for bundle in plan.bundles) == 8
    check_fits(plan.bundles, [{"CPU": 64.0, "GPU": 8.0}])


def test_one_gpu_holds_the_learner_and_an_engine_which_get_weights_by_ipc():
    recipe = load_recipe("configs/quickstart.toml", ['cluster.device="gpu"'])
    plan = placement_plan(recipe, use_gpus=True, one_gpu=True)
    assert [(bundle.name, bundle.gpus) for bundle in plan.bundles] == [
        ("learner[0]", 0.5), ("rollout[0]", 0.5), ("verifier[0]", 0.0)
    ]  # fmt: skip
    assert plan.gpus_per_actor("value") == pytest.approx(0.5 / 3)
    check_fits(plan.bundles, [{"CPU": 2.0, "GPU": 1.0}])
    assert weight_transfer(recipe, plan) == "ipc"
    apart = placement_plan(recipe, use_gpus=True)
    assert (sum(bundle.gpus for bundle in apart.bundles), weight_transfer(recipe, apart)) == (2.0, "nccl")
    assert weight_transfer(recipe, placement_plan(recipe, use_gpus=False)) == "gloo"
    for names in ("cluster.rollout_workers=2", "cluster.learner_ranks=2", 'cluster.colocate=["reference"]'):
        other = load_recipe("configs/quickstart.toml", ['cluster.device="gpu"', names])
        assert not placement_plan(other, use_gpus=True, one_gpu=True).shares_gpu


@pytest.mark.parametrize(("named", "one_gpu", "told"), [("ipc", False, "GPUs of their own"), ("nccl", True, "one GPU")])
def test_a_transfer_that_the_placement_cannot_have_is_refused(
    named: str, one_gpu: bool, told: str, monkeypatch: pytest.MonkeyPatch
):
    recipe = load_recipe("configs/quickstart.toml", ['cluster.device="gpu"', f'rollout.weight_transfer="{named}"'])
    with pytest.raises(RecipeError, match=f"learner and engines .*{told}.*{named}"):
        weight_transfer(recipe, placement_plan(recipe, use_gpus=True, one_gpu=one_gpu))
    # Of a cluster that is not looked at, a dry run knows no better than the recipe.
    assert f"from the learner to the engines over {named}" in describe(recipe)
    here = load_recipe("configs/quickstart.toml", [f'rollout.weight_transfer="{named}"'])
    monkeypatch.setattr(dry_run, "_gpus", lambda cluster: (1 if one_gpu else 8, ""))
    with pytest.raises(RecipeError, match=f"learner and engines .*{told}.*{named}"):
        describe(here)
    with pytest.raises(RecipeError, match=r"which is between GPUs, and cluster.device is cpu"):
        load_recipe("configs/quickstart.toml", ['cluster.device="cpu"', f'rollout.weight_transfer="{named}"'])


def test_groups_that_do_not_share_get_bundles_of_their_own():
    recipe = load_recipe("configs/tulu3/8b/rlvr.toml", ["cluster.colocate=['reference']", "cluster.value_ranks=2"])
    plan = placement_plan(recipe, use_gpus=True)
    assert [bundle.name for bundle in plan.training[-2:]] == ["value[0]", "value[1]"]
    assert plan.bundle_index("value", 1) == 8
    assert plan.gpus_per_actor("learner") == 0.5


def test_a_reward_model_shares_the_learners_gpus_or_has_its_own():
    model = "rlvr.reward_model.path='hf:allenai/Llama-3.1-Tulu-3-8B-RM'"
    everyone = 'cluster.colocate=["value", "reference", "reward"]'
    plan = placement_plan(load_recipe("configs/tulu3/8b/rlvr.toml", [model, everyone]), use_gpus=True)
    assert plan.training[0].actors == ("learner", "value", "reference", "reward")
    assert plan.training[1].actors == ("learner", "value", "reference")
    alone = load_recipe("configs/tulu3/8b/rlvr.toml", [model, "cluster.reward_ranks=2"])
    plan = placement_plan(alone, use_gpus=True)
    assert [bundle.name for bundle in plan.training[-2:]] == ["reward[0]", "reward[1]"]
    assert plan.bundle_index("reward", 1) == 8
    assert plan.gpus_per_actor("reward") == 1.0
    text = describe(alone)
    assert "reward[0-1]    1 CPU, 1 GPU each" in text
    assert "reward 10 x verified + 1 x the score of the reward model (hf:allenai/Llama-3.1-Tulu-3-8B-RM)" in text


@pytest.mark.parametrize(
    ("nodes", "named", "fits"),
    [
        ([{"CPU": 64.0, "GPU": 7.0}], "add GPUs", "7 of 7 learner, 0 of 1 rollout, 4 of 4 verifier"),
        ([{"CPU": 4.0, "GPU": 8.0}], "oversubscribe_cpus", "1 of 7 learner, 1 of 1 rollout, 0 of 4 verifier"),
        (
            [{"CPU": 6.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 7.0}, {"CPU": 40.0}],
            "no single node",
            "1 of 7 learner, 1 of 1 rollout, 4 of 4 verifier",
        ),
    ],
)
def test_preflight_names_the_bundle_the_fix_and_what_would_fit(nodes, named, fits):
    plan = placement_plan(load_recipe("configs/tulu3/8b/rlvr.toml"), use_gpus=True)
    with pytest.raises(PlacementError, match=r"no room for (learner|rollout|verifier)\[\d\]") as error:
        check_fits(plan.bundles, nodes)
    assert named in error.value.fix
    assert f"what would fit: {fits}" in error.value.problem


def test_bundles_go_where_they_leave_the_least():
    """The two-GPU bundle must not be crowded out by the small one placed before it."""
    bundles = [Bundle("small", ("learner",), 1, 1), Bundle("large", ("rollout",), 1, 2)]
    check_fits(bundles, [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 1.0}])
