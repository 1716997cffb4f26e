"""Frozen models that die while a batch is scored: who is started again, and what is asked for again."""

from types import SimpleNamespace
from typing import Any

import pytest
from fake_ray import FakeRay, Handle, Ref, died, install

from actors import groups as groups_module
from actors.groups import Placement, RankGroup
from actors.reference_model import ReferenceModel
from launch import rlvr_update as update_module
from launch.rlvr_update import Update
from rlsys.errors import ActorError


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
