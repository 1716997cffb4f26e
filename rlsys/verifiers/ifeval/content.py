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
    # A line of its own that goes on after the marker, with a response before it.
    pattern = _marker(postscript_marker)
    before = False
    for line in response.lower().split("\n"):
        match = pattern.match(line.lstrip(_DECORATION))
        if match and before:
            tail = line.lstrip(_DECORATION)[match.end() :]
            return says_something(tail) or says_something(response.lower().rpartition(line)[2])
        before = before or says_something(line)
    return False


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
        number_named_placeholders,
        {"num_placeholders": count()},
        _sample_placeholders,
    ),
    Constraint(
        "detectable_content:postscript",
        "At the end of your response, add a postscript that starts with {postscript_marker}",
        postscript,
        postscript_with_text,
        {"postscript_marker": keyword()},
        _sample_postscript,
    ),
)
