"""What the filters remove and what they must leave; near duplicates against true Jaccard similarities."""

import random

import numpy as np
import pytest

from rlsys.data.duplicates import DuplicateIndex, fingerprint, signature
from rlsys.data.filters import RowFilter, detect_language
from rlsys.data.row import Origin, Row
from rlsys.recipe.data import FilterSettings, NearDuplicateSettings

HERE = Origin("toy.jsonl", 1)


def said(answer: str, question: str = "Who are you?") -> Row:
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Row("toy/0", "toy", HERE, messages)


def text(content: str) -> Row:
    return Row("toy/0", "toy", HERE, text=content)


@pytest.mark.parametrize(
    ("answer", "names_another"),
    [
        ("I am ChatGPT, a model trained by OpenAI.", True),
        ("As chat gpt I cannot do that.", True),
        ("GPT-4o is a model.", True),
        ("I'm Claude, an AI assistant.", True),
        ("My name is Gemini.", True),
        ("I was created by Anthropic.", True),
        ("Google DeepMind trained me", True),
        ("Qwen? I am Qwen.", True),
        ("I run on Llama 3.", True),
        ("Claude Monet painted water lilies.", False),
        ("A llama is a camelid.", False),
        ("The anthropic principle says otherwise.", False),
        ("Gemini is a sign of the zodiac.", False),
        ("The mistral blows from the north.", False),
        ("An openair festival with GPT-40 units.", False),
        ("Alpacas and vicunas give wool.", False),
    ],
)
def test_other_models(answer: str, names_another: bool):
    keep = RowFilter(FilterSettings(other_models=True))
    assert keep.reason_to_remove(said(answer)) == ("other_models" if names_another else None)
    assert keep.reason_to_remove(said("A person.", question=answer)) is None, "users may speak of models"
    pair = Row("p", "p", HERE, ({"role": "user", "content": "?"},), chosen=({"role": "assistant", "content": "ok"},),
               rejected=({"role": "assistant", "content": answer},))  # fmt: skip
    assert (keep.reason_to_remove(pair) is not None) is names_another


def test_keywords_are_whole_words():
    keep = RowFilter(FilterSettings(keywords=("cat", "as an AI")))
    assert keep.reason_to_remove(said("A CAT.")) == "keywords"
    assert keep.reason_to_remove(said("By category.")) is None
    assert keep.reason_to_remove(said("Well, as an ai model I")) == "keywords"
    assert keep.reason_to_remove(text("a cat")) == "keywords"


def test_lengths():
    keep = RowFilter(FilterSettings(min_characters=5, max_characters=8, max_messages=2))
    assert [keep.reason_to_remove(text("x" * length)) for length in (4, 5, 8, 9)] == [
        "too_short",
        None,
        None,
        "too_long",
    ]
    long = Row("a", "a", HERE, tuple({"role": "user", "content": "ab"} for _ in range(3)))
    assert keep.reason_to_remove(long) == "too_many_messages"


def test_languages_are_detected_the_same_every_time():
    english, german = "This is a sentence about the weather in town.", "Das ist ein Satz über das Wetter in der Stadt."
    keep = RowFilter(FilterSettings(languages=("en",)))
    for _ in range(5):
        assert keep.reason_to_remove(text(english)) is None
        assert keep.reason_to_remove(text(german)) == "language"
    chinese = RowFilter(FilterSettings(languages=("zh",)))
    assert chinese.reason_to_remove(text("今天的天气很好，我们去公园散步。")) is None
    assert detect_language("12345 !!!") is None
    assert keep.reason_to_remove(text("12345 !!!")) == "language"


def test_the_first_filter_that_removes_a_row_is_its_reason():
    keep = RowFilter(FilterSettings(max_characters=10, keywords=("cat",), languages=("en",)))
    assert keep.reason_to_remove(said("a cat and a cat")) == "too_long"


def test_fingerprints_ignore_layout_and_case_alone():
    row = said("An answer.", "A question?")
    assert fingerprint(row, "row") == fingerprint(said(" an  ANSWER.\n", "A question?"), "row")
    assert fingerprint(row, "row") != fingerprint(said("An answer", "A question?"), "row")
    assert fingerprint(row, "prompt") == fingerprint(said("Another.", "a question?"), "prompt")
    assert fingerprint(said("b c", "a"), "row") != fingerprint(said("c", "a b"), "row")


def test_near_duplicates_follow_jaccard_similarity():
    """Rows with a known Jaccard similarity to the first one: those well over the threshold are found, others not."""
    settings = NearDuplicateSettings(threshold=0.7, ngram_words=3, num_permutations=256)
    rng = random.Random(1)
    words = [f"w{rng.randrange(10**6)}" for _ in range(202)]

    def grams(one: list[str]) -> set[tuple[str, ...]]:
        return {tuple(one[place : place + 3]) for place in range(len(one) - 2)}

    verdicts = {}
    for changed in (0, 1, 5, 10, 30, 60, 120):
        other = [*words[: len(words) - changed], *(f"v{place}" for place in range(changed))]
        similarity = len(grams(words) & grams(other)) / len(grams(words) | grams(other))
        index = DuplicateIndex(settings)
        assert index.reason_to_remove(None, signature(text(" ".join(words)), settings)) is None
        verdicts[similarity] = index.reason_to_remove(None, signature(text(" ".join(other)), settings))
    assert (
        sum(similarity > 0.8 for similarity in verdicts) >= 3 and sum(similarity < 0.6 for similarity in verdicts) >= 2
    )
    for similarity, verdict in verdicts.items():
        if similarity > 0.8:
            assert verdict == "near_duplicate"
        if similarity < 0.6:
            assert verdict is None


def test_signatures_estimate_jaccard_and_are_fixed():
    settings = NearDuplicateSettings(ngram_words=1, num_permutations=512)
    left, right = signature(text("a b c d e f g h"), settings), signature(text("e f g h i j k l"), settings)
    assert abs(np.mean(left == right) - 4 / 12) < 0.1  # five standard deviations
    assert left.dtype == np.uint32 and left.shape == (512,)
    assert signature(text("A  b c d e f g h!"), settings).tolist() == left.tolist()


def test_short_texts_have_signatures_too():
    settings = NearDuplicateSettings(threshold=0.8)
    index = DuplicateIndex(settings)
    verdicts = [index.reason_to_remove(None, signature(text(word), settings)) for word in ("Yes.", "No.", "yes", "")]
    assert verdicts == [None, None, "near_duplicate", None]
