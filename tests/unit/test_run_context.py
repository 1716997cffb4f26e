"""What a run knows of the weights that its groups hold."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launch.context import RunContext

SFT, DPO = Path("01-sft/hf"), Path("02-dpo/hf")


@pytest.fixture
def calls() -> list[Any]:
    return []


@pytest.fixture
def context(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Engines hold what SFT exported; the only one of them has died, and its successor has no weights."""
    context: Any = object.__new__(RunContext)
    workers = SimpleNamespace(serving=[], wait_for_one=lambda: calls.append("wait"))
    context.crew = SimpleNamespace(engines_await_weights=True, workers=workers)
    context.engines_hold, context._published = SFT, (0, [1, 2])

    def load(folder: Path, learner: Any) -> None:
        calls.append(("load", folder))
        context.learner_holds = folder

    def publish(version: int, canary_ids: list[int]) -> None:
        calls.append(("publish", version))
        context.engines_hold = None

    monkeypatch.setattr(context, "load_policy", load)
    monkeypatch.setattr(context, "publish", publish)
    monkeypatch.setattr(context, "_any_learner_settings", lambda: None)
    return context


def test_a_new_engine_gets_what_the_others_had_from_the_learners_memory(context: Any, calls: list[Any]):
    context.learner_holds = SFT
    context.reinforce()
    assert calls == [("publish", 0)] and context.engines_hold == SFT


def test_a_new_engine_gets_what_the_others_had_though_the_learner_went_on(context: Any, calls: list[Any]):
    """Its canary would agree with the learner, whatever that holds."""
    context.learner_holds = DPO
    context.reinforce()
    assert calls == [("load", SFT), ("publish", 0)]
    assert (context.learner_holds, context.engines_hold) == (SFT, SFT)


def test_a_stage_that_trains_publishes_what_its_learner_has(context: Any, calls: list[Any]):
    context.learner_holds = context.engines_hold = None
    context.reinforce()
    assert calls == [("publish", 0)]
