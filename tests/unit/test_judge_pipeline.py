"""The preference pipeline against a real server on loopback: slow, failing one call in five, mumbling one in ten."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from fractions import Fraction
from pathlib import Path

import pytest
from fake_openai_server import FAILURES, FakeOpenAI, response_in, true_rating, uniform
from scripted_writer import ScriptedWriter

from rlsys.data.judge import Judge
from rlsys.data.judge_backend import Question, TextBackend
from rlsys.data.judge_endpoint import Endpoint
from rlsys.data.preference_pipeline import JudgedPairs, judged_pairs
from rlsys.data.preference_records import AddedConstraint, PreferencePrompt
from rlsys.data.reader import read_rows
from rlsys.recipe.preferences import (
    ASPECTS,
    EndpointSettings,
    JudgedPreferenceSettings,
    JudgeSettings,
    PoolModelSettings,
)
from rlsys.types import Check, Outcome
from rlsys.verifiers.registry import get_verifier

MODELS = ("sft", "alpha", "beta", "gamma", "delta")


def _prompts(number: int) -> list[PreferencePrompt]:
    return [
        PreferencePrompt(f"toy/{index}", ({"role": "user", "content": f"Question {index}?"},), "toy", "reused")
        for index in range(number)
    ]


def _settings(base_url: str, **changes) -> JudgedPreferenceSettings:
    def endpoint(model: str) -> EndpointSettings:
        settings = {"max_concurrent": 16, "deadline_s": 5.0, "max_attempts": 12, "backoff_s": 0.01, **changes}
        return EndpointSettings(model=model, base_url=base_url, max_backoff_s=0.05, **settings)

    pool = tuple(PoolModelSettings(name=name, endpoint=endpoint(name), on_policy=name == "sft") for name in MODELS)
    judge = JudgeSettings(endpoint=endpoint("judge"), max_asks=12)
    return JudgedPreferenceSettings(pool=pool, judge=judge, seed=1)


def _nothing_to_verify(asked: Sequence[tuple[Check, str]]) -> list[Outcome]:
    raise AssertionError(f"no prompt here has a constraint: {asked}")


async def _pipeline(
    number: int, folder: Path, settings: JudgedPreferenceSettings
) -> tuple[JudgedPairs, list[Endpoint]]:
    async with AsyncExitStack() as stack:
        endpoints = [model.endpoint for model in (*settings.pool, settings.judge)]
        opened = [await stack.enter_async_context(Endpoint(one)) for one in endpoints if one is not None]
        pool: dict[str, TextBackend] = dict(zip(MODELS, opened, strict=False))
        judge = Judge(opened[-1], max_asks=settings.judge.max_asks)
        made = await judged_pairs(_prompts(number), pool, judge, folder, settings=settings, verify=_nothing_to_verify)
        return made, opened


def _responses(folder: Path) -> dict[str, dict[tuple[str, int], str]]:
    """By prompt, by (model, sample): read from the file itself."""
    found: dict[str, dict[tuple[str, int], str]] = {}
    for line in (folder / "responses.jsonl").read_text().splitlines():
        record = json.loads(line)
        prompt, model, sample = record["key"]
        found.setdefault(prompt, {})[model, sample] = record["value"]["text"]
    return found


def _true_mean(text: str) -> Fraction:
    ratings = [rating for aspect in ASPECTS if (rating := true_rating(text, aspect)) is not None]
    return Fraction(sum(ratings), len(ratings))


def _require_every_pair_right(result: JudgedPairs, folder: Path, number: int) -> None:
    responses = _responses(folder)
    assert len(responses) == number
    tied = 0
    by_prompt = {pair.prompt.id: pair for pair in result.pairs}
    for prompt, answers in responses.items():
        assert len(answers) == 4
        assert ("sft", 0) in answers
        means = {name: _true_mean(text) for name, text in answers.items()}
        if len(set(means.values())) == 1:
            tied += 1
            assert prompt not in by_prompt
            continue
        pair = by_prompt.pop(prompt)
        chosen, rejected = (means[side.model, side.sample] for side in (pair.chosen, pair.rejected))
        assert chosen == max(means.values())
        assert rejected < chosen
        assert (pair.chosen_score, pair.rejected_score) == (float(chosen), float(rejected))
    assert by_prompt == {}
    assert result.binarised == {
        "pairs": number - tied, "tied": tied, "too_few": 0, "unsettled": 0, "malformed": 0, "failed": 0,
    }  # fmt: skip


def test_every_pair_is_right_and_every_failure_counted(tmp_path):
    number = 30
    with FakeOpenAI() as server:
        result, endpoints = asyncio.run(_pipeline(number, tmp_path, _settings(server.base_url, completion_price=2.0)))
    _require_every_pair_right(result, tmp_path, number)
    calls = sum(endpoint.counts.calls for endpoint in endpoints)
    failures = sum((endpoint.counts.failures for endpoint in endpoints), start=Counter())
    assert set(server.failures) == set(FAILURES), "the server should have failed in every way that it knows"
    # A machine under heavy load lets good calls miss their deadline too: the client counts those beside the hung ones.
    late = failures["timeout"] - server.failures["timeout"]
    assert late >= 0
    assert failures - Counter(timeout=late) == server.failures
    assert 0 <= calls - sum(server.calls.values()) <= late
    assert 0.15 < sum(server.failures.values()) / calls < 0.25
    answered = sum(endpoint.counts.answered for endpoint in endpoints)
    assert answered == calls - sum(failures.values()) == len(server.delivered)
    assert 0 <= sum(server.delivered.values()) - answered <= late, "nothing that was answered in time is asked again"
    assert [endpoint.counts.given_up for endpoint in endpoints] == [0] * 6
    assert result.responses == {"asked": 120, "failed": 0, "kept": 0, "cut": 0}
    assert 0 <= server.num_unreadable - result.ratings["malformed"] <= late
    assert 25 < server.num_unreadable < 90
    assert result.ratings["rated"] + result.ratings["not_applicable"] == 120 * 4
    assert result.ratings["not_applicable"] > 10
    assert sum(endpoint.counts.cost for endpoint in endpoints) == pytest.approx(answered * 5 * 2.0 / 1e6)
    assert server.most_in_flight > 8
    assert [row.kind for row in read_rows(tmp_path / "pairs.jsonl")] == ["pair"] * result.binarised["pairs"]


def test_a_finished_run_asks_nothing_and_makes_the_same_pairs(tmp_path):
    with FakeOpenAI(failing=0.0) as server:
        first, _ = asyncio.run(_pipeline(6, tmp_path, _settings(server.base_url)))
        before = (tmp_path / "pairs.jsonl").read_bytes()
        asked = sum(server.calls.values())
        second, _ = asyncio.run(_pipeline(6, tmp_path, _settings(server.base_url)))
        assert sum(server.calls.values()) == asked
    assert second.pairs == first.pairs
    assert (tmp_path / "pairs.jsonl").read_bytes() == before
    assert (second.responses["kept"], second.ratings["kept"]) == (24, 96)


_PROGRAM = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_judge_pipeline import _pipeline, _settings
asyncio.run(_pipeline({number}, Path({folder!r}), _settings({url!r})))
"""


