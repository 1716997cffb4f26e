"""Judged preferences as stages: the judge at a bad server, then one that the run trained itself, and a kill."""

import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from judged_lab import NO_COMMA, PERSONAS, RESPONSES, killed_once, lines, true_rating
from transformers import AutoModelForSequenceClassification

from rlsys.data.judge import RatingRequest
from rlsys.data.token_store import PairStore
from rlsys.recipe.preferences import ASPECTS
from rlsys.verifiers.ifeval import describe

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> SimpleNamespace:
    return killed_once(tmp_path_factory.mktemp("judged"))


Mean = Callable[[dict[str, Any], str], Fraction | None]
"""Of a prompt and a response to it; None where the judge settled nothing."""


def mean_by_server(prompt: dict[str, Any], text: str) -> Fraction | None:
    """The true one."""
    ratings = [rating for aspect in ASPECTS if (rating := true_rating(text, aspect)) is not None]
    return Fraction(sum(ratings), len(ratings))


def mean_by_replies(folder: Path) -> Mean:
    """What the judge's words come to, read here by another rule than the product's."""
    last: dict[tuple[str, str, str], str] = {}
    for record in lines(folder / "ratings.jsonl"):
        prompt, digest, _, aspect, _ = record["key"]
        last[prompt, digest, aspect] = record["value"]["text"]

    def mean(prompt: dict[str, Any], text: str) -> Fraction | None:
        replies = {aspect: last[prompt["id"], digest_of(prompt, text), aspect] for aspect in ASPECTS}
        ratings = {aspect: rating_in(reply, aspect) for aspect, reply in replies.items()}
        numbers = [rating for rating in ratings.values() if isinstance(rating, int)]
        return Fraction(sum(numbers), len(numbers)) if None not in ratings.values() and numbers else None

    return mean


def digest_of(prompt: dict[str, Any], text: str) -> str:
    return RatingRequest(prompt["id"], tuple(prompt["messages"]), text, "honesty").digest


def rating_in(reply: str, aspect: str) -> int | str | None:
    """The rating of a reply that is nothing else; N/A is one for honesty alone."""
    if found := re.fullmatch(r"\s*([1-5])[\s.]*", reply):
        return int(found[1])
    return "N/A" if aspect == "honesty" and re.fullmatch(r"\s*N/A[\s.]*", reply) else None


def answers_of(stage: Path) -> dict[str, dict[str, str]]:
    """By prompt and model, without those that the limit of tokens cut."""
    found: dict[str, dict[str, str]] = {}
    for record in lines(stage / "responses.jsonl"):
        prompt, model, _ = record["key"]
        if not record["value"]["cut"]:
            found.setdefault(prompt, {})[model] = record["value"]["text"]
    return found


def num_cut(stage: Path) -> int:
    """Of the models here; a server's end where they please."""
    cut = [record["key"][1] for record in lines(stage / "responses.jsonl") if record["value"]["cut"]]
    assert set(cut) <= {"policy", "critic"}
    return len(cut)


def require_rated_pairs(stage: Path, result: dict[str, Any], mean: Mean) -> None:
    """Every pair is one that the means allow, no other is missing, and what gave none is counted under its reason."""
    answers = answers_of(stage)
    prompts = {one["id"]: one for one in lines(stage / "prompts.jsonl") if one["kind"] not in ("relaxed", "persona")}
    pairs = {pair["id"]: pair for pair in lines(stage / "pairs.jsonl") if pair["id"] in prompts}
    counts = Counter(pairs=0, tied=0, too_few=0, unsettled=0)
    broken = 0
    for id, prompt in prompts.items():
        pair = pairs.pop(id, None)
        means = {model: mean(prompt, text) for model, text in answers[id].items()}
        settled = {model: value for model, value in means.items() if value is not None}
        counts["unsettled"] += len(means) - len(settled)
        if len(settled) < 2 or len(set(settled.values())) == 1:
            assert pair is None
            counts["too_few" if len(settled) < 2 else "tied"] += 1
            continue
        counts["pairs"] += 1
        best = [model for model, value in settled.items() if value == max(settled.values())]
        keeps = [model for model in best if prompt["kind"] != "constrained" or "," not in answers[id][model]]
        if pair is None:
            broken += 1
            assert prompt["kind"] == "constrained" and len(keeps) < len(best)
            continue
        assert pair["chosen_model"] in keeps and pair["rejected_model"] in settled
        assert pair["chosen"][-1]["content"] == answers[id][pair["chosen_model"]]
        assert pair["rejected"][-1]["content"] == answers[id][pair["rejected_model"]]
        assert settled[pair["rejected_model"]] < settled[pair["chosen_model"]]
        assert pair["chosen_score"] == float(settled[pair["chosen_model"]])
    assert pairs == {}
    assert {name: result["binarised"][name] for name in counts} == counts
    assert result["verified"]["broken"] == broken
    assert result["verified"]["verified"] + result["verified"]["unconstrained"] == counts["pairs"] - broken


