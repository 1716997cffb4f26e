"""What an RLVR stage does when a group of ranks dies.

    learner, value      policy, value model, ledger, buffer, tracker and engines go back to the last checkpoint together
    reference           started again alone, while nothing that it computed is needed; otherwise as above

Workers that die are no matter of this file: `actors.roster` replaces them, the ledger issues their groups again.
"""

from typing import TYPE_CHECKING, Any

from actors.groups import Pending
from launch.context import RunContext
from launch.rlvr_checkpoint import finish_checkpoints
from rlsys.errors import RlsysError
from rlsys.recipe.stages import RlvrStage

if TYPE_CHECKING:
    from launch.rlvr_run import RlvrRun


def go_back(run: "RlvrRun", error: RlsysError) -> None:
    """Starts the groups that died again, and forgets all that is newer than the last checkpoint.

    `rlvr_setup.bring_up` comes next, and finds everything as it was committed; without a checkpoint the stage starts
    at its beginning.

    Raises:
        RlsysError: the error itself: no rank died, or too many did.
    """
    crew = run.context.crew
    fallen = crew.fallen()
    if not fallen:
        raise error
    run.pump.abort()
    for worker in crew.workers:
        worker.abort.remote()  # what an evaluation asked for, too
    if not all([crew.restart(kind) for kind in fallen]):
        raise error
    run.num_rollbacks += 1
    print(f"{run.settings.label} goes back to its last checkpoint, {', '.join(fallen)} died: {error}", flush=True)
    try:
        finish_checkpoints(run)
    except RlsysError as problem:  # that checkpoint is lost; the one before it is there
        print(f"what was being written is lost: {problem}", flush=True)
    run.context.forget_models()
    run.forget()


def replace_reference(run: "RlvrRun", error: RlsysError) -> None:
    """Starts a reference that died again, alone.

    Raises:
        RlsysError: the error itself: it was not the reference, or not alone, or it died too often.
    """
    crew = run.context.crew
    if crew.fallen() != ["reference"] or not crew.restart("reference"):
        raise error
    print(f"the reference is started again: {error}", flush=True)
    load_reference(run.context, run.settings).get(run.context.recipe.cluster.start_timeout_s)


def load_reference(context: RunContext, settings: RlvrStage) -> Pending[Any]:
    """The policy that the stage starts from."""
    policy = context.policy_settings(context.policy_folder(settings.policy))
    return context.crew.reference.load(policy, settings.learner)
