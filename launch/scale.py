"""`rlsys scale`: add rollout and verifier workers to a live run, or take some away."""

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the command."""
    parser = subparsers.add_parser("scale", help="add workers to a live run, or take some away")
    parser.add_argument("run", help="the run's folder, runs/NAME")
    parser.add_argument("--rollout-workers", type=int, metavar="N", help="as many from the next publication on")
    parser.add_argument("--verifier-workers", type=int, metavar="N", help="as many as soon as they are built")
    parser.add_argument("--timeout-s", type=float, default=120.0, help="wait so long for the run's answer")


def run(arguments: argparse.Namespace) -> int:
    """Exit status 0 when the run took the request."""
    from rlsys.scaling.scale_request import ask_to_scale

    answer = ask_to_scale(
        Path(arguments.run),
        rollout=arguments.rollout_workers,
        verifier=arguments.verifier_workers,
        timeout_s=arguments.timeout_s,
    )
    print(answer)
    return 0
