"""The same recipe as a job of a live, token-protected Ray cluster on loopback, and from an attached session."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
RAY = str(Path(sys.executable).with_name("ray"))
ROOT = Path(__file__).parents[2]
RECIPE = "tests/integration/tiny.toml"
SFT_RECIPE = "tests/integration/tiny_sft.toml"
"""Without engines: how a recipe is started is the question."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Cluster:
    """What a client must know."""

    def __init__(self, folder: Path) -> None:
        self.port, self.dashboard = free_port(), free_port()
        token = folder / "token"
        token.write_text(secrets.token_hex(16))
        self.folder = folder
        self.env = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "WANDB_MODE": "offline",
            # As in an activated environment: jobs run the `python` that the head node finds first.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        self.env.pop("RAY_ADDRESS", None)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def call(self, *command: str, env: dict[str, str] | None = None, timeout: float = 600) -> str:
        done = subprocess.run(command, env=env or self.env, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """A head node in a process that this fixture ends: never `ray stop`, which would end other clusters too."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    # A short path: Ray puts Unix sockets below it, whose names may have 107 bytes.
    sockets = tempfile.mkdtemp(prefix="ray")
    log = (cluster.folder / "head.log").open("w")
    head = subprocess.Popen(
        [
            RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={cluster.port}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={cluster.dashboard}", "--num-cpus=2",
            f"--dashboard-agent-listen-port={free_port()}",
            f"--ray-client-server-port={free_port()}", "--disable-usage-stats", f"--temp-dir={sockets}",
        ],
        env=cluster.env,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        probe = (
            "import sys, time\nfrom ray.job_submission import JobSubmissionClient\n"
            "for _ in range(60):\n"
            "    try:\n        JobSubmissionClient(sys.argv[1]).list_jobs(); sys.exit(0)\n"
            "    except Exception: time.sleep(1)\n"
            "sys.exit('no cluster')"
        )
        cluster.call(sys.executable, "-c", probe, cluster.url, timeout=180)
        yield cluster
    finally:
        head.terminate()
        head.wait(timeout=60)
        log.close()
        shutil.rmtree(sockets, ignore_errors=True)


def test_without_the_token_no_job_is_taken(cluster: Cluster):
    env = {key: value for key, value in cluster.env.items() if not key.startswith("RAY_AUTH")}
    env["RAY_AUTH_MODE"] = "token"
    env["HOME"] = str(cluster.folder)
    command = [sys.executable, "-m", "launch.cli", "submit", RECIPE, "--address", cluster.url]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "took no job: Token authentication" in done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr


def test_rlsys_submit_runs_the_recipe_and_leaves_its_outputs_outside_the_working_directory(cluster: Cluster):
    outside = cluster.folder / "outputs"
    output = cluster.call(
        sys.executable, "-m", "launch.cli", "submit", RECIPE,
        f'runs="{outside}"', "name=submitted", "--address", cluster.url,
    )  # fmt: skip
    assert "SUCCEEDED" in output
    assert json.loads((outside / "submitted" / "03-rlvr" / "done.json").read_text())["batches"] == 1
    assert (outside / "submitted" / "03-rlvr" / "hf" / "model.safetensors").is_file()


def test_ray_job_submit_and_an_attached_session_find_the_same_actors_code(cluster: Cluster):
    outside = cluster.folder / "outputs"
    entry = f"python -m launch.cli run {SFT_RECIPE} 'runs=\"{outside}\"' name=by-ray 'cluster.address=\"auto\"'"
    cluster.call(
        RAY, "job", "submit", "--address", cluster.url, "--working-dir", ".", "--", "bash", "-c", entry, timeout=600
    )
    assert (outside / "by-ray" / "02-sft" / "hf" / "model.safetensors").is_file()
    session = (
        "import sys, ray; ray.init('auto'); from launch.recipe import run_recipe; "
        "from rlsys.recipe.load import load_recipe; "
        "results = run_recipe(load_recipe(sys.argv[1], sys.argv[2:])); "
        "print('STEPS', results['sft']['steps'], ray.is_initialized())"
    )
    env = cluster.env | {"RAY_ADDRESS": f"127.0.0.1:{cluster.port}"}
    printed = cluster.call(sys.executable, "-c", session, SFT_RECIPE, f'runs="{outside}"', "name=attached", env=env)
    assert "STEPS 2 True" in printed
