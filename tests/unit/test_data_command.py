"""`rlsys data …` as a user types it."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from toy_tokenizer import toy_tokenizer

from launch.cli import main

CHAT = {"prompt": "What is 1 + 1?", "completion": "It is 2."}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    toy_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    file = tmp_path / "toy.jsonl"
    rows = [CHAT, {"prompt": "Pick.", "chosen": "good", "rejected": "bad"}, {"question": "2?", "answer": "#### 2"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "the sea"}, {"prompt": "asked"}]))
    return file


def test_show_marks_what_is_learned(toy: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]):
    assert main(["data", "show", str(toy), "--tokenizer", tokenizer, "--rows", "5"]) == 0
    shown = capsys.readouterr().out
    assert "<|user|>\nWhat is 1 + 1?\n<|assistant|>\n[[It is 2.</s>]]" in shown
    assert "chosen (" in shown and "<|user|>\nPick.\n<|assistant|>\n[[bad</s>]]" in shown
    assert "check gsm8k: '2' (weight 1)" in shown
    assert "[[the sea</s>]]" in shown
    assert "<|user|>\nasked\n<|assistant|>\n" in shown
    assert f"--- toy/0  conversation from {toy}:1" in shown


def test_show_in_colour_and_with_ids(toy: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]):
    command = ["data", "show", str(toy), "--tokenizer", tokenizer, "--color", "always", "--ids", "--template", "chatml"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    assert "\x1b[31m<|im_start|>\x1b[0m\x1b[2muser\n" in shown
    assert "\x1b[32mIt is 2.\x1b[0m\x1b[1;32m<|im_end|>\x1b[0m" in shown
    ids = [line for line in shown.splitlines() if line.endswith("'<|im_end|>'")]
    assert [line.split()[2] for line in ids] == ["0.00", "1.00"]


def test_mix_writes_a_file_and_says_what_is_in_it(toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe = tmp_path / "mixture.toml"
    recipe.write_text(f'seed = 4\n[[source]]\npath = "{toy}"\ntake = 7\nlicence = "MIT"\n')
    assert main(["data", "mix", str(recipe), "--write", str(tmp_path / "out")]) == 0
    assert "toy: 7 of 5 rows (up-sampled); 5 read, 0 wrong, 0 filtered" in capsys.readouterr().out
    assert main(["data", "mix", str(recipe), "--write", str(tmp_path / "two"), "--readers", "2"]) == 0
    for name in ("mixture.jsonl", "data_card.json", "data_card.md"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert len((tmp_path / "out" / "mixture.jsonl").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mix", "{tmp}/bad.toml", "--write", "{tmp}/out"], "source.0.take"),
        (["mix", "{tmp}/absent.toml", "--write", "{tmp}/out"], "no recipe at"),
        (["show", "{tmp}/absent.jsonl", "--tokenizer", "{tokenizer}"], "no data file is there"),
        (["show", "{tmp}/marked.jsonl", "--tokenizer", "{tokenizer}"], "holds markers"),
        (["show", "{tmp}/marked.jsonl", "--tokenizer", "{tmp}"], "no tokenizer can be loaded"),
        (["personas", "{tmp}/bad.toml", "--write", "{tmp}/out"], "personas: "),
    ],
)
def test_faults_are_told_in_a_sentence(
    arguments: list[str], message: str, tmp_path: Path, tokenizer: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "bad.toml").write_text('[[source]]\npath = "x"\ntake = "all"\n')
    (tmp_path / "marked.jsonl").write_text(json.dumps({"prompt": "a", "completion": "</s>"}) + "\n")
    filled = [argument.format(tmp=tmp_path, tokenizer=tokenizer) for argument in arguments]
    assert main(["data", *filled]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rlsys: ") and message in error


class _Writer(BaseHTTPRequestHandler):
    """A writer over the OpenAI protocol: problems about squares, right answers, and lists of tasks."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = body["messages"][-1]["content"]
        if "Here is a person" in asked:
            text = "Problem: What is 12 squared, says " + asked.split("\n")[2] + "?"
        elif "Go on with numbers" in asked:
            text = "4. Name two kinds of cheese.\n5. Explain how a lock works to a child."
        elif "squared" in asked:
            text = r"12 times 12 is \boxed{144}."
        else:
            text = "With care."
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        message = {"role": "assistant", "content": text}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "usage": usage}
        answer["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is logged."""


@pytest.fixture
def endpoint():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Writer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'[writer.endpoint]\nmodel = "m"\nbase_url = "http://127.0.0.1:{server.server_address[1]}/v1"\n'
    server.shutdown()
    server.server_close()


def test_personas_over_http_and_the_verifier_pool(endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "personas.txt").write_text("a baker\na glazier who collects stamps from Peru\n")
    settings = tmp_path / "personas.toml"
    settings.write_text(
        f'personas = "{tmp_path}/personas.txt"\ntasks = ["math"]\nprompts_per_task = 2\nsimilarity = 1.0\n{endpoint}'
    )
    assert main(["data", "personas", str(settings), "--write", str(tmp_path / "out"), "--verifiers", "1"]) == 0
    assert "verified/math: 2" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert {row["messages"][0]["content"] for row in rows} == {
        "What is 12 squared, says a baker?",
        "What is 12 squared, says a glazier who collects stamps from Peru?",
    }
    assert all(row["checks"] == [{"verifier": "math", "ground_truth": "144", "weight": 1.0}] for row in rows)


def test_self_instruct_over_http(endpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"instruction": f"Say {n} things.", "output": "x"}) + "\n" for n in range(3)))
    settings = tmp_path / "grow.toml"
    settings.write_text(f'seeds = "{seeds}"\ntarget = 2\nseed_examples = 3\ngrown_examples = 0\n{endpoint}')
    assert main(["data", "self-instruct", str(settings), "--write", str(tmp_path / "out")]) == 0
    assert "2 rows in" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out" / "rows.jsonl").read_text().splitlines()]
    assert [row["messages"][0]["content"] for row in rows] == [
        "Name two kinds of cheese.",
        "Explain how a lock works to a child.",
    ]