def _told(folder: Path) -> set[str]:
    """Questions whose answers are on the disk: the server puts a question's key into its answer."""
    stores = [folder / name for name in ("responses.jsonl", "ratings.jsonl") if (folder / name).exists()]
    lines = [line for path in stores for line in path.read_bytes().split(b"\n")[:-1]]
    return {json.loads(line)["value"]["text"][1:].partition("]")[0] for line in lines}


def test_killed_at_any_moment_it_asks_for_nothing_that_it_was_told(tmp_path):
    number = 12
    snapshots = []
    with FakeOpenAI(delay_s=0.01) as server:
        program = _PROGRAM.format(
            tests=str(Path(__file__).parent), number=number, folder=str(tmp_path), url=server.base_url
        )
        for more in (5, 40, 60, 90):
            deliveries = sum(server.delivered.values()) + more
            process = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "OMP_NUM_THREADS": "1"})
            reached = server.wait_for_deliveries(deliveries, timeout_s=300)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            assert reached
            told = _told(tmp_path)
            snapshots.append({question: server.calls[question] for question in told})
        assert not (tmp_path / "pairs.jsonl").exists()
        result, _ = asyncio.run(_pipeline(number, tmp_path, _settings(server.base_url)))
    _require_every_pair_right(result, tmp_path, number)
    sizes = [len(snapshot) for snapshot in snapshots]
    assert sizes == sorted(sizes)
    assert sizes[-1] > 48, "the last kill should have come while ratings were made"
    for snapshot in snapshots:
        assert {question: server.calls[question] for question in snapshot} == snapshot
    # What was on its way at a kill is lost and delivered once more: at most what was in flight, never more.
    lost = sum(server.delivered.values()) - len(_told(tmp_path))
    assert lost <= 4 * 16 * len(MODELS)
    for name in ("responses.jsonl", "ratings.jsonl"):
        keys = [tuple(json.loads(line)["key"]) for line in (tmp_path / name).read_text().splitlines()]
        assert len(keys) == len(set(keys))


