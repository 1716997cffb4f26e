"""A model in a function: answers each question by a rule, counts what it was asked, and can stop like a killed one."""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable

from rlsys.data.judge_backend import Answer, Question


class ScriptedWriter:
    """A `TextBackend`. `script` returns a text, or None for a failure; a text that ends in … was cut."""

    name = "scripted"

    def __init__(self, script: Callable[[Question], str | None], *, stop_after: int | None = None) -> None:
        self._script, self._stop_after = script, stop_after
        self.asked: Counter[str] = Counter()

    async def answer_all(self, questions: Iterable[Question]) -> AsyncIterator[tuple[Question, Answer]]:
        for question in questions:
            if self._stop_after is not None and self.asked.total() >= self._stop_after:
                raise KeyboardInterrupt
            self.asked[question.key] += 1
            text = self._script(question)
            failure = None if text is not None else "timeout"
            yield question, Answer(text, failure, cut=text is not None and text.endswith("…"))
