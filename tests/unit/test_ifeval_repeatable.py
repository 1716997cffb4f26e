"""The same verdicts in every process, thread and event loop, whatever seeds and hash seeds are about."""

import asyncio
import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import langdetect

from rlsys.verifiers.ifeval import instruction_ids, sample_kwargs, verify_ifeval

RESPONSES = (
    "THIS IS AN ENGLISH SENTENCE. EVERY LETTER IS CAPITALIZED!!! AMAZING.",
    "Bonjour, je suis *très* content. \nEt vous? <<Oui>>",
    "ok",
    "SUN SUN SUN SUN",
    '"kayak level", said Emma. "So be it!" And [they] left; they ran.\n* one\n- two\n\nP.S. Bye',
)


def verdicts() -> list:
    made = []
    for id in instruction_ids():
        drawn = sample_kwargs(id, random.Random(0), prompt="Write about the old sea.")
        truth = {"instruction_id_list": [id], "kwargs": [drawn]}
        for mode in ("eval", "reward"):
            made.append([list(verify_ifeval(text, truth, mode).detail["loose"]) for text in RESPONSES])
    return made


def test_verdicts_do_not_depend_on_where_they_are_made():
    here = verdicts()
    assert any(True in row for group in here for row in group)
    script = "import json, test_ifeval_repeatable as t; print(json.dumps(t.verdicts()))"
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.path.dirname(__file__)}
        other = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True, timeout=300
        )
        assert json.loads(other.stdout) == here
    with ThreadPoolExecutor(2) as pool:
        assert [pool.submit(verdicts).result() for _ in range(2)] == [here, here]

    async def in_a_loop() -> list:
        return verdicts()

    assert asyncio.run(in_a_loop()) == here


def test_global_seeds_are_neither_used_nor_touched():
    seed_before = langdetect.DetectorFactory.seed  # another test of the same process may have set it
    truth = {"instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]}
    expected = [verify_ifeval(text, truth, "eval") for text in RESPONSES]
    assert langdetect.DetectorFactory.seed == seed_before
    random.seed(7)
    state = random.getstate()
    assert [verify_ifeval(text, truth, "eval") for text in RESPONSES] == expected
    assert random.getstate() == state
