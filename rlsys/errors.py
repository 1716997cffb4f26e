"""Exceptions a user meets: what is wrong, the value received, the fix. All of them survive pickling between actors."""


class RlsysError(Exception):
    """Base of every error that rlsys raises on purpose.

    Args:
        problem: what is wrong, one sentence.
        value: the value received, if there is one.
        fix: what to do about it, one sentence.

    >>> str(RlsysError("batch_groups must be positive", value=0, fix="set rollout.batch_groups to 1 or more"))
    'batch_groups must be positive; got 0; set rollout.batch_groups to 1 or more'
    """

    exit_status = 1
    """Of a command that ends with it."""

    def __init__(self, problem: str, *, value: object = None, fix: str = "") -> None:
        self.problem, self.value, self.fix = problem, value, fix
        received = "" if value is None else f"got {value!r}"
        super().__init__("; ".join(part for part in (problem, received, fix) if part))

    def __reduce__(self):
        return _rebuild, (type(self), self.problem, self.value, self.fix, self.__dict__)


def _rebuild(kind: type[RlsysError], problem: str, value: object, fix: str, attributes: dict) -> RlsysError:
    error = kind.__new__(kind)
    RlsysError.__init__(error, problem, value=value, fix=fix)
    error.__dict__.update(attributes)
    return error


class RecipeError(RlsysError):
    """The recipe, or an override of it, cannot be used. `problems` lists every fault found at load."""

    exit_status = 2

    def __init__(self, problem: str, *, value: object = None, fix: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(problem, value=value, fix=fix)
        self.problems = problems


class DataError(RlsysError):
    """A data set, row or ground truth cannot be used."""

    exit_status = 2


class VerifierError(RlsysError):
    """A verifier is unknown, or its ground truth or arguments are invalid. Never raised for a model's response."""


class WeightTransferError(RlsysError):
    """A publication failed: names the tensor and the engine. The version was not flipped."""


class CheckpointError(RlsysError):
    """A checkpoint cannot be written, or none that is intact can be read."""


class LedgerError(RlsysError):
    """The accounting of prompts was asked for something impossible: a bug in its caller, never in user input."""


class ActorError(RlsysError):
    """An actor died or did not answer in time: names actor, moment and cause."""


class PlacementError(RlsysError):
    """The cluster cannot hold what the recipe asks for: names the bundle and what would fit."""


class TrainingError(RlsysError):
    """Training cannot go on: too many skipped steps in a row, or an update that failed."""
