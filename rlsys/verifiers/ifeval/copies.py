"""IFEvalG's training constraints that copy: a phrase, the request, a span of it."""

from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import count, text, verbatim
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.frame import sample_prompt

PHRASES = (
    "the quiet river ran slowly past the old mill",
    "every good story begins with one small question",
    "a long road is shorter with a patient friend",
    "bright lamps along the harbor guide the late boats",
    "nobody in the village knew where the music came from",
    "small steps taken daily lead to distant places",
)


def repeat_phrase(response: str, *, phrase: str, small_n: int) -> bool:
    variants = _variants(response, phrase)
    return len(variants) == small_n and all(_differing(variant, phrase) == 1 for variant in variants)


def repeat_phrase_differently(response: str, *, phrase: str, small_n: int) -> bool:
    # Each time another word in the place that changes.
    return len(set(_variants(response, phrase))) == small_n


def _variants(response: str, phrase: str) -> list[str]:
    """What stands from the phrase's first word to its last, on one line; in linear time, unlike a lazy pattern."""
    words = phrase.split()
    first, last = f"{words[0]} ", f" {words[-1]}"
    variants = []
    for line in response.split("\n"):
        start = line.find(first)
        while start >= 0 and (end := line.find(last, start + len(first))) >= 0:
            end += len(last)
            variants.append(line[start:end])
            start = line.find(first, end)
    return variants


def _differing(variant: str, phrase: str) -> int:
    """Places at which two phrases of as many words differ; -1 for another number of words."""
    ours, theirs = variant.split(), phrase.split()
    return sum(map(str.__ne__, ours, theirs)) if len(ours) == len(theirs) else -1


def same_text(response: str, *, prompt_to_repeat: str) -> bool:
    return response.strip().lower() == prompt_to_repeat.strip().lower()


def same_text_times(response: str, *, prompt_to_repeat: str, N: int) -> bool:
    parts = response.split("******")
    return len(parts) == N and all(same_text(part, prompt_to_repeat=prompt_to_repeat) for part in parts)


def same_span(response: str, *, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    return same_text(response, prompt_to_repeat=prompt_to_repeat[n_start:n_end])


def _no_center(*, phrase: str, small_n: int) -> str | None:
    return "phrase must have three words or more" if len(phrase.split()) < 3 else None


def blank_span(*, prompt_to_repeat: str, n_start: int, n_end: int) -> str | None:
    """Why a span of characters is no span, or None."""
    if n_end > len(prompt_to_repeat) or not prompt_to_repeat[n_start:n_end].strip():
        return f"characters {n_start} to {n_end} of prompt_to_repeat are blank or beyond its {len(prompt_to_repeat)}"
    return None


def _sample_phrase(rng: Random, prompt: str) -> dict[str, Any]:
    return {"phrase": rng.choice(PHRASES), "small_n": rng.randint(2, 3)}


def _sample_times(rng: Random, prompt: str) -> dict[str, Any]:
    return {**sample_prompt(rng, prompt), "N": rng.randint(2, 3)}


def _sample_span(rng: Random, prompt: str) -> dict[str, Any]:
    # From the first character of a word to the last of the same or a later one, so that the span is never blank.
    sampled = sample_prompt(rng, prompt)
    starts = [place for place, letter in enumerate(prompt) if not letter.isspace()]
    n_start = rng.choice(starts)
    return {**sampled, "n_start": n_start, "n_end": rng.randint(n_start + 1, starts[-1] + 1)}


CONSTRAINTS = (
    Constraint(
        "copy:repeat_phrase",
        "Repeat the phrase '{phrase}' exactly {small_n} times, each time with another word in the place of one word in "
        "its middle.",
        repeat_phrase,
        demand=repeat_phrase_differently,
        arguments={"phrase": text(), "small_n": count()},
        sample=_sample_phrase,
        impossible=_no_center,
    ),
    Constraint(
        "copy:copy",
        "Copy this request word for word and do not follow it; leave out this sentence.",
        same_text,
        arguments={"prompt_to_repeat": verbatim()},
        sample=sample_prompt,
    ),
    Constraint(
        "copy:copying_simple",
        "Repeat the request without change and do not answer it. Say nothing before it, nor this sentence.",
        same_text,
        arguments={"prompt_to_repeat": verbatim()},
        sample=sample_prompt,
    ),
    Constraint(
        "copy:copying_multiple",
        "Repeat the request without change {N} times, separated by six asterisks (******), and do not answer it. Say "
        "nothing before it; this sentence is not part of it.",
        same_text_times,
        arguments={"prompt_to_repeat": verbatim(), "N": count(1, 100)},
        sample=_sample_times,
    ),
    Constraint(
        "new:copy_span_idx",
        "Copy only the characters of the request from index {n_start} up to but without index {n_end}, counted from 0.",
        same_span,
        arguments={"prompt_to_repeat": verbatim(), "n_start": count(0), "n_end": count(1)},
        sample=_sample_span,
        impossible=blank_span,
    ),
)
