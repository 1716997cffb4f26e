"""Removes rows by what they say, how long they are and in which language: one reason a row."""

import re
from collections.abc import Callable, Iterator

from rlsys.data.row import Row
from rlsys.recipe.data import FilterSettings

OTHER_MODELS: tuple[str, ...] = (
    r"chat[ -]?gpt",
    r"gpt[ -]?[34](?:\.5|o)?(?![\d.]*\d)",
    r"open[ -]?ai(?!\w)",
    r"bing ?chat",
    r"anthropic(?:'s)?(?= |\.|,|$)(?! principle)",
    r"claude(?= ?[1-9]| instant| (?:opus|sonnet|haiku)|,? (?:an|the) ai|,? (?:created|made|built|developed) by)",
    r"google (?:bard|gemini)",
    r"(?:i am|i'm|my name is) (?:bard|gemini|claude|llama|alpaca|vicuna|qwen|mistral|deepseek|copilot)",
    r"deepmind",
    r"(?:meta|facebook) ai",
    r"llama[ -]?[1-4]",
    r"open[ -]?assistant",
    r"laion",
    r"alibaba cloud",
    r"deepseek(?:-\w+)?",
    r"mistral ai",
    r"vicuna|alpaca-?lora|koala-?13b",
)
"""Regular expressions, case ignored, each a name by which an assistant gives away another model or its maker."""

_SAMPLE_CHARACTERS = 2000
"""How much of a row the language is detected from: more changes the verdict of few rows and costs much."""


class RowFilter:
    """Decides whether a row stays.

    >>> keep = RowFilter(FilterSettings(other_models=True))
    >>> keep.reason_to_remove(row)  # doctest: +SKIP
    'other_models'
    """

    def __init__(self, settings: FilterSettings) -> None:
        self._tests = list(_tests(settings))

    def reason_to_remove(self, row: Row) -> str | None:
        """The name of the first filter that removes the row, the cheap ones first; None if it stays."""
        return next((name for name, removes in self._tests if removes(row)), None)


def contents(row: Row) -> list[str]:
    """Every text of a row, in order."""
    if row.text is not None:
        return [row.text]
    return [message["content"] for message in (*row.messages, *row.chosen, *row.rejected)]


def responses(row: Row) -> list[str]:
    """What assistants say in a row; of plain text, all of it."""
    if row.text is not None:
        return [row.text]
    spoken = (*row.messages, *row.chosen, *row.rejected)
    return [message["content"] for message in spoken if message["role"] == "assistant"]


def detect_language(text: str) -> str | None:
    """ISO 639-1 code (zh-cn and zh-tw for Chinese) of the first 2,000 characters, or None where none can be told.

    The detector is seeded: the same text gives the same answer in every process.
    """
    from langdetect import DetectorFactory, LangDetectException, detect

    DetectorFactory.seed = 0
    try:
        return detect(text[:_SAMPLE_CHARACTERS])
    except LangDetectException:
        return None


def _tests(settings: FilterSettings) -> Iterator[tuple[str, Callable[[Row], bool]]]:
    if settings.min_characters:
        least = settings.min_characters
        yield "too_short", lambda row: sum(map(len, contents(row))) < least
    if settings.max_characters is not None:
        most = settings.max_characters
        yield "too_long", lambda row: sum(map(len, contents(row))) > most
    if settings.max_messages is not None:
        turns = settings.max_messages
        yield "too_many_messages", lambda row: len(row.messages) + max(len(row.chosen), len(row.rejected)) > turns
    if settings.other_models:
        yield "other_models", _says("|".join(OTHER_MODELS))
    if settings.keywords:
        yield "keywords", _says("|".join(re.escape(keyword) for keyword in settings.keywords))
    if settings.languages:
        yield "language", _speaks_none_of(frozenset(settings.languages))


def _says(pattern: str) -> Callable[[Row], bool]:
    search = re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE).search
    return lambda row: any(search(response) for response in responses(row))


def _speaks_none_of(languages: frozenset[str]) -> Callable[[Row], bool]:
    def removes(row: Row) -> bool:
        found = detect_language(" ".join(contents(row)))
        return found is None or (found not in languages and found.split("-")[0] not in languages)

    return removes
