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


def test_a_cut_text_is_an_answer_only_where_it_is_wanted(tmp_path: Path):
    questions = [Question(str(n), ({"role": "user", "content": str(n)},)) for n in range(2)]
    writer = ScriptedWriter(lambda question: "whole" if question.key == "0" else "cut…")

    def ask(with_cut: bool) -> tuple[dict[str, str], Counter[str]]:
        counts: Counter[str] = Counter()
        with ResponseStore(tmp_path / "answers.jsonl") as store:
            return asyncio.run(ask_all(writer, questions, store, counts, with_cut=with_cut)), counts

    assert ask(with_cut=False) == ({"0": "whole"}, Counter(asked=2, cut=1))
    assert ask(with_cut=False) == ({"0": "whole"}, Counter(kept=2, cut=1))
    assert ask(with_cut=True) == ({"0": "whole", "1": "cut…"}, Counter(kept=2, cut=1))
    assert writer.asked.total() == 2, "nothing is asked for again"
