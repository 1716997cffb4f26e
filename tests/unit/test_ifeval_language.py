"""Our detection of languages against langdetect itself."""

from random import Random

import langdetect
import pytest

from rlsys.verifiers.ifeval.language import LANGUAGES, detect_language

TEXTS = {
    "ar": "هذا نص قصير باللغة العربية عن الطقس اليوم في المدينة",
    "de": "Das ist ein kurzer Text über das Wetter in der Stadt und die Leute.",
    "en": "This is a short text about the weather in the city and its people.",
    "fr": "Ceci est un petit texte sur le temps qu'il fait dans la ville.",
    "hi": "यह शहर के मौसम और लोगों के बारे में एक छोटा पाठ है।",
    "ja": "これは街の天気と人々についての短い文章です。",
    "kn": "ನಮಸ್ಕಾರ ಇದು ಕನ್ನಡದಲ್ಲಿ ಬರೆದ ಉತ್ತರ",
    "ko": "이것은 도시의 날씨와 사람들에 대한 짧은 글입니다.",
    "ru": "Это короткий текст о погоде в городе и о его жителях.",
    "sw": "Hii ni maandishi mafupi kuhusu hali ya hewa katika mji na watu wake.",
    "th": "นี่คือข้อความสั้น ๆ เกี่ยวกับสภาพอากาศในเมือง",
    "vi": "Đây là một đoạn văn ngắn về thời tiết trong thành phố và người dân.",
}
PIECES = [*" \n.,;1Aaé한中ひカЯق\u0219\u06cc\u1ea0", "THE ", "the ", "http://a.b/c ", "me@example.org "]


@pytest.mark.parametrize("code", TEXTS)
def test_known_texts(code: str):
    assert detect_language(TEXTS[code]) == code
    assert code in LANGUAGES


@pytest.mark.parametrize("nothing", ["", "123 !?", "http://example.org/abc", "   \n"])
def test_nothing_to_tell_by(nothing: str):
    assert detect_language(nothing) is None


def test_equal_to_langdetect_with_its_seed_on_texts_of_every_kind(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)
    rng = Random(0)
    whole = list(TEXTS.values())
    texts = [text[:length].upper() for text in whole for length in (3, 8, 30)]
    texts += [f"{rng.choice(whole)[:20]} {rng.choice(whole)[:20]}" for _ in range(100)]
    texts += ["".join(rng.choices(PIECES, k=rng.randint(1, 30))) for _ in range(300)]
    for text in texts:
        try:
            theirs = langdetect.detect(text)
        except langdetect.LangDetectException:
            theirs = None
        assert detect_language(text) == theirs, text


def test_words_longer_than_those_cached_and_texts_longer_than_what_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(langdetect.DetectorFactory, "seed", 0)
    for text in ("Straßenbahnhaltestellenschild " * 1_000, "wetterbericht" * 2_000, TEXTS["ru"].upper() * 400):
        assert detect_language(text) == langdetect.detect(text)
