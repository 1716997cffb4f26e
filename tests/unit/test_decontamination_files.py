"""`rlsys data decontaminate` on small files: what is read, reported with its line, dropped and written."""

import argparse
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import decontaminate as command
from rlsys.data.decontamination_files import InstanceSource
from rlsys.data.reader import read_rows
from rlsys.errors import DataError
from rlsys.recipe.data import parse_source

QUESTION = "A train leaves the station at noon with ninety passengers on board and two more at the next stop."
OTHER = "How many apples are left if Tom eats three of the twelve that he bought this morning at the market?"


def _run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return command.run(parser.parse_args(["decontaminate", *map(str, arguments)]))


def _write_lines(path: Path, records: list[dict]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def evaluation(tmp_path) -> Path:
    return _write_lines(
        tmp_path / "eval.jsonl", [{"question": OTHER, "answer": "#### 9"}, {"question": QUESTION, "answer": "#### 92"}]
    )


@pytest.fixture
def chats(tmp_path) -> Path:
    def chat(*turns: str) -> dict:
        roles = ("user", "assistant")
        return {
            "messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)],
            "extra": {"n": 1},
        }

    path = tmp_path / "chats.jsonl"
    _write_lines(
        path,
        [
            chat("Hello!", QUESTION),  # the assistant says it, no user does
            chat("Hi.", "Hello.", f"Please solve this. {QUESTION.upper()}", "92"),
            {"messages": "broken"},
            chat("Good morning, how are you?", "Well."),
        ],
    )
    return path


def test_report_names_file_and_line_of_both_sides(evaluation, chats, tmp_path, capsys):
    assert _run("--train", chats, "--eval", evaluation, "--report", tmp_path / "out" / "report.json") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["settings"] == {"mode": "ngram", "ngram": 8, "threshold": 0.5, "max_overlap": 0.02}
    assert report["contaminated_sets"] == [str(chats)]
    (pair,) = report["pairs"]
    assert pair["overlap_percent"] == 50.0
    assert pair["contaminated"] is True
    assert pair["instances"] == [
        {
            "eval_row": 1, "train_row": 1, "fraction": 1.0, "num_train_rows": 1,
            "eval_at": f"{evaluation}:2", "train_at": f"{chats}:2",
        }
    ]  # fmt: skip
    assert report["unreadable_train_rows"][str(chats)]["by_reason"] == {"not_messages": 1}
    out = capsys.readouterr().out
    assert "1 of 2 prompts (50.00%) in 1 of 3 rows: CONTAMINATED" in out


def test_drop_rows_writes_the_other_records_unchanged(evaluation, chats, tmp_path):
    _run("--train", chats, "--eval", evaluation, "--write", tmp_path / "clean")
    before = [json.loads(line) for line in chats.read_text().splitlines()]
    after = [json.loads(line) for line in (tmp_path / "clean" / "chats.jsonl").read_text().splitlines()]
    assert after == [before[0], before[3]]
    assert len(list(read_rows(tmp_path / "clean" / "chats.jsonl"))) == 2


def test_drop_set_writes_only_the_sets_that_are_clean(evaluation, chats, tmp_path):
    clean = _write_lines(tmp_path / "fine.jsonl", [{"prompt": "Name a colour.", "completion": "Blue."}])
    _run("--train", chats, clean, "--eval", evaluation, "--write", tmp_path / "clean", "--policy", "drop-set")
    assert [path.name for path in (tmp_path / "clean").iterdir()] == ["fine.jsonl"]


def test_refuse_fails_after_writing_the_report(evaluation, chats, tmp_path):
    with pytest.raises(DataError, match="holds 1 of the 2 prompts"):
        _run("--train", chats, "--eval", evaluation, "--policy", "refuse", "--report", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["contaminated_sets"] == [str(chats)]


def test_compressed_and_parquet_training_sets_of_one_name_keep_apart(evaluation, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    with gzip.open(tmp_path / "a" / "train.jsonl.gz", "wt") as file:
        file.write(json.dumps({"instruction": "Solve.", "input": QUESTION, "output": "92"}) + "\n")
        file.write(json.dumps({"instruction": "Say hello.", "output": "Hello, Zoë"}) + "\n")
    table = pa.table({"prompt": [OTHER, "Count to three."], "completion": ["9", "1 2 3"], "level": [1, 2]})
    pq.write_table(table, tmp_path / "b" / "train.parquet")
    sets = (tmp_path / "a" / "train.jsonl.gz", tmp_path / "b" / "train.parquet")
    _run("--train", *sets, "--eval", evaluation, "--write", tmp_path / "clean")
    written = {path.name: [json.loads(line) for line in path.open()] for path in (tmp_path / "clean").iterdir()}
    assert written == {
        "train.jsonl": [{"instruction": "Say hello.", "output": "Hello, Zoë"}],
        "train-2.jsonl": [{"prompt": "Count to three.", "completion": "1 2 3", "level": 2}],
    }
    with pytest.raises(DataError, match="would overwrite"):
        _run("--train", *sets, "--eval", evaluation, "--write", tmp_path / "clean")


def test_a_record_of_several_rows_goes_when_one_of_them_matches(evaluation, tmp_path):
    task = {"instruction": "Answer.", "instances": [{"input": "1 + 1", "output": "2"}, {"input": OTHER, "output": "9"}]}
    train = _write_lines(tmp_path / "tasks.jsonl", [task, {**task, "instances": task["instances"][:1]}])
    source = InstanceSource(str(train), protected=False)
    assert [turns[0][-5:] for turns in source] == ["1 + 1", OTHER[-5:], "1 + 1"]
    _run("--train", train, "--eval", evaluation, "--write", tmp_path / "clean")
    (kept,) = [json.loads(line) for line in (tmp_path / "clean" / "tasks.jsonl").open()]
    assert len(kept["instances"]) == 1


def test_an_evaluation_row_that_could_not_be_trained_on_still_protects_its_prompt(chats, tmp_path):
    evaluation = _write_lines(tmp_path / "odd.jsonl", [{"problem": QUESTION, "solution": "no box here"}])
    _run("--train", chats, "--eval", evaluation, "--report", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["pairs"][0]["overlap_percent"] == 100.0
    with pytest.raises(DataError, match=r"odd2.jsonl:1: an evaluation row without a prompt"):
        _run("--train", chats, "--eval", _write_lines(tmp_path / "odd2.jsonl", [{"answer": "9"}]))


def test_settings_that_make_no_sense_are_refused(evaluation, chats):
    for wrong in (("--threshold", "1.5"), ("--ngram", "0"), ("--mode", "exact", "--ngram", "8")):
        with pytest.raises(DataError, match="decontamination settings"):
            _run("--train", chats, "--eval", evaluation, *wrong)
    with pytest.raises(DataError, match="report drops nothing"):
        _run("--train", chats, "--eval", evaluation, "--policy", "report", "--write", "clean")
    with pytest.raises(DataError, match="named twice"):
        _run("--train", chats, chats, "--eval", evaluation)


def test_hub_names_take_options():
    source = parse_source("hf:openai/gsm8k?subset=main&split=test&revision=abc")
    assert (source.path, source.subset, source.split, source.revision) == ("hf:openai/gsm8k", "main", "test", "abc")
    with pytest.raises(DataError, match="takes subset, split and revision"):
        parse_source("hf:openai/gsm8k?column=question")
