"""The time of a verdict grows with the length of the response and no faster, whatever the response."""

import time
from random import Random

import pytest

from rlsys.verifiers.ifeval import instruction_ids, sample_kwargs, verify_ifeval
from rlsys.verifiers.ifeval.ground_truth import parse_ground_truth

MEGABYTE = 1_000_000
MAX_GROWTH = 3
"""Times that eight times the length may take over eight times as long: a quadratic check takes 8 times over that."""

LONG = [
    # id, arguments, what the response repeats: each hangs the pattern that the reference uses, or one like it
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "["),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, " "),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "\n"),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "* "),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 9}, "*a "),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 9}, "***"),
    ("detectable_format:title", {}, "<<"),
    ("detectable_format:json_format", {}, "["),
    ("detectable_format:multiple_sections", {"section_spliter": "A", "num_sections": 9}, "A 1"),
    ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 9}, "?!"),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 9}, " ***"),
    ("change_case:capital_word_frequency", {"capital_relation": "at least", "capital_frequency": 9}, "A'"),
    ("keywords:existence", {"keywords": ["aaaab"]}, "a"),
    ("language:response_language", {"language": "en"}, "a@"),
    ("copy:repeat_phrase", {"phrase": "a b c", "small_n": 2}, "a "),
    ("detectable_format:sentence_hyphens", {}, "."),
    ("keywords:start_end", {}, '"'),
    ("format:line_indent", {}, "\n"),
    ("format:newline", {}, "\n"),
    ("format:quotes", {}, "\"'"),
    ("format:title_case", {}, ". "),
    ("custom:mcq_count_length", {}, "\n"),
    ("custom:csv_special_character", {}, '"!'),
    ("words:odd_even_syllables", {}, "a"),
    ("words:repeats", {"small_n": 1}, "a-"),
]


def cpu_seconds(id: str, arguments: dict, response: str) -> float:
    started = time.process_time()
    for mode in ("eval", "reward"):
        verify_ifeval(response, {"instruction_id_list": [id], "kwargs": [arguments]}, mode)
    return time.process_time() - started


@pytest.mark.parametrize(("id", "arguments", "unit"), LONG, ids=[f"{id} {unit!r}" for id, _, unit in LONG])
def test_a_megabyte_takes_eight_times_as_long_as_an_eighth_of_it(id: str, arguments: dict, unit: str):
    response = unit * (MEGABYTE // len(unit))
    cpu_seconds(id, arguments, "Loads what is loaded once. " + unit)
    short = cpu_seconds(id, arguments, "z" + response[: MEGABYTE // 8])
    long = cpu_seconds(id, arguments, "z" + response)
    assert long < 8 * MAX_GROWTH * max(short, 0.005)


@pytest.mark.parametrize("unit", ["[", "A. ", "\n", "*-\n", "\"'a "])
def test_no_constraint_takes_long_for_a_long_response(unit: str):
    response = "z" + unit * (30_000 // len(unit))
    for id in instruction_ids():
        drawn = sample_kwargs(id, Random(0), prompt="the old dog sleeps")
        (instruction,) = parse_ground_truth({"instruction_id_list": [id], "kwargs": [drawn]}).instructions
        started = time.process_time()
        instruction.constraint.holds(response, instruction.arguments, mode="eval")
        instruction.constraint.holds(response, instruction.arguments, mode="reward")
        assert time.process_time() - started < 5, id
