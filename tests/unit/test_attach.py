"""Where Ray does not come up, one sentence says so, and what to do."""

import pytest
import ray

from actors.cluster import attach
from rlsys.errors import RlsysError
from rlsys.recipe.cluster import ClusterSettings


@pytest.mark.parametrize(
    ("address", "error", "fix"),
    [
        # what Ray raises where its own raylet was not up in 30 s, as on a machine with too much to do
        (
            "local",
            Exception("The current node timed out during startup."),
            "run it again when the machine is less busy",
        ),
        ("auto", ConnectionError("Could not find any running Ray instance."), "start one with `ray start --head`"),
    ],
)
def test_a_cluster_that_is_not_there_is_one_error(address: str, error: Exception, fix: str, monkeypatch):
    def init(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(RlsysError, match=rf"no Ray cluster could be reached: {error}; got '{address}'; {fix}"):
        attach(ClusterSettings(address=address))
