"""Every gold of GSM8K and MATH against itself and its neighbour, and labelled answers, with each exception by name."""

import gzip
import json
import tempfile
from fractions import Fraction
from pathlib import Path

import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.boxes import find_boxes
from rlsys.verifiers.gsm8k import verify_gsm8k
from rlsys.verifiers.judgement import Judgement
from rlsys.verifiers.math import check_math_ground_truth, verify_math

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data"),
]

GOLDS_OF_TWO_BOXES = [
    *("(8,38)", "(0, 1)", "9", "(-5, 1)", "-3", "1", "(0,0)", r"\frac{5\pi}{4}"),
    r"\left(-\tfrac52, -\tfrac52\right)",
]
"""Solutions that box two values, "-2 and 1", of which the last box alone is no answer."""
GOLDS_OF_ALTERNATIVES = [r"8\!:\!34 \text{ p.m.}", r"150^\circ", r"\frac{2}{5}"]
"""Solutions that box two different values joined by "or"."""
GOLDS_WITHOUT_ANSWER = ["", ""]

SAME_THOUGH_WRITTEN_DIFFERENTLY = {
    ("120", r"120^\circ"),
    (r"120^\circ", "120"),
    (r"18 \text{ degrees}", "18"),
    (r"21\text{ dogs}", "21"),
    (r"25\%", "25"),
    (r"7\%", "7"),
    ("8", "K=8"),
    (r"\frac{3}{4}", r"\frac34"),
}

DISAGREEMENTS = {
    58: "the response's own equation is false: 5 + 5 + 1 = 1/3",
    62: "a false equation: 3 + 3 = 2",
    63: "a false equation: 3 + 3 = 2",
    75: "expects 0.33 to equal 1/3",
    89: "a box and the final answer phrase disagree: a hedge",
    98: "97 expects the opposite of the same pair",
    141: "140 expects the opposite of the same pair",
    150: "a list of solutions has no order",
    198: "165 expects the opposite: whether an unmarked answer counts",
    239: "mislabelled: 10{,}000 is 10000",
}