def test_relaxed_prompts_are_answered_twice_and_judged_by_nobody_but_the_verifier(tmp_path):
    text = "Do not use any commas."
    constraint = AddedConstraint("punctuation:no_comma", {}, text)
    asked = ({"role": "user", "content": "Name two fruits."},)
    prompts = [
        *_prompts(2),
        PreferencePrompt("c", asked, "toy", "constrained", (constraint,)),
        PreferencePrompt("r", asked, "toy", "relaxed", (constraint,)),
        PreferencePrompt("p", ({"role": "user", "content": "Name two trees. No commas."},), "toy", "persona"),
    ]

    def answer(question: Question) -> str:
        content = question.messages[-1]["content"]
        if "<request>" in content:
            return "Request: Name two trees."
        keeps = text in content or "No commas" in content
        return f"{question.key[:6]} and plum" if keeps else f"{question.key[:6]}, plum"

    def rating(question: Question) -> str:
        text = response_in(question.messages[-1]["content"])
        return f"Rating: {1 + int(uniform('quality', text) * 5)}"

    models = {name: ScriptedWriter(answer) for name in ("sft", "other")}
    judge = ScriptedWriter(rating)
    pool = tuple(PoolModelSettings(name=name, local_model=name, on_policy=name == "sft") for name in models)
    settings = JudgedPreferenceSettings(
        pool=pool, judge=JudgeSettings(local_model="judge"), responses_per_prompt=2, rewriter="other"
    )

    def verify(asked: Sequence[tuple[Check, str]]) -> list[Outcome]:
        return [get_verifier(check.verifier).judge(text, check.ground_truth, "reward").outcome for check, text in asked]

    made = asyncio.run(judged_pairs(prompts, models, Judge(judge), tmp_path, settings=settings, verify=verify))
    assert made.responses["asked"] == (5 + 2) * 2
    assert made.relaxed == Counter(pairs=2, unchecked=1, rewritten=1, asked=1)
    assert judge.asked.total() == 3 * 2 * 4, "relaxed prompts are rated by nobody"
    assert made.verified["verified"] + made.binarised["tied"] >= 1
    relaxed = {pair.prompt.id: pair for pair in made.pairs if pair.decided_by == "relaxed"}
    assert set(relaxed) == {"r", "p"}
    for id, pair in relaxed.items():
        assert (pair.chosen.prompt_id, pair.rejected.prompt_id) == (id, f"{id}+relaxed")
        assert " and " in pair.chosen.text and "," in pair.rejected.text
    written = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert [one["id"] for one in written] == [pair.prompt.id for pair in made.pairs]
    again = asyncio.run(judged_pairs(prompts, models, Judge(judge), tmp_path, settings=settings, verify=verify))
    assert again.pairs == made.pairs
    assert (again.responses["asked"], again.relaxed["asked"], judge.asked.total()) == (0, 0, 24)
