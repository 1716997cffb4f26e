"""`rlsys submit`: a recipe as a job of a running Ray cluster, followed until it ends.

The same as `ray job submit --working-dir . -- rlsys run RECIPE cluster.address=auto`, the recipe checked here first:
`runs` must be an absolute path, since a relative one would be in the cluster's temporary copy of the working directory.
With `--retries` a job whose driver died is submitted again, and goes on where the run folder ends.
"""

import argparse
import asyncio
import contextlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from rlsys.errors import ActorError, RecipeError, RlsysError

EXCLUDED = [".venv", ".git", "runs", "wandb", "**/__pycache__", "*.egg-info"]
T = TypeVar("T")

RETRY_S = 2.0
UPLOAD_S = 600.0
"""For the working directory to reach the cluster."""
ANSWER_S = 30.0
SILENCE_S = 300.0
"""Without an answer, before a job's cluster is taken for gone."""
KILLED_IN_SHELL = 128
"""A shell's exit status for a command that a signal ended is this and the signal's number."""
START_HELP = "start one with `ray start --head`, or give --address http://HEAD:8265 of one that runs"
ANSWER_HELP = "its own reason is in dashboard.log under /tmp/ray/session_latest/logs of the head node"
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
    parser.add_argument(
        "--retries", type=int, default=0, metavar="N", help="resume a job whose driver was killed or failed, N times"
    )
    parser.add_argument("--connect-timeout-s", type=float, default=60.0, help="keep asking a cluster that is starting")
    parser.add_argument("--no-wait", action="store_true", help="print the job's id and return")
    parser.add_argument("--timeout-s", type=float, default=7 * 24 * 3600.0, help="stop following after this long")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 when the job succeeded (or was submitted, with --no-wait)."""
    from rlsys.recipe.load import load_recipe

    if arguments.no_wait and arguments.retries:
        raise RlsysError("--retries needs someone who follows the job", fix="leave out --no-wait")
    overrides = [*arguments.overrides, 'cluster.address="auto"']
    recipe = load_recipe(arguments.recipe, overrides)
    if not os.path.isabs(recipe.runs):
        raise RecipeError(
            "runs is relative: on the cluster that is in a temporary copy of the working directory, and lost with it",
            value=recipe.runs,
            fix='give a folder that all nodes share: runs="/shared/runs"',
        )
    deadline = time.monotonic() + arguments.timeout_s
    resume, num_retries = arguments.resume, 0
    while True:
        # The module, not the console script: the cluster's python has the packages, the working directory has the code.
        command = ["python", "-m", "launch.cli", "run", arguments.recipe, *overrides, "--resume", resume]
        client, job = _submit(arguments, shlex.join(command))
        print(f"submitted {job}; logs: ray job logs {job} --address {arguments.address}", flush=True)
        if arguments.no_wait:
            return 0
        info = _wait_for(client, job, deadline=deadline)
        print(f"{job}: {info.status.value}", flush=True)
        why = why_resumable(info)
        if why is None or num_retries >= arguments.retries:
            return 0 if info.status.value == "SUCCEEDED" else 1
        resume, num_retries = "auto", num_retries + 1
        print(f"{job} {why}; it is resumed, retry {num_retries} of {arguments.retries}", flush=True)


def why_resumable(info: Any) -> str | None:
    """What a job failed of, where the same recipe given again may go on from its last checkpoint; None otherwise.

    Not when it succeeded or was stopped by `ray job stop` or Ctrl-C, not when what was given to it was refused, and
    not when it never began.

    Args:
        info: a `JobDetails` of a job that has ended.
    """
    if info.status.value != "FAILED":
        return None
    if info.error_type == "JOB_SUPERVISOR_ACTOR_DIED":
        return "lost its node"
    status = info.driver_exit_code
    if status is None or status == RecipeError.exit_status:
        return None
    number = -status if status < 0 else status - KILLED_IN_SHELL
    if number <= 0:
        return f"failed with exit status {status}"
    return None if number == signal.SIGINT else f"lost its driver to signal {number}"


def _submit(arguments: argparse.Namespace, command: str) -> tuple[Any, str]:
    """The client and the job's id; a cluster that is still starting up is asked again for a while."""
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient

    def submit() -> tuple[Any, str]:
        left_s = max(deadline - time.monotonic(), RETRY_S)
        client = _within(left_s, lambda: JobSubmissionClient(arguments.address))
        runtime_env = {"working_dir": arguments.working_dir, "excludes": EXCLUDED}
        metadata = {"recipe": arguments.recipe}
        job = _within(
            UPLOAD_S, lambda: client.submit_job(entrypoint=command, runtime_env=runtime_env, metadata=metadata)
        )
        return client, job

    deadline = time.monotonic() + arguments.connect_timeout_s
    waiting = False
    while True:
        try:
            return submit()
        except AuthenticationError as error:
            raise RlsysError(f"the cluster at {arguments.address} took no job: {error}", fix=TOKEN_HELP) from error
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            problem = f"the cluster at {arguments.address} took no job: {str(error).rstrip('.')}"
            if time.monotonic() > deadline:
                fix = ANSWER_HELP if isinstance(error, RuntimeError) else START_HELP
                raise RlsysError(problem, fix=fix) from error
            if not waiting:
                print(f"{problem}; asking for {arguments.connect_timeout_s:g} s (--connect-timeout-s)", flush=True)
            waiting = True
            time.sleep(RETRY_S)


def _wait_for(client: Any, job: str, *, deadline: float) -> Any:
    """Follows a job until it ends; its `JobDetails`.

    Raises:
        ActorError: the deadline passed first, or the cluster has gone silent.
    """
    started = time.monotonic()
    with contextlib.suppress(TimeoutError):  # told below
        asyncio.run(asyncio.wait_for(_follow(client, job), deadline - started))
    heard = time.monotonic()
    while True:
        try:
            info, heard = _within(ANSWER_S, lambda: client.get_job_info(job)), time.monotonic()
            if info.status.is_terminal():
                return info
        except (ConnectionError, RuntimeError, TimeoutError) as error:
            if time.monotonic() - heard > SILENCE_S:
                raise ActorError(
                    f"the cluster says nothing of {job} any more: {error}",
                    value=f"{SILENCE_S:g} s",
                    fix="see whether its head node lives; the same command with --resume auto goes on",
                ) from error
        if time.monotonic() > deadline:
            raise ActorError(
                f"{job} was still running",
                value=f"{time.monotonic() - started:.0f} s",
                fix=f"follow it: ray job logs --follow {job}",
            )
        time.sleep(RETRY_S)


async def _follow(client: Any, job: str) -> None:
    """Prints the job's output as it comes, until it ends or its connection is cut."""
    from aiohttp import ClientError

    try:
        async for lines in client.tail_job_logs(job):
            sys.stdout.write(lines)
            sys.stdout.flush()
    except (ClientError, OSError, RuntimeError) as error:
        print(f"lost the output of {job}: {error}; ray job logs --follow {job} has it", flush=True)


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The call's answer. Ray's client sets no time limits, so that it waits in a thread that is left behind.

    Raises:
        TimeoutError: there was none in time.
        ConnectionError: the server could not be reached, which requests tells by errors of its own.
    """
    from requests import RequestException

    answers: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # raised again in the thread that waits
            answers.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = answers.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if isinstance(error, RequestException):
        raise ConnectionError(str(error)) from error
    if error is not None:
        raise error
    return answer  # pyright: ignore[reportReturnType]
