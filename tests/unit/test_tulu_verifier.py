"""Tülu 3's own constraints: what open-instruct counts, and what is not paid for though it counts it."""

from typing import Any

import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.tulu import check_tulu_ground_truth, verify_tulu

KEYWORD = {"func_name": "verify_keyword_frequency", "word": "art", "N": 2}
LETTER = {"func_name": "verify_letter_frequency", "letter": "A", "N": 1}
SECTIONS = {"func_name": "validate_sections", "section_splitter": "SECTION", "N": 2}
PARAGRAPHS = {"func_name": "verify_paragraph_count", "N": 2}
CONTRACTIONS = "don't can't won't isn't a b c d e f g h"  # 12 between spaces, 16 runs of letters


def words(quantifier: str, number: int) -> dict[str, Any]:
    return {"func_name": "validate_word_constraint", "quantifier": quantifier, "N": number}


def capitals(quantifier: str, number: int) -> dict[str, Any]:
    return {"func_name": "validate_frequency_capital_words", "quantifier": quantifier, "N": number}


@pytest.mark.parametrize(
    ("response", "truth", "right", "paid"),
    [
        ("Art is long. We start with art.", KEYWORD, True, True),  # not the "art" of "start"
        ("Art starts here.", KEYWORD, False, False),
        ("art, art and art", KEYWORD, False, False),
        ("A cat sat.", LETTER, True, True),  # capitals alone
        ("A cat sat. Again!", LETTER, False, False),
        ("A", LETTER, True, True),
        (CONTRACTIONS, words("at most", 12), True, True),
        (CONTRACTIONS, words("at least", 13), False, False),
        (CONTRACTIONS, words("around", 13), True, True),
        (CONTRACTIONS, words("around", 14), False, False),
        ("a b c d " + "- " * 8, words("at least", 12), True, False),
        ("NASA AND ESA ARE OLD", capitals("around", 5), True, True),
        ("NASA AND ESA ARE OLD", capitals("around", 4), False, False),
        ("I am A man who likes THE SEA.", capitals("at least", 4), True, True),
        ("I am A man who likes THE SEA.", capitals("at most", 3), False, False),
        ("SECTION A one SECTION B two", SECTIONS, True, True),
        ("Before. SECTION A one SECTION B two", SECTIONS, False, False),
        ("SECTION 1 a SECTION 2 b SECTION 3 c", SECTIONS, False, False),
        ("SECTION . SECTION .", SECTIONS, True, False),
        ("Part 1 a Part 2 b Party", SECTIONS | {"section_splitter": "Part "}, True, True),
        ("one\n* * *\ntwo", PARAGRAPHS, True, True),
        ("one\n* * *\n!", PARAGRAPHS, True, False),
        ("one\n\ntwo", PARAGRAPHS, False, False),
        ("one* * *two* * *", PARAGRAPHS, False, False),
        ("", words("at most", 5), False, False),
        ("...", words("at most", 5), True, False),
        ("<think>art art</think>none", KEYWORD, False, False),
        ("<think>x</think>art art", KEYWORD, True, True),
        ("a\u200brt art art", KEYWORD, True, False),  # a reader sees three
    ],
)
def test_eval_mode_is_open_instructs_and_reward_mode_asks_for_more(
    response: str, truth: dict[str, Any], right: bool, paid: bool
):
    assert verify_tulu(response, truth, "eval").score == right
    assert verify_tulu(response, truth, "reward").score == paid


@pytest.mark.parametrize(
    ("truth", "told"),
    [
        ({"func_name": "validate_quotation"}, "names no function that is known"),
        ("verify_keyword_frequency", "names no function that is known"),
        (KEYWORD | {"word": "two words"}, "word must be one word"),
        (KEYWORD | {"N": None}, "N must be an integer from 0"),
        (LETTER | {"letter": "ab"}, "letter must be a single character"),
        (words("roughly", 3), "quantifier must be one of 'at least'"),
        (SECTIONS | {"section_splitter": ""}, "section_splitter must be a string"),
        (PARAGRAPHS | {"N": 0}, "N must be an integer from 1"),
    ],
)
def test_a_ground_truth_that_says_nothing_is_refused(truth: Any, told: str):
    with pytest.raises(VerifierError, match=told):
        check_tulu_ground_truth(truth)
