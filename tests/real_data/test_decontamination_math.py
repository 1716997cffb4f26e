"""Decontamination of MATH train equals a brute-force check that shares no code with it, row by row."""

import gzip
import itertools
import json
import time
import unicodedata
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlsys.data.decontamination import decontaminate
from rlsys.data.decontamination_report import require_clean
from rlsys.recipe.decontamination import Decontamination

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not (DATA / "math").is_dir(), reason="../shared/data is absent"),
]


def _lines(name: str, key: str) -> list[str]:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as file:
        return [json.loads(line)[key] for line in file]


@pytest.fixture(scope="module")
def train() -> list[str]:
    rows = pq.read_table(DATA / "math" / "math_train.parquet", columns=["prompt"])["prompt"].to_pylist()
    return ["\n".join(message["content"] for message in row if message["role"] == "user") for row in rows]


@pytest.fixture(scope="module")
def evals() -> dict[str, list[str]]:
    with gzip.open(DATA / "math" / "math500_test.json.gz", "rt", encoding="utf-8") as file:
        math500 = [row["problem"] for row in json.load(file)]
    return {
        "math": _lines("math/test.jsonl.gz", "problem"),
        "math500": math500,
        "gsm8k": _lines("gsm8k/test.jsonl.gz", "question"),
        "ifeval": _lines("ifeval/input_data.jsonl.gz", "prompt"),
    }


def _words(text: str) -> tuple[str, ...]:
    text = unicodedata.normalize("NFKC", text).casefold()
    return tuple("".join(run) for is_word, run in itertools.groupby(text, str.isalnum) if is_word)


def _grams(words: tuple[str, ...]) -> frozenset[tuple[str, ...]]:
    return frozenset(words[at : at + 8] for at in range(len(words) - 7))


def _fraction(target: tuple[str, ...], source_grams: frozenset[tuple[str, ...]]) -> float:
    inside = [False] * len(target)
    for at in range(len(target) - 7):
        if target[at : at + 8] in source_grams:
            inside[at : at + 8] = [True] * 8
    return sum(inside) / len(target)


def _brute_force(train: list[str], evals: list[str]) -> dict[int, dict[int, float]]:
    """Evaluation row -> training row -> fraction, where over one half: every evaluation row against every training row.

    A row with no 8-gram of the other side at all is left out beforehand: its fraction is 0 with everything.
    """
    targets = [(_words(text), _grams(_words(text))) for text in evals]
    anywhere = frozenset().union(*(grams for _, grams in targets))
    sources = [(row, _grams(_words(text))) for row, text in enumerate(train)]
    sources = [(row, grams & anywhere) for row, grams in sources if not grams.isdisjoint(anywhere)]
    anywhere = frozenset().union(*(grams for _, grams in sources))
    found: dict[int, dict[int, float]] = {}
    for row, (words, grams) in enumerate(targets):
        if grams.isdisjoint(anywhere):
            continue
        for train_row, source_grams in sources:
            if not source_grams.isdisjoint(grams):
                fraction = _fraction(words, source_grams)
                if fraction > 0.5:
                    found.setdefault(row, {})[train_row] = fraction
    return found


def test_equals_brute_force_on_every_row(train, evals):
    started = time.perf_counter()
    report = decontaminate({"train": train}, evals, Decontamination())
    assert time.perf_counter() - started < 60
    assert [pair.eval for pair in report.pairs] == ["math", "math500", "gsm8k", "ifeval"]
    assert [pair.num_eval_rows for pair in report.pairs] == [5000, 500, 1319, 541]
    for pair in report.pairs:
        expected = _brute_force(train, evals[pair.eval])
        short = {row for row, text in enumerate(evals[pair.eval]) if len(_words(text)) < 8}
        found = {hit.eval_row: hit for hit in pair.instances if hit.eval_row not in short}
        assert sorted(found) == sorted(expected)
        for row, fractions in expected.items():
            best = max(fractions.values())
            first = min(train_row for train_row, fraction in fractions.items() if fraction == best)
            hit = found[row]
            assert (hit.train_row, hit.fraction, hit.num_train_rows) == (first, best, len(fractions))
    verdicts = {pair.eval: (len(pair.instances), pair.contaminated) for pair in report.pairs}
    assert verdicts == {"math": (617, True), "math500": (64, True), "gsm8k": (0, False), "ifeval": (0, False)}


def test_short_prompts_of_math_match_as_a_whole_only(train, evals):
    """As the strings they are, without layout, final stop and dollar signs."""

    def plain(text: str) -> str:
        return "".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".$").lstrip("$")

    short = {row: plain(text) for row, text in enumerate(evals["math"]) if len(_words(text)) < 8}
    assert len(short) == 196
    whole = {plain(text): row for row, text in reversed(list(enumerate(train)))}
    expected = {row: whole[text] for row, text in short.items() if text in whole}
    (pair,) = decontaminate({"train": train}, {"math": evals["math"]}, Decontamination()).pairs
    found = {hit.eval_row: hit.train_row for hit in pair.instances if hit.eval_row in short}
    assert expected.items() <= found.items()
    for row in found.keys() - expected.keys():
        assert _words(evals["math"][row]) == _words(train[found[row]]), evals["math"][row]


def test_math500_is_all_of_math_test(evals):
    (pair,) = decontaminate({"math500": evals["math500"]}, {"math": evals["math"]}, Decontamination(mode="exact")).pairs
    assert set(pair.matching_train_rows) == set(range(500))
    assert len(pair.instances) >= 500


def test_exact_mode_finds_the_shared_questions_however_they_are_laid_out(train, evals):
    without_space = {"".join(text.split()) for text in train}
    literal = {row for row, text in enumerate(evals["math"]) if "".join(text.split()) in without_space}
    (pair,) = decontaminate({"train": train}, {"math": evals["math"]}, Decontamination(mode="exact")).pairs
    found = {hit.eval_row: hit.train_row for hit in pair.instances}
    assert literal == {1038, 4656}
    # Row 311 writes 2x^2 where training writes 2x^{2}; row 3023 has the full stop inside the formula.
    assert found == {311: 1598, 1038: 1414, 3023: 750, 4656: 2948}


def test_what_drop_rows_leaves_is_clean(train, evals):
    report = decontaminate({"train": train}, evals, Decontamination())
    kept = require_clean(report, "drop-rows")["train"]
    rest = [text for row, text in enumerate(train) if kept.keeps(row)]
    assert kept.num_kept == len(rest) == 6696
    again = decontaminate({"train": rest}, evals, Decontamination())
    assert [pair.instances for pair in again.pairs] == [()] * 4
