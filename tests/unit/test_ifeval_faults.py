"""Faults that other verifiers of instruction following have had, each with the response that showed it."""

import copy
from types import MappingProxyType

import pytest

from rlsys.verifiers.ifeval import verify_ifeval


def score(id: str, arguments: dict, response: str, mode: str = "reward") -> float:
    return verify_ifeval(response, {"instruction_id_list": [id], "kwargs": [arguments]}, mode).score


def test_bold_text_is_one_highlight():
    # `\*(.*?)\*` finds two empty ones in it.
    highlights = "detectable_format:number_highlighted_sections"
    for mode in ("eval", "reward"):
        assert score(highlights, {"num_highlights": 1}, "So **bold**.", mode) == 1
        assert score(highlights, {"num_highlights": 2}, "So **bold**.", mode) == 0
        assert score(highlights, {"num_highlights": 2}, "**bold** and *thin*", mode) == 1


def test_a_keyword_inside_another_word_is_none():
    assert score("keywords:existence", {"keywords": ["cat"]}, "Another category.") == 0
    assert score("keywords:existence", {"keywords": ["cat"]}, "Another category.", "eval") == 1
    assert score("keywords:existence", {"keywords": ["cat"]}, "The cat's category.") == 1


@pytest.mark.parametrize("empty", ["", " \n", "!?", "*** ---"])
@pytest.mark.parametrize("id", ["punctuation:no_comma", "punctuation:punctuation_dot", "format:no_whitespace"])
def test_a_text_that_says_nothing_follows_no_ban(id: str, empty: str):
    assert score(id, {}, empty) == 0


@pytest.mark.parametrize("empty", ["", " \n", "!?", "123"])
@pytest.mark.parametrize("id", ["change_case:english_lowercase", "change_case:english_capital"])
def test_a_text_without_letters_is_in_no_case(id: str, empty: str):
    for mode in ("eval", "reward"):
        assert score(id, {}, empty, mode) == 0


def test_samples_of_a_group_share_a_label_and_none_consumes_it():
    label = {
        "instruction_id_list": ["length_constraints:number_words", "keywords:forbidden_words", "keywords:existence"],
        "kwargs": [
            {"relation": "at least", "num_words": 3},
            {"forbidden_words": ["no"]},
            {"keywords": ["zebra", "apple"]},
        ],
    }
    before = copy.deepcopy(label)
    group = [verify_ifeval("An apple, a zebra.", label, "reward") for _ in range(8)]
    assert group == [group[0]] * 8
    assert group[0].score == 1
    assert label == before


def test_a_read_only_label_is_enough():
    label = MappingProxyType({"instruction_id_list": ("punctuation:no_comma",), "kwargs": (MappingProxyType({}),)})
    assert verify_ifeval("No comma.", label, "reward").score == 1


def test_only_text_after_the_last_thinking_counts():
    no_comma = ("punctuation:no_comma", {})
    for mode in ("eval", "reward"):
        assert score(*no_comma, "<think>a, b</think>No comma.", mode) == 1
        assert score(*no_comma, "<think>so</think>One, two.", mode) == 0
        assert score(*no_comma, "So</think> be it</think> again.", mode) == 1
        assert score(*no_comma, "<think>No comma.", mode) == 0
        assert score(*no_comma, "</think>So <think>no comma.", mode) == 0


def test_words_hidden_by_characters_that_do_not_show_are_found():
    for hidden in ("ro\u200bck", "ro\u00adck", "\uff52\uff4f\uff43\uff4b", "r\u2060ock"):
        assert score("keywords:forbidden_words", {"forbidden_words": ["rock"]}, f"The {hidden} band.") == 0


def test_commas_of_other_scripts_are_commas():
    for comma in "\uff0c\u060c\u3001\ufe50":
        assert score("punctuation:no_comma", {}, f"one{comma} two") == 0


def test_keywords_are_literal():
    assert score("keywords:existence", {"keywords": ["C++"]}, "I like C++") == 1
    assert score("keywords:existence", {"keywords": ["a.b"]}, "axb") == 0
    assert score("keywords:frequency", {"keyword": "(", "relation": "at least", "frequency": 1}, "hi (") == 1
    assert score("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "I like C++") == 0
    assert score("keywords:existence", {"keywords": ["(a+)+$"]}, "a" * 40 + "!") == 0
    assert score("detectable_format:multiple_sections", {"section_spliter": "(", "num_sections": 1}, "(1 a") == 1


def test_json_that_crashes_a_parser_or_is_none_to_the_standard():
    json_format = "detectable_format:json_format"
    assert score(json_format, {}, "[" * 100_000, "eval") == 0
    assert score(json_format, {}, "1" * 5_000, "eval") == 0
    assert score(json_format, {}, '{"a": NaN}', "eval") == 1
    assert score(json_format, {}, '{"a": NaN}') == 0
    assert score(json_format, {}, '{"a": [1, {"b": null}]}') == 1


def test_naming_every_option_is_no_answer():
    every = "My answer is yes. My answer is no. My answer is maybe."
    assert score("detectable_format:constrained_response", {}, every, "eval") == 1
    assert score("detectable_format:constrained_response", {}, every) == 0


def test_capitals_need_no_language_detection_in_reward_mode():
    # langdetect takes this for another language.
    assert score("change_case:english_capital", {}, "SUN SUN SUN SUN", "eval") == 0
    assert score("change_case:english_capital", {}, "SUN SUN SUN SUN") == 1
    assert score("change_case:english_capital", {}, "\u042d\u0422\u041e \u041d\u0415 \u0422\u041e") == 0
    assert score("change_case:english_lowercase", {}, "\u4f60\u597d a") == 0


def test_the_score_is_binary_or_the_share_followed():
    label = {
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation", "detectable_format:title"],
        "kwargs": [{}, {}, {}],
    }
    binary = verify_ifeval('"No comma"', label, "reward")
    assert (binary.outcome, binary.score) == ("wrong", 0.0)
    fractional = verify_ifeval('"No comma"', {**label, "scoring": "fractional"}, "reward")
    assert (fractional.outcome, fractional.score) == ("wrong", pytest.approx(2 / 3))
    assert verify_ifeval('"<<No>> comma"', {**label, "scoring": "fractional"}, "reward").outcome == "correct"


def test_the_detail_lists_each_instruction_strict_and_loose():
    label = {"instruction_id_list": ["punctuation:no_comma", "startend:quotation"], "kwargs": [{}, {}]}
    verdict = verify_ifeval('Sure, here you are:\n"So be it"\nAnything else?', label, "eval")
    # Loose: without the first line there is no comma, without first and last it is quoted.
    assert verdict.detail == {
        "instruction_id_list": ["punctuation:no_comma", "startend:quotation"],
        "strict": [False, False],
        "loose": [True, True],
    }
    assert verdict.score == 0
    starred = {"instruction_id_list": ["startend:quotation"], "kwargs": [{}]}
    assert verify_ifeval('*"So be it"*', starred, "eval").detail["loose"] == [True]
    assert verify_ifeval("So be it", starred, "eval").detail["loose"] == [False]


def test_a_lone_surrogate_is_a_character_like_any_other():
    assert score("punctuation:no_comma", {}, "so \ud800 be it") == 1
    assert score("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 1}, "\udfff a.") == 1
    assert score("language:response_language", {"language": "en"}, "this is \ud800 a text in plain English") == 1
