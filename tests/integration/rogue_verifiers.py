"""A user's module of verifiers, most of which misbehave, for the tests of the pool."""

import os
import signal
import socket
import subprocess
import sys
import time

from rlsys.verifiers.judgement import Judgement
from rlsys.verifiers.registry import verifier


@verifier("rogue_by_word")
def by_word(response, ground_truth, mode):
    """Does what the response says, so that one batch can hold every kind of misbehaviour."""
    return _ACTIONS.get(response, lambda truth: response == truth)(ground_truth)


def _spin(_):
    while True:
        pass


def _spin_deaf(_):
    """Catches everything that Python can catch."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    while True:
        try:
            3 ** (10**8)
        except BaseException:
            continue


def _sleep(_):
    time.sleep(3600)


def _eat_memory(_):
    """A gigabyte: less than the machine has, more than the pool allows."""
    return len(bytearray(2**30)) > 0


def _die(_):
    os.abort()


def _leave(_):
    sys.exit("gone")


def _raise(_):
    raise RuntimeError("broken verifier")


def _print(truth):
    print("not a result line")
    return truth == "print"


def _not_a_number(_):
    return Judgement("wrong", float("nan"))


def _not_a_number_inside(_):
    return Judgement("wrong", 0.0, {"distance": float("nan")})


def _unknown_outcome(_):
    return Judgement("right", 1.0)


def _refused(action):
    try:
        action()
    except PermissionError:
        return True
    return False


def _open_socket(_):
    return _refused(lambda: socket.socket())


def _run_program(_):
    return _refused(lambda: subprocess.run(["true"]))


def _write_file(truth):
    return _refused(lambda: open(truth, "w"))


def _environment(truth):
    return truth not in os.environ and truth not in open("/proc/self/environ").read()


def _hash_seed(_):
    return {"outcome": hash("rlsys") % 1000 / 1000}["outcome"]


def _main_module(_):
    return "pytest" not in sys.modules and "ray" not in sys.modules and "torch" not in sys.modules


_ACTIONS = {
    "spin": _spin,
    "spin deaf": _spin_deaf,
    "sleep": _sleep,
    "eat memory": _eat_memory,
    "die": _die,
    "leave": _leave,
    "raise": _raise,
    "print": _print,
    "not a number": _not_a_number,
    "not a number inside": _not_a_number_inside,
    "unknown outcome": _unknown_outcome,
    "open socket": _open_socket,
    "run program": _run_program,
    "write file": _write_file,
    "environment": _environment,
    "hash seed": _hash_seed,
    "main module": _main_module,
}
