"""IFBench's constraints under `format:`: nesting, lines, lists, templates."""

import re
from itertools import pairwise
from random import Random
from typing import Any

from emoji import is_emoji

from rlsys.verifiers.ifbench.bare import bare, trim
from rlsys.verifiers.ifbench.lexical import has_two_words
from rlsys.verifiers.ifeval.arguments import keyword, text
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.sentences import split_sentences
from rlsys.verifiers.ifeval.treebank import tokens
from rlsys.verifiers.ifeval.words import says_something

CLOSED_BY = {"(": ")", "[": "]", "{": "}"}
MIN_BRACKET_DEPTH = 5
MIN_QUOTE_DEPTH = 3
TEMPLATE = ("My Answer:", "My Conclusion:", "Future Outlook:")

_TEMPLATE = re.compile("|".join(map(re.escape, TEMPLATE)))
_LETTERED = re.compile(r"\W*[aA]\W*[bB]\W*[cC]\W*")
_APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")
_EDGES_BUT_QUOTE = "0123456789!#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def parentheses(response: str) -> bool:
    # As the reference: five levels open at once, and one of them closed.
    open_brackets: list[str] = []
    depth = 0
    for char in response:
        if char in "([{":
            open_brackets.append(CLOSED_BY[char])
            depth = max(depth, len(open_brackets))
        elif char in ")]}":
            if not open_brackets or open_brackets.pop() != char:
                open_brackets, depth = [], 0
            elif depth >= MIN_BRACKET_DEPTH:
                return True
    return False


def closed_parentheses(response: str) -> bool:
    # All five levels closed: the height of a group is one more than that of the highest group in it.
    heights: list[tuple[str, int]] = []
    for char in response:
        if char in "([{":
            heights.append((CLOSED_BY[char], 1))
        elif char in ")]}" and heights:
            closer, height = heights.pop()
            if closer != char:
                heights = []
            elif height >= MIN_BRACKET_DEPTH:
                return True
            elif heights:
                heights[-1] = (heights[-1][0], max(heights[-1][1], height + 1))
    return False


def quotes(response: str) -> bool:
    open_quotes: list[str] = []
    deepest = 0
    for char in response:
        if open_quotes and char == open_quotes[-1]:
            open_quotes.pop()
            if deepest - len(open_quotes) >= MIN_QUOTE_DEPTH:
                return True
        elif char in "\"'":
            open_quotes.append(char)
            deepest = max(deepest, len(open_quotes))
    return False


def quotes_without_apostrophes(response: str) -> bool:
    return quotes(_APOSTROPHE.sub("", response))


def option(response: str, *, options: str) -> bool:
    separator = next((mark for mark in ("/", "or") if mark in options), ",")
    choices = [choice.strip() for choice in options.split(separator)]
    if _LETTERED.match(options):
        return response in choices
    return trim(response).lower() in [trim(choice).lower() for choice in choices]


def newline(response: str) -> bool:
    words = bare(response).strip()
    return sum(map(bool, words.split("\n"))) == len(words.split())


def emoji(response: str) -> bool:
    # At the end of a sentence, or at the start of the next, where the splitter leaves what follows a mark.
    sentences = [bare(sentence).strip() for sentence in split_sentences(response)]
    for place, sentence in enumerate(sentences):
        if any(map(is_emoji, sentence[-2:])):
            continue
        following = sentences[place + 1 : place + 2]
        if not sentence or not following or not is_emoji(following[0][:1]):
            return False
    return True


def line_indent(response: str) -> bool:
    lines = response.split("\n")
    # The reference drops at most every other line, and indents that grow add up to the length: more lines must fail.
    if len(lines) > 8 + 8 * len(response) ** 0.5:
        return False
    for line in lines:
        # Skips the line after a dropped one, as the reference does.
        if not line.strip():
            lines.remove(line)
    return _grows(lines)


def spoken_line_indent(response: str) -> bool:
    lines = [line for line in response.split("\n") if says_something(line)]
    return len(lines) >= 2 and _grows(lines)


def _grows(lines: list[str]) -> bool:
    indents = [len(line) - len(line.lstrip(" ")) for line in lines]
    return all(before < after for before, after in pairwise(indents))


def quote_unquote(response: str) -> bool:
    text = "".join(response.replace("'\"'", "").split())
    return '""' not in text and not text.strip(_EDGES_BUT_QUOTE).endswith('"')


def quoted_then_unquoted(response: str) -> bool:
    parts = response.split('"')
    return len(parts) >= 3 and len(parts) % 2 == 1 and all(map(says_something, parts[1:]))


def special_list(response: str, *, sep: str) -> bool:
    return response.count(sep) >= 2


def special_list_items(response: str, *, sep: str) -> bool:
    lines = (line.strip() for line in response.split("\n"))
    return sum(1 for line in lines if line.startswith(sep) and says_something(line.removeprefix(sep))) >= 2


def thesis(response: str) -> bool:
    start = _first(response, "<i>", "<em>")
    text = response[start:]
    end = _first(text, "</i>", "</em>")
    return start >= 0 and end >= 0 and bool(text[3:end].strip()) and bool(text[end + 4 :].strip())


def _first(text: str, *marks: str) -> int:
    """Where the first of the marks that occurs at all begins; -1 for none."""
    return next((place for mark in marks if (place := text.find(mark)) >= 0), -1)


