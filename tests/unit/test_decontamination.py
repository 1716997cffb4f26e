"""Decontamination against hand-worked cases and, on random texts, against an enumeration of every span."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rlsys.data.decontamination import decontaminate
from rlsys.data.decontamination_report import DecontaminationReport, require_clean
from rlsys.data.decontamination_text import exact_key, tokens
from rlsys.errors import DataError
from rlsys.recipe.decontamination import Decontamination

EVAL = "a b c d e f g h i j k l m n o p"  # 16 tokens


def _check(train, evals, **changes) -> DecontaminationReport:
    return decontaminate({"train": train}, {"eval": evals}, Decontamination(**changes))


def _found(report: DecontaminationReport) -> list[tuple[int, int, float, int]]:
    (pair,) = report.pairs
    return [(hit.eval_row, hit.train_row, hit.fraction, hit.num_train_rows) for hit in pair.instances]


@pytest.mark.parametrize(
    ("train", "fraction"),
    [
        ("x a b c d e f g h y", None),  # 8 of 16 match: not over half
        ("x a b c d e f g h i y", 9 / 16),
        ("a b c d e f g x i j k l m n o p", None),  # the right 8 alone; the left 7 lie in no shared 8-gram
        ("a b c d e f g h x i j k l m n o p", 1.0),  # both halves, once each
        ("i j k l m n o p a b c d e f g h", 1.0),  # order of the halves does not matter
        ("d e f g h i j k l x a b c d e f g h", 12 / 16),  # overlapping spans count once
        ("A, B! c-d_e (f) $g$ h\n\nI y", 9 / 16),  # case, punctuation, layout do not count
        ("", None),
        ("a b c", None),
    ],
)
def test_a_token_matches_if_it_lies_in_a_shared_8_gram(train, fraction):
    expected = [] if fraction is None else [(0, 0, fraction, 1)]
    assert _found(_check([train], [EVAL])) == expected


def test_matches_of_two_training_rows_are_never_added():
    halves = ["a b c d e f g h", "i j k l m n o p"]
    assert _found(_check(halves, [EVAL])) == []
    assert _found(_check([" ".join(halves)], [EVAL])) == [(0, 0, 1.0, 1)]


def test_the_best_row_is_named_the_first_of_equals_and_all_are_counted():
    train = ["z", "a b c d e f g h i", EVAL, "nothing of it", EVAL + " q"]
    report = _check(train, ["other words", EVAL])
    assert _found(report) == [(1, 2, 1.0, 3)]
    (pair,) = report.pairs
    assert pair.matching_train_rows == (1, 2, 4)
    assert (pair.num_train_rows, pair.num_eval_rows, pair.overlap, pair.contaminated) == (5, 2, 0.5, True)


def test_short_prompts_match_only_as_a_whole():
    evals = ["What is 2 + 2?", "one two three four five six seven", "f(x) + 1"]
    train = [
        "what is 2+2",
        "What is 2 - 2?",
        "Tell me: What is 2 + 2?",
        "one two three four five six seven eight nine",
        '"One two three, four five six seven."',
    ]
    assert _found(_check(train, evals)) == [(0, 0, 1.0, 1), (1, 4, 1.0, 1)]


def test_a_prompt_of_eight_tokens_is_an_8_gram():
    assert _found(_check(["x 1 2 3 4 5 6 7 8 y"], ["1 2 3 4 5 6 7 8"])) == [(0, 0, 1.0, 1)]
    assert _found(_check(["x 1 2 3 4 5 6 7 8 y"], ["1 2 3 4 5 6 7"])) == []


def test_an_instance_is_all_of_its_user_turns():
    conversation = ("a b c d", "e f g h i x")
    assert _found(_check([conversation], [EVAL])) == [(0, 0, 9 / 16, 1)]
    assert _found(_check([("hello there", "What is 2 + 2?")], ["What is 2 + 2?"])) == [(0, 0, 1.0, 1)]
    assert _found(_check([EVAL], [("a b c d e f g h", "i j k l m n o p")])) == [(0, 0, 1.0, 1)]


def test_texts_without_words_match_by_their_characters_and_empty_ones_never():
    assert _found(_check(["", "∀ ∃", "  "], ["", "∀∃", "∃∀"])) == [(1, 1, 1.0, 1)]
    assert tokens("∀ ∃ _ —") == []
    assert exact_key(" ∀ ∃ ") == "∀∃"


def test_odd_text_neither_crashes_nor_matches_by_chance():
    odd = ["\ud800 a\x00b", "e\u0301", "ﬁ ２", "\U0001f600" * 20]
    for mode in ("ngram", "exact", "char-ngram"):
        assert [hit[:2] for hit in _found(_check(odd, odd, mode=mode))] == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_a_script_without_spaces_is_compared_character_by_character():
    question = "今日の天気はどうですか教えてください"
    assert _found(_check([f"質問：{question}！"], [question])) == [(0, 0, 1.0, 1)]
    assert _found(_check(["今日の予定はどうですか"], [question])) == []


def test_the_set_is_contaminated_over_two_percent_not_at_it():
    evals = [f"{' '.join(f'w{row}x{place}' for place in range(10))}" for row in range(100)]
    at, over = evals[:2], evals[:3]
    report = decontaminate({"at": at, "over": over}, {"eval": evals}, Decontamination())
    assert [(pair.overlap, pair.contaminated) for pair in report.pairs] == [(0.02, False), (0.03, True)]
    assert report.contaminated_sets == ("over",)


def test_overlaps_are_kept_apart_by_evaluation_set():
    evals = {"one": [EVAL, "unrelated words only here"], "two": ["q r s t u v w x y z"]}
    report = decontaminate({"train": ["q r s t u v w x", EVAL]}, evals, Decontamination())
    by_eval = {pair.eval: (pair.overlap, pair.matching_train_rows) for pair in report.pairs}
    assert by_eval == {"one": (0.5, (1,)), "two": (1.0, (0,))}
    assert report.kept_rows("drop-rows")["train"].dropped_rows == {0, 1}


def test_policies():
    evals = [" ".join(f"e{row}x{place}" for place in range(9)) for row in range(60)]
    train = {"clean": ["nothing here at all"] * 3, "slight": ["fine", evals[0]], "bad": ["fine", evals[1], evals[2]]}
    report = decontaminate(train, {"eval": evals}, Decontamination())
    kept = {policy: require_clean(report, policy) for policy in ("drop-rows", "drop-set", "report")}
    rows = {
        policy: {name: [row for row in range(len(train[name])) if one.keeps(row)] for name, one in sets.items()}
        for policy, sets in kept.items()
    }
    assert rows["drop-rows"] == {"clean": [0, 1, 2], "slight": [0], "bad": [0]}
    assert rows["drop-set"] == {"clean": [0, 1, 2], "slight": [0, 1], "bad": []}
    assert rows["report"] == {"clean": [0, 1, 2], "slight": [0, 1], "bad": [0, 1, 2]}
    assert [one.num_kept for one in kept["drop-set"].values()] == [3, 2, 0]
    with pytest.raises(DataError, match=r"bad holds 2 of the 60 prompts of evaluation set eval, over the 2.0%"):
        require_clean(report, "refuse")


def test_a_gate_that_would_leave_nothing_says_so():
    with pytest.raises(DataError, match="leaves nothing"):
        require_clean(_check([EVAL], [EVAL]), "drop-rows")
    with pytest.raises(DataError, match="leaves nothing"):
        require_clean(_check([EVAL], [EVAL]), "drop-set")


def test_evaluation_sets_without_rows_are_refused():
    with pytest.raises(DataError, match="nothing to compare with"):
        decontaminate({"train": ["a"]}, {}, Decontamination())
    with pytest.raises(DataError, match=r"\['empty'\]"):
        decontaminate({"train": ["a"]}, {"full": ["a"], "empty": []}, Decontamination())


def test_exact_mode_takes_whole_prompts_of_any_length_only():
    assert _found(_check([EVAL.upper() + "."], [EVAL], mode="exact")) == [(0, 0, 1.0, 1)]
    assert _found(_check([EVAL + " q"], [EVAL], mode="exact")) == []
    with pytest.raises(ValueError, match="takes no ngram"):
        Decontamination(mode="exact", ngram=8)


def test_character_ngrams_find_what_words_miss():
    original = "How many vertical asymptotes does the graph have in all?"
    changed = "How many verticalasymptotes does thegraph have in al?"
    assert _found(_check([changed], [original])) == []
    ((_, _, fraction, _),) = _found(_check([changed], [original], mode="char-ngram", ngram=8))
    # "how many vertical asymptotes does the graph have in all" has 55 characters. "how many vertical" (17) is shared,
    # then "asymptotes does the" (19), then "graph have in al" (16); the two spaces between and the last "l" are not.
    assert fraction == 52 / 55


def _enumerate(train: list[str], evals: list[str], *, n: int, unit) -> set[tuple[int, int, int]]:
    """(eval row, train row, matching units), by comparing every span of one with every span of the other."""
    found = set()
    for e, target in enumerate(map(unit, evals)):
        for t, source in enumerate(map(unit, train)):
            if len(target) < n:
                matched = len(target) if target == source and len(target) > 0 else 0
            else:
                covered = set()
                for at in range(len(target) - n + 1):
                    if any(source[begin : begin + n] == target[at : at + n] for begin in range(len(source) - n + 1)):
                        covered |= set(range(at, at + n))
                matched = len(covered)
            if matched:
                found.add((e, t, matched / len(target)))
    return found


_texts = st.lists(st.lists(st.sampled_from("abc"), max_size=14).map(" ".join), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None)
@given(train=_texts, evals=_texts, n=st.integers(1, 4), mode=st.sampled_from(["ngram", "char-ngram"]))
@example(train=["a a a a"], evals=["a a a"], n=2, mode="ngram")
def test_equals_an_enumeration_of_spans(train, evals, n, mode):
    unit = str.split if mode == "ngram" else str
    expected = _enumerate(train, evals, n=n, unit=unit)
    for threshold in (0.0, 0.5, 0.75):
        over = {(e, t, fraction) for e, t, fraction in expected if fraction > threshold}
        best = {}
        for e, t, fraction in sorted(over):
            if e not in best or fraction > best[e][1]:
                best[e] = (t, fraction)
        report = _check(train, evals, mode=mode, ngram=n, threshold=threshold)
        counts = {e: len([1 for other, _, _ in over if other == e]) for e in best}
        assert _found(report) == [(e, *best[e], counts[e]) for e in sorted(best)]
        assert report.pairs[0].matching_train_rows == tuple(sorted({t for _, t, _ in over}))