def test_a_judge_at_a_bad_server_gives_the_true_pairs(run: SimpleNamespace):
    stage, result = run.stages["served"], run.results["served"]
    kinds = Counter(prompt["kind"] for prompt in lines(stage / "prompts.jsonl"))
    assert kinds == {"reused": 6, "unused": 6, "constrained": 4}
    answers = answers_of(stage)
    assert all(set(by_model) >= {"alpha", "beta"} for by_model in answers.values())
    assert num_cut(stage) <= 8, "the policy says of most of its answers that they are over"
    require_rated_pairs(stage, result, mean_by_server)
    assert result["responses"] == {"asked": 16 * RESPONSES, "failed": 0, "kept": 0, "cut": num_cut(stage)}
    assert result["asked"]["judge"]["failures"] and run.failures > 20, "the server fails one call in five"
    assert result["pairs"] == len(PairStore(stage / "pairs")) == len(lines(stage / "pairs.jsonl"))


def test_nothing_is_asked_twice_after_a_kill(run: SimpleNamespace):
    stage, result, killed = run.stages["judged"], run.results["judged"], run.killed
    for name, content in killed.served.items():
        assert (run.stages["served"] / name).read_bytes() == content, "a stage that was done is left alone"
    responses = lines(stage / "responses.jsonl")
    # 14 rated prompts, and 7 with and without one of their constraints
    assert len({tuple(one["key"]) for one in responses}) == len(responses) == (14 + 2 * 7) * RESPONSES
    kept = len(responses) - 3
    assert result["responses"] == {"asked": 3, "failed": 0, "kept": kept, "cut": num_cut(stage)}
    assert responses[:-3] == killed.responses[:-3]
    assert {one["key"][1] for one in killed.lost} == {"critic"}
    by_key = {tuple(one["key"]): one["value"]["text"] for one in responses}
    assert {tuple(one["key"]): one["value"]["text"] for one in killed.lost}.items() <= by_key.items(), (
        "the same question to the same weights has the same answer after a restart"
    )
    assert run.new_calls == {}, "the endpoints had answered everything"
    ratings = lines(stage / "ratings.jsonl")
    assert len({tuple(one["key"]) for one in ratings}) == len(ratings)
    assert ratings[: len(killed.ratings)] == killed.ratings
    assert 0 < len(killed.ratings) < len(ratings) - 24, "the kill may come within a batch, after some of its replies"


