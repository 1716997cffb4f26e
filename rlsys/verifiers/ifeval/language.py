"""Which language a text is written in: langdetect, seeded, so that a text always has the same answer.

Unseeded, langdetect calls one capitalised English sentence in twenty German. The seed belongs to a detector of our own:
the package's global one is left alone.
"""

from functools import cache
from random import Random
from typing import Any

from langdetect import DetectorFactory, LangDetectException
from langdetect.detector_factory import PROFILES_DIRECTORY

from rlsys.verifiers.ifeval.arguments import choice
from rlsys.verifiers.ifeval.constraint import Constraint

LANGUAGES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "de": "German", "en": "English", "es": "Spanish",
    "fa": "Persian", "fi": "Finnish", "fr": "French", "gu": "Gujarati", "he": "Hebrew", "hi": "Hindi", "it": "Italian",
    "ja": "Japanese", "kn": "Kannada", "ko": "Korean", "ml": "Malayalam", "mr": "Marathi", "ne": "Nepali",
    "pa": "Punjabi", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sw": "Swahili", "ta": "Tamil",
    "te": "Telugu", "th": "Thai", "uk": "Ukrainian", "ur": "Urdu", "vi": "Vietnamese",
}  # fmt: skip

DETECTED_CHARACTERS = 20_000
"""langdetect reads 10,000 characters after dropping addresses; cutting first keeps the time flat in the length."""


@cache
def _factory() -> DetectorFactory:
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    factory.seed = 0
    return factory


def detect_language(text: str) -> str | None:
    """The ISO 639-1 code of a text's language; None where it holds nothing to tell by (no letters)."""
    detector = _factory().create()
    detector.append(text[:DETECTED_CHARACTERS])
    try:
        return detector.detect()
    except LangDetectException:
        return None


def response_language(response: str, *, language: str) -> bool:
    # The reference counts a text whose language cannot be detected as following.
    return detect_language(response) in (language, None)


def response_in_language(response: str, *, language: str) -> bool:
    return detect_language(response) == language


def _sample(rng: Random, prompt: str) -> dict[str, Any]:
    return {"language": rng.choice(sorted(LANGUAGES))}


CONSTRAINTS = (
    Constraint(
        "language:response_language",
        "Your entire response should be in {language}; no other language is allowed.",
        response_language,
        response_in_language,
        {"language": choice(LANGUAGES)},
        _sample,
    ),
)
