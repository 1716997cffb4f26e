"""How many shards a rollout batch is dealt to."""

import pytest

from launch.rlvr_update import shards_for
from rlsys.recipe.algorithm import AlgorithmSettings
from rlsys.recipe.cluster import ClusterSettings


@pytest.mark.parametrize(
    ("algorithm", "num_shards"),
    [
        ({}, 60),
        ({"kl_in": "none"}, 20),
        ({"advantage": "grpo", "kl_in": "loss", "kl_estimator": "k3"}, 12),
        ({"advantage": "grpo", "kl_in": "none"}, 4),
    ],
)
def test_the_ranks_of_the_models_that_are_asked_divide_it(algorithm: dict, num_shards: int):
    cluster = ClusterSettings(learner_ranks=4, value_ranks=5, reference_ranks=6, colocate=())
    assert shards_for(cluster, AlgorithmSettings(**algorithm)) == num_shards
