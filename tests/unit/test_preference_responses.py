"""Responses of a pool: what was cut by the limit of tokens is kept and counted, and is no response."""

import asyncio
from collections import Counter
from pathlib import Path

from scripted_writer import ScriptedWriter

from rlsys.data.asking import ask_all
from rlsys.data.judge_backend import Question
from rlsys.data.preference_records import PreferencePrompt
from rlsys.data.preference_responses import collect_responses
from rlsys.data.response_store import ResponseStore

PROMPTS = [PreferencePrompt(str(n), ({"role": "user", "content": f"Tell {n}."},), "toy", "unused") for n in range(3)]


def test_a_cut_response_is_left_out_and_never_asked_for_again(tmp_path: Path):
    pool = {
        "short": ScriptedWriter(lambda question: "Done."),
        "long": ScriptedWriter(lambda question: "And so…" if "1" in question.messages[0]["content"] else "The end."),
    }

    def collect() -> tuple[dict[str, list[str]], Counter[str]]:
        with ResponseStore(tmp_path / "responses.jsonl") as store:
            asking = collect_responses(PROMPTS, pool, store, num_responses=2, on_policy="long", seed=0)
            responses, counts = asyncio.run(asking)
        return {id: sorted(each.text for each in found) for id, found in responses.items()}, counts

    whole = ["Done.", "The end."]
    assert collect() == ({"0": whole, "1": ["Done."], "2": whole}, Counter(asked=6, cut=1))
    assert collect() == ({"0": whole, "1": ["Done."], "2": whole}, Counter(kept=6, cut=1))
    assert pool["long"].asked.total() == 3


def test_a_cut_text_is_no_synthetic_answer(tmp_path: Path):
    questions = [Question(str(n), ({"role": "user", "content": str(n)},)) for n in range(2)]
    writer = ScriptedWriter(lambda question: "whole" if question.key == "0" else "cut…")
    counts: Counter[str] = Counter()
    with ResponseStore(tmp_path / "answers.jsonl") as store:
        assert asyncio.run(ask_all(writer, questions, store, counts)) == {"0": "whole"}
    assert counts == {"asked": 2, "kept": 0, "failed": 1, "failed/cut": 1}