def rows_of(path: str) -> list[dict]:
    with gzip.open(DATA / path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def math_solutions(split: str) -> list[tuple[str, str]]:
    """(solution, the answer that the data set itself gives)."""
    if split == "test":
        return [(row["solution"], find_boxes(row["solution"])[-1].content) for row in rows_of("math/test.jsonl.gz")]
    parquet = pytest.importorskip("pyarrow.parquet")
    truths = parquet.read_table(DATA / "math" / "math_train.parquet")["reward_model"].to_pylist()
    return [(row["ground_truth"]["solution"], row["ground_truth"]["target"]) for row in truths]


def judged(response: str, gold: str, mode: str) -> Judgement:
    try:
        return verify_math(response, gold, mode)  # pyright: ignore[reportArgumentType]
    except VerifierError as refusal:
        return Judgement("error", 0.0, {"refused": str(refusal)})


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_gsm8k_solution_is_correct_and_no_neighbour_is(split: str):
    rows = rows_of(f"gsm8k/{split}.jsonl.gz")
    golds = [row["answer"].rpartition("####")[2].strip() for row in rows]
    numbers = [Fraction(gold.replace(",", "")) for gold in golds]
    for row, gold, number, other, other_number in zip(
        rows, golds, numbers, [*golds[1:], golds[0]], [*numbers[1:], numbers[0]], strict=True
    ):
        for mode in ("eval", "reward"):
            assert verify_gsm8k(row["answer"], gold, mode).outcome == "correct", row
        crossed = verify_gsm8k(row["answer"], other, "reward").outcome
        assert crossed == ("correct" if number == other_number else "wrong"), (row, other)


def test_gsm8k_verdicts_on_real_outputs_are_those_of_the_data_set():
    num_outputs = 0
    for row in rows_of("gsm8k/model_solutions_half.jsonl.gz"):
        gold = row["ground_truth"].rpartition("A: ")[2]
        for output in (value for value in row.values() if isinstance(value, dict)):
            num_outputs += 1
            for mode in ("eval", "reward"):
                outcome = verify_gsm8k(output["solution"], gold, mode).outcome
                assert (outcome == "correct") == output["is_correct"], (gold, output["solution"][-80:])
    assert num_outputs == 2632


def test_math_solutions_are_correct_by_their_last_box():
    wrong = []
    for split in ("train", "test"):
        for solution, _ in math_solutions(split):
            gold = find_boxes(solution)[-1].content
            if judged(solution, gold, "reward").outcome != "correct":
                wrong.append(gold)
            elif gold:
                check_math_ground_truth(gold)
    assert sorted(wrong) == sorted(GOLDS_OF_TWO_BOXES + GOLDS_OF_ALTERNATIVES + GOLDS_WITHOUT_ANSWER)
    assert len(wrong) <= 0.003 * 12_500


def test_math_train_solutions_are_correct_by_their_mangled_targets():
    """The set's own targets have lost spaces, units and backslashes; those that lost their meaning are few."""
    rows = math_solutions("train")
    wrong = [target for solution, target in rows if judged(solution, target, "eval").outcome != "correct"]
    assert len(wrong) <= 0.003 * len(rows), wrong


@pytest.mark.parametrize("mode", ["eval", "reward"])
def test_no_math_gold_is_paid_by_its_neighbours_answer(mode: str):
    golds = [find_boxes(solution)[-1].content for split in ("train", "test") for solution, _ in math_solutions(split)]
    golds = [gold for gold in golds if gold.strip()]
    paid = set()
    for place, gold in enumerate(golds[:-1]):
        other = next((one for one in golds[place + 1 :] if one != gold), None)
        if other is not None and judged(rf"\boxed{{{other}}}", gold, mode).score:
            paid.add((gold, other))
    assert paid == SAME_THOUGH_WRITTEN_DIFFERENTLY


def test_labelled_triples():
    rows = rows_of("verifiers/math_triples.jsonl.gz")
    disagreements = []
    for place, row in enumerate(rows):
        if row["kind"].startswith("gsm8k"):
            score = verify_gsm8k(row["response"], row["gold"], "eval").score
        else:
            score = judged(row["response"], row["gold"], "eval").score
        if score != row["expected"]:
            disagreements.append(place)
    assert disagreements == sorted(DISAGREEMENTS)
    assert len(disagreements) <= 0.02 * len(rows)


@pytest.mark.parametrize("mode", ["eval", "reward"])
def test_adversarial_rows_of_math_and_gsm8k(mode: str):
    rows = [row for row in rows_of("verifiers/adversarial.jsonl.gz") if row["kind"].startswith(("math", "gsm8k"))]
    assert len(rows) == 117
    for row in rows:
        if row["kind"] == "gsm8k":
            judgement = verify_gsm8k(row["response"], row["gold"], mode)  # pyright: ignore[reportArgumentType]
        else:
            judgement = judged(row["response"], row["gold"], mode)
        if row["expected"] != "no_crash":
            assert judgement.score == row["expected"], (row["id"], row["why"], judgement)
    assert not (Path(tempfile.gettempdir()) / "rlsys_pwned").exists()


def test_math_verify_agrees_on_real_answers():
    """An independent grader, on golds that are more than a number, written twice and crossed with their neighbours."""
    math_verify = pytest.importorskip("math_verify")
    golds = [find_boxes(solution)[-1].content for solution, _ in math_solutions("test")]
    golds = [gold for gold in golds if not gold.strip("-").isdigit() and "text" not in gold and len(gold) < 25][::23]
    assert len(golds) > 40

    def parse(latex: str) -> list:
        return math_verify.parse(rf"$\boxed{{{latex}}}$", parsing_timeout=None)

    for gold, other in zip(golds, [*golds[1:], golds[0]], strict=True):
        for answer in (gold.replace(r"\frac", r"\dfrac").replace(",", r", \, "), other):
            theirs = math_verify.verify(parse(gold), parse(answer), timeout_seconds=None)
            ours = judged(rf"\boxed{{{answer}}}", gold, "eval").outcome == "correct"
            assert ours == theirs, (gold, answer)
