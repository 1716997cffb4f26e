"""Ray as supervision sees it: references that end when a test says so, and a clock that waits at no cost."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import ray
from ray import exceptions


class Ref:
    """What a call will answer."""

    def __init__(self) -> None:
        self.ended = False
        self._value: Any = None
        self._error: BaseException | None = None

    def answer(self, value: Any = None) -> "Ref":
        """The call returns."""
        self.ended, self._value = True, value
        return self

    def fail(self, error: BaseException) -> "Ref":
        """The call raises this: a Ray error."""
        self.ended, self._error = True, error
        return self

    def get(self) -> Any:
        """As `ray.get`, of a call that has ended."""
        if self._error is not None:
            raise self._error
        return self._value


def died() -> exceptions.RayActorError:
    """What a call to a dead actor raises."""
    return exceptions.ActorDiedError()


def failed(cause: Exception) -> exceptions.RayTaskError:
    """What a call raises in which an actor raised `cause`."""
    return exceptions.RayTaskError("method", f"Traceback\n{cause!r}", cause).as_instanceof_cause()


class Handle:
    """An actor: a call's answer is `answers[method](*args, **kwargs)`, a reference or a tuple of them."""

    def __init__(self, **answers: Callable[..., Any]) -> None:
        self.killed = False
        self._answers = answers

    def __getattr__(self, method: str) -> Any:
        if method not in self._answers:
            raise AttributeError(method)
        return _Method(self._answers[method])


class _Method:
    def __init__(self, answer: Callable[..., Any]) -> None:
        self._answer = answer

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(*args, **kwargs)

    def options(self, **options: Any) -> "_Method":
        return _Method(lambda *args, **kwargs: self._answer(*args, **options, **kwargs))


class FakeRay:
    """In place of the modules `ray` and `time` in a module under test."""

    exceptions = ray.exceptions
    ObjectRef = Ref

    def __init__(self) -> None:
        self.now = 0.0
        self.plans: list[tuple[float, Callable[[], Any]]] = []
        """What happens at which time."""

    def at(self, seconds: float, happens: Callable[[], Any]) -> None:
        """Something happens once so much time is over."""
        self.plans.append((seconds, happens))

    def monotonic(self) -> float:
        """As `time.monotonic`."""
        return self.now

    def wait(
        self, refs: Sequence[Ref], *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
    ) -> tuple[list[Ref], list[Ref]]:
        """As `ray.wait`; where nothing more would happen in time, the time is over at once."""
        assert len(set(refs)) == len(refs) >= num_returns > 0
        until = self.now + (timeout or 0.0)
        while sum(ref.ended for ref in refs) < num_returns:
            due = min((plan for plan in self.plans if plan[0] <= until), key=lambda plan: plan[0], default=None)
            if due is None:
                assert timeout is not None, "it would wait for ever"
                self.now = until
                break
            self.plans.remove(due)
            self.now = max(self.now, due[0])
            due[1]()
        ready = [ref for ref in refs if ref.ended][:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, refs: Any, *, timeout: float | None = None) -> Any:
        """As `ray.get`."""
        if isinstance(refs, list):
            return [self.get(ref, timeout=timeout) for ref in refs]
        if not self.wait([refs], timeout=timeout)[0]:
            raise exceptions.GetTimeoutError
        return refs.get()

    def put(self, value: Any) -> Ref:
        """As `ray.put`."""
        return Ref().answer(value)

    def kill(self, handle: Handle) -> None:
        """As `ray.kill`."""
        handle.killed = True


def install(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> FakeRay:
    """Puts one into modules under test."""
    fake = FakeRay()
    for module in modules:
        monkeypatch.setattr(module, "ray", fake)
        monkeypatch.setattr(module, "time", fake)
    return fake
