"""How Ray says that an actor is gone: with more kinds of errors than `RayActorError`."""

from ray import exceptions

DEATHS = (
    exceptions.RayActorError,
    exceptions.OutOfMemoryError,  # ended by Ray's memory monitor, which is on unless it is turned off
    exceptions.NodeDiedError,
    exceptions.ActorUnschedulableError,
    exceptions.ActorPlacementGroupRemoved,
    exceptions.RuntimeEnvSetupError,
)


def end_of(death: BaseException) -> str:
    """What became of the actor, in a few words."""
    return "was ended by Ray's memory monitor" if isinstance(death, exceptions.OutOfMemoryError) else "died"
