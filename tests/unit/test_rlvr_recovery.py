"""Who is started again, what is asked for again, and when a stage goes back to its last checkpoint."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from fake_ray import FakeRay, Handle, Ref, died, failed, install

from actors import groups as groups_module
from actors.groups import Placement, RankGroup
from actors.reference_model import ReferenceModel
from actors.roster import Restarts
from launch import rlvr_recovery as recovery_module
from launch import rlvr_update as update_module
from launch.rlvr_recovery import go_back
from launch.rlvr_update import Update
from rlsys.checkpoint.background import BackgroundCommitter
from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.checkpoint.retention import Retention
from rlsys.errors import ActorError, CheckpointError, RlsysError, VerifierError

LOST = ray.exceptions.ObjectLostError("00" * 28, None, "")


class Reference(ReferenceModel):
    """On one rank, whose calls a test ends."""

    def __init__(self) -> None:
        self.calls: list[list[Ref]] = []
        super().__init__(RankGroup(Placement("reference"), [Handle(logprobs=self._logprobs)]))

    def _logprobs(self, *, num_returns: int, shards: list[str], temperature: float) -> list[Ref]:
        self.calls.append([Ref() for _ in range(num_returns)])
        return self.calls[-1]


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return install(monkeypatch, groups_module)


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> list[ActorError]:
    """The errors for which frozen models were started again."""
    errors: list[ActorError] = []

    def replace_frozen(run: Any, error: ActorError) -> None:
        errors.append(error)
        run.context.crew.reference = Reference()

    monkeypatch.setattr(update_module, "replace_frozen", replace_frozen)
    return errors


def scoring(reference: Reference) -> Any:
    """An update that waits for the reference and for the learner."""
    update = object.__new__(Update)
    crew = SimpleNamespace(reference=reference)
    settings = SimpleNamespace(sampling=SimpleNamespace(temperature=1.0))
    run: Any = SimpleNamespace(context=SimpleNamespace(crew=crew), settings=settings)
    update._run, update._shards, update._answers = run, ["a", "b"], {}
    update._seconds, update._started, update._phase = {}, 0.0, "score"
    learner = RankGroup(Placement("learner"), [Handle(logprobs=lambda **_: Ref())])
    update._pending = {"proximal": learner.submit("logprobs")}
    update._submit_reference()
    return update


def fail(reference: Reference) -> None:
    for ref in reference.calls[-1]:
        ref.fail(died())


def test_a_reference_that_dies_is_started_again_and_asked_again(replaced: list[ActorError]):
    first = Reference()
    update = scoring(first)
    fail(first)
    update.advance()
    assert len(replaced) == 1 and "reference[0] in logprobs" in str(replaced[0])
    assert len(update._run.context.crew.reference.calls) == 1
    assert set(update._pending) == {"proximal", "reference"}


def test_a_reference_that_was_started_again_by_others_is_only_asked_again(replaced: list[ActorError]):
    """It died together with the reward model, and whoever noticed that one started both again."""
    first, second = Reference(), Reference()
    update = scoring(first)
    fail(first)
    update._run.context.crew.reference = second
    update.advance()
    assert replaced == []
    done, *scores = second.calls[0]
    done.answer()
    update.advance()
    assert update._answers == {"reference": scores}, "references, to objects that belong to the driver"


class Stage:
    """A run of which nothing is left but what `go_back` calls."""

    def __init__(self, *fallen: str, limit: int = 1) -> None:
        self.calls: list[str] = []
        self.restarts = Restarts(limit)
        self.num_rollbacks = 0
        self.settings = SimpleNamespace(label="rlvr")
        self.crew: Any = SimpleNamespace(
            fallen=lambda: list(fallen), restart=self._restart, workers=[], restarts=self.restarts
        )
        self.context = SimpleNamespace(crew=self.crew, forget_models=lambda: self.calls.append("forget models"))
        self.pump = SimpleNamespace(abort=lambda: self.calls.append("abort"))

    def _restart(self, kind: str) -> bool:
        self.calls.append(f"restart {kind}")
        return self.restarts.spend(kind)

    def forget(self) -> None:
        self.calls.append("forget")

    def go_back(self, error: RlsysError) -> None:
        go_back(self, error)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "finish_checkpoints", lambda run: None)


def test_an_error_without_a_fallen_rank_is_told_once():
    stage = Stage()
    with pytest.raises(VerifierError, match="fail on everything"):
        stage.go_back(VerifierError("the verifiers fail on everything"))
    assert stage.calls == []


def test_a_fallen_group_is_started_again(no_checkpoints: None):
    stage = Stage("learner")
    stage.go_back(ActorError("learner[0] died"))
    assert stage.calls == ["abort", "restart learner", "forget models", "forget"]
    with pytest.raises(ActorError, match="died again"):
        stage.go_back(ActorError("learner[0] died again"))
    assert stage.num_rollbacks == 1


def lost_in_a_call(fake: FakeRay) -> RlsysError:
    """A rank could not read a group whose node is gone."""
    group = RankGroup(Placement("learner"), [Handle(logprobs=lambda: Ref().fail(failed(LOST)))])
    with pytest.raises(ActorError, match=r"learner\[0\] in logprobs.* failed: ObjectLostError") as told:
        group.submit("logprobs").get()
    return told.value


def lost_in_a_checkpoint(tmp_path: Path) -> RlsysError:
    """A task could not read a group of the buffer for a checkpoint."""

    def gather() -> None:
        try:
            raise failed(LOST)
        except ray.exceptions.RayTaskError as error:
            raise ActorError("saving the buffer failed") from error

    committer = BackgroundCommitter(CheckpointStore(tmp_path, Retention(keep_last=1)), deadline_s=60.0)
    committer.submit(committer._store.begin(1), gather=gather)
    with pytest.raises(CheckpointError, match="a component could not write its part") as told:
        committer.wait()
    return told.value


def test_groups_that_are_lost_with_a_node_cost_a_rollback_and_nobodys_life(
    fake: FakeRay, no_checkpoints: None, tmp_path: Path
):
    for error in (lost_in_a_call(fake), lost_in_a_checkpoint(tmp_path)):
        stage = Stage()
        stage.go_back(error)
        assert stage.calls == ["abort", "forget models", "forget"]
        with pytest.raises(type(error)):
            stage.go_back(error)
        assert stage.num_rollbacks == 1
