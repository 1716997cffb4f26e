"""How many workers a live run is asked to have: one small file in the run folder, and the driver's answer beside it.

    rlsys scale RUN --rollout-workers 4  --scale.json-->  the driver, between two polls
                                         <--scale.answer.json--

Files need no open port and no token, and every machine that can write the run's checkpoints can write them.
"""

import fcntl
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from rlsys.checkpoint.durable_file import write_durably
from rlsys.checkpoint.run_folder import LOCK
from rlsys.errors import ActorError, RecipeError

REQUEST, ANSWER = "scale.json", "scale.answer.json"
ASK_AGAIN_S = 0.2


@dataclass(frozen=True, slots=True)
class ScaleRequest:
    """The workers that a run shall have; None leaves a kind as it is."""

    id: str
    rollout: int | None = None
    verifier: int | None = None


_UNREADABLE = ScaleRequest("")


class ScaleRequests:
    """The driver's end."""

    def __init__(self, run_folder: Path) -> None:
        self._folder = run_folder
        self._seen = 0

    def new(self) -> ScaleRequest | None:
        """The newest request, once; one that cannot be read is refused here. Costs one `stat` when there is none."""
        modified = self._modified()
        if modified == self._seen:
            return None
        self._seen = modified
        try:
            return _parse((self._folder / REQUEST).read_bytes())
        except FileNotFoundError:  # taken back meanwhile
            return None
        except (OSError, RecipeError) as error:  # whoever can write the file must not end the run with it
            self.answer(_UNREADABLE, accepted=False, text=f"{REQUEST} is no request: {error}")
            return None

    def answer(self, request: ScaleRequest, *, accepted: bool, text: str) -> None:
        """Tells who asked."""
        content = {"id": request.id, "accepted": accepted, "text": text}
        write_durably(self._folder / ANSWER, json.dumps(content).encode())

    def _modified(self) -> int:
        try:
            return (self._folder / REQUEST).stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def forget_requests(run_folder: Path) -> None:
    """Removes what was asked of an earlier life of the run: a start has the recipe's numbers."""
    for name in (REQUEST, ANSWER):
        (run_folder / name).unlink(missing_ok=True)


def ask_to_scale(run_folder: Path, *, rollout: int | None, verifier: int | None, timeout_s: float) -> str:
    """Leaves a request, and waits for the driver's answer.

    Args:
        run_folder: of a live run.
        rollout: rollout workers, 1 or more.
        verifier: verifier workers, 1 or more.
        timeout_s: of the wait; a driver looks several times a minute, except while it evaluates or writes.

    Raises:
        RecipeError: no such number, or the driver refused it: the answer says why.
        ActorError: there is no live run in the folder, or it did not answer in time.
    """
    _check_counts({"--rollout-workers": rollout, "--verifier-workers": verifier})
    if rollout is None and verifier is None:
        raise RecipeError("nothing to change", fix="give --rollout-workers N or --verifier-workers N")
    if not _is_live(run_folder):
        raise ActorError(
            "no live run is in this folder", value=str(run_folder), fix="name the folder of one: runs/NAME"
        )
    request = ScaleRequest(uuid.uuid4().hex, rollout, verifier)
    write_durably(run_folder / REQUEST, json.dumps(asdict(request)).encode())
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        answer = _read_answer(run_folder)
        if answer.get("id") == request.id:
            if not answer["accepted"]:
                raise RecipeError(answer["text"])
            return answer["text"]
        time.sleep(ASK_AGAIN_S)
    raise ActorError(
        "the run did not answer",
        value=f"{timeout_s:g} s",
        fix="it answers in its RLVR stage alone; the request stays, and is met when it comes to it",
    )


def _parse(content: bytes) -> ScaleRequest:
    try:
        request = ScaleRequest(**json.loads(content))
    except (TypeError, ValueError, RecursionError) as error:
        raise RecipeError(str(error)) from error
    _check_counts({"rollout": request.rollout, "verifier": request.verifier})
    return request


def _check_counts(counts: Mapping[str, object]) -> None:
    for name, number in counts.items():
        if number is not None and (type(number) is not int or number < 1):
            raise RecipeError(f"{name} must be 1 or more", value=number)


def _read_answer(run_folder: Path) -> dict:
    try:
        return json.loads((run_folder / ANSWER).read_bytes())
    except FileNotFoundError:
        return {}


def _is_live(run_folder: Path) -> bool:
    """Whether a driver holds the folder's lock."""
    try:
        descriptor = os.open(run_folder / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
