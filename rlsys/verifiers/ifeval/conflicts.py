"""Which constraints no response can be asked to follow together.

Each constraint says what it decides alone, what it needs in a response and what it bans there. Two conflict where they
decide the same, or where one needs what the other bans. The table errs on the side of a conflict: a prompt with one
constraint fewer is worth more than one that cannot be satisfied.
"""

from collections.abc import Set
from dataclasses import dataclass
from functools import cache

from rlsys.verifiers.ifeval.table import constraints, find_constraint


@dataclass(frozen=True, slots=True)
class Aspects:
    """What a constraint does to a response, in words of this module's table."""

    decides: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset()
    bans: frozenset[str] = frozenset()
    only_with: frozenset[str] | None = None
    """The ids it allows beside it, for a constraint that prescribes nearly the whole response."""


def _aspects(*, decides: str = "", needs: str = "", bans: str = "", only_with: str | None = None) -> Aspects:
    allowed = None if only_with is None else frozenset(only_with.split())
    return Aspects(frozenset(decides.split()), frozenset(needs.split()), frozenset(bans.split()), allowed)


_WHOLE = _aspects(only_with="")
_KEYWORD = _aspects(needs="english free-words")
_KEYWORDS = _aspects(needs="english free-words repeats")
_EVERY_WORD = _aspects(decides="every-word", needs="english", bans="free-words")

