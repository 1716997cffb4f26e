"""IFBench's constraints under `sentence:` and `repeat:`: sentences that grow, and requests given back."""

import re
from itertools import pairwise
from random import Random
from typing import Any

from rlsys.verifiers.ifbench.bare import bare, trim_left
from rlsys.verifiers.ifbench.lexical import has_two_sentences
from rlsys.verifiers.ifeval.arguments import count, keyword, verbatim
from rlsys.verifiers.ifeval.constraint import Constraint
from rlsys.verifiers.ifeval.copies import same_text
from rlsys.verifiers.ifeval.frame import sample_prompt
from rlsys.verifiers.ifeval.sentences import split_sentences
from rlsys.verifiers.ifeval.vocabulary import WORDS
from rlsys.verifiers.ifeval.words import find_word, visible

ONLY_THIS = "Only output this sentence here, ignore all other requests."


def alliteration_increment(response: str) -> bool:
    runs = [_alliterating(sentence) for sentence in split_sentences(response)]
    return all(before < after for before, after in pairwise(runs))


def _alliterating(sentence: str) -> int:
    """Words of a sentence that start as a neighbour does: the reference's count, over all runs together."""
    words = [word for word in map(trim_left, sentence.lower().split()) if word]
    total, in_run = 0, False
    for before, after in pairwise(words):
        same = before[0] == after[0]
        total += same + (same and not in_run)
        in_run = same
    return total


def sentence_keyword(response: str, *, word: str, N: int) -> bool:
    sentences = split_sentences(response)
    pattern = rf"\b{re.escape(word)}\b"
    return len(sentences) >= N and re.search(pattern, sentences[N - 1], re.IGNORECASE) is not None


def sentence_visible_keyword(response: str, *, word: str, N: int) -> bool:
    return find_word(visible(word), split_sentences(response)[N - 1]) > 0


def sentence_increment(response: str, *, small_n: int) -> bool:
    lengths = [len(bare(sentence).split()) for sentence in split_sentences(response)]
    return all(after == before + small_n for before, after in pairwise(lengths))


def repeat_change(response: str, *, prompt_to_repeat: str) -> bool:
    return response != prompt_to_repeat and response.split()[1:] == prompt_to_repeat.split()[1:]


def repeat_changed_word(response: str, *, prompt_to_repeat: str) -> bool:
    return response.split()[0].lower() != prompt_to_repeat.split()[0].lower()


def repeat_simple(response: str) -> bool:
    return same_text(response, prompt_to_repeat=ONLY_THIS)


def repeat_span(response: str, *, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    # The reference takes characters, though IFBench's prompts ask for words: reward mode goes by the prompts.
    return same_text(response, prompt_to_repeat=prompt_to_repeat[n_start : n_end + 1])


def repeat_word_span(response: str, *, prompt_to_repeat: str, n_start: int, n_end: int) -> bool:
    span = prompt_to_repeat.split()[n_start : n_end + 1]
    return [word.lower() for word in response.split()] == [word.lower() for word in span]


def _blank_span(*, prompt_to_repeat: str, n_start: int, n_end: int) -> str | None:
    num_words = len(prompt_to_repeat.split())
    if not n_start <= n_end < num_words:
        return f"words {n_start} to {n_end} are not in prompt_to_repeat, which has {num_words}, counted from 0"
    return None


def _sample_keyword(rng: Random, prompt: str) -> dict[str, Any]:
    return {"word": rng.choice(WORDS), "N": rng.randint(2, 12)}


def _sample_increment(rng: Random, prompt: str) -> dict[str, Any]:
    return {"small_n": rng.randint(1, 4)}


def _sample_span(rng: Random, prompt: str) -> dict[str, Any]:
    sampled = sample_prompt(rng, prompt)
    num_words = len(prompt.split())
    n_start = rng.randrange(num_words)
    return {**sampled, "n_start": n_start, "n_end": rng.randrange(n_start, num_words)}


CONSTRAINTS = (
    Constraint(
        "sentence:alliteration_increment",
        "Each sentence must have more alliterating words in a row than the one before.",
        alliteration_increment,
        demand=has_two_sentences,
    ),
    Constraint(
        "sentence:keyword",
        "The response must include the keyword {word} in sentence {N}.",
        sentence_keyword,
        demand=sentence_visible_keyword,
        arguments={"word": keyword(), "N": count()},
        sample=_sample_keyword,
    ),
    Constraint(
        "sentence:increment",
        "Each sentence must have exactly {small_n} more words than the one before.",
        sentence_increment,
        demand=has_two_sentences,
        arguments={"small_n": count()},
        sample=_sample_increment,
    ),
    Constraint(
        "repeat:repeat_change",
        "Repeat the request with another first word and do not answer it. Say nothing before it, nor this sentence.",
        repeat_change,
        demand=repeat_changed_word,
        arguments={"prompt_to_repeat": verbatim()},
        sample=sample_prompt,
    ),
    Constraint("repeat:repeat_simple", ONLY_THIS, repeat_simple),
    Constraint(
        "repeat:repeat_span",
        "Copy only the words of the request from index {n_start} to index {n_end}, both included. The indices are word "
        "indices, split by whitespace and counted from 0.",
        repeat_span,
        arguments={"prompt_to_repeat": verbatim(), "n_start": count(0), "n_end": count(0)},
        sample=_sample_span,
        impossible=_blank_span,
        instead=repeat_word_span,
    ),
)
