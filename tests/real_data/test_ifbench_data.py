"""IFBench's published prompts and the project's adversarial responses."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest

from rlsys.errors import VerifierError
from rlsys.verifiers.ifbench import check_ifbench_ground_truth, verify_ifbench
from rlsys.verifiers.ifeval import verify_ifeval

pytestmark = pytest.mark.real_data

DATA = Path(__file__).parents[3] / "shared/data"


def read(name: str) -> list[dict]:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with gzip.open(path, "rt") as lines:
        return [json.loads(line) for line in lines]


def test_every_published_prompt_loads_but_those_that_need_a_tagger():
    refused: Counter[str] = Counter()
    num_instructions = 0
    for row in read("ifbench/IFBench_test.jsonl.gz"):
        truth = {"instruction_id_list": row["instruction_id_list"], "kwargs": row["kwargs"]}
        try:
            check_ifbench_ground_truth(truth)
        except VerifierError as error:
            assert "words:start_verb is not verified" in str(error)
            refused["words:start_verb"] += 1
            continue
        num_instructions += len(row["instruction_id_list"])
        # The prompt as its own response: no verdict raises.
        assert len(verify_ifbench(row["prompt"], truth, "eval").detail["loose"]) == len(row["instruction_id_list"])
    assert refused == {"words:start_verb": 6}
    assert num_instructions == 337


def test_adversarial_responses_are_judged_as_expected():
    counted: Counter[str] = Counter()
    for row in read("verifiers/adversarial.jsonl.gz"):
        if not row["kind"].startswith("ifeval"):
            continue
        for mode in ("eval", "reward"):
            try:
                score = verify_ifeval(row["response"], row["gold"], mode).score
            except VerifierError:
                # Refused at load: only where nothing is expected of a response.
                assert row["expected"] == "no_crash", row["why"]
                counted["refused"] += 1
                continue
            assert score in (0, 1)
            if row["expected"] != "no_crash":
                assert score == row["expected"], (row["id"], mode, row["why"])
            counted["judged"] += 1
    assert counted == {"judged": 2 * 36, "refused": 2 * 5}
