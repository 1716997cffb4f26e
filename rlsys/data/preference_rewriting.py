"""Prompts in free text with one of their constraints relaxed, by a model that rewrites them (Persona-IF)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rlsys.data.asking import ask_all
from rlsys.data.decontamination_text import exact_key
from rlsys.data.judge_backend import Question, TextBackend
from rlsys.data.preference_constraints import relax
from rlsys.data.preference_records import PreferencePrompt
from rlsys.data.response_store import ResponseStore

_MARKER = "Request:"
_FORM = """Below is a request that puts constraints on its answer. Choose one of the constraints and rewrite the \
request so that this one no longer holds: take it out, or ask for something else in its place, so that a good answer \
to the new request would break it. Keep everything else as it is, word for word where you can. Do not answer the \
request, and do not say what you changed.

<request>
{request}
</request>

Write "Request:" and then the new request, and nothing after it."""


def rewriting_text(request: str) -> str:
    """What the model that rewrites is asked."""
    return _FORM.format(request=request)


def rewritten_request(text: str) -> str | None:
    """The new request in a model's answer: what follows the last marker.

    >>> rewritten_request("Of course.\\nRequest: Name a fruit in English.")
    'Name a fruit in English.'
    """
    _, found, request = text.rpartition(_MARKER)
    request = request.strip().removeprefix("<request>").removesuffix("</request>").strip()
    return request if found and request else None


async def relaxed_prompts(
    prompts: Sequence[PreferencePrompt],
    rewriter: TextBackend | None,
    store: ResponseStore,
    *,
    seed: int,
) -> tuple[dict[str, PreferencePrompt], Counter[str]]:
    """Each prompt with one constraint relaxed, by the id of the original.

    A constraint that was added is taken away; of the others the model rewrites the last turn, each asked for once.

    Args:
        prompts: with constraints.
        rewriter: needed where any prompt has its constraints in its own words.
        store: of rewritings.
        seed: of which constraint is taken away.

    Returns:
        The relaxed prompts, and counts: `rewritten`, `unreadable` and `unchanged` rewritings, and those of `ask_all`.

    Raises:
        ValueError: there is no rewriter for prompts that need one.
    """
    counts: Counter[str] = Counter()
    relaxed = {prompt.id: relax(prompt, seed=seed) for prompt in prompts if prompt.constraints}
    free = [prompt for prompt in prompts if not prompt.constraints]
    if not free:
        return relaxed, counts
    if rewriter is None:
        raise ValueError(f"{len(free)} prompts have constraints in free text; a model must rewrite them")
    questions = [
        Question(f"rewrite/{prompt.id}", ({"role": "user", "content": rewriting_text(prompt.messages[-1]["content"])},))
        for prompt in free
    ]
    texts = await ask_all(rewriter, questions, store, counts)
    for prompt, question in zip(free, questions, strict=True):
        if question.key not in texts:
            continue  # counted as failed
        request = rewritten_request(texts[question.key])
        *before, last = prompt.request
        if request is None:
            counts["unreadable"] += 1
        elif exact_key(request) == exact_key(last["content"]):
            counts["unchanged"] += 1
        else:
            counts["rewritten"] += 1
            turns = (*before, {**last, "content": request})
            relaxed[prompt.id] = replace(prompt, id=f"{prompt.id}+relaxed", request=turns, own_checks=())
    return relaxed, counts
