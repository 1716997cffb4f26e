"""Responses of a pool of models to every prompt, each asked for once however often the collection is killed."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

from rlsys.data.judge_backend import Question, TextBackend
from rlsys.data.preference_pairs import seeded_random
from rlsys.data.preference_records import PreferencePrompt, Response
from rlsys.data.response_store import ResponseStore
from rlsys.errors import DataError


def assign_models(
    prompt_id: str, models: Sequence[str], *, num_responses: int, on_policy: str | None, seed: int
) -> list[tuple[str, int]]:
    """Which (model, sample) answer a prompt: the on-policy model first, then others drawn without repetition.

    Where the pool is smaller than the number of responses, models answer again, with another sample index.

    >>> assign_models("p", ["sft", "big"], num_responses=3, on_policy="sft", seed=0)[0]
    ('sft', 0)
    """
    order = sorted(models)
    seeded_random(seed, "models", prompt_id).shuffle(order)
    if on_policy is not None:
        order.remove(on_policy)
        order.insert(0, on_policy)
    return [(order[index % len(order)], index // len(order)) for index in range(num_responses)]


async def collect_responses(
    prompts: Sequence[PreferencePrompt],
    pool: Mapping[str, TextBackend],
    store: ResponseStore,
    *,
    num_responses: int,
    on_policy: str | None,
    seed: int,
) -> tuple[dict[str, list[Response]], Counter[str]]:
    """Has every model answer what it is assigned and has not answered yet; all models at the same time.

    Args:
        prompts: with unique ids.
        pool: a backend for each model, by its name in the records.
        store: keys are (prompt id, model, sample).
        num_responses: to each prompt.
        on_policy: the model of which every prompt gets a response; None for none.
        seed: of the assignment.

    Returns:
        The responses by prompt id in the order of assignment, without those that failed, and without those that were
        cut by the limit of tokens: a pair would teach to end there. And counts: `asked` and `failed` now, `kept` from
        before, `failed/<kind>`, and `cut` of all.

    Raises:
        DataError: the store holds answers to other prompts under the same ids.
    """
    assigned = {
        prompt.id: assign_models(prompt.id, list(pool), num_responses=num_responses, on_policy=on_policy, seed=seed)
        for prompt in prompts
    }
    counts: Counter[str] = Counter(asked=0, failed=0, kept=0, cut=0)
    missing: dict[str, list[tuple[PreferencePrompt, int]]] = {model: [] for model in pool}
    for prompt in prompts:
        for model, sample in assigned[prompt.id]:
            if (prompt.id, model, sample) in store:
                counts["kept"] += 1
            else:
                missing[model].append((prompt, sample))
    tasks = [asyncio.create_task(_ask(pool[model], model, missing[model], store, counts=counts)) for model in pool]
    try:
        await asyncio.gather(*tasks)
    finally:  # where one model cannot be asked at all, the others stop too
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    responses: dict[str, list[Response]] = {}
    for prompt in prompts:
        there = [key for key in assigned[prompt.id] if (prompt.id, *key) in store]
        whole = [key for key in there if not store[prompt.id, *key].get("cut")]
        counts["cut"] += len(there) - len(whole)
        responses[prompt.id] = [
            _stored(store, prompt, model, sample, on_policy=model == on_policy) for model, sample in whole
        ]
    return responses, counts


async def _ask(
    backend: TextBackend,
    model: str,
    wanted: Sequence[tuple[PreferencePrompt, int]],
    store: ResponseStore,
    *,
    counts: Counter[str],
) -> None:
    by_key = {_question_key(prompt, model, sample): (prompt, sample) for prompt, sample in wanted}
    questions = (Question(key, prompt.messages) for key, (prompt, _) in by_key.items())
    async for question, answer in backend.answer_all(questions):
        prompt, sample = by_key[question.key]
        counts["asked"] += 1
        if answer.text is None:
            counts["failed"] += 1
            counts[f"failed/{answer.failure}"] += 1
            continue
        value = {
            "text": answer.text,
            "cut": answer.cut,
            "prompt_digest": _digest(prompt),
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
        }
        store.append((prompt.id, model, sample), value)


def _stored(store: ResponseStore, prompt: PreferencePrompt, model: str, sample: int, *, on_policy: bool) -> Response:
    value = store[prompt.id, model, sample]
    if value["prompt_digest"] != _digest(prompt):
        raise DataError(
            f"{store.path} answers another prompt under the id {prompt.id}",
            fix="give a run with other prompts, or another seed, a folder of its own",
        )
    return Response(prompt.id, model, sample, value["text"], on_policy)


def _question_key(prompt: PreferencePrompt, model: str, sample: int) -> str:
    return hashlib.sha256(f"{prompt.id}\x1f{_digest(prompt)}\x1f{model}\x1f{sample}".encode()).hexdigest()


def _digest(prompt: PreferencePrompt) -> str:
    content = repr([(message["role"], message["content"]) for message in prompt.messages])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
