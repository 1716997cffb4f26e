"""The same recipe as a job of a live, token-protected Ray cluster on loopback, and from an attached session."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from launch.submit import why_resumable
from rlsys.telemetry.tracker import read_metrics

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
    command = [
        sys.executable, "-m", "launch.cli", "submit", RECIPE, f'runs="{cluster.folder}"', "--address", cluster.url,
    ]  # fmt: skip
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "took no job: Token authentication" in done.stderr
    assert "RAY_AUTH_TOKEN_PATH" in done.stderr


def test_rlsys_submit_runs_the_recipe_and_leaves_its_outputs_outside_the_working_directory(cluster: Cluster):
    """With two ZeRO-3 ranks, whose weights an engine gets."""
    outside = cluster.folder / "outputs"
    output = cluster.call(
        sys.executable, "-m", "launch.cli", "submit", RECIPE,
        f'runs="{outside}"', "name=submitted", "cluster.learner_ranks=2", "--address", cluster.url,
    )  # fmt: skip
    assert "SUCCEEDED" in output
    assert json.loads((outside / "submitted" / "03-rlvr" / "done.json").read_text())["batches"] == 1
    assert (outside / "submitted" / "03-rlvr" / "hf" / "model.safetensors").is_file()
    (row,) = (row for row in read_metrics(outside / "submitted" / "metrics.jsonl") if row["stage"] == "rlvr")
    assert 0.0 <= row["policy/canary_gap"] < 1e-4, "engine and learner agree on logprobs"


def drivers_of(name: str) -> list[psutil.Process]:
    """Of jobs that run the recipe under this name."""
    command = ("launch.cli", "run", f"name={name}")
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if all(word in (process.info["cmdline"] or []) for word in command)
    ]


def test_a_killed_driver_is_resumed_by_the_retry(cluster: Cluster):
    """kill -9 after its first checkpoint: another job goes on with the step after the last committed one."""
    run = cluster.folder / "outputs" / "retried"
    command = [
        sys.executable, "-m", "launch.cli", "submit", SFT_RECIPE, f'runs="{run.parent}"', "name=retried",
        "sft.epochs=4", "sft.max_steps=60", "sft.checkpoint.every=2", "--retries", "2", "--address", cluster.url,
    ]  # fmt: skip
    log = cluster.folder / "submit.log"
    with log.open("w") as output:
        submit = subprocess.Popen(command, env=cluster.env, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    checkpoints = run / "02-sft" / "checkpoints"
    deadline = time.monotonic() + 400
    while not (checkpoints / "step_000002").is_dir():
        assert submit.poll() is None, log.read_text()[-5000:]
        assert time.monotonic() < deadline, "no checkpoint was committed"
        time.sleep(0.05)
    (driver,) = drivers_of("retried")
    driver.kill()
    driver.wait(timeout=30)
    committed = max(int(path.name[5:]) for path in checkpoints.glob("step_??????"))
    assert committed < 60, "it was killed too late"
    assert submit.wait(timeout=400) == 0, log.read_text()[-5000:]
    output = log.read_text()
    assert output.count("lost its driver to signal 9; it is resumed, retry 1 of 2") == 1
    assert output.count("submitted raysubmit_") == 2
    assert f"resumed sft after step {committed}" in output
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["stage"] == "sft"]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert len(json.loads((run / "manifest.json").read_text())["starts"]) == 2


def test_a_refused_recipe_is_not_tried_again(cluster: Cluster):
    """Good here, and not to be found in what the cluster was given."""
    elsewhere = cluster.folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "README").write_text("no recipe\n")
    command = [
        sys.executable, "-m", "launch.cli", "submit", SFT_RECIPE, f'runs="{cluster.folder}"', "name=refused",
        "--working-dir", str(elsewhere), "--retries", "2", "--address", cluster.url,
    ]  # fmt: skip
    env = cluster.env | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "no recipe at" in done.stdout and "FAILED" in done.stdout, (done.stdout + done.stderr)[-3000:]
    assert done.stdout.count("submitted raysubmit_") == 1
    assert "retry" not in done.stdout


@pytest.mark.parametrize(
    ("status", "exit_code", "error", "told"),
    [
        ("SUCCEEDED", 0, None, None),
        ("STOPPED", None, None, None),
        ("FAILED", 2, "JOB_ENTRYPOINT_COMMAND_ERROR", None),
        ("FAILED", 130, "JOB_ENTRYPOINT_COMMAND_ERROR", None),
        ("FAILED", -2, "JOB_ENTRYPOINT_COMMAND_ERROR", None),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", None),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", "lost its node"),
        ("FAILED", 1, "JOB_ENTRYPOINT_COMMAND_ERROR", "failed with exit status 1"),
        ("FAILED", -9, "JOB_ENTRYPOINT_COMMAND_ERROR", "lost its driver to signal 9"),
        ("FAILED", 143, "JOB_ENTRYPOINT_COMMAND_ERROR", "lost its driver to signal 15"),
    ],
)
def test_what_a_resume_can_mend(status: str, exit_code: int | None, error: str | None, told: str | None):
    info = JobDetails(
        type=JobType.SUBMISSION, entrypoint="rlsys run", status=JobStatus(status), driver_exit_code=exit_code,
        error_type=error,
    )  # fmt: skip
    assert why_resumable(info) == told


def test_ray_job_submit_and_an_attached_session_find_the_same_actors_code(cluster: Cluster):
    outside = cluster.folder / "outputs"
    settings = (f'runs="{outside}"', "name=by-ray", 'cluster.address="auto"')
    job = ("job", "submit", "--address", cluster.url, "--working-dir", ".")
    cluster.call(RAY, *job, "--", "rlsys", "run", SFT_RECIPE, *settings, timeout=600)
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
