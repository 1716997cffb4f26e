"""Asks a model many questions, each once, however often the asking is killed."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from rlsys.data.judge_backend import Question, TextBackend
from rlsys.data.response_store import Key, ResponseStore


async def ask_all(
    backend: TextBackend,
    questions: Sequence[Question],
    store: ResponseStore,
    counts: Counter[str],
    *,
    with_cut: bool = False,
) -> dict[str, str]:
    """The answer to each question by its key, without those that failed.

    Answers that the store has are not asked for again; new ones are stored as they come. A failure is not stored: the
    next run asks again.

    Args:
        backend: the model.
        questions: with unique keys.
        store: keys are (question key, digest of its messages), so that a question which changed is asked anew.
        counts: told `asked`, `kept`, `failed`, `failed/<kind>` and `cut`.
        with_cut: whether a text that the limit of tokens cut is an answer too. It is stored and counted in any case.
    """
    answers: dict[str, str] = {}

    def take(key: str, value: str | dict[str, str]) -> None:
        """A cut text is stored as `{"cut": text}`."""
        if isinstance(value, str):
            answers[key] = value
            return
        counts["cut"] += 1
        if with_cut:
            answers[key] = value["cut"]

    missing: list[Question] = []
    for question in questions:
        key = _key(question)
        if key in store:
            take(question.key, store[key])
        else:
            missing.append(question)
    counts["kept"] += len(questions) - len(missing)
    counts["asked"] += len(missing)
    if missing:
        async for question, answer in backend.answer_all(missing):
            if answer.text is None:
                counts["failed"] += 1
                counts[f"failed/{answer.failure}"] += 1
                continue
            value = {"cut": answer.text} if answer.cut else answer.text
            store.append(_key(question), value)
            take(question.key, value)
    return answers


def _key(question: Question) -> Key:
    return question.key, hashlib.sha256(json.dumps(question.messages).encode()).hexdigest()[:16]
