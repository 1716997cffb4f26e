"""Asks a model many questions, each once, however often the asking is killed."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence

from rlsys.data.judge_backend import Question, TextBackend
from rlsys.data.response_store import Key, ResponseStore


async def ask_all(
    backend: TextBackend, questions: Sequence[Question], store: ResponseStore, counts: Counter[str]
) -> dict[str, str]:
    """The answer to each question by its key, without those that failed or were cut by the limit of tokens.

    Answers that the store has are not asked for again; new ones are stored as they come. A failure is not stored: the
    next run asks again.

    Args:
        backend: the model.
        questions: with unique keys.
        store: keys are (question key, digest of its messages), so that a question which changed is asked anew.
        counts: told `asked`, `kept`, `failed` and `failed/<kind>`.
    """
    answers: dict[str, str] = {}
    missing: list[Question] = []
    for question in questions:
        key = _key(question)
        if key in store:
            answers[question.key] = store[key]
        else:
            missing.append(question)
    counts["kept"] += len(answers)
    counts["asked"] += len(missing)
    if missing:
        async for question, answer in backend.answer_all(missing):
            if answer.text is None or answer.cut:
                counts["failed"] += 1
                counts[f"failed/{answer.failure or 'cut'}"] += 1
                continue
            store.append(_key(question), answer.text)
            answers[question.key] = answer.text
    return answers


def _key(question: Question) -> Key:
    return question.key, hashlib.sha256(json.dumps(question.messages).encode()).hexdigest()[:16]
