"""`rlsys submit` before a cluster has taken the job: what is refused, and what is said of a cluster that takes none."""

import socket
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace

import pytest
from ray.job_submission import JobStatus
from requests.exceptions import ConnectionError as RequestsConnectionError

from launch import submit
from launch.cli import main
from rlsys.errors import ActorError

RECIPE = "configs/quickstart.toml"
SHARED = 'runs="/shared/runs"'


@pytest.fixture(autouse=True)
def no_other_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray prefers these to the address it is given."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address that is taken, and where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> Iterator[str]:
    """A job server that gives one status to everything."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(request.param)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("override", "got"), [((), "runs"), (('runs="../out"',), "../out")])
def test_outputs_in_the_temporary_copy_of_the_working_directory_are_refused(
    override: tuple[str, ...], got: str, nobody: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["submit", RECIPE, *override, "--address", nobody]) == 2
    said = capsys.readouterr()
    assert said.err == (
        "rlsys: runs is relative: on the cluster that is in a temporary copy of the working directory, and lost with "
        f"it; got '{got}'; give a folder that all nodes share: runs=\"/shared/runs\"\n"
    )
    assert said.out == "", "something was sent"


def test_without_a_cluster_the_waiting_is_told_and_then_how_to_start_one(
    nobody: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(submit, "RETRY_S", 0.05)
    assert main(["submit", RECIPE, SHARED, "--address", nobody, "--connect-timeout-s", "0.2"]) == 1
    said = capsys.readouterr()
    problem = f"the cluster at {nobody} took no job: Failed to connect to Ray at address: {nobody}"
    assert said.out == f"{problem}; asking for 0.2 s (--connect-timeout-s)\n"
    assert said.err == (
        f"rlsys: {problem}; start one with `ray start --head`, or give --address http://HEAD:8265 of one that runs\n"
    )


def test_a_cluster_that_says_nothing_is_not_waited_for_longer_than_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(submit, "RETRY_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert main(["submit", RECIPE, SHARED, "--address", address, "--connect-timeout-s", "0.3"]) == 1
    assert f"the cluster at {address} took no job: no answer within 0." in capsys.readouterr().err


class ScriptedClient:
    """Its output is cut off; then it says these, one after the other."""

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        yield "step 1\n"
        raise RuntimeError("websocket closed with code 1006")

    def get_job_info(self, job: str) -> SimpleNamespace:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(status=answer)


def test_a_job_whose_output_is_cut_off_is_followed_by_its_state(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(submit, "RETRY_S", 0.0)
    client = ScriptedClient(JobStatus.RUNNING, ConnectionError("head restarts"), JobStatus.SUCCEEDED)
    info = submit._wait_for(client, "job-1", deadline=time.monotonic() + 60)
    assert (info.status, client.answers) == (JobStatus.SUCCEEDED, [])
    lost = "lost the output of job-1: websocket closed with code 1006; ray job logs --follow job-1 has it\n"
    assert capsys.readouterr().out == f"step 1\n{lost}"


def test_a_cluster_that_has_gone_silent_ends_the_following(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(submit, "RETRY_S", 0.0)
    monkeypatch.setattr(submit, "SILENCE_S", -1.0)
    client = ScriptedClient(ConnectionError("refused"))
    with pytest.raises(ActorError, match="the cluster says nothing of job-1 any more: refused"):
        submit._wait_for(client, "job-1", deadline=time.monotonic() + 60)


@pytest.mark.parametrize("answering", [401, 403], indirect=True)
def test_a_cluster_that_wants_a_token_is_not_asked_again(answering: str, capsys: pytest.CaptureFixture[str]):
    assert main(["submit", RECIPE, SHARED, "--address", answering]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert f"the cluster at {answering} took no job: Authentication" in said.err
    assert said.err.endswith(f"; {submit.TOKEN_HELP}\n") and "RAY_AUTH_MODE=token" in submit.TOKEN_HELP


@pytest.mark.parametrize("answering", [404], indirect=True)
def test_a_server_that_refuses_is_quoted(answering: str, capsys: pytest.CaptureFixture[str]):
    assert main(["submit", RECIPE, SHARED, "--address", answering, "--connect-timeout-s", "0"]) == 1
    said = capsys.readouterr()
    assert "took no job: Version check returned 404" in said.err
    assert "dashboard.log" in said.err and "RAY_AUTH" not in said.err and "ray start" not in said.err


def test_a_server_that_cannot_be_reached_is_a_connection_error():
    """What requests raises is none of Python's own, and would end a wait that is patient with those."""

    def call() -> None:
        raise RequestsConnectionError("refused")

    with pytest.raises(ConnectionError, match="refused"):
        submit._within(5.0, call)
