"""What an RLVR stage does when a group of ranks dies, or what it was to train on is lost.

    learner, value      policy, value model, ledger, buffer, tracker and engines go back to the last checkpoint together
    reference, reward   the frozen models: each started again alone
    finished groups     lost with the node that held them: as for the learner, with nobody to start again

Workers that die are no matter of this file: `actors.roster` replaces them, the ledger issues their groups again.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import ray.exceptions

from actors.groups import Pending
from launch.context import RunContext
from launch.rlvr_checkpoint import finish_checkpoints
from rlsys.errors import RlsysError
from rlsys.recipe.stages import RlvrStage

if TYPE_CHECKING:
    from launch.rlvr_run import RlvrRun

FROZEN = ("reference", "reward")
"""Groups of ranks that hold nothing but what they were loaded with."""
LOST_GROUPS = "finished_groups"
"""What is counted, in place of actors, when groups of the buffer are lost."""


def go_back(run: "RlvrRun", error: RlsysError) -> None:
    """Starts the groups that died again, and forgets all that is newer than the last checkpoint.

    `rlvr_setup.bring_up` comes next, and finds everything as it was committed; without a checkpoint the stage starts
    at its beginning.

    So it does, with nobody to start again, when a batch's or the buffer's groups are gone with a node of the cluster.

    Raises:
        RlsysError: the error itself: no rank died and nothing was lost, or too often.
    """
    crew = run.context.crew
    fallen = crew.fallen()
    if not fallen and not (_objects_are_lost(error) and crew.restarts.spend(LOST_GROUPS)):
        raise error
    run.pump.abort()
    for worker in crew.workers:
        worker.abort.remote()  # what an evaluation asked for, too
    if not all([crew.restart(kind) for kind in fallen]):
        raise error
    run.num_rollbacks += 1
    reason = f"{', '.join(fallen)} died" if fallen else "finished groups were lost"
    print(f"{run.settings.label} goes back to its last checkpoint, {reason}: {error}", flush=True)
    try:
        finish_checkpoints(run)
    except RlsysError as problem:  # that checkpoint is lost; the one before it is there
        print(f"what was being written is lost: {problem}", flush=True)
    run.context.forget_models()
    run.forget()


def _objects_are_lost(error: BaseException | None) -> bool:
    """Whether it comes of objects whose only copy, or owner, is gone."""
    while error is not None and not isinstance(error, ray.exceptions.ObjectLostError):
        error = error.__cause__
    return error is not None


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