def spoken_thesis(response: str) -> bool:
    for tag in ("i", "em"):
        _, opening, rest = response.partition(f"<{tag}>")
        inside, closing, after = rest.partition(f"</{tag}>")
        if opening and closing and says_something(inside) and says_something(after):
            return True
    return False


def sub_bullets(response: str) -> bool:
    return all("-" in bullet for bullet in response.split("*")[1:])


def spoken_sub_bullets(response: str) -> bool:
    # Lines that start with * and say something, each with a line that starts with - before the next.
    lines = [line.strip() for line in response.split("\n")]
    bullets = [place for place, line in enumerate(lines) if line.startswith("*") and says_something(line)]
    ends = [*bullets[1:], len(lines)]
    is_sub = [line.startswith("-") and says_something(line) for line in lines]
    return bool(bullets) and all(any(is_sub[start:end]) for start, end in zip(bullets, ends, strict=False))


def no_bullets_bullets(response: str) -> bool:
    # As the reference: a line without a sentence, even a blank one, ends the sentences; only bullets may follow it.
    num_sentences = num_bullets = 0
    in_sentences = True
    for line in map(str.strip, response.split("\n")):
        if line.startswith("*"):
            in_sentences = False
            num_bullets += 1
            if num_sentences < 2:
                return False
        elif in_sentences:
            found = len(split_sentences(line))
            num_sentences += found
            in_sentences = found > 0
        else:
            return False
    return num_bullets >= 2


def sentences_then_bullets(response: str) -> bool:
    lines = [line.strip() for line in response.split("\n")]
    start = next((place for place, line in enumerate(lines) if line.startswith("*")), len(lines))
    sentences = [sentence for line in lines[:start] for sentence in split_sentences(line)]
    return sum(sentence.endswith(".") for sentence in sentences) >= 2 and sum(map(says_something, lines[start:])) >= 2


def title_case(response: str) -> bool:
    words = [word for word in tokens(response) if word[0].isalpha()]
    return not any(word[0].islower() and (len(word) == 1 or word[1:].islower() or word[1:].isupper()) for word in words)


def output_template(response: str) -> bool:
    return all(part in response for part in TEMPLATE)


def filled_template(response: str) -> bool:
    # In order, from the start, and something after each.
    rest = response.strip()
    if not rest.startswith(TEMPLATE[0]):
        return False
    return _TEMPLATE.findall(rest) == list(TEMPLATE) and all(map(says_something, _TEMPLATE.split(rest)[1:]))


def no_whitespace(response: str) -> bool:
    return not any(map(str.isspace, response))


def _sample_options(rng: Random, prompt: str) -> dict[str, Any]:
    return {"options": rng.choice(("yes/no/maybe", "I know or I don't know", "a), b), c), d)"))}


def _sample_separator(rng: Random, prompt: str) -> dict[str, Any]:
    return {"sep": rng.choice(("...", "SEPARATOR", "!?!?", "-"))}


CONSTRAINTS = (
    Constraint(
        "format:parentheses",
        "Nest parentheses (and [brackets {{and braces}}]) at least 5 levels deep.",
        parentheses,
        demand=closed_parentheses,
    ),
    Constraint(
        "format:quotes",
        "Include quotes within quotes within quotes, at least 3 levels deep, with double and single ones in turn.",
        quotes,
        demand=quotes_without_apostrophes,
    ),
    Constraint(
        "format:options",
        "Answer with one of the following options: {options}. Do not explain it.",
        option,
        arguments={"options": text()},
        sample=_sample_options,
    ),
    Constraint("format:newline", "Write each word on a new line.", newline, demand=has_two_words),
    Constraint("format:emoji", "Use an emoji at the end of every sentence.", emoji),
    Constraint(
        "format:line_indent",
        "Make stairs: indent each line by more spaces than the one before.",
        line_indent,
        demand=spoken_line_indent,
    ),
    Constraint(
        "format:quote_unquote",
        "Follow every phrase in double quotes by an explanation without quotes.",
        quote_unquote,
        demand=quoted_then_unquoted,
    ),
    Constraint(
        "format:list",
        "Answer with a list of items; instead of bullet points use {sep}",
        special_list,
        demand=special_list_items,
        arguments={"sep": keyword()},
        sample=_sample_separator,
    ),
    Constraint(
        "format:thesis",
        "Begin each section with a thesis statement in italics, marked as such in HTML.",
        thesis,
        demand=spoken_thesis,
    ),
    Constraint(
        "format:sub-bullets",
        "Include bullet points marked by * and, for each of them, at least one sub-bullet point marked by -.",
        sub_bullets,
        demand=spoken_sub_bullets,
    ),
    Constraint(
        "format:no_bullets_bullets",
        "Write at least two sentences that end in a period, then at least two bullet points marked by *.",
        no_bullets_bullets,
        demand=sentences_then_bullets,
    ),
    Constraint(
        "format:title_case",
        "Write the entire response in title case: every word starts with a capital letter.",
        title_case,
    ),
    Constraint(
        "format:output_template",
        "Use this exact template for your response: My Answer: [answer] My Conclusion: [conclusion] Future Outlook: "
        "[outlook]",
        output_template,
        demand=filled_template,
    ),
    Constraint("format:no_whitespace", "Do not use any whitespace in your response.", no_whitespace),
)