ASPECTS: dict[str, Aspects] = {
    # IFEval
    "keywords:existence": _KEYWORD,
    "keywords:frequency": _KEYWORDS,
    "keywords:forbidden_words": _aspects(needs="english"),
    "keywords:letter_frequency": _aspects(decides="letters", needs="english"),
    "language:response_language": _aspects(decides="language", bans="english"),
    "length_constraints:number_sentences": _aspects(decides="sentences"),
    "length_constraints:number_words": _aspects(decides="length"),
    "length_constraints:number_paragraphs": _aspects(decides="paragraphs sentences", needs="asterisk lines"),
    "length_constraints:nth_paragraph_first_word": _aspects(decides="paragraphs", needs="english lines"),
    "detectable_content:number_placeholders": _aspects(needs="bracket"),
    "detectable_content:postscript": _aspects(decides="end", needs="dot lines"),
    "detectable_format:number_bullet_lists": _aspects(decides="bullets", needs="lines hyphen"),
    "detectable_format:constrained_response": _WHOLE,
    "detectable_format:number_highlighted_sections": _aspects(decides="sections", needs="asterisk"),
    "detectable_format:multiple_sections": _aspects(
        decides="sections", needs="english capitals lowercase digits lines free-words"
    ),
    "detectable_format:json_format": _aspects(only_with="keywords:forbidden_words keywords:existence"),
    "detectable_format:title": _aspects(needs="angle"),
    "combination:two_responses": _aspects(
        only_with="keywords:forbidden_words keywords:existence language:response_language detectable_format:title "
        "punctuation:no_comma"
    ),
    "combination:repeat_prompt": _aspects(only_with="keywords:existence detectable_format:title"),
    "startend:end_checker": _aspects(decides="end", needs="english dot exclamation free-words"),
    "change_case:capital_word_frequency": _aspects(decides="case", needs="capitals"),
    "change_case:english_capital": _aspects(decides="case", needs="english", bans="lowercase"),
    "change_case:english_lowercase": _aspects(decides="case", needs="english", bans="capitals"),
    "punctuation:no_comma": _aspects(bans="comma"),
    "startend:quotation": _aspects(decides="start quotes", bans="angle"),
    # IFEvalG
    "copy:repeat_phrase": _aspects(needs="english free-words repeats lowercase"),
    "copy:copy": _WHOLE,
    "copy:copying_simple": _WHOLE,
    "copy:copying_multiple": _WHOLE,
    "new:copy_span_idx": _WHOLE,
    "detectable_format:sentence_hyphens": _aspects(decides="sentences", bans="hyphen lines"),
    "keywords:no_adjacent_consecutive": _EVERY_WORD,
    "detectable_format:square_brackets": _aspects(decides="wrapping start end", bans="free-words asterisk angle lines"),
    "keywords:word_once": _KEYWORD,
    "keywords:word_count_different_numbers": _KEYWORDS,
    "keywords:exclude_word_harder": _aspects(),
    "paragraphs:paragraphs": _aspects(decides="paragraphs", needs="asterisk lines"),
    "paragraphs:paragraphs2": _aspects(decides="paragraphs", needs="lines"),
    "first_word:first_word_sent": _aspects(decides="start sentence-starts", needs="english repeats free-words"),
    "first_word:first_word_answer": _aspects(decides="start", needs="english free-words"),
    "last_word:last_word_sent": _aspects(decides="end sentence-ends", needs="english repeats free-words"),
    "last_word:last_word_answer": _aspects(decides="end", needs="english free-words"),
    "detectable_format:bigram_wrapping": _aspects(
        decides="wrapping start end", bans="free-words asterisk bracket lines"
    ),
    "punctuation:punctuation_dot": _aspects(bans="dot"),
    "punctuation:punctuation_exclamation": _aspects(bans="exclamation"),
    "count:lowercase_counting": _aspects(decides="case", bans="lowercase"),
    "letters:letter_counting": _aspects(decides="length"),
    "letters:letter_counting2": _aspects(decides="letters", needs="english"),
    "count:counting_composition": _aspects(
        only_with="keywords:forbidden_words keywords:exclude_word_harder punctuation:no_comma"
    ),
    "count:count_unique": _aspects(decides="every-word", bans="repeats"),
    "count:count_increment_word": _KEYWORDS,
    "keywords:palindrome": _KEYWORD,
    "keywords:keyword_specific_position": _aspects(decides="sentences", needs="english free-words"),
    "keywords:start_end": _aspects(decides="start end", needs="repeats free-words"),
    # IFBench
    "count:word_count_range": _aspects(decides="length"),
    "count:unique_word_count": _aspects(decides="length"),
    "count:conjunctions": _KEYWORD,
    "count:person_names": _aspects(needs="english free-words capitals lowercase"),
    "count:numbers": _aspects(bans="digits"),
    "count:punctuation": _aspects(needs="comma dot exclamation"),
    "count:words_japanese": _aspects(decides="language every-word"),
    "count:pronouns": _KEYWORDS,
    "count:keywords_multiple": _KEYWORDS,
    "ratio:stop_words": _aspects(decides="every-word"),
    "ratio:sentence_type": _aspects(decides="sentences sentence-ends", needs="dot"),
    "ratio:sentence_balance": _aspects(decides="sentences sentence-ends", needs="dot exclamation"),
    "ratio:overlap": _WHOLE,
    "ratio:sentence_words": _aspects(decides="sentences length paragraphs", bans="repeats lines"),
    "words:alphabet": _EVERY_WORD,
    "words:vowel": _aspects(decides="every-word paragraphs", needs="english", bans="free-words lines"),
    "words:consonants": _EVERY_WORD,
    "words:palindrome": _KEYWORD,
    "words:prime_lengths": _EVERY_WORD,
    "words:repeats": _aspects(decides="every-word", bans="repeats"),
    "words:odd_even_syllables": _EVERY_WORD,
    "words:last_first": _aspects(decides="sentence-starts sentence-ends", needs="repeats free-words"),
    "words:paragraph_last_first": _aspects(
        decides="start end paragraphs", needs="repeats lines", bans="asterisk hyphen"
    ),
    "words:no_consecutive": _EVERY_WORD,
    "words:keywords_specific_position": _aspects(decides="sentences", needs="english free-words"),
    "words:words_position": _aspects(decides="start end", needs="english free-words repeats"),
    "sentence:alliteration_increment": _aspects(decides="sentences every-word", bans="free-words"),
    "sentence:keyword": _aspects(decides="sentences", needs="english free-words"),
    "sentence:increment": _aspects(decides="sentences length"),
    "repeat:repeat_change": _WHOLE,
    "repeat:repeat_simple": _WHOLE,
    "repeat:repeat_span": _WHOLE,
    "format:parentheses": _aspects(needs="bracket"),
    "format:quotes": _aspects(decides="quotes"),
    "format:options": _WHOLE,
    "format:newline": _aspects(decides="paragraphs bullets sections wrapping", bans="hyphen asterisk"),
    "format:emoji": _aspects(decides="end sentence-ends"),
    "format:line_indent": _aspects(decides="paragraphs bullets sections"),
    "format:quote_unquote": _aspects(decides="quotes"),
    "format:list": _aspects(decides="bullets", needs="lines"),
    "format:thesis": _aspects(decides="start", needs="angle lowercase"),
    "format:sub-bullets": _aspects(decides="bullets", needs="lines hyphen", bans="asterisk"),
    "format:no_bullets_bullets": _aspects(
        decides="bullets paragraphs end sections", needs="dot lines", bans="asterisk"
    ),
    "format:title_case": _aspects(decides="case"),
    "format:output_template": _aspects(decides="start sections", needs="english capitals lowercase"),
    "format:no_whitespace": _aspects(
        only_with="punctuation:no_comma punctuation:punctuation_dot punctuation:punctuation_exclamation"
    ),
    **{f"custom:{task}": _WHOLE for task in (
        "multiples", "mcq_count_length", "reverse_newline", "word_reverse", "character_reverse", "sentence_alphabet",
        "european_capitals_sort", "csv_city", "csv_special_character", "csv_quotes", "date_format_list",
    )},
}  # fmt: skip


@cache
def conflicts(id: str) -> Set[str]:
    """The ids that cannot be asked for beside `id`, itself among them.

    Raises:
        VerifierError: the id is unknown.

    >>> "change_case:english_lowercase" in conflicts("change_case:english_capital")
    True
    """
    find_constraint(id)
    return frozenset(other for other in constraints() if other == id or _conflict(id, other))


def _conflict(one: str, other: str) -> bool:
    ours, theirs = ASPECTS[one], ASPECTS[other]
    if ours.only_with is not None and other not in ours.only_with:
        return True
    if theirs.only_with is not None and one not in theirs.only_with:
        return True
    return not (
        ours.decides.isdisjoint(theirs.decides)
        and ours.needs.isdisjoint(theirs.bans)
        and ours.bans.isdisjoint(theirs.needs)
    )
