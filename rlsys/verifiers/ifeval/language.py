"""Which language a text is written in: langdetect's answer, seeded, so that a text always has the same one.

Unseeded, langdetect calls one capitalised English sentence in twenty German. Its profiles and its cleaning of the text
are used as they are; the n-grams and the sampling are done here with the same results, several times faster, and
without a seed that is global to the process. Nakatani, "Language Detection Library for Java", 2010.
"""

from functools import cache, lru_cache
from random import Random
from typing import Any

import numpy as np
from langdetect import DetectorFactory
from langdetect.detector import Detector
from langdetect.detector_factory import PROFILES_DIRECTORY
from langdetect.utils.ngram import NGram

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


SEED = 0
CACHED_LENGTH = 20
"""Characters of the longest word whose n-grams are kept: what a response can make the cache hold is bounded."""


@cache
def _model() -> tuple[DetectorFactory, dict[str, np.ndarray]]:
    """What makes detectors, and how likely each n-gram is in each of its L languages: `[L]` float64."""
    factory = DetectorFactory()
    factory.load_profile(PROFILES_DIRECTORY)
    profiles = {gram: np.array(shares) for gram, shares in factory.word_lang_prob_map.items()}
    # A space alone tells nothing; and lists of boxed floats take four times the memory of the arrays.
    profiles.pop(" ", None)
    factory.word_lang_prob_map = {}
    return factory, profiles


@cache
def _normal(char: str) -> str:
    """A character as the profiles have it: one for all Hangul, a space for marks and digits."""
    return NGram.normalize(char)


def detect_language(text: str) -> str | None:
    """The ISO 639-1 code of a text's language, `unknown` for none; None where there are no n-grams to tell by."""
    detector = _model()[0].create()
    detector.append(text[:DETECTED_CHARACTERS])
    detector.cleaning_text()
    grams = _grams(detector.text)
    if not grams:
        return None
    likelihood = _likelihood(grams)
    best = int(likelihood.argmax())
    return detector.langlist[best] if likelihood[best] > Detector.PROB_THRESHOLD else Detector.UNKNOWN_LANG


def _grams(text: str) -> list[str]:
    """The known n-grams of one to three characters, within words; none from a second capital letter to a word's end."""
    words = "".join(map(_normal, text)).split(" ")
    found: list[str] = []
    for word in words[:-1]:
        if word:
            found += _cached_word_grams(word + " ") if len(word) <= CACHED_LENGTH else _word_grams(word + " ")
    found += _word_grams(words[-1])
    return found


def _word_grams(word: str) -> tuple[str, ...]:
    _, known = _model()
    found: list[str] = []
    gram, in_capitals = " ", False
    for char in word:
        in_capitals = char.isupper() and (in_capitals or gram[-1].isupper())
        gram = gram[-2:] + char
        if not in_capitals:
            found += [gram[-size:] for size in range(1, len(gram) + 1) if gram[-size:] in known]
    return tuple(found)


_cached_word_grams = lru_cache(maxsize=32_768)(_word_grams)


def _likelihood(grams: list[str]) -> np.ndarray:
    """The mean over trials of the languages' probabilities `[L]`: naive Bayes on n-grams drawn until it converges."""
    _, profiles = _model()
    rng = Random(SEED)
    num_languages = len(profiles[grams[0]])
    total = np.zeros(num_languages)
    num_trials = 7
    for _ in range(num_trials):
        probability = np.full(num_languages, 1.0 / num_languages)
        smoothing = (Detector.ALPHA_DEFAULT + rng.gauss(0.0, 1.0) * Detector.ALPHA_WIDTH) / Detector.BASE_FREQ
        for step in range(Detector.ITERATION_LIMIT + 1):
            probability *= profiles[rng.choice(grams)] + smoothing
            if step % 5 == 0:
                # As langdetect sums: in order, which numpy's sum is not.
                probability /= sum(probability.tolist())
                if probability.max() > Detector.CONV_THRESHOLD:
                    break
        total += probability / num_trials
    return total


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
        arguments={"language": choice(LANGUAGES)},
        sample=_sample,
        instead=response_in_language,
    ),
)
