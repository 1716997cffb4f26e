"""What an RLVR stage does when a group of ranks dies.

    learner, value      policy, value model, ledger, buffer, tracker and engines go back to the last checkpoint together
    reference, reward   the frozen models: each started again alone

Workers that die are no matter of this file: `actors.roster` replaces them, the ledger issues their groups again.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from actors.groups import Pending
from launch.context import RunContext
from launch.rlvr_checkpoint import finish_checkpoints
from rlsys.errors import RlsysError
from rlsys.recipe.stages import RlvrStage

if TYPE_CHECKING:
    from launch.rlvr_run import RlvrRun

FROZEN = ("reference", "reward")
"""Groups of ranks that hold nothing but what they were loaded with."""


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


def replace_frozen(run: "RlvrRun", error: RlsysError) -> None:
    """Starts frozen models that died again, alone.

    Raises:
        RlsysError: the error itself: none of them died, or one did too often.
    """
    crew = run.context.crew
    fallen = crew.fallen(FROZEN)
    if not fallen or not all([crew.restart(kind) for kind in fallen]):
        raise error
    print(f"started again: {', '.join(fallen)}: {error}", flush=True)
    for answer in load_frozen(run.context, run.settings, fallen):
        answer.get(run.context.recipe.cluster.start_timeout_s)


def load_frozen(context: RunContext, settings: RlvrStage, kinds: Collection[str] = FROZEN) -> list[Pending[Any]]:
    """Those of the frozen models that the stage has: the policy that it starts from, and the reward model."""
    pending: list[Pending[Any]] = []
    if "reference" in kinds and settings.algorithm.needs_reference:
        policy = context.policy_settings(context.policy_folder(settings.policy))
        pending.append(context.crew.reference.load(policy, settings.learner))
    if "reward" in kinds and settings.reward_model is not None:
        scalar = context.policy_settings(context.reward_folder(settings.reward_model.path))
        pending.append(context.crew.reward_model.load(scalar, settings.value_learner))
    return pending
