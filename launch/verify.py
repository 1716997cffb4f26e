"""`rlsys verify FILE.jsonl`: judges responses from the command line.

A line `{"id", "verifier", "ground_truth", "response"}` in; out comes `{"id", "outcome", "score", "seconds", "detail"}`,
in the order of the input. A line that cannot be judged is an `error`, and so is a refused ground truth: score 0.
"""

import argparse
import contextlib
import itertools
import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from rlsys.errors import DataError

if TYPE_CHECKING:
    from rlsys.verifiers.judgement import VerifyMode
    from rlsys.verifiers.pool import VerifierPool

LINES_AT_ONCE = 4096
_NEEDED_KEYS = ("verifier", "ground_truth", "response")


def add_parser(subparsers: Any) -> None:
    """Adds `verify` to a command line's subcommands."""
    parser = subparsers.add_parser("verify", help="judge responses of a JSON Lines file", description=__doc__)
    parser.add_argument("file", help="JSON Lines; - for standard input")
    parser.add_argument("--mode", choices=("eval", "reward"), default="eval", help="default: eval")
    parser.add_argument("--workers", type=int, default=2, help="scoring processes (default: 2)")
    parser.add_argument("--cpu-limit", type=float, default=5.0, help="CPU seconds a verdict may cost (default: 5)")
    parser.add_argument("--wall-limit", type=float, default=20.0, help="wall seconds, as a backstop (default: 20)")
    parser.add_argument("--module", action="append", default=[], help="dotted name of a module with verifiers of yours")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Judges the file. Returns 0 if every line could be read, 1 otherwise."""
    from rlsys.verifiers.pool import VerifierPool

    with contextlib.ExitStack() as stack:
        lines = sys.stdin.buffer if args.file == "-" else stack.enter_context(_open(args.file))
        pool = VerifierPool(
            args.workers, cpu_limit_s=args.cpu_limit, wall_limit_s=args.wall_limit, modules=tuple(args.module)
        )
        return judge_lines(lines, sys.stdout, stack.enter_context(pool), args.mode)


def judge_lines(lines: Iterable[bytes], output: TextIO, pool: "VerifierPool", mode: "VerifyMode") -> int:
    """Judges JSON lines and writes the results. Returns 1 if a line could not be read, 0 otherwise."""
    from rlsys.verifiers.pool import VerifyRequest

    exit_code = 0
    for chunk in _chunks((line for line in lines if line.strip()), LINES_AT_ONCE):
        rows = [_read_row(line) for line in chunk]
        good = [row for row in rows if "problem" not in row]
        verdicts = iter(
            pool.verify_many(
                [VerifyRequest(row["verifier"], row["ground_truth"], row["response"], mode) for row in good]
            )
        )
        for row in rows:
            if "problem" in row:
                exit_code = 1
                result = {"outcome": "error", "score": 0.0, "seconds": 0.0, "detail": {"error": row["problem"]}}
            else:
                verdict = next(verdicts)
                result = {
                    "outcome": verdict.outcome,
                    "score": verdict.score,
                    "seconds": verdict.seconds,
                    "detail": dict(verdict.detail),
                }
            output.write(json.dumps({"id": row.get("id"), **result}) + "\n")
        output.flush()
    return exit_code


def _open(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror})", value=path, fix="give a JSON Lines file"
        ) from None


def _chunks(lines: Iterator[bytes], size: int) -> Iterator[list[bytes]]:
    while chunk := list(itertools.islice(lines, size)):
        yield chunk


def _read_row(line: bytes) -> dict[str, Any]:
    """The row, or `{"problem": …}` with its id if it has one."""
    try:
        row = json.loads(line)
    except ValueError as error:
        return {"problem": f"the line is not JSON: {error}"}
    if not isinstance(row, dict):
        return {"problem": "the line is not a JSON object"}
    missing = [key for key in _NEEDED_KEYS if key not in row]
    if missing:
        return {"id": row.get("id"), "problem": f"the line lacks {', '.join(missing)}"}
    if not isinstance(row["response"], str) or not isinstance(row["verifier"], str):
        return {"id": row.get("id"), "problem": "verifier and response must be strings"}
    return row
