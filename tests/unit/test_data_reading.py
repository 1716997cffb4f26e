"""Every form of row is recognised; every kind of wrong row is dropped with its reason, line and count."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from rlsys.data import records
from rlsys.data.drops import DropLog
from rlsys.data.reader import read_rows, source_records
from rlsys.data.row import Origin, row_to_json
from rlsys.errors import DataError
from rlsys.recipe.data import SourceSettings
from rlsys.types import Check

USER = {"role": "user", "content": "1+1?"}
ANSWER = {"role": "assistant", "content": "2"}
SYSTEM = {"role": "system", "content": "Be brief."}


def written(folder: Path, *lines: object, name: str = "toy.jsonl") -> Path:
    """A file of JSON lines; bytes are written as they are."""
    file = folder / name
    content = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return file


def only_row(folder: Path, record: object):
    rows = list(read_rows(written(folder, record)))
    assert len(rows) == 1
    return rows[0]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, ANSWER]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "1+"}, "1?"]}, ANSWER]},
        {
            "messages": [
                {**USER, "loss_weight": 0.0},
                {"role": "assistant", "content": [{"type": "text", "value": "2"}]},
            ]
        },
        {"conversations": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
        {"prompt": "1+1?", "completion": "2"},
        {"prompt": [USER], "completion": [ANSWER]},
        {"prompt": "1+1?", "response": "2"},
        {"instruction": "1+1?", "output": "2"},
        {"instruction": "1+1?", "input": "", "output": "2", "system": None},
        {"instruction": "1+1?", "input": float("nan"), "output": "2"},
        {"instruction": "1+1?", "instances": [{"input": "", "output": "2"}]},
        {"question": "1+1?", "answer": "2"},
        {"question": "1+1?", "answer": 2},
        {"text": "1+1?", "role": "prompter", "replies": [{"text": "2", "role": "assistant", "rank": 0, "replies": []}]},
        {
            "message_tree_id": "x",
            "prompt": {
                "text": "1+1?",
                "role": "prompter",
                "replies": [
                    {"text": "3", "role": "assistant", "rank": 1},
                    {"text": "2", "role": "assistant", "rank": 0},
                ],
            },
        },
    ],
)
def test_conversations_in_every_form(tmp_path: Path, record: dict):
    row = only_row(tmp_path, record)
    assert row.messages == (USER, ANSWER)
    assert (row.kind, row.prompt, row.response, row.checks) == ("conversation", (USER,), "2", ())
    assert (row.id, row.source, row.origin) == ("toy/0", "toy", Origin(str(tmp_path / "toy.jsonl"), 1))


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
        {"prompt": [USER], "chosen": ANSWER, "rejected": {"role": "assistant", "content": "3"}},
        {"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "3"}], "prompt": "1+1?"},
        {"chosen_messages": [USER, ANSWER], "rejected_messages": [USER, {"role": "assistant", "content": "3"}]},
        {
            "conversations": [{"from": "human", "value": "1+1?"}],
            "chosen": {"from": "gpt", "value": "2"},
            "rejected": {"from": "gpt", "value": "3"},
        },
    ],
)
def test_pairs_in_every_form(tmp_path: Path, record: dict):
    row = only_row(tmp_path, record | {"score_chosen": 9.0, "score_rejected": 6.5})
    assert row.kind == "pair"
    assert (row.messages, row.chosen) == ((USER,), (ANSWER,))
    assert row.rejected == ({"role": "assistant", "content": "3"},)
    assert row.margin == 2.5


@pytest.mark.parametrize(
    ("record", "check"),
    [
        ({"question": "?", "answer": "2*900=1800\n#### 1,800"}, Check("gsm8k", "1800")),
        ({"messages": [USER], "ground_truth": "2", "dataset": "gsm8k"}, Check("gsm8k", "2")),
        ({"messages": [USER], "ground_truth": "\\frac12", "dataset": "MATH"}, Check("math", "\\frac12")),
        ({"messages": [USER], "ground_truth": "B", "verifier": "multiple_choice"}, Check("multiple_choice", "B")),
        ({"problem": "?", "solution": "so $\\boxed{\\frac{1}{2}}$."}, Check("math", "\\frac{1}{2}")),
        ({"problem": "?", "solution": "so \\boxed{1}", "answer": "1.0"}, Check("math", "1.0")),
        (
            {"prompt": [USER], "data_source": "x/MATH", "reward_model": {"ground_truth": {"target": "0"}}},
            Check("math", "0"),
        ),
        (
            {"prompt": [USER], "data_source": "openai/gsm8k", "reward_model": {"ground_truth": "72"}},
            Check("gsm8k", "72"),
        ),
        (
            {"prompt": "?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{"relation": None}]},
            Check("ifeval", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
        ),
        (
            {"prompt": "?", "instruction_id_list": ["count:numbers"], "kwargs": [{"N": 3, "words": None}]},
            Check("ifbench", {"instruction_id_list": ["count:numbers"], "kwargs": [{"N": 3}]}),
        ),
        (
            {
                "messages": [USER],
                "dataset": ["ifeval"],
                "ground_truth": ['[{"instruction_id": ["punctuation:no_comma"], "kwargs": [null]}]'],
            },
            Check("ifeval", {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}),
        ),
        (
            {"messages": [USER], "checks": [{"verifier": "string", "ground_truth": "2", "weight": 0.5}]},
            Check("string", "2", 0.5),
        ),
        ({"prompt": "1+1?", "checks": [{"verifier": "string", "ground_truth": "2"}]}, Check("string", "2")),
    ],
)
def test_checks_in_every_form(tmp_path: Path, record: dict, check: Check):
    row = only_row(tmp_path, record)
    assert row.checks == (check,)
    assert row.prompt[-1]["role"] == "user"


TULU_EMPTY = dict.fromkeys(("N", "quantifier", "end_phrase", "keyword_list", "word", "letter", "options"))


@pytest.mark.parametrize(
    ("function", "instructions"),
    [
        ({"func_name": "validate_lowercase"}, [("change_case:english_lowercase", {})]),
        (
            {"func_name": "verify_keywords", "keyword_list": ["a", "b"]},
            [("keywords:existence", {"keywords": ["a", "b"]})],
        ),
        (
            {"func_name": "verify_sentence_constraint", "N": 4, "quantifier": "around"},
            [
                ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 3}),
                ("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 6}),
            ],
        ),
        (
            {"func_name": "verify_sentence_constraint", "N": 4, "quantifier": "at most"},
            [("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 5})],
        ),
    ],
)
def test_tulu_constraints_become_ifeval_instructions(tmp_path: Path, function: dict, instructions: list):
    truth = json.dumps(TULU_EMPTY | function)
    (check,) = only_row(tmp_path, {"messages": [USER], "ground_truth": truth, "dataset": "ifeval"}).checks
    assert check.verifier == "ifeval"
    assert list(zip(*check.ground_truth.values(), strict=True)) == instructions


@pytest.mark.parametrize("name", [["validate_title"], {"name": "validate_title"}, 7])
def test_a_tulu_function_that_is_no_name_is_a_wrong_row(tmp_path: Path, name: object):
    record = {"messages": [USER], "ground_truth": json.dumps({"func_name": name}), "dataset": "ifeval"}
    drops = DropLog()
    assert list(read_rows(written(tmp_path, record), drops=drops)) == []
    assert drops.by_reason == {"unmapped_constraint": 1}


def test_tulu_constraints_that_no_instruction_says_are_checked_as_they_are(tmp_path: Path):
    function = {"func_name": "verify_keyword_frequency", "word": "tea", "N": 2}
    truth = json.dumps(TULU_EMPTY | function)
    (check,) = only_row(tmp_path, {"messages": [USER], "ground_truth": truth, "dataset": "ifeval"}).checks
    assert (check.verifier, check.ground_truth) == ("tulu", function)


def test_text_is_text(tmp_path: Path):
    row = only_row(tmp_path, {"text": "Once upon a time", "source": "books"})
    assert (row.kind, row.text, row.messages, row.source) == ("text", "Once upon a time", (), "books")
    rows = list(read_rows(written(tmp_path, b"first\n\nsecond\r\n", name="plain.txt")))
    assert [(row.text, row.origin.line) for row in rows] == [("first", 1), ("second", 3)]


def test_an_instance_is_a_row(tmp_path: Path):
    record = {"instruction": "Add.", "instances": [{"input": "1, 1", "output": "2"}, {"input": "", "output": "0"}]}
    rows = list(read_rows(written(tmp_path, record)))
    assert [(row.id, row.prompt[0]["content"], row.response) for row in rows] == [
        ("toy/0.0", "Add.\n\n1, 1", "2"),
        ("toy/0.1", "Add.", "0"),
    ]


def test_a_system_field_and_weights_are_kept(tmp_path: Path):
    record = {"system": "Be brief.", "messages": [USER, {**ANSWER, "weight": 0.5}]}
    assert only_row(tmp_path, record).messages == (SYSTEM, USER, {**ANSWER, "weight": 0.5})


WRONG = {
    "invalid_json": b'{"messages": [\n',
    "not_an_object": b"[1, 2]\n",
    "duplicate_key": b'{"text": "a", "text": "b"}\n',
    "invalid_utf8": b'{"text": "\xff"}\n',
    "unknown_format": {"tokens": [1, 2]},
    "not_messages": {"messages": "hello"},
    "unknown_role": {"messages": [{"role": "narrator", "content": "x"}]},
    "not_text": {"messages": [{"role": "user", "content": float("nan")}, ANSWER]},
    "nul_character": {"text": "a\0b"},
    "lone_surrogate": {"text": "half \ud83d"},
    "bad_weight": {"messages": [USER, {**ANSWER, "weight": float("nan")}]},
    "weight_on_other_role": {"messages": [{**USER, "weight": 1.0}, ANSWER]},
    "tool_calls": {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [{"id": 1}]}]},
    "equal_pair": {"prompt": "1+1?", "chosen": "2", "rejected": "2"},
    "no_prompt": {"chosen": "2", "rejected": "3"},
    "no_response": {"prompt": [USER], "chosen": [USER], "rejected": [ANSWER]},
    "bad_number": {"prompt": "1+1?", "chosen": "2", "rejected": "3", "margin": float("inf")},
    "no_ground_truth": {"problem": "1+1?", "solution": "two"},
    "unknown_verifier": {"messages": [USER], "ground_truth": "2", "dataset": "mystery"},
    "bad_ground_truth": {"prompt": "?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": []},
    "unmapped_constraint": {
        "messages": [USER],
        "ground_truth": '{"func_name": "validate_rhyme", "N": 3}',
        "dataset": "ifeval",
    },
    "bad_checks": {"messages": [USER], "checks": [{"verifier": "math"}]},
    "empty_row": {"text": ""},
}


def test_wrong_rows_are_counted_by_reason_with_their_line(tmp_path: Path):
    good = {"messages": [USER, ANSWER]}
    file = written(tmp_path, good, *WRONG.values(), b"\n", good, name="wrong.jsonl.gz")
    drops = DropLog()
    rows = list(read_rows(file, drops=drops))
    assert [row.origin.line for row in rows] == [1, len(WRONG) + 3]
    manifest = drops.as_manifest()
    assert manifest["by_reason"] == dict.fromkeys(sorted(WRONG), 1)
    assert manifest["total"] == len(WRONG)
    for place, reason in enumerate(WRONG):
        assert manifest["examples"][reason][0]["where"] == f"{file}:{place + 2}"


@pytest.mark.parametrize("reason", WRONG)
def test_without_a_log_the_first_wrong_row_is_an_error(tmp_path: Path, reason: str):
    file = written(tmp_path, WRONG[reason])
    with pytest.raises(DataError) as caught:
        list(read_rows(file))
    assert str(caught.value).startswith(f"{file}:1: ")
    assert f"({reason})" in str(caught.value)


def test_a_line_of_10_mb_is_read(tmp_path: Path):
    long = "word " * 2_000_000
    assert only_row(tmp_path, {"text": long}).text == long


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1000)
    drops = DropLog()
    file = written(tmp_path, {"text": "a"}, {"text": "b" * 5000}, {"text": "c"}, {"text": "d" * 900})
    rows = list(read_rows(file, drops=drops))
    assert [(row.text[0], row.origin.line) for row in rows if row.text] == [("a", 1), ("c", 3), ("d", 4)]
    assert drops.by_reason == Counter(line_too_long=1)


def test_deep_nesting_and_huge_integers_are_wrong_rows(tmp_path: Path):
    drops = DropLog()
    deep = b'{"text":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n"
    digits = b'{"text":' + b"9" * 5000 + b"}\n"
    assert list(read_rows(written(tmp_path, deep, digits), drops=drops)) == []
    assert drops.by_reason == Counter(invalid_json=2)


def test_json_arrays_know_their_lines(tmp_path: Path):
    file = tmp_path / "array.json"
    file.write_text(
        '\ufeff[\n {"text": "a"},\n {"text": "b",\n  "text": "c"},\n 7,\n {"text": "d"}\n]\n', encoding="utf-8"
    )
    drops = DropLog()
    rows = list(read_rows(file, drops=drops))
    assert [(row.id, row.text, row.origin.line) for row in rows] == [("array/0", "a", 2), ("array/3", "d", 6)]
    assert [drops.examples[reason][0]["where"] for reason in ("duplicate_key", "not_an_object")] == [
        f"{file}:3",
        f"{file}:5",
    ]


def test_a_json_file_of_lines_is_read_too(tmp_path: Path):
    file = written(tmp_path, {"text": "a"}, {"text": "b"}, name="lines.json")
    assert [row.text for row in read_rows(file)] == ["a", "b"]


@pytest.mark.parametrize("content", [b'[{"text": "a"} {"text": "b"}]', b'[{"text": "a"}, oops]', b'[{"text": "a"},'])
def test_a_broken_array_is_an_error_with_its_place(tmp_path: Path, content: bytes):
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.json:1: the array"):
        list(read_rows(file))


def test_a_truncated_gzip_is_an_error(tmp_path: Path):
    file = written(tmp_path, *({"text": str(number)} for number in range(5000)), name="cut.jsonl.gz")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match="damaged gzip"):
        list(read_rows(file))


def test_parquet_rows_and_their_wrong_ones(tmp_path: Path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts = pa.array([b"one", b"t\xffo", b"three"]).view(pa.string())
    file = tmp_path / "toy.parquet"
    pq.write_table(pa.table({"text": texts, "score": [1.0, float("nan"), None]}), file)
    drops = DropLog()
    assert [(row.text, row.origin.line) for row in read_rows(file, drops=drops)] == [("one", 1), ("three", 3)]
    assert drops.by_reason == Counter(invalid_utf8=1)
    file.write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match="not a readable parquet"):
        list(read_rows(file))


def test_a_saved_dataset_is_read_by_split(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    train = datasets.Dataset.from_list([{"prompt": "1+1?", "completion": "2"}])
    datasets.DatasetDict({"train": train, "test": train}).save_to_disk(str(tmp_path / "saved"))
    rows = list(read_rows(SourceSettings(path=str(tmp_path / "saved"), split="test", name="sums")))
    assert [(row.id, row.messages) for row in rows] == [("sums/0", (USER, ANSWER))]
    with pytest.raises(DataError, match="no such split"):
        list(read_rows(SourceSettings(path=str(tmp_path / "saved"), split="dev")))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_data_set_of_the_hub_is_read_and_streamed(tmp_path: Path, monkeypatch, streaming: bool):
    """A folder stands for the hub's copy: `datasets` loads both by the same call."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    opened: list[object] = []
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: opened.append(load(*a, **k)) or opened[-1])
    (tmp_path / "sums").mkdir()
    written(tmp_path / "sums", *({"prompt": "1+1?", "completion": "2"},) * 3, {"prompt": "1\0", "completion": "2"})
    drops = DropLog()
    source = SourceSettings(path=f"hf:{tmp_path / 'sums'}", name="sums", streaming=streaming)
    rows = list(read_rows(source, drops=drops))
    assert [row.id for row in rows] == ["sums/0", "sums/1", "sums/2"]
    assert all(row.messages == (USER, ANSWER) for row in rows)
    assert drops.by_reason == {"nul_character": 1}
    assert isinstance(opened[0], datasets.IterableDataset) == streaming


