"""One real vLLM engine on CPU against Hugging Face: before, during and after updates, for tied and untied heads."""

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from weight_lab import CANARY, END, PARITY, Lab, change, hf_logprobs, rollout_logprobs, tiny_llama

from rlsys.errors import WeightTransferError
from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.sampling_engine import SamplingEngine
from rlsys.types import Rollout

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

PROMPT = [5, 6, 7, 8, 9]
LONG_PROMPT = list(range(10, 110))
"""Three whole blocks of keys and values and a bit."""


@pytest.fixture(scope="module", params=["tied", "untied"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("model"), tied=request.param == "tied", vllm={"max_num_seqs": 8})
    assert isinstance(refusal(lab), WeightTransferError)
    lab.update(version=0)
    yield lab
    lab.close()


def refusal(lab: Lab) -> Exception | None:
    """What an engine with dummy weights answers to a step."""
    try:
        lab.engine.run(lambda engine: engine.step())
    except WeightTransferError as error:
        return error
    return None


def sample(
    engine: SamplingEngine,
    prompt: list[int],
    seeds: list[int],
    sampling: SamplingSettings,
    num_steps: int | None = None,
) -> list[Rollout]:
    """Runs in the engine's process: one group, to its end or for some steps."""
    key = engine.add_group(prompt, ordinal=3, num_samples=len(seeds), seeds=seeds, sampling=sampling)
    return finish(engine, key) if num_steps is None else [engine.step() for _ in range(num_steps)] and []


def finish(engine: SamplingEngine, key: int) -> list[Rollout]:
    while engine.has_work:
        for group in engine.step():
            if group.key == key:
                return list(group.rollouts)
    raise AssertionError("the group did not finish")


def finish_all(engine: SamplingEngine) -> dict[int, list[Rollout]]:
    groups = {}
    while engine.has_work:
        groups |= {group.key: list(group.rollouts) for group in engine.step()}
    return groups


FULL = SamplingSettings(max_tokens=40, ignore_end=True)


def test_parity_after_an_update_and_none_without_it(lab: Lab):
    change(lab.model, seed=1)
    without = np.abs(lab.canary() - hf_logprobs(lab.model, CANARY)).max()
    assert without > 0.1  # the update is left out: the comparison below would fail
    lab.update(version=1)
    assert np.abs(lab.canary() - hf_logprobs(lab.model, CANARY)).max() < PARITY


def test_the_gap_does_not_grow_over_fifty_publications_of_the_same_weights(lab: Lab):
    """As with a learning rate of 0: what is sent and repacked again and again stays what it is."""
    learner = hf_logprobs(lab.model, CANARY)
    gaps = []
    for version in range(1, 51):
        lab.update(version=version)
        gaps.append(float(np.abs(lab.canary() - learner).max()))
    assert max(gaps) < PARITY
    assert len(set(gaps)) == 1, gaps


def test_parity_fails_where_a_tied_head_is_not_given_the_new_embedding(lab: Lab):
    if not lab.model.config.tie_word_embeddings:
        pytest.skip("this head is not tied")

    def leave_head(engine: SamplingEngine, left: bool) -> None:
        from rlsys.weights.receiver import BucketReceiver

        if left:
            BucketReceiver._kept = BucketReceiver._retie_head
            BucketReceiver._retie_head = lambda self: None
        else:
            BucketReceiver._retie_head = BucketReceiver._kept

    change(lab.model, seed=2)
    lab.engine.run(leave_head, True)
    lab.update(version=2)
    assert np.abs(lab.canary() - hf_logprobs(lab.model, CANARY)).max() > 0.1
    lab.engine.run(leave_head, False)
    lab.update(version=2)
    assert np.abs(lab.canary() - hf_logprobs(lab.model, CANARY)).max() < PARITY


def test_sampler_logprobs_are_those_of_the_distribution_sampled_from(lab: Lab):
    for temperature in (1.0, 0.6):
        sampling = SamplingSettings(max_tokens=40, temperature=temperature)
        for rollout in lab.engine.run(sample, PROMPT, [1, 2, 3], sampling):
            expected = rollout_logprobs(lab.model, PROMPT, rollout, temperature=temperature)
            assert np.abs(rollout.logprobs - expected).max() < PARITY
            assert rollout.logprobs.dtype == np.float32 and rollout.response_ids.dtype == np.int32


def test_top_p_logprobs_are_normalised_over_what_is_left(lab: Lab):
    sampling = SamplingSettings(max_tokens=20, top_p=0.5)
    (rollout,) = lab.engine.run(sample, PROMPT, [4], sampling)
    ids = [*PROMPT, *rollout.response_ids.tolist()]
    with torch.no_grad():
        probabilities = torch.softmax(lab.model(torch.tensor([ids])).logits[0].float(), -1)
    for place, (token, logprob) in enumerate(zip(rollout.response_ids, rollout.logprobs, strict=True)):
        ranked, order = probabilities[len(PROMPT) - 1 + place].sort(descending=True)
        kept = int((ranked.cumsum(0) - ranked < 0.5).sum())
        assert token in order[:kept]
        expected = np.log(float(ranked[order == token]) / float(ranked[:kept].sum()))
        assert logprob == pytest.approx(expected, abs=PARITY)


def test_greedy_is_what_hugging_face_generates(lab: Lab):
    sampling = SamplingSettings(max_tokens=40, temperature=0.0, ignore_end=True)
    (rollout,) = lab.engine.run(sample, PROMPT, [0], sampling)
    with torch.no_grad():
        expected = lab.model.generate(
            torch.tensor([PROMPT]), max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    assert rollout.response_ids.tolist() == expected[0, len(PROMPT) :].tolist()


def test_a_response_ends_with_its_end_token_or_is_cut(lab: Lab):
    rollouts = lab.engine.run(sample, PROMPT, list(range(40)), SamplingSettings(max_tokens=30))
    ends = {END, *range(300, 320)}
    reasons = {rollout.finish_reason for rollout in rollouts}
    assert reasons == {"stop", "length"}
    for index, rollout in enumerate(rollouts):
        inside, last = rollout.response_ids[:-1].tolist(), int(rollout.response_ids[-1])
        assert (rollout.ordinal, rollout.sample_index) == (3, index)
        assert not ends & set(inside)
        assert (last in ends) == (rollout.finish_reason == "stop")
        assert rollout.finish_reason == "stop" or len(rollout.response_ids) == 30
        assert len(rollout.logprobs) == len(rollout.versions) == len(rollout.response_ids)


def test_the_same_seeds_give_the_same_tokens_in_any_company(lab: Lab):
    def in_company(engine: SamplingEngine) -> list[list[int]]:
        keys = {}
        for seed in (30, 10, 20):  # another order, and others beside them
            keys[seed] = engine.add_group(PROMPT, ordinal=0, num_samples=1, seeds=[seed], sampling=FULL)
            engine.add_group(LONG_PROMPT, ordinal=1, num_samples=3, seeds=[seed + 1, 7, 8], sampling=FULL)
            engine.step()
        groups = finish_all(engine)
        return [groups[keys[seed]][0].response_ids.tolist() for seed in (10, 20, 30)]

    alone = [rollout.response_ids.tolist() for rollout in lab.engine.run(sample, PROMPT, [10, 20, 30], FULL)]
    again = [rollout.response_ids.tolist() for rollout in lab.engine.run(sample, PROMPT, [10, 20, 30], FULL)]
    assert alone == again == lab.engine.run(in_company)
    assert len({tuple(tokens) for tokens in alone}) == 3


def test_the_canary_changes_nothing_of_what_runs(lab: Lab):
    def with_canaries(engine: SamplingEngine) -> list[list[int]]:
        key = engine.add_group(PROMPT, ordinal=0, num_samples=12, seeds=list(range(12)), sampling=FULL)  # four wait
        for _ in range(5):
            engine.step()
            engine.canary_logprobs(CANARY)
        return [rollout.response_ids.tolist() for rollout in finish(engine, key)]

    plain = [rollout.response_ids.tolist() for rollout in lab.engine.run(sample, PROMPT, list(range(12)), FULL)]
    assert lab.engine.run(with_canaries) == plain


def update_after(lab: Lab, *, steps: int, version: int, seed: int) -> tuple:
    """Lets what runs go on for some steps under the old weights, then updates; returns copies of both models."""
    lab.engine.run(lambda engine: [engine.step() for _ in range(steps)] and None)
    old = tiny_llama(tied=lab.model.config.tie_word_embeddings)
    old.load_state_dict(lab.model.state_dict())
    change(lab.model, seed=seed)
    lab.update(version=version)
    return old, lab.model


@pytest.mark.parametrize("way", ["keep", "recompute", "restart"])
def test_in_flight_update_gives_every_token_its_version(lab: Lab, way: str):
    """Logprobs are the old weights' before, the new ones' after: exactly so where keys and values are computed anew."""
    lab.update(version=10)
    lab.engine.run(lambda e: e.add_group(PROMPT, ordinal=0, num_samples=4, seeds=[1, 2, 3, 4], sampling=FULL) and None)
    kept = lab.engine.run(lambda engine: engine.settings)
    if way == "recompute":
        lab.engine.run(lambda e: setattr(e, "settings", replace(e.settings, kv_on_update="recompute")))
    old, new = update_after(lab, steps=15, version=11, seed=3)
    if way == "restart":
        assert lab.engine.run(lambda engine: engine.restart_requests()) == 4
    (rollouts,) = lab.engine.run(finish_all).values()
    lab.engine.run(lambda e: setattr(e, "settings", kept))
    for rollout in rollouts:
        assert rollout.versions.tolist() == [10] * 15 + [11] * 25
        before = rollout_logprobs(old, PROMPT, rollout)
        after = rollout_logprobs(new, PROMPT, rollout)
        assert np.abs(rollout.logprobs - before)[:15].max() < PARITY
        assert np.abs(before - after)[15:].max() > 0.1
        gap = np.abs(rollout.logprobs - after)[15:].max()
        if way == "keep":
            assert gap > PARITY  # the old weights' keys and values are still looked at
        else:
            assert gap < PARITY


def test_waiting_and_later_requests_do_not_meet_keys_of_old_weights(lab: Lab):
    """More requests than the engine runs at once, of one long prompt: those that wait at the update are salted anew."""
    lab.update(version=20)
    lab.engine.run(lambda e: e.add_group(LONG_PROMPT, ordinal=0, num_samples=12, seeds=list(range(12)), sampling=FULL))
    _, new = update_after(lab, steps=3, version=21, seed=4)
    (rollouts,) = lab.engine.run(finish_all).values()
    assert [int(rollout.versions[0]) for rollout in rollouts] == [20] * 8 + [21] * 4
    for rollout in rollouts[8:]:
        assert np.abs(rollout.logprobs - rollout_logprobs(new, LONG_PROMPT, rollout)).max() < PARITY


def test_without_the_salt_they_would(lab: Lab):
    """The test above can fail: with one salt for all versions, old keys are found and the logprobs are wrong."""

    def sample_unsalted(engine: SamplingEngine) -> list[Rollout]:
        (group,) = [engine.add_group(LONG_PROMPT, ordinal=0, num_samples=1, seeds=[1], sampling=FULL)]
        return finish(engine, group)

    def fix_salt(engine: SamplingEngine, fixed: bool) -> None:
        if fixed:
            SamplingEngine._true_salt = SamplingEngine._salt
            SamplingEngine._salt = property(lambda self: "one")
        else:
            SamplingEngine._salt = SamplingEngine._true_salt

    lab.engine.run(fix_salt, True)
    try:
        lab.engine.run(sample_unsalted)
        _, new = update_after(lab, steps=0, version=31, seed=5)
        (rollout,) = lab.engine.run(sample_unsalted)
    finally:
        lab.engine.run(fix_salt, False)
    assert np.abs(rollout.logprobs - rollout_logprobs(new, LONG_PROMPT, rollout)).max() > 0.01


def test_five_updates_in_a_row_under_load(lab: Lab):
    lab.update(version=40)
    lab.engine.run(lambda e: e.add_group(PROMPT, ordinal=0, num_samples=8, seeds=list(range(8)), sampling=FULL))
    for number in range(5):
        update_after(lab, steps=4, version=41 + number, seed=10 + number)
        assert np.abs(lab.canary() - hf_logprobs(lab.model, CANARY)).max() < PARITY
    (rollouts,) = lab.engine.run(finish_all).values()
    expected = [version for version in range(40, 45) for _ in range(4)] + [45] * 20
    assert [rollout.versions.tolist() for rollout in rollouts] == [expected] * 8


def test_what_the_engine_cannot_do_is_said(lab: Lab):
    with pytest.raises(ValueError, match="1 to 255 tokens"):
        lab.engine.run(sample, list(range(256)), [1], FULL)
    with pytest.raises(ValueError, match="got 1 for 2"):
        lab.engine.run(lambda e: e.add_group(PROMPT, ordinal=0, num_samples=2, seeds=[1], sampling=FULL))
    with pytest.raises(ValueError, match="2 to 255 tokens"):
        lab.engine.run(lambda engine: engine.canary_logprobs([1]))


def test_a_response_stops_where_the_engine_has_no_more_room(lab: Lab):
    prompt = [7 + i % 200 for i in range(250)]
    (rollout,) = lab.engine.run(sample, prompt, [1], SamplingSettings(max_tokens=40, ignore_end=True))
    assert (len(rollout.response_ids), rollout.finish_reason) == (6, "length")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("missing", "no weights arrived for model.layers.1.self_attn.o_proj"),
        ("part", r"no weights arrived for model.layers.0.self_attn.qkv_proj \(8192 of 12288 elements\)"),
        ("shape", r"tensor model.layers.1.self_attn.o_proj.weight of shape \(64, 32\) was refused"),
        ("unknown", r"tensor model.layers.7.surprise of shape \(3,\) was refused"),
    ],
)
def test_faults_of_a_transfer_are_in_the_receipt_and_the_next_one_mends_them(lab: Lab, fault: str, said: str):
    named = dict(lab.model.named_parameters())
    target = "model.layers.1.self_attn.o_proj.weight"
    if fault == "missing":
        del named[target]
    elif fault == "part":
        del named["model.layers.0.self_attn.k_proj.weight"]
    elif fault == "shape":
        named[target] = torch.zeros(64, 32)
    else:
        named["model.layers.7.surprise"] = torch.zeros(3)
    _, (receipt,) = lab.transfer([[(name, tensor.detach()) for name, tensor in named.items()]])
    assert re.search(said, "\n".join(receipt.problems)), receipt.problems
    assert isinstance(refusal(lab), WeightTransferError)
    change(lab.model, seed=50)
    lab.update(version=51)
    assert np.abs(lab.canary() - hf_logprobs(lab.model, CANARY)).max() < PARITY
