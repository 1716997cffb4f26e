"""How Ray says that an actor is gone: with more kinds of errors than `RayActorError`."""

from ray import exceptions

from rlsys.errors import ActorError, RlsysError

DEATHS = (
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,  # ended by Ray's memory monitor, which is on unless it is turned off
    exceptions.NodeDiedError,
    exceptions.ActorUnschedulableError,
    exceptions.ActorPlacementGroupRemoved,
    exceptions.RuntimeEnvSetupError,
)


def told(error: exceptions.RayError, who: str) -> RlsysError:
    """Ray's error as one of ours: what the actor raised on purpose, or an ActorError that says who failed and how."""
    if isinstance(error, exceptions.RayTaskError):
        if isinstance(error.cause, RlsysError):
            return error.cause
        return ActorError(f"{who} failed: {error.cause!r}", fix="see its log")
    if isinstance(error, DEATHS):
        return ActorError(f"{who} died: {error}", fix="see its log")
    return ActorError(f"the answer of {who} is lost: {error}")


def end_of(death: BaseException) -> str:
    """What became of the actor, in a few words."""
    return "was ended by Ray's memory monitor" if isinstance(death, exceptions.OutOfMemoryError) else "died"