def test_a_local_judge_decides_the_pairs_and_what_it_mumbles_is_counted(run: SimpleNamespace):
    stage, result, killed = run.stages["judged"], run.results["judged"], run.killed
    ratings = lines(stage / "ratings.jsonl")
    asked: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for record in ratings:
        prompt, digest, judge, aspect, ask = record["key"]
        assert judge.startswith("stage:judge#")
        before = asked.setdefault((prompt, digest, aspect), [])
        assert ask == len(before) < 2
        assert all(one["status"] == "malformed" for one in before), "only what could not be read is asked again"
        said = rating_in(record["value"]["text"], aspect)
        status = "malformed" if said is None else "not_applicable" if said == "N/A" else "rated"
        assert (record["value"]["status"], record["value"]["value"]) == (
            status,
            said if isinstance(said, int) else None,
        ), record
        before.append(record["value"])
    rated = [one for one in lines(stage / "prompts.jsonl") if one["kind"] not in ("relaxed", "persona")]
    answers = answers_of(stage)
    expected = {(p["id"], digest_of(p, t), a) for p in rated for t in answers[p["id"]].values() for a in ASPECTS}
    assert set(asked) == expected, "each response on each aspect, equal ones once"
    statuses = Counter(record["value"]["status"] for record in ratings)
    assert statuses["rated"] > 60 and statuses["malformed"] > 10
    now = Counter(record["value"]["status"] for record in ratings[len(killed.ratings) :])
    assert {status: result["ratings"][status] for status in (*now, "failed")} == {**now, "failed": 0}
    assert result["asked"]["judge"] == {"replies": dict(now), "failed_batches": {}}
    settled = {
        tuple(one["key"][i] for i in (0, 1, 3)) for one in killed.ratings if one["value"]["status"] != "malformed"
    }
    assert result["ratings"]["kept"] == len(settled)
    require_rated_pairs(stage, result, mean_by_replies(stage))
    dropped = [key for key, replies in asked.items() if len(replies) == 2 and replies[1]["status"] == "malformed"]
    assert dropped and result["binarised"]["malformed"] == sum(
        any((p["id"], digest_of(p, t), a) in dropped for a in ASPECTS) for p in rated for t in answers[p["id"]].values()
    )
    assert result["binarised"]["pairs"] >= 6


def test_relaxed_prompts_give_pairs_that_no_judge_was_asked_about(run: SimpleNamespace):
    stage, result = run.stages["judged"], run.results["judged"]
    answers = answers_of(stage)
    pairs = {pair["id"]: pair for pair in lines(stage / "pairs.jsonl")}
    rated = {record["key"][0] for record in lines(stage / "ratings.jsonl")}
    found: Counter[str] = Counter()
    for prompt in lines(stage / "prompts.jsonl"):
        id, kind = prompt["id"], prompt["kind"]
        if kind not in ("relaxed", "persona"):
            continue
        assert id not in rated and describe(NO_COMMA, {}) in prompt["messages"][-1]["content"]
        right = {text for text in answers[id].values() if "," not in text}
        wrong = {text for text in answers[f"{id}+relaxed"].values() if "," in text}
        assert (id in pairs) == bool(right and wrong)
        if id in pairs:
            found[kind] += 1
            assert pairs[id]["messages"][-1]["content"].endswith(describe(NO_COMMA, {}))
            assert pairs[id]["chosen"][-1]["content"] in right and pairs[id]["rejected"][-1]["content"] in wrong
            assert pairs[id]["rejected_model"] != "critic"
    assert found["relaxed"] >= 2 and found["persona"] >= 2
    assert result["relaxed"]["pairs"] == sum(found.values())
    rewritten = [record["value"] for record in lines(stage / "rewritings.jsonl")]
    assert sorted(text.partition("Request: ")[2] for text in rewritten) == sorted(PERSONAS)


def test_a_reward_model_and_dpo_train_on_judged_pairs(run: SimpleNamespace):
    store, result = PairStore(run.stages["judged"] / "pairs"), run.results
    num_pairs = len(lines(run.stages["judged"] / "pairs.jsonl"))
    assert result["judged"]["dropped"]["total"] == 0
    assert len(store) == result["judged"]["pairs"] == result["reward"]["pairs"] == result["dpo"]["pairs"] == num_pairs
    logged = [row["preference/pairs"] for row in run.metrics if row["stage"] == "judged"]
    assert logged == [num_pairs]
    model = AutoModelForSequenceClassification.from_pretrained(run.stages["reward"] / "hf")

    def score(ids: np.ndarray) -> float:
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor(ids[None].astype(np.int64))).last_hidden_state
            return model.score(hidden)[0, -1, 0].item()

    pairs = [store.pair(index) for index in range(num_pairs)]
    right = [score(pair.chosen.token_ids) > score(pair.rejected.token_ids) for pair in pairs]
    assert result["reward"]["pair_accuracy"] == pytest.approx(np.mean(right), abs=1.01 / num_pairs)
    rows = [row for row in run.metrics if row["stage"] == "dpo" and "loss/preference" in row]
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[0]["loss/preference"] == pytest.approx(np.log(2), abs=1e-4), "the policy starts as its own reference"
    assert result["dpo"]["evaluation"], "after the other model's turn the run's own engines take the new policy"
