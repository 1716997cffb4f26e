"""A rank without Ray: what is left of the model before when another is loaded."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from actors.rank import Rank
from rlsys.models import build
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings


class Engine:
    """Refers to itself, as DeepSpeed's engines do."""

    num_parameters = 7

    def __init__(self) -> None:
        self.module = self


def test_the_model_before_is_gone_when_another_is_built(monkeypatch: pytest.MonkeyPatch):
    built: list[weakref.ref] = []
    there: list[list[bool]] = []

    def build_engine(*args: Any, **settings: Any) -> Engine:
        there.append([engine() is not None for engine in built])
        engine = Engine()
        built.append(weakref.ref(engine))
        return engine

    monkeypatch.setattr(build, "build_engine", build_engine)
    monkeypatch.setattr(build, "close_engine", lambda engine: None)
    rank = Rank()
    rank._group = SimpleNamespace(device=torch.device("cpu"))  # pyright: ignore[reportAttributeAccessIssue]
    gc.disable()
    try:
        for _ in range(3):
            assert rank.load(model=ModelSettings(path="folder"), learner=LearnerSettings()) == {"num_parameters": 7}
    finally:
        gc.enable()
    assert there == [[], [False], [False, False]]
