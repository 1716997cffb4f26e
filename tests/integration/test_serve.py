"""vLLM's server on an exported folder: the token ids and the greedy text of the training path."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsys.data.tokenizer import tokenizer_of
from rlsys.models.build import build_engine
from rlsys.models.process_group import ProcessGroup
from rlsys.models.weights import export_hf
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.load import load_recipe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
MESSAGES = [{"role": "user", "content": "What is 12 + 30?"}]


def export(folder: Path) -> None:
    """A random model through the learner's own export."""
    recipe = load_recipe(ROOT / "configs" / "quickstart.toml")
    model = recipe.model.model_copy(update={"tokenizer": str(ROOT / "rlsys" / "quickstart" / "tokenizer")})
    group = ProcessGroup(0, 1, torch.device("cpu"))
    engine = build_engine("policy", model=model, learner=LearnerSettings(), group=group, trainable=False)
    export_hf(engine, folder, tokenizer_of(model))


def post(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def test_vllm_serve_answers_as_the_training_path_does(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(ROOT)
    hf = tmp_path / "hf"
    export(hf)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = (tmp_path / "serve.log").open("w")
    server = subprocess.Popen(
        [
            Path(sys.executable).with_name("vllm"), "serve", hf, "--host=127.0.0.1", f"--port={port}",
            "--dtype=float32", "--enforce-eager", "--max-model-len=96", "--served-model-name=policy",
        ],
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "HF_HUB_OFFLINE": "1"},
        stdout=log,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None, (tmp_path / "serve.log").read_text()[-3000:]
                assert time.monotonic() < deadline, (tmp_path / "serve.log").read_text()[-3000:]
                time.sleep(1)
        tokenizer = AutoTokenizer.from_pretrained(hf)
        prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
        assert post(f"{url}/tokenize", {"model": "policy", "messages": MESSAGES})["tokens"] == prompt
        chat = {"model": "policy", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
        served = post(f"{url}/v1/chat/completions", chat)["choices"][0]["message"]["content"]
        model = AutoModelForCausalLM.from_pretrained(hf)
        greedy = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt) :]
        assert served == tokenizer.decode(greedy, skip_special_tokens=True)
        assert served
    finally:
        server.terminate()
        server.wait(timeout=60)
        log.close()
