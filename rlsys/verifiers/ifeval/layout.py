"""Constraints on the format of a response: bullets, highlights, sections, titles, JSON, fixed answers."""

import json
import re
from random import Random
from typing import Any, NoReturn

from rlsys.verifiers.ifeval.arguments import count, keyword
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.words import says_something

OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")

# The reference's `^\s*` also eats the blank lines before a bullet, at quadratic cost and for the same count.
_STAR_BULLET = re.compile(r"^[^\S\n]*+\*[^*].*$", re.MULTILINE)
_DASH_BULLET = re.compile(r"^[^\S\n]*+-.*$", re.MULTILINE)
_REAL_BULLET = re.compile(r"^[^\S\n]*+[*-][^\S\n]++(.*)$", re.MULTILINE)
_SINGLE = re.compile(r"\*[^\n*]*\*")
_DOUBLE = re.compile(r"\*\*[^\n*]*\*\*")
_HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,3}+)(?=\S)([^\n*]++)(?<!\s)\1(?!\*)")
_TITLE = re.compile(r"<<([^<>\n]++)>>")


def number_bullet_lists(response: str, *, num_bullets: int) -> bool:
    num_stars, num_dashes = len(_STAR_BULLET.findall(response)), len(_DASH_BULLET.findall(response))
    return num_stars + num_dashes == num_bullets


def number_spoken_bullets(response: str, *, num_bullets: int) -> bool:
    return sum(map(says_something, _REAL_BULLET.findall(response))) == num_bullets


def constrained_response(response: str) -> bool:
    return any(option in response for option in OPTIONS)


def one_constrained_response(response: str) -> bool:
    # Naming every option is no answer.
    return sum(response.count(option) for option in OPTIONS) == 1


def number_highlighted_sections(response: str, *, num_highlights: int) -> bool:
    singles = sum(1 for text in _SINGLE.findall(response) if text.strip("*").strip())
    doubles = sum(1 for text in _DOUBLE.findall(response) if text[2:-2].strip())
    return singles + doubles >= num_highlights


def number_emphasised_sections(response: str, *, num_highlights: int) -> bool:
    # Emphasis as markdown shows it, each span once: not "* a * b", not "***a***" twice.
    return sum(1 for match in _HIGHLIGHT.finditer(response) if says_something(match.group(2))) >= num_highlights


def multiple_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(re.escape(section_spliter) + r"\s?\d+", response)) >= num_sections


def numbered_sections(response: str, *, section_spliter: str, num_sections: int) -> bool:
    # Sections 1 to n, in order, each with a text of its own.
    following = 1
    parts = re.split(re.escape(section_spliter) + r"\s?(\d{1,9})(?!\d)", response)
    for number, body in zip(parts[1::2], parts[2::2], strict=True):
        if int(number) == following and says_something(body):
            following += 1
    return following > num_sections


def json_format(response: str) -> bool:
    try:
        json.loads(_unfenced(response))
    except (ValueError, RecursionError):
        return False
    return True


def json_value(response: str) -> bool:
    # A bare number or string is JSON too, but nothing was put into a format; NaN is not JSON.
    try:
        value = json.loads(_unfenced(response), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict | list) and len(value) > 0


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unfenced(response: str) -> str:
    text = response.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    return text.removesuffix("```").strip()


def title(response: str) -> bool:
    # `<<[^\n]+>>` spans from a line's first `<<` to its last `>>`: found so, in linear time.
    for line in response.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if start >= 0 and start + 3 <= end and line[start : end + 2].lstrip("<").rstrip(">").strip():
            return True
    return False


def worded_title(response: str) -> bool:
    return any(map(says_something, _TITLE.findall(response)))


def _sample_bullets(rng: Random, prompt: str) -> dict[str, Any]:
    return {"num_bullets": rng.randint(2, 6)}


def _sample_highlights(rng: Random, prompt: str) -> dict[str, Any]:
    return {"num_highlights": rng.randint(1, 4)}


def _sample_sections(rng: Random, prompt: str) -> dict[str, Any]:
    return {"section_spliter": rng.choice(("Section", "SECTION")), "num_sections": rng.randint(2, 5)}


CONSTRAINTS = (
    Constraint(
        "detectable_format:number_bullet_lists",
        "Your response must contain exactly {num_bullets} bullet points in markdown, like:\n* One point.\n* Another.",
        number_bullet_lists,
        demand=number_spoken_bullets,
        arguments={"num_bullets": count()},
        sample=_sample_bullets,
    ),
    Constraint(
        "detectable_format:constrained_response",
        f"Answer with one of the following options: {', '.join(OPTIONS)}",
        constrained_response,
        demand=one_constrained_response,
    ),
    Constraint(
        "detectable_format:number_highlighted_sections",
        "Highlight at least {num_highlights} sections of your response in markdown, like *this section*.",
        number_highlighted_sections,
        demand=number_emphasised_sections,
        arguments={"num_highlights": count()},
        sample=_sample_highlights,
    ),
    Constraint(
        "detectable_format:multiple_sections",
        "Your response must have {num_sections} sections. Mark the beginning of each with {section_spliter} and its "
        "number, such as {section_spliter} 1.",
        multiple_sections,
        demand=numbered_sections,
        arguments={"section_spliter": keyword(), "num_sections": count()},
        sample=_sample_sections,
    ),
    Constraint(
        "detectable_format:json_format",
        "Your entire response should be JSON; it may be fenced in markdown ticks (```).",
        json_format,
        demand=json_value,
    ),
    Constraint(
        "detectable_format:title",
        "Your response must contain a title in double angular brackets, such as <<a quiet day>>.",
        title,
        demand=worded_title,
    ),
)
