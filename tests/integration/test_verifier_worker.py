"""The verifier worker as a plain class and as a real Ray actor."""

import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import ray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.verifier_worker import VerifierWorker, Verifying, summarize
from rlsys.recipe.verifiers import VerifierSettings
from rlsys.rollouts.summary_metrics import verdict_metrics
from rlsys.types import Check, FinishReason, Prompt, Rollout

pytestmark = pytest.mark.integration
SETTINGS = VerifierSettings(workers=1, cpu_limit_s=1.0, wall_limit_s=60.0, modules=("rogue_verifiers",))


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One token a byte, `<think>` and its end as added tokens, and an end token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")
    tokenizer.add_tokens(["<think>", "</think>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(tokenizer_path)


@pytest.fixture(scope="module")
def verifying(tokenizer_path: str) -> Iterator[Verifying]:
    one = Verifying(SETTINGS, tokenizer_path)
    yield one
    one.close()


def rollout(tokenizer: PreTrainedTokenizerFast, text: str, index: int, finish: FinishReason = "stop") -> Rollout:
    ids = tokenizer.encode(text, add_special_tokens=False) + ([tokenizer.eos_token_id] if finish == "stop" else [])
    versions = np.full(len(ids), 3, np.int32)
    versions[len(ids) // 2 :] = 4
    return Rollout(7, index, np.array(ids, np.int32), np.zeros(len(ids), np.float32), versions, finish)


def prompt(*checks: Check, ordinal: int = 7) -> Prompt:
    return Prompt(
        ordinal, f"p/{ordinal}", ({"role": "user", "content": "2 + 2?"},), np.arange(5, dtype=np.int32), checks
    )


def test_rewards_of_a_group(verifying: Verifying, tokenizer: PreTrainedTokenizerFast):
    texts = [r"So \boxed{4}.", r"So \boxed{5}.", "four", r"<think>5</think> \boxed{4}", r"\boxed{4"]
    group = [rollout(tokenizer, text, index) for index, text in enumerate(texts)]
    group.append(rollout(tokenizer, r"\boxed{4} and on", 5, "length"))
    [summary], [experiences] = verifying.verify([prompt(Check("math", "4"))], [group])
    assert [experience.reward for experience in experiences] == [10.0, 0.0, 0.0, 10.0, 0.0, -10.0]
    assert [e.verdicts[0].outcome for e in experiences] == [
        *("correct", "wrong", "unparsable", "correct", "unparsable", "correct"),
    ]
    assert [experience.rollout for experience in experiences] == group
    assert experiences[0].verdicts[0].detail == {"answer": "4", "source": "box"}

    assert summary.ordinal == 7 and summary.prompt_length == 5
    assert summary.lengths == tuple(len(one.response_ids) for one in group)
    assert (summary.oldest_version, summary.newest_version) == (3, 4)
    assert summary.finish_reasons == ("stop",) * 5 + ("length",)
    assert summary.rewards == (10.0, 0.0, 0.0, 10.0, 0.0, -10.0)
    assert summary.verdicts[0][0].outcome == "correct" and summary.verdicts[0][0].detail == {}


def test_long_responses_lose_reward_before_the_limit(verifying: Verifying, tokenizer: PreTrainedTokenizerFast):
    """DAPO's eq. 13 with L_max = n + 2 and a buffer of 4: n tokens are half the buffer over, n - 2 are not."""
    long = rollout(tokenizer, r"So it must be \boxed{4}", 0)
    n = len(long.response_ids)
    group = [long, rollout(tokenizer, r"\boxed{4}", 1)]
    assert len(group[1].response_ids) <= n - 2
    overlong = {"max_tokens": n + 2, "buffer_tokens": 4, "penalty": 2.0}
    [summary], [experiences] = verifying.verify([prompt(Check("math", "4"))], [group], overlong=overlong)
    assert [experience.reward for experience in experiences] == [9.0, 10.0]
    assert summary.rewards == (9.0, 10.0)
    assert summary.scores == (10.0, 10.0), "by which dynamic sampling knows that all are right"


def test_the_end_token_and_special_tokens_are_no_text(verifying: Verifying, tokenizer: PreTrainedTokenizerFast):
    one = rollout(tokenizer, "a  b .", 0)
    assert verifying.response_text(one) == "a  b ."
    padded = Rollout(
        7, 0, np.append(one.response_ids[:-1], tokenizer.pad_token_id), one.logprobs, one.versions, "length"
    )
    assert verifying.response_text(padded) == "a  b ."


def test_several_checks_weigh_together_and_a_failed_one_masks(verifying: Verifying, tokenizer: PreTrainedTokenizerFast):
    two = prompt(Check("math", "4", weight=3.0), Check("max_length", {"max_words": 2}))
    hung = prompt(Check("math", "4"), Check("rogue_by_word", ""), ordinal=8)
    groups = [
        [rollout(tokenizer, r"\boxed{4}", 0), rollout(tokenizer, r"It must be \boxed{4}", 1)],
        [rollout(tokenizer, "spin", 0), rollout(tokenizer, "raise", 1)],
    ]
    summaries, experiences = verifying.verify([two, hung], groups)
    assert [e.reward for e in experiences[0]] == [10.0, 7.5]
    assert all(math.isnan(e.reward) and e.masked for e in experiences[1])
    assert [e.verdicts[1].outcome for e in experiences[1]] == ["timeout", "error"]
    assert summaries[1].num_masked == 2 and all(map(math.isnan, summaries[1].rewards))

    metrics = verdict_metrics(summaries)
    assert metrics["verifier/math/correct_frac"] == 0.5 and metrics["verifier/rogue_by_word/timeout_frac"] == 0.5
    assert summaries[1].verdicts[0][1].seconds == SETTINGS.cpu_limit_s


def test_a_reward_model_scores_alone_or_is_added(verifying: Verifying, tokenizer: PreTrainedTokenizerFast):
    groups = [[rollout(tokenizer, r"\boxed{4}", 0)], [rollout(tokenizer, "hello", 0)]]
    prompts = [prompt(Check("math", "4")), prompt(ordinal=8)]
    _, experiences = verifying.verify(prompts, groups, reward_model_scores=[[0.5], [-1.5]])
    assert [group[0].reward for group in experiences] == [10.5, -1.5]
    with pytest.raises(ValueError):
        verifying.verify(prompts, groups[:1])


def test_a_worker_is_stuck_without_verdicts_and_not_by_taking_long(
    tokenizer: PreTrainedTokenizerFast, tokenizer_path: str
):
    """Six responses that take their whole second of CPU each, then a pool that stands still."""
    slow = Verifying(SETTINGS, tokenizer_path)
    slow._pool.stall_limit_s = 4.0
    asked = [prompt(Check("rogue_by_word", ""))], [[rollout(tokenizer, "spin", index) for index in range(6)]]
    most_stuck_s, started = 0.0, time.monotonic()
    with ThreadPoolExecutor(1) as thread:
        verifying = thread.submit(slow.verify, *asked)
        while not verifying.done():
            most_stuck_s = max(most_stuck_s, slow.stuck_s())
            time.sleep(0.01)
        assert time.monotonic() - started > slow._pool.stall_limit_s
        assert most_stuck_s == 0.0
        # A reader that reads no more: what the pool does about silence is its own, and not what is asked here.
        slow._pool._settle = lambda lines: None
        verifying = thread.submit(slow.verify, [prompt(Check("math", "4"))], [[rollout(tokenizer, "4", 0)]])
        slow._pool.stall_limit_s = 0.5
        while (stuck_s := slow.stuck_s()) < 0.2:
            assert not verifying.done()
            time.sleep(0.01)
        slow.close()
        assert verifying.result(timeout=60)[0][0].verdicts[0][0].outcome == "error"
    assert slow.stuck_s() == 0.0 < stuck_s


def test_an_empty_group_has_no_summary():
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=2,
        runtime_env={
            "env_vars": {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])}
        },
    )
    yield
    ray.shutdown()


