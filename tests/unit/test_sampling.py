"""Sampling a list of prompts once: how it is dealt, and that nothing of it is left behind."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors.rollout_texts import RolloutTexts
from launch.sampling import groups_per_call, sample_all
from rlsys.data.judge_backend import Question
from rlsys.recipe.rollout import SamplingSettings


@pytest.mark.parametrize(
    ("num_prompts", "num_workers", "expected"), [(500, 64, 8), (64, 8, 8), (1000, 1, 32), (3, 8, 1), (0, 4, 1)]
)
def test_every_engine_has_some_prompts(num_prompts: int, num_workers: int, expected: int):
    assert groups_per_call(num_prompts, num_workers) == expected
    assert expected * num_workers >= min(num_prompts, num_workers)


def test_what_an_error_leaves_under_way_is_given_back():
    aborted: list[bool] = []
    pump: Any = SimpleNamespace(num_running=1, start=lambda _: None, abort=lambda: aborted.append(True))

    def reinforce(pump: Any) -> None:
        raise RuntimeError("no rank is left")

    tracking = SimpleNamespace(console=False)
    context: Any = SimpleNamespace(recipe=SimpleNamespace(tracking=tracking), reinforce=reinforce)
    with pytest.raises(RuntimeError, match="no rank is left"):
        sample_all(context, pump, 4, what="evaluating")
    assert aborted == [True]


def test_texts_that_come_too_late_are_aborted(monkeypatch: pytest.MonkeyPatch):
    """Or the next batch would wait for what nobody waits for, and be too late itself."""
    aborted: list[tuple[str, list[int], str]] = []

    def worker(name: str) -> Any:
        def abort(ordinals: list[int], *, tag: str) -> None:
            aborted.append((name, ordinals, tag))

        generate = SimpleNamespace(remote=lambda *_, **__: (None, "texts"))
        return SimpleNamespace(generate=generate, abort=SimpleNamespace(remote=abort))

    def get(references: Any, *, timeout: float) -> None:
        raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr(ray, "get", get)
    texts = RolloutTexts([worker("a"), worker("b")], "", sampling=SamplingSettings(), seed=0, timeout_s=0.1)
    monkeypatch.setattr(texts, "_prompt", lambda question: SimpleNamespace(ordinal=int(question.key)))
    with pytest.raises(ray.exceptions.GetTimeoutError):
        texts.generate_text([Question(str(number), ()) for number in range(3)])
    assert aborted == [("a", [0, 2], "texts"), ("b", [1], "texts")]
