"""Constraints on what a response contains: placeholders and a postscript."""

import re
from random import Random
from typing import Any

from rlsys.verifiers.ifeval.arguments import count, keyword
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.words import says_something

_INNERMOST = re.compile(r"\[([^\[\]\n]*)\](?!\()")
_DECORATION = " \t*_#>"


def count_brackets(text: str) -> int:
    """Matches of `\\[.*?\\]`, in linear time: that pattern itself is quadratic in a run of opening brackets."""
    total = 0
    for line in text.split("\n"):
        start = line.find("[")
        while start >= 0 and (end := line.find("]", start)) >= 0:
            total += 1
            start = line.find("[", end)
    return total


def number_placeholders(response: str, *, num_placeholders: int) -> bool:
    return count_brackets(response) >= num_placeholders


def number_named_placeholders(response: str, *, num_placeholders: int) -> bool:
    # Not empty, not nested, not the text of a link.
    return sum(1 for match in _INNERMOST.finditer(response) if says_something(match.group(1))) >= num_placeholders


def postscript(response: str, *, postscript_marker: str) -> bool:
    return _marker(postscript_marker).search(response.lower()) is not None


def postscript_with_text(response: str, *, postscript_marker: str) -> bool:
    # At the start of a line, after a response, with a text of its own.
    lines = [line.lstrip(_DECORATION) for line in response.lower().split("\n")]
    matches = [_marker(postscript_marker).match(line) for line in lines]
    last = max((place for place, match in enumerate(matches) if match), default=-1)
    match = matches[last]
    if last < 0 or match is None or not any(map(says_something, lines[:last])):
        return False
    return any(map(says_something, (lines[last][match.end() :], *lines[last + 1 :])))


def _marker(postscript_marker: str) -> re.Pattern[str]:
    if postscript_marker == "P.P.S":
        return re.compile(r"p\.\s?p\.\s?s")
    if postscript_marker == "P.S.":
        return re.compile(r"p\.\s?s\.")
    return re.compile(re.escape(postscript_marker.lower()))


def _sample_placeholders(rng: Random, prompt: str) -> dict[str, Any]:
    return {"num_placeholders": rng.randint(1, 4)}


def _sample_postscript(rng: Random, prompt: str) -> dict[str, Any]:
    return {"postscript_marker": rng.choice(("P.S.", "P.P.S"))}


CONSTRAINTS = (
    Constraint(
        "detectable_content:number_placeholders",
        "Your response must contain at least {num_placeholders} placeholders in square brackets, such as [address].",
        number_placeholders,
        demand=number_named_placeholders,
        arguments={"num_placeholders": count()},
        sample=_sample_placeholders,
    ),
    Constraint(
        "detectable_content:postscript",
        "At the end of your response, add a postscript that starts with {postscript_marker}",
        postscript,
        demand=postscript_with_text,
        arguments={"postscript_marker": keyword()},
        sample=_sample_postscript,
    ),
)