def test_folders_and_globs_count_on(tmp_path: Path):
    written(tmp_path, {"text": "a"}, {"text": "b"}, name="part-0.jsonl")
    written(tmp_path, {"text": "c"}, name="part-1.jsonl.gz")
    (tmp_path / "notes.md").write_text("not data")
    expected = [("a", 0), ("b", 1), ("c", 2)]
    for path in (tmp_path, tmp_path / "part-*"):
        rows = list(read_rows(SourceSettings(path=str(path), name="x")))
        assert [(row.text, row.id) for row in rows] == [(text, f"x/{place}") for text, place in expected]
    with pytest.raises(DataError, match="no data file"):
        list(read_rows(tmp_path / "nothing-*"))


def test_readers_that_share_a_source_see_each_row_once(tmp_path: Path):
    source = SourceSettings(path=str(written(tmp_path, *({"text": str(number)} for number in range(10)))))
    for part in range(3):
        shared = source_records(source, wanted=lambda ordinal, part=part: ordinal % 3 == part)
        wanted = [(number, {"text": str(number)}) for number in range(part, 10, 3)]
        assert [(ordinal, record.value) for ordinal, record in shared] == wanted


def test_what_is_written_is_read_back(tmp_path: Path):
    records = [
        {"messages": [SYSTEM, USER, {**ANSWER, "weight": 0.5}], "checks": [{"verifier": "math", "ground_truth": "2"}]},
        {"prompt": "1+1?", "chosen": "2", "rejected": "3", "margin": 1.5},
        {"text": "Zum Beispiel: ü"},
        {"prompt": "hello", "source": "greetings"},
    ]
    rows = list(read_rows(written(tmp_path, *records)))
    again = list(read_rows(written(tmp_path, *map(row_to_json, rows), name="again.jsonl")))
    assert again == rows
