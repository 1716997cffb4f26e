"""Tülu 3's own constraint functions (data set RLVR-IFeval), told in IFEval's instruction ids.

Its ground truth is `{"func_name": "validate_lowercase", "N": null, …}`. Where Tülu asks for an exact count and IFEval
knows only bounds, two instructions say it together. `verify_paragraph_count` divides by `* * *`, which no IFEval
instruction does, so its rows are refused and counted.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from rlsys.data.drops import RowRefused

Instructions: TypeAlias = list[tuple[str, dict[str, Any]]]


def ifeval_of_tulu(truth: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Instruction ids and their arguments.

    Raises:
        RowRefused: `unmapped_constraint`: no instruction says the same; `bad_ground_truth`: an argument is missing.

    >>> ifeval_of_tulu({"func_name": "verify_bullet_points", "N": 2, "word": None})
    (['detectable_format:number_bullet_lists'], [{'num_bullets': 2}])
    """
    name = truth.get("func_name")
    translate = _TRANSLATIONS.get(name) if isinstance(name, str) else None
    if translate is None:
        raise RowRefused("unmapped_constraint", f"no IFEval instruction says what {name!r} checks")
    try:
        instructions = translate(truth)
    except (KeyError, TypeError, ValueError) as error:
        raise RowRefused("bad_ground_truth", f"{name} lacks a usable argument: {error!r}") from None
    return [identifier for identifier, _ in instructions], [arguments for _, arguments in instructions]


def _plain(identifier: str, **arguments: str) -> Callable[[Mapping[str, Any]], Instructions]:
    """One instruction whose arguments are Tülu's under other names: IFEval's name = Tülu's name."""

    def translate(truth: Mapping[str, Any]) -> Instructions:
        return [(identifier, {ours: _required(truth, theirs) for ours, theirs in arguments.items()})]

    return translate


def _required(truth: Mapping[str, Any], name: str) -> Any:
    value = truth[name]
    if value is None:
        raise ValueError(f"{name} is null")
    return value


def _between(identifier: str, name: str, relation: str, low: int, high: int, **shared: Any) -> Instructions:
    """At least `low` and under `high` of it."""
    return [
        (identifier, {**shared, relation: "at least", name: low}),
        (identifier, {**shared, relation: "less than", name: high}),
    ]


def _exact_keyword(truth: Mapping[str, Any]) -> Instructions:
    count = int(_required(truth, "N"))
    word = _required(truth, "word")
    return _between("keywords:frequency", "frequency", "relation", count, count + 1, keyword=word)


def _exact_letter(truth: Mapping[str, Any]) -> Instructions:
    count = int(_required(truth, "N"))
    letter = _required(truth, "letter")
    return _between("keywords:letter_frequency", "let_frequency", "let_relation", count, count + 1, letter=letter)


def _quantified(
    identifier: str, name: str, relation: str, *, tolerance: Callable[[int], int]
) -> Callable[[Mapping[str, Any]], Instructions]:
    """`at least`, `at most`, or `around` with Tülu's tolerance."""

    def translate(truth: Mapping[str, Any]) -> Instructions:
        count = int(_required(truth, "N"))
        quantifier = _required(truth, "quantifier")
        if quantifier == "at least":
            return [(identifier, {relation: "at least", name: count})]
        if quantifier == "at most":
            return [(identifier, {relation: "less than", name: count + 1})]
        if quantifier == "around":
            width = tolerance(count)
            return _between(identifier, name, relation, max(count - width, 1), count + width + 1)
        raise ValueError(f"quantifier is {quantifier!r}")

    return translate


def _options(truth: Mapping[str, Any]) -> Instructions:
    options = _required(truth, "options")
    joined = options if isinstance(options, str) else "/".join(str(option) for option in options)
    return [("format:options", {"options": joined})]


def _tenth(count: int) -> int:
    return max(round(count * 0.1), 1)


_TRANSLATIONS: dict[str, Callable[[Mapping[str, Any]], Instructions]] = {
    "verify_keywords": _plain("keywords:existence", keywords="keyword_list"),
    "verify_keyword_frequency": _exact_keyword,
    "validate_forbidden_words": _plain("keywords:forbidden_words", forbidden_words="forbidden_words"),
    "verify_letter_frequency": _exact_letter,
    "validate_response_language": _plain("language:response_language", language="language"),
    "validate_word_constraint": _quantified(
        "length_constraints:number_words", "num_words", "relation", tolerance=_tenth
    ),
    "verify_sentence_constraint": _quantified(
        "length_constraints:number_sentences", "num_sentences", "relation", tolerance=lambda count: 1
    ),
    "validate_paragraphs": _plain(
        "length_constraints:nth_paragraph_first_word", num_paragraphs="N", nth_paragraph="i", first_word="first_word"
    ),
    "verify_postscript": _plain("detectable_content:postscript", postscript_marker="postscript_marker"),
    "validate_placeholders": _plain("detectable_content:number_placeholders", num_placeholders="N"),
    "verify_bullet_points": _plain("detectable_format:number_bullet_lists", num_bullets="N"),
    "validate_title": _plain("detectable_format:title"),
    "validate_choice": _options,
    "validate_highlighted_sections": _plain("detectable_format:number_highlighted_sections", num_highlights="N"),
    "validate_sections": _plain(
        "detectable_format:multiple_sections", section_spliter="section_splitter", num_sections="N"
    ),
    "validate_json_format": _plain("detectable_format:json_format"),
    "validate_repeat_prompt": _plain("combination:repeat_prompt", prompt_to_repeat="original_prompt"),
    "validate_two_responses": _plain("combination:two_responses"),
    "validate_uppercase": _plain("change_case:english_capital"),
    "validate_lowercase": _plain("change_case:english_lowercase"),
    "validate_frequency_capital_words": _quantified(
        "change_case:capital_word_frequency", "capital_frequency", "capital_relation", tolerance=_tenth
    ),
    "validate_end": _plain("startend:end_checker", end_phrase="end_phrase"),
    "validate_quotation": _plain("startend:quotation"),
    "validate_no_commas": _plain("punctuation:no_comma"),
}
