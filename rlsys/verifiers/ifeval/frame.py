"""Constraints on how a response is framed: its ends, what it repeats, two answers in one, commas."""

import re
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import text, verbatim
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.vocabulary import END_PHRASES
from rlsys.verifiers.ifeval.words import says_something, visible

_COMMAS = re.compile(
    "[,\u055d\u060c\u07f8\u1363\u1802\u1808\u2e32\u2e34\u2e41\u3001\ua4fe\ua60d\ua6f5\ufe10\ufe50\uff0c\uff64]"
)


def two_responses(response: str) -> bool:
    return _two_parts(response) is not None


def two_different_responses(response: str) -> bool:
    words = [re.findall(r"[^\W_]+", part.lower()) for part in _two_parts(response) or ()]
    return all(words) and len(words) == 2 and words[0] != words[1]


def _two_parts(response: str) -> tuple[str, str] | None:
    """The two answers around `******`; a divider before the first or after the second is allowed."""
    parts = [part.strip() for part in response.split("******")]
    filled = [part for part in parts if part]
    if not all(parts[1:-1]) or len(filled) != 2 or filled[0] == filled[1]:
        return None
    return filled[0], filled[1]


def repeat_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def answer_after_prompt(response: str, *, prompt_to_repeat: str) -> bool:
    return says_something(response.strip().lower()[len(prompt_to_repeat.strip().lower()) :])


def end_checker(response: str, *, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def end_after_text(response: str, *, end_phrase: str) -> bool:
    # The phrase as whole words, after a response that it ends.
    before = response.strip().strip('"').lower().removesuffix(end_phrase.lower())
    return says_something(before) and not (before[-1].isalnum() and end_phrase[0].isalnum())


def quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def no_comma(response: str) -> bool:
    return "," not in response


def no_comma_of_any_script(response: str) -> bool:
    return _COMMAS.search(visible(response)) is None


def sample_prompt(rng: Random, prompt: str) -> dict[str, Any]:
    """The prompt itself, for what repeats it.

    Raises:
        ValueError: the prompt is blank.
    """
    if not prompt.strip():
        raise ValueError("the constraint repeats the prompt, which is blank; got ''; pass the prompt it is added to")
    return {"prompt_to_repeat": prompt}


def _sample_end_phrase(rng: Random, prompt: str) -> dict[str, Any]:
    return {"end_phrase": rng.choice(END_PHRASES)}


CONSTRAINTS = (
    Constraint(
        "combination:two_responses",
        "Give two different responses, separated by six asterisks (******) and nothing else.",
        two_responses,
        demand=two_different_responses,
    ),
    Constraint(
        "combination:repeat_prompt",
        "First repeat the request word for word, without change, then give your answer. Say nothing before the "
        "repeated request; this sentence is not part of it.",
        repeat_prompt,
        demand=answer_after_prompt,
        arguments={"prompt_to_repeat": verbatim()},
        sample=sample_prompt,
    ),
    Constraint(
        "startend:end_checker",
        "Finish your response with this exact phrase: {end_phrase} No other words should follow it.",
        end_checker,
        demand=end_after_text,
        arguments={"end_phrase": text()},
        sample=_sample_end_phrase,
    ),
    Constraint(
        "startend:quotation",
        "Wrap your entire response in double quotation marks.",
        quotation,
    ),
    Constraint(
        "punctuation:no_comma",
        "Do not use any commas in your entire response.",
        no_comma,
        demand=no_comma_of_any_script,
    ),
)
