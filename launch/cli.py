"""The `rlsys` command: parse, import late, run. `--help` imports nothing heavy."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from rlsys import __version__
from rlsys.errors import RlsysError

COMMANDS = {
    "run": "launch.run",
    "evaluate": "launch.evaluate",
    "submit": "launch.submit",
    "scale": "launch.scale",
    "doctor": "launch.doctor",
    "verify": "launch.verify",
    "data": "launch.data",
}
"""Each module has `add_parser(subparsers)` and `run(arguments) -> int`, and imports what is heavy inside `run`."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(
        prog="rlsys",
        description="Post-training of language models: SFT, preferences, DPO, reward model and RLVR on Ray.",
    )
    parser.add_argument("--version", action="version", version=f"rlsys {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in COMMANDS.values():
        import_module(module).add_parser(subparsers)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The arguments of a command; overrides of a recipe may stand before and after its options."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and ("overrides" not in arguments or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes an argument of many values from one place alone
        arguments.overrides += rest
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 an error of the run, 2 a fault in what the user gave, 130 interrupted."""
    arguments = parse(argv)
    try:
        return import_module(COMMANDS[arguments.command]).run(arguments)
    except RlsysError as error:
        print(f"rlsys: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("rlsys: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
