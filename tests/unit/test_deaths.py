"""What becomes of Ray's errors."""

import pytest
from fake_ray import died, failed
from ray import exceptions

from actors.deaths import told
from rlsys.errors import ActorError, TrainingError


def test_what_an_actor_raised_on_purpose_is_told_as_it_is():
    cause = TrainingError("the loss is not finite", value=7)
    assert told(failed(cause), "learner[0]") is cause


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (failed(KeyError("x")), r"^learner\[0\] failed: KeyError\('x'\); see its log$"),
        (failed(died()), r"^learner\[0\] failed: ActorDiedError"),  # it asked another actor, which died
        (died(), r"^learner\[0\] died: .*; see its log$"),
        (exceptions.OutOfMemoryError("95% used"), r"^learner\[0\] died: .*95% used.*; see its log$"),
        (exceptions.ObjectLostError("ab" * 28, None, ""), r"^the answer of learner\[0\] is lost: "),
    ],
)
def test_another_error_says_who_failed_and_how(error: exceptions.RayError, message: str):
    with pytest.raises(ActorError, match=f"(?s){message}"):
        raise told(error, "learner[0]")
