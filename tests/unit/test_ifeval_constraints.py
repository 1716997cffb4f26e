"""IFEval's 25 instructions by hand-worked responses: one that follows, one that does not, one that says nothing."""

import pytest
from constraint_verdicts import follows

from rlsys.verifiers.ifeval.table import IFEVAL

REPEATED = {"prompt_to_repeat": "Name a fish."}
SECTIONS = {"section_spliter": "SECTION", "num_sections": 2}
FIRST_WORD = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "rain"}

CASES = [
    # id, arguments, followed, not followed, followed to the reference's eyes alone
    ("keywords:existence", {"keywords": ["cat", "sea"]}, "A cat at SEA.", "A cat.", "A category of seaside."),
    (
        "keywords:frequency",
        {"keyword": "cat", "relation": "at least", "frequency": 2},
        "A cat, a Cat.",
        "One cat.",
        "A cat and a category.",
    ),
    ("keywords:frequency", {"keyword": "cat", "relation": "less than", "frequency": 2}, "One cat.", "Cat, cat.", None),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "A rocket.", "They ROCK.", "The ro\u200bck band."),
    (
        "keywords:letter_frequency",
        {"letter": "z", "let_relation": "at least", "let_frequency": 2},
        "Zigzag",
        "Zoo",
        None,
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_relation": "less than", "let_frequency": 2},
        "a # b",
        "# a #",
        "#",
    ),
    ("language:response_language", {"language": "fr"}, "Bonjour, je suis très content.", "Hello my dear friend.", "1"),
    (
        "length_constraints:number_sentences",
        {"relation": "at least", "num_sentences": 2},
        "Dr. Hall left. We stayed.",
        "Dr. Hall left.",
        "We stayed. **.",
    ),
    (
        "length_constraints:number_words",
        {"relation": "at least", "num_words": 3},
        "one two three",
        "one two",
        "one _ _",
    ),
    ("length_constraints:number_words", {"relation": "at most", "num_words": 2}, "one two", "one two three", None),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "a\n***\nb\n***", "a\n***\n***\nb", "a\n***\n-"),
    ("length_constraints:nth_paragraph_first_word", FIRST_WORD, "Sun.\n\n'Rain' falls.", "Rain.\n\nSun.", "-\n\nrain."),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name], [date]", "[name", "[][]"),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[name]", "[a\nb]", "[here](there.com)"),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        "Hi.\n\n**P.S.** Bye.",
        "Hi. PS bye.",
        "Hi. p. s.",
    ),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "Hi.\nP.P.S Bye", "Hi.\nP.S. Bye", "P.P.S."),
    ("detectable_content:postscript", {"postscript_marker": "N.B."}, "Hi.\nn.b.: see", "Hi. nb see", "Hi. N.B."),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "- a\n  * b", "* a\n**b**", "* a\n---"),
    ("detectable_format:constrained_response", {}, "My answer is no.", "No.", "My answer is no. My answer is yes."),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", "*a* and b", "***a***"),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        "**a** **b**",
        "**a**",
        "2 * 3 * 4 ** 5**",
    ),
    ("detectable_format:multiple_sections", SECTIONS, "SECTION 1 a SECTION 2 b", "SECTION 1 a", "SECTION 1 SECTION 1"),
    ("detectable_format:json_format", {}, '```json\n{"a": [1]}\n```', "{'a': 1}", '"anything"'),
    ("detectable_format:json_format", {}, "[1, 2]", "[1, 2", '{"a": NaN}'),
    ("detectable_format:title", {}, "<<A day>>\nText", "<A day>\n<<>>", "<< - >>\nText"),
    ("combination:two_responses", {}, "Yes.\n******\nNo.", "Yes. ****** No. ****** So.", "Yes. ****** yes"),
    ("combination:repeat_prompt", REPEATED, "name a fish. Cod.", "Sure: Name a fish. Cod.", "Name a fish."),
    ("startend:end_checker", {"end_phrase": "Bye."}, 'So long. "Bye."', "Bye. So long.", "Bye."),
    ("startend:end_checker", {"end_phrase": "end"}, "The end", "The ends", "The weekend"),
    ("startend:quotation", {}, '"So be it."', "“So be it.”", '""'),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "NASA AND me",
        "NASA",
        "I A",
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "NASA",
        "A B",
        None,
    ),
    (
        "change_case:english_capital",
        {},
        "THE CAT IS ON THE MAT AND THE DOG IS WITH THE OTHER CAT.",
        "The dog sleeps.",
        None,
    ),
    (
        "change_case:english_lowercase",
        {},
        "the cat is on the mat and the dog is with the other cat.",
        "The dog sleeps.",
        None,
    ),
    ("punctuation:no_comma", {}, "One and two; three.", "One, two.", "一、二"),
]  # fmt: skip

NAMES = [f"{id} {number}" for number, (id, *_) in enumerate(CASES)]


def test_every_instruction_has_a_case():
    assert {id for id, *_ in CASES} == {constraint.id for constraint in IFEVAL}
    assert len(IFEVAL) == 25


@pytest.mark.parametrize("blank", ["", "  \n "])
@pytest.mark.parametrize(("id", "arguments"), [case[:2] for case in CASES], ids=NAMES)
def test_a_blank_response_follows_nothing(id, arguments, blank):
    assert not follows(id, arguments, blank, mode="eval")
    assert not follows(id, arguments, blank, mode="reward")
