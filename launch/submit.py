"""`rlsys submit`: a recipe as a job of a running Ray cluster, followed until it ends.

The same as `ray job submit --working-dir . -- rlsys run RECIPE cluster.address=auto`, the recipe checked here first.
"""

import argparse
import asyncio
import os
import shlex
import sys
import time
from typing import Any

from rlsys.errors import ActorError, RlsysError

EXCLUDED = [".venv", ".git", "runs", "wandb", "**/__pycache__", "*.egg-info"]
RETRY_S = 2.0
TOKEN_HELP = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the cluster's token, as for `ray job submit`"


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("submit", help="run a recipe as a job of a running Ray cluster")
    parser.add_argument("recipe", help="path of a .toml recipe inside the working directory")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings of the recipe, as for `rlsys run`")
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:8265"),
        help="the cluster's job server (default: RAY_API_SERVER_ADDRESS, or this machine's)",
    )
    parser.add_argument("--working-dir", default=".", help="uploaded to the cluster (default: the current directory)")
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help="as for `rlsys run`")
    parser.add_argument("--connect-timeout-s", type=float, default=60.0, help="keep asking a cluster that is starting")
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and return")
    parser.add_argument("--timeout-s", type=float, default=7 * 24 * 3600.0, help="stop following after this long")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 when the job succeeded (or was submitted, with --no-wait)."""
    from ray.job_submission import JobStatus

    from rlsys.recipe.load import load_recipe

    overrides = [*arguments.overrides, 'cluster.address="auto"']
    load_recipe(arguments.recipe, overrides)
    words = ["rlsys", "run", arguments.recipe, *overrides, "--resume", arguments.resume]
    # The module, not the console script: the cluster's python has the packages, the working directory has the code.
    command = "python -m launch.cli " + " ".join(shlex.quote(word) for word in words[1:])
    client, job = _submit(arguments, command)
    print(f"submitted {job}; logs: ray job logs {job} --address {arguments.address}", flush=True)
    if arguments.no_wait:
        return 0
    try:
        asyncio.run(asyncio.wait_for(_follow(client, job), arguments.timeout_s))
    except TimeoutError:
        limit = f"{arguments.timeout_s:g} s"
        raise ActorError(
            f"{job} was still running", value=limit, fix=f"follow it: ray job logs --follow {job}"
        ) from None
    status = client.get_job_status(job)
    print(f"{job}: {status.value}")
    return 0 if status == JobStatus.SUCCEEDED else 1


def _submit(arguments: argparse.Namespace, command: str) -> tuple[Any, str]:
    """The client and the job's id; a cluster that is still starting up is asked again for a while."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    deadline = time.monotonic() + arguments.connect_timeout_s
    while True:
        try:
            client = JobSubmissionClient(arguments.address)
            job = client.submit_job(
                entrypoint=command,
                runtime_env={"working_dir": arguments.working_dir, "excludes": EXCLUDED},
                metadata={"recipe": arguments.recipe},
            )
            return client, job
        except AuthenticationError as error:
            raise RlsysError(f"the cluster at {arguments.address} took no job: {error}", fix=TOKEN_HELP) from error
        except (ConnectionError, RuntimeError) as error:
            if time.monotonic() > deadline:
                raise RlsysError(f"the cluster at {arguments.address} took no job: {error}", fix=TOKEN_HELP) from error
            time.sleep(RETRY_S)


async def _follow(client: Any, job: str) -> None:
    """Prints the job's output as it comes, until it ends."""
    async for lines in client.tail_job_logs(job):
        sys.stdout.write(lines)
        sys.stdout.flush()