def test_as_a_ray_actor_it_gives_the_same_verdicts(
    cluster: None, verifying: Verifying, tokenizer: PreTrainedTokenizerFast, tokenizer_path: str
):
    """Groups arrive by reference, and the driver fetches the summaries alone."""
    prompts = [prompt(Check("math", r"\frac12")), prompt(Check("gsm8k", "18"), Check("format", None), ordinal=8)]
    texts = [[r"\boxed{0.5}", r"\boxed{\frac{1}{3}}"], ["#### 18.00", "<think>x</think><answer>#### 18</answer>"]]
    groups = [[rollout(tokenizer, text, i) for i, text in enumerate(group)] for group in texts]
    actor = VerifierWorker.options(num_cpus=1).remote(SETTINGS, tokenizer_path)
    summaries_ref, experiences_ref = actor.verify.remote(prompts, ray.put(groups))
    summaries = ray.get(summaries_ref, timeout=300)
    assert [summary.rewards for summary in summaries] == [(10.0, 0.0), (5.0, 10.0)]

    here, _ = verifying.verify(prompts, groups)

    def comparable(groups_of_summaries: list) -> list:
        return [
            [(v.verifier, v.outcome, v.score) for sample in s.verdicts for v in sample] for s in groups_of_summaries
        ]

    assert comparable(summaries) == comparable(here)
    experiences = ray.get(experiences_ref, timeout=60)
    assert [e.reward for group in experiences for e in group] == [10.0, 0.0, 5.0, 10.0]
    np.testing.assert_array_equal(experiences[1][0].rollout.response_ids, groups[1][0].response_ids)
    ray.get(actor.close.remote(), timeout=60)
