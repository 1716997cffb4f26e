"""`rlsys verify`: one JSON line in, one out, in order, from a file or standard input."""

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main

pytestmark = pytest.mark.integration
DATA = Path(__file__).parents[3] / "shared" / "data"
ROWS = [
    {"id": 1, "verifier": "math", "ground_truth": r"\frac12", "response": r"\boxed{0.5}"},
    {"id": "two", "verifier": "gsm8k", "ground_truth": "18", "response": "#### 17"},
    {"id": 3, "verifier": "math", "ground_truth": "4", "response": "The answer is 4."},
    {"id": 4, "verifier": "string", "ground_truth": "Paris", "response": "paris."},
    {"id": 5, "verifier": "r1", "ground_truth": "4", "response": "<think>x</think><answer>4</answer>"},
    {"id": 6, "verifier": "math", "ground_truth": "", "response": r"\boxed{}"},
    {"id": 7, "verifier": "nothing", "ground_truth": "", "response": ""},
    {"id": 8, "verifier": "math", "ground_truth": "4", "response": "\ud800\\boxed{4}"},
]


def verify(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict]]:
    code = main(["verify", *arguments])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_file_is_judged_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS) + "\n\n")
    code, results = verify([str(path), "--workers", "1"], capsys)
    assert code == 0
    assert [result["id"] for result in results] == [1, "two", 3, 4, 5, 6, 7, 8]
    expected = ["correct", "wrong", "correct", "correct", "correct", "error", "error", "correct"]
    assert [result["outcome"] for result in results] == expected
    assert [result["score"] for result in results] == [1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    assert all(set(result) == {"id", "outcome", "score", "seconds", "detail"} for result in results)
    assert all(result["seconds"] > 0 for result in results)
    assert results[0]["detail"] == {"answer": "0.5", "source": "box"}

    code, results = verify([str(path), "--mode", "reward", "--workers", "2"], capsys)
    assert code == 0 and results[2]["outcome"] == "unparsable"


def test_standard_input_and_lines_that_are_no_requests(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    lines = [json.dumps(ROWS[0]).encode(), b"{", b'{"id": 9}', b"[1]", b"\xff", json.dumps(ROWS[1]).encode()]
    lines.append(json.dumps({"id": 10, "verifier": "math", "ground_truth": "4", "response": 4}).encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines))))
    code, results = verify(["-", "--workers", "1"], capsys)
    assert code == 1
    assert [result["id"] for result in results] == [1, None, 9, None, None, "two", 10]
    assert [result["outcome"] for result in results] == ["correct", *["error"] * 4, "wrong", "error"]
    assert "lacks verifier, ground_truth, response" in results[2]["detail"]["error"]


def test_a_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]):
    assert main(["verify", "no/such/file.jsonl"]) == 2
    assert "no/such/file.jsonl" in capsys.readouterr().err


def test_a_users_verifier_is_found_by_its_module(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "from rlsys.verifiers.registry import verifier\n\n\n"
        "@verifier('shout')\n"
        "def shout(response, ground_truth, mode):\n"
        "    return sum(c.isupper() for c in response) / len(response)\n"
    )
    rows = [
        {"id": n, "verifier": "shout", "ground_truth": None, "response": text} for n, text in enumerate(("AB", "aB"))
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "verify", "-", "--module", "mine", "--workers", "1"],
        input="\n".join(map(json.dumps, rows)),
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(result["outcome"], result["score"]) for result in results] == [("correct", 1.0), ("wrong", 0.5)]


@pytest.mark.real_data
@pytest.mark.skipif(not DATA.exists(), reason="needs ../shared/data")
def test_every_adversarial_row_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Hangs, crashes and false rewards of the adversarial set, one process for all of them."""
    with gzip.open(DATA / "verifiers" / "adversarial.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    requests = []
    for row in rows:
        name, truth = row["kind"].split("_")[0], row["gold"]
        if name == "ifeval":
            read = json.loads(truth)
            truth = {"instruction_id_list": read["instruction_id"], "kwargs": read["kwargs"]}
        requests.append({"id": row["id"], "verifier": name, "ground_truth": truth, "response": row["response"]})
    path = tmp_path / "adversarial.jsonl"
    path.write_text("\n".join(map(json.dumps, requests)))
    code, results = verify([str(path), "--mode", "reward"], capsys)
    assert code == 0 and [result["id"] for result in results] == [row["id"] for row in rows]
    for row, result in zip(rows, results, strict=True):
        assert result["outcome"] != "timeout", (row["id"], row["why"])
        if row["expected"] != "no_crash":
            assert result["score"] == row["expected"], (row["id"], row["why"], result)
