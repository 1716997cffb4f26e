"""The gate before a stage: a mixture of sources in, what may be trained on out."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlsys.data.decontamination_gate import decontaminated_rows
from rlsys.data.row import Origin, Row
from rlsys.errors import DataError
from rlsys.recipe.decontamination import Decontamination

SECRET = "How many red apples does the old farmer carry to the market on a rainy day?"
ROWS = [("a", "Name a fruit."), ("b", "Tell me a joke."), ("a", f"Solve: {SECRET}"), ("b", SECRET), ("a", "Sing.")]


def _rows() -> Iterator[Row]:
    for number, (source, content) in enumerate(ROWS):
        messages = ({"role": "user", "content": content}, {"role": "assistant", "content": SECRET})
        yield Row(f"{source}/{number}", source, Origin(f"{source}.jsonl", number + 1), messages)


@pytest.fixture
def evals(tmp_path) -> str:
    path: Path = tmp_path / "eval.jsonl"
    others = [{"prompt": f"An unrelated question number {number}?"} for number in range(39)]
    path.write_text("".join(json.dumps(record) + "\n" for record in [*others, {"prompt": SECRET}]))
    return str(path)


@pytest.mark.parametrize(
    ("policy", "ids"),
    [
        ("drop-rows", ["a/0", "b/1", "a/4"]),
        ("report", ["a/0", "b/1", "a/2", "b/3", "a/4"]),
    ],
)
def test_rows_that_stay_keep_their_order_and_can_be_read_again(evals, policy, ids):
    gated = decontaminated_rows(_rows, Decontamination(evals=(evals,), policy=policy))
    assert [row.id for row in gated.read()] == ids
    assert [row.id for row in gated.read()] == ids


def test_a_set_is_a_source_and_the_report_names_its_lines(evals):
    settings = Decontamination(evals=(evals,), policy="drop-set", max_overlap=0.02)
    with pytest.raises(DataError, match="leaves nothing"):
        decontaminated_rows(_rows, settings)
    gated = decontaminated_rows(_rows, settings.model_copy(update={"max_overlap": 0.03}))
    assert [row.id for row in gated.read()] == ["a/0", "b/1", "a/2", "b/3", "a/4"]
    found = {
        (pair["train"], hit["train_at"], hit["eval_at"]) for pair in gated.json["pairs"] for hit in pair["instances"]
    }
    assert found == {("a", "a.jsonl:3", f"{evals}:40"), ("b", "b.jsonl:4", f"{evals}:40")}
    assert gated.json["kept_rows"] == {"a": 3, "b": 2}
    json.dumps(gated.json)


def test_refuse_stops_before_training(evals):
    with pytest.raises(DataError, match=r"training set a holds 1 of the 40 prompts"):
        decontaminated_rows(_rows, Decontamination(evals=(evals,), policy="refuse"))


def test_a_gate_without_evaluation_sets_is_an_error_not_a_pass():
    with pytest.raises(DataError, match="nothing to compare with"):
        decontaminated_rows(_rows, Decontamination())
