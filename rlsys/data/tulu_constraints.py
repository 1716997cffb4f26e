"""Tülu 3's own constraint functions (data set RLVR-IFeval), told in IFEval's instruction ids.

Its ground truth is `{"func_name": "validate_lowercase", "N": null, …}`. Those that no instruction says are not here:
they count exactly, or other things, and are checked as they are by the verifier `tulu`.
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


def _sentences(truth: Mapping[str, Any]) -> Instructions:
    """`at least`, `at most`, or `around`: one more or less."""
    count = int(_required(truth, "N"))
    bounds = {
        "at least": [("at least", count)],
        "at most": [("less than", count + 1)],
        "around": [("at least", max(count - 1, 1)), ("less than", count + 2)],
    }
    identifier = "length_constraints:number_sentences"
    wanted = bounds[_required(truth, "quantifier")]
    return [(identifier, {"relation": relation, "num_sentences": number}) for relation, number in wanted]


def _options(truth: Mapping[str, Any]) -> Instructions:
    options = _required(truth, "options")
    joined = options if isinstance(options, str) else "/".join(str(option) for option in options)
    return [("format:options", {"options": joined})]


_TRANSLATIONS: dict[str, Callable[[Mapping[str, Any]], Instructions]] = {
    "verify_keywords": _plain("keywords:existence", keywords="keyword_list"),
    "validate_forbidden_words": _plain("keywords:forbidden_words", forbidden_words="forbidden_words"),
    "validate_response_language": _plain("language:response_language", language="language"),
    "verify_sentence_constraint": _sentences,
    "validate_paragraphs": _plain(
        "length_constraints:nth_paragraph_first_word", num_paragraphs="N", nth_paragraph="i", first_word="first_word"
    ),
    "verify_postscript": _plain("detectable_content:postscript", postscript_marker="postscript_marker"),
    "validate_placeholders": _plain("detectable_content:number_placeholders", num_placeholders="N"),
    "verify_bullet_points": _plain("detectable_format:number_bullet_lists", num_bullets="N"),
    "validate_title": _plain("detectable_format:title"),
    "validate_choice": _options,
    "validate_highlighted_sections": _plain("detectable_format:number_highlighted_sections", num_highlights="N"),
    "validate_json_format": _plain("detectable_format:json_format"),
    "validate_repeat_prompt": _plain("combination:repeat_prompt", prompt_to_repeat="original_prompt"),
    "validate_two_responses": _plain("combination:two_responses"),
    "validate_uppercase": _plain("change_case:english_capital"),
    "validate_lowercase": _plain("change_case:english_lowercase"),
    "validate_end": _plain("startend:end_checker", end_phrase="end_phrase"),
    "validate_quotation": _plain("startend:quotation"),
    "validate_no_commas": _plain("punctuation:no_comma"),
}
