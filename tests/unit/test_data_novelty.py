"""Longest common subsequences against the quadratic table, and what they make of novelty."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.data.novelty import NoveltyFilter, common_subsequence, rouge_l

WORDS = st.lists(st.sampled_from("abcdef"), max_size=90)


@settings(max_examples=150, deadline=None)
@given(WORDS, WORDS)
def test_common_subsequence_is_the_table_s(left: list[str], right: list[str]):
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else max(table[i][j + 1], table[i + 1][j])
    assert common_subsequence(left, right) == table[-1][-1]


def test_rouge_l_by_hand():
    # police the gunman: 3 of 4 and 4 words in common order
    assert rouge_l("police killed the gunman", "police kill the gunman") == 2 * 3 / 8
    assert rouge_l("police killed the gunman", "the gunman kill police") == 2 * 2 / 8
    assert rouge_l("", "anything") == 0.0
    assert rouge_l("Same Words!", "same words") == 1.0


@settings(max_examples=60, deadline=None)
@given(st.lists(WORDS.map(" ".join), max_size=12), st.sampled_from([0.5, 0.7, 1.0]))
def test_what_is_admitted_is_unlike_everything_admitted(texts: list[str], threshold: float):
    novelty = NoveltyFilter(threshold)
    kept: list[str] = []
    for text in texts:
        alike = any(rouge_l(text, other) >= threshold for other in kept if text and other)
        alike |= not text and "" in kept
        assert novelty.admit(text) is not alike
        if not alike:
            kept.append(text)
    assert len(novelty) == len(kept)
