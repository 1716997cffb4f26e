"""A request to scale goes through files: asked, answered once, refused, unanswered, and none to a dead run."""

import fcntl
import json
import threading
from pathlib import Path

import pytest

from rlsys.checkpoint.run_folder import LOCK
from rlsys.errors import ActorError, RecipeError
from rlsys.scaling.scale_request import ANSWER, REQUEST, ScaleRequest, ScaleRequests, ask_to_scale, forget_requests


@pytest.fixture
def live(tmp_path: Path):
    """A run folder whose lock a driver holds."""
    with (tmp_path / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


def drive(requests: ScaleRequests, *, accepted: bool, seen: list[ScaleRequest]) -> threading.Thread:
    def look() -> None:
        while not seen:
            if (request := requests.new()) is not None:
                seen.append(request)
                requests.answer(request, accepted=accepted, text="3 rollout workers")

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    return thread


def test_a_request_is_seen_once_and_its_answer_comes_back(live: Path):
    requests, seen = ScaleRequests(live), []
    thread = drive(requests, accepted=True, seen=seen)
    assert ask_to_scale(live, rollout=3, verifier=None, timeout_s=30) == "3 rollout workers"
    thread.join(30)
    assert [(each.rollout, each.verifier) for each in seen] == [(3, None)]
    assert requests.new() is None
    assert ScaleRequests(live).new() == seen[0], "a stage that comes later meets it"
    forget_requests(live)
    assert ScaleRequests(live).new() is None


def test_what_the_run_refuses_is_an_error_with_its_words(live: Path):
    drive(ScaleRequests(live), accepted=False, seen=[])
    with pytest.raises(RecipeError, match="3 rollout workers"):
        ask_to_scale(live, rollout=3, verifier=None, timeout_s=30)


def test_bad_requests_are_refused_before_anything_is_written(live: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="--rollout-workers must be 1 or more; got 0"):
        ask_to_scale(live, rollout=0, verifier=None, timeout_s=30)
    with pytest.raises(RecipeError, match="nothing to change"):
        ask_to_scale(live, rollout=None, verifier=None, timeout_s=30)
    assert ScaleRequests(live).new() is None
    with pytest.raises(ActorError, match="the run did not answer"):
        ask_to_scale(live, rollout=None, verifier=2, timeout_s=0.1)


def test_a_run_that_is_over_is_named(tmp_path: Path):
    with pytest.raises(ActorError, match="no live run is in this folder"):
        ask_to_scale(tmp_path / "none", rollout=2, verifier=None, timeout_s=30)
    (tmp_path / LOCK).touch()
    with pytest.raises(ActorError, match="no live run is in this folder"):
        ask_to_scale(tmp_path, rollout=2, verifier=None, timeout_s=30)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "Expecting property name"),
        ("[3]", "must be a mapping"),
        ('{"id": "a", "rollout_workers": 3}', "unexpected keyword argument 'rollout_workers'"),
        ('{"rollout": 3}', "missing 1 required positional argument"),
        ('{"id": "a", "rollout": -1}', "rollout must be 1 or more; got -1"),
        ('{"id": "a", "verifier": 0}', "verifier must be 1 or more; got 0"),
        ('{"id": "a", "rollout": "3"}', "rollout must be 1 or more; got '3'"),
        ('{"id": "a", "rollout": true}', "rollout must be 1 or more; got True"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_a_request_that_cannot_be_read_is_refused_and_ends_nothing(tmp_path: Path, content: str, told: str):
    requests = ScaleRequests(tmp_path)
    (tmp_path / REQUEST).write_text(content)
    assert requests.new() is None
    answer = json.loads((tmp_path / ANSWER).read_bytes())
    assert not answer["accepted"] and told in answer["text"]
    assert requests.new() is None, "it is looked at once"


def test_a_request_that_may_not_be_read_is_refused(tmp_path: Path):
    requests = ScaleRequests(tmp_path)
    (tmp_path / REQUEST).mkdir()
    assert requests.new() is None
    assert not json.loads((tmp_path / ANSWER).read_bytes())["accepted"]
