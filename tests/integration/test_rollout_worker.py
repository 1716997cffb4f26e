"""A rollout worker and a learner in Ray actors: sampling under publications of every kind, and every fault of one."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from weight_lab import CANARY, END, ENGINE, PARITY, buckets_of, change, hf_logprobs, rollout_logprobs, tiny_llama

from actors.publication import RayEngine, RayLearner
from actors.rollout_worker import RolloutWorker
from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.partial_group import PartialGroup, PartialResponse
from rlsys.rollouts.prompt_stream import sample_seed
from rlsys.rollouts.sampling_engine_settings import EngineSettings
from rlsys.types import Prompt
from rlsys.weights import sender as sender_module
from rlsys.weights.publisher import CANARY_PEAK, PublicationError, PublicationSettings, WeightPublisher
from rlsys.weights.sender import WeightSender

pytestmark = [pytest.mark.integration, pytest.mark.timeout(280)]

WAIT_S = 240.0
SAMPLING = SamplingSettings(max_tokens=60, ignore_end=True)
LONG = SamplingSettings(max_tokens=100)
SHORT = SamplingSettings(max_tokens=3, ignore_end=True)
PROMPTS = [Prompt(10 + i, f"p{i}", (), np.array([5, 6, 7 + i], np.int32)) for i in range(8)]
PUBLICATION = PublicationSettings(
    mode="in_flight",
    transport="gloo",
    digest="fold64",
    cap_bytes=1 << 20,
    update_timeout_s=30.0,
    drain_timeout_s=600.0,
    canary_tolerance=PARITY / CANARY_PEAK,
)
TARGET = "model.layers.1.mlp.down_proj.weight"


@ray.remote(num_cpus=0)
class TinyLearner:
    """One learner rank with the methods that a publication asks for, and faults to order."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = tiny_llama(tied=True)
        self.sender = WeightSender("gloo")
        self.fault = ""
        self.kill: int | None = None

    def pid(self) -> int:
        return os.getpid()

    def change(self, seed: int) -> None:
        change(self.model, seed=seed)

    def state(self) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in self.model.state_dict().items()}

    def order_fault(self, fault: str) -> None:
        """Of the next transfer; `kill <pid>` kills that process when the first bucket was sent."""
        self.fault = fault

    def open_weight_group(self, *, num_receivers: int, deadline_s: float, **_: str):
        return self.sender.open(host="127.0.0.1", num_receivers=num_receivers, deadline_s=deadline_s)

    def join_weight_group(self) -> None:
        self.sender.join()

    def send_weights(self, *, transfer: int, cap_bytes: int):
        fault, self.fault = self.fault, ""
        pack = sender_module.pack
        if fault == "corrupted":
            sender_module.pack = lambda bucket: flip_a_bit(pack(bucket), bucket)
        try:
            return self.sender.send(self.buckets(fault), transfer=transfer)
        finally:
            sender_module.pack = pack

    def buckets(self, fault: str):
        for index, bucket in enumerate(buckets_of(self.model)):
            if fault == "missing":
                bucket = [(name, tensor) for name, tensor in bucket if name != TARGET]
            elif fault == "wrong shape":
                bucket = [(name, tensor[:, :-1] if name == TARGET else tensor) for name, tensor in bucket]
            elif fault == "learner fails" and index == 1:
                raise RuntimeError("a rank is gone")
            elif fault.startswith("kill") and index == 1:
                os.kill(int(fault.removeprefix("kill ")), signal.SIGKILL)
            yield bucket

    def canary_logprobs(self, *, token_ids: list[int]) -> np.ndarray:
        return hf_logprobs(self.model, token_ids)

    def close_weight_group(self) -> None:
        self.sender.close()


def flip_a_bit(packed: torch.Tensor, bucket) -> torch.Tensor:
    """One bit of the target's bytes, after its digest was taken."""
    start = 0
    for name, tensor in bucket:
        if name == TARGET:
            packed[start + 1000] ^= 1
        start += tensor.nbytes
    return packed


class Stage:
    """The actors of these tests."""

    def __init__(self, folder: str) -> None:
        self.settings = EngineSettings(model=folder, end_token_ids=(END,), vllm=ENGINE)
        here = {"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}}
        self.learner: Any = TinyLearner.options(runtime_env=here).remote()
        self.worker: Any = self.start_worker()
        self.version = 0

    def start_worker(self) -> Any:
        worker = RolloutWorker.options(num_cpus=1).remote(self.settings, name="rollout-0")
        ray.get(worker.ready.remote(), timeout=WAIT_S)
        return worker

    def publisher(self, **settings: Any) -> WeightPublisher:
        publication = replace(PUBLICATION, **settings)
        return WeightPublisher(RayLearner([self.learner], publication), self.engines(), publication)

    def engines(self) -> list[RayEngine]:
        return [RayEngine(self.worker, name="rollout-0")]

    def publish(self, publisher: WeightPublisher):
        self.version += 1
        return publisher.publish(self.version, canary_ids=CANARY)

    def model(self):
        """The learner's model as it is now."""
        model = tiny_llama(tied=True)
        model.load_state_dict({k: torch.tensor(v) for k, v in ray.get(self.learner.state.remote()).items()})
        return model

    def generate(self, prompts=PROMPTS, *, num_samples: int = 4, **request: Any) -> tuple[Any, Any]:
        request = {"sampling": SAMPLING, "seed": 7} | request
        return self.worker.generate.remote(prompts, num_samples=num_samples, **request)

    def until_sampling(self, num_tokens: int) -> None:
        """Returns when so many more tokens were sampled."""
        goal = ray.get(self.worker.stats.remote())["num_tokens"] + num_tokens
        ends_at = time.monotonic() + WAIT_S
        while ray.get(self.worker.stats.remote())["num_tokens"] < goal:
            assert time.monotonic() < ends_at


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    owned = not ray.is_initialized()
    if owned:
        ray.init(address="local", include_dashboard=False, num_cpus=4, log_to_driver=False)
    folder = tmp_path_factory.mktemp("model")
    tiny_llama(tied=True).save_pretrained(folder)
    stage = Stage(str(folder))
    stage.publish(stage.publisher())
    yield stage
    ray.get(stage.worker.close.remote(), timeout=WAIT_S)
    ray.kill(stage.worker)
    ray.kill(stage.learner)
    if owned:
        ray.shutdown()


def test_calls_resolve_on_their_own_with_every_sample_of_every_prompt(stage: Stage):
    longer = stage.generate(PROMPTS[:4])
    shorter = stage.generate(PROMPTS[4:6], num_samples=2, sampling=SHORT, tag="eval")
    ready, _ = ray.wait([longer[0], shorter[0]], num_returns=1, timeout=WAIT_S)
    assert ready == [shorter[0]]
    for (done, groups), prompts, samples, length in ((longer, PROMPTS[:4], 4, 60), (shorter, PROMPTS[4:6], 2, 3)):
        assert ray.get(done, timeout=WAIT_S) is None
        for prompt, group in zip(prompts, ray.get(groups), strict=True):
            assert [rollout.sample_index for rollout in group] == list(range(samples))
            assert {rollout.ordinal for rollout in group} == {prompt.ordinal}
            assert {rollout.finish_reason for rollout in group} == {"length"}
            assert [rollout.versions.tolist() for rollout in group] == [[1] * length] * samples
    assert ray.get(stage.worker.stats.remote())["num_unfinished"] == 0


def test_the_same_seed_gives_the_same_samples_and_each_its_own(stage: Stage):
    first, again = (ray.get(stage.generate()[1]) for _ in range(2))
    other = ray.get(stage.generate(seed=8)[1])
    tokens = [[rollout.response_ids.tolist() for rollout in group] for group in first]
    assert tokens == [[rollout.response_ids.tolist() for rollout in group] for group in again]
    assert tokens != [[rollout.response_ids.tolist() for rollout in group] for group in other]
    assert len({tuple(sample) for group in tokens for sample in group}) == 32
    assert sample_seed(7, 10, 0) != sample_seed(7, 10, 1)


def test_a_prompt_without_room_is_a_value_error_and_nothing_else_suffers(stage: Stage):
    bad = Prompt(0, "long", (), np.full(256, 5, np.int32))
    wrong, right = stage.generate([bad]), stage.generate(PROMPTS[:1])
    with pytest.raises(ValueError, match="1 to 255 tokens"):
        ray.get(wrong[0], timeout=WAIT_S)
    assert ray.get(right[1], timeout=WAIT_S)[0][0].ordinal == 10


def test_five_in_flight_updates_under_load_mix_versions_in_order(stage: Stage):
    publisher = stage.publisher()
    stage.publish(publisher)
    before, (_, rollouts) = stage.version, stage.generate(num_samples=8, sampling=SamplingSettings(max_tokens=200))
    for seed in range(5):
        stage.until_sampling(64)
        ray.get(stage.learner.change.remote(seed))
        report = stage.publish(publisher)
        assert report.canary_gap < PARITY and not report.new_group
    flat = [rollout for group in ray.get(rollouts, timeout=WAIT_S) for rollout in group]
    for rollout in flat:
        assert np.all(np.diff(rollout.versions) >= 0)
    seen = {int(version) for rollout in flat for version in rollout.versions}
    assert seen == set(range(before, before + 6))
    assert max(len(set(rollout.versions.tolist())) for rollout in flat) >= 5


def test_drain_mixes_no_versions_and_holds_new_prompts_for_the_new_weights(stage: Stage):
    publisher = stage.publisher(mode="drain")
    stage.publish(publisher)
    old = stage.version
    running = stage.generate()
    stage.until_sampling(32)
    ray.get(stage.learner.change.remote(20))
    stage.publish(publisher)
    assert ray.wait([running[1]], timeout=0)[0] == [running[1]]
    later = stage.generate(PROMPTS[:2])
    model = stage.model()
    for reference, version in ((running, old), (later, old + 1)):
        groups = ray.get(reference[1], timeout=WAIT_S)
        assert {int(v) for group in groups for rollout in group for v in rollout.versions} == {version}
    for prompt, group in zip(PROMPTS[:2], ray.get(later[1]), strict=True):
        for rollout in group:
            expected = rollout_logprobs(model, prompt.token_ids.tolist(), rollout)
            assert np.abs(rollout.logprobs - expected).max() < PARITY


def test_abort_and_continue_goes_on_from_what_was_sampled(stage: Stage):
    publisher = stage.publisher(mode="abort_and_continue")
    stage.publish(publisher)
    old = stage.version
    _, rollouts = stage.generate()
    stage.until_sampling(64)
    ray.get(stage.learner.change.remote(21))
    stage.publish(publisher)
    model, counted = stage.model(), ray.get(stage.worker.stats.remote())["num_restarted"]
    assert counted == 32
    for prompt, group in zip(PROMPTS, ray.get(rollouts, timeout=WAIT_S), strict=True):
        for rollout in group:
            assert set(rollout.versions.tolist()) == {old, old + 1} and len(rollout.response_ids) == 60
            new = rollout.versions == old + 1
            expected = rollout_logprobs(model, prompt.token_ids.tolist(), rollout)
            assert np.abs(rollout.logprobs - expected)[new].max() < PARITY


@pytest.mark.parametrize(
    ("fault", "phase", "said"),
    [
        ("corrupted", "compare", f"engine rollout-0 has wrong weights: tensor {TARGET} was sent with digest"),
        ("missing", "compare", r"engine rollout-0 .* no weights arrived for model.layers.1.mlp.down_proj"),
        ("wrong shape", "compare", rf"engine rollout-0 .* tensor {TARGET} of shape \(64, 191\) was refused"),
        ("learner fails", "transfer", "the learner failed: .*a rank is gone"),
    ],
)
def test_a_fault_is_one_error_no_flip_and_the_next_publication_works(stage: Stage, fault: str, phase: str, said: str):
    publisher = stage.publisher()
    stage.publish(publisher)
    old, learner = stage.version, ray.get(stage.learner.pid.remote())
    _, rollouts = stage.generate()
    stage.until_sampling(32)
    ray.get(stage.learner.order_fault.remote(fault))
    with pytest.raises(PublicationError, match=said) as caught:
        stage.publish(publisher)
    assert caught.value.phase == phase
    assert ray.get(stage.worker.stats.remote())["version"] == old
    sampled = ray.get(stage.worker.stats.remote())["num_tokens"]
    ray.get(stage.learner.change.remote(30))
    assert ray.get(stage.worker.stats.remote())["num_tokens"] == sampled  # nothing is sampled with weights unchecked
    report = stage.publish(publisher)
    assert report.new_group and report.canary_gap < PARITY
    versions = {int(v) for group in ray.get(rollouts, timeout=WAIT_S) for rollout in group for v in rollout.versions}
    assert versions == {old, stage.version}
    assert ray.get(stage.learner.pid.remote()) == learner


def test_a_worker_killed_in_a_transfer_is_named_in_time_and_its_successor_goes_on_with_what_it_had_begun(stage: Stage):
    publisher = stage.publisher(update_timeout_s=20.0)
    stage.publish(publisher)
    learner = ray.get(stage.learner.pid.remote())
    whole = ray.get(stage.generate(PROMPTS[6:7], sampling=LONG)[1], timeout=WAIT_S)
    stage.generate(sampling=LONG)
    stage.until_sampling(32 * 15)
    ray.get(stage.learner.change.remote(22))
    stage.publish(publisher)
    old = stage.version
    stage.until_sampling(32 * 15)
    begun = ray.get(stage.worker.begun.remote(), timeout=WAIT_S)
    assert ray.get(stage.worker.begun.remote(tag="eval")) == []
    assert [group.prompt.ordinal for group in begun] == list(range(10, 18))
    assert {int(v) for group in begun for each in group.responses for v in each.versions} == {old - 1, old}

    pid = ray.get(stage.worker.__ray_call__.remote(lambda self: os.getpid()))
    ray.get(stage.learner.order_fault.remote(f"kill {pid}"))
    started = time.monotonic()
    with pytest.raises(PublicationError, match="engine rollout-0") as caught:
        stage.publish(publisher)
    assert time.monotonic() - started < 25.0
    assert (caught.value.phase, caught.value.engines) == ("transfer", ("rollout-0",))
    stage.worker = stage.start_worker()
    publisher.set_engines(stage.engines())
    ray.get(stage.learner.change.remote(23))
    report = stage.publish(publisher)
    assert report.new_group and report.canary_gap < PARITY
    assert ray.get(stage.learner.pid.remote()) == learner

    begun[6] = PartialGroup(PROMPTS[6], tuple(whole[0]), ())
    given = [*map(ray.put, begun[:7]), None]
    groups = ray.get(stage.generate(sampling=LONG, begun=given)[1], timeout=WAIT_S)
    nothing = PartialGroup(PROMPTS[7], (), tuple(PartialResponse(i, *[np.empty(0, np.int32)] * 3) for i in range(4)))
    assert_gone_on_with([*begun[:7], nothing], groups, stage.model(), stage.version)
    assert [rollout.response_ids.tolist() for rollout in groups[6]] == [r.response_ids.tolist() for r in whole[0]]
    new = sum(int(np.sum(rollout.versions == stage.version)) for group in groups for rollout in group)
    assert ray.get(stage.worker.stats.remote())["num_tokens"] == new, "something was sampled twice"
    other_request = ray.get(stage.generate(PROMPTS[:1], num_samples=3, sampling=LONG, begun=given[:1])[1])
    assert {int(v) for rollout in other_request[0] for v in rollout.versions} == {stage.version}


def assert_gone_on_with(begun: list[PartialGroup], groups: Any, model: Any, version: int) -> None:
    """Every bit from before the cut is kept; what follows is of the model, and ends as a response does."""
    num_cut = 0
    for before, group in zip(begun, groups, strict=True):
        for start, rollout in zip(before.responses, group, strict=True):
            cut = len(start.response_ids)
            for name in ("response_ids", "logprobs", "versions") if cut else ():
                kept, saved = getattr(rollout, name)[:cut], getattr(start, name)
                assert kept.dtype == saved.dtype and kept.tobytes() == saved.tobytes()
            num_cut += 0 < cut < len(rollout.response_ids)
            assert set(rollout.versions[cut:].tolist()) <= {version}
            expected = rollout_logprobs(model, before.prompt.token_ids.tolist(), rollout)
            assert np.abs(rollout.logprobs - expected)[cut:].max(initial=0.0) < PARITY
            assert END not in rollout.response_ids[:-1]
            assert len(rollout.response_ids) <= LONG.max_tokens
            stopped = rollout.response_ids[-1] == END
            assert rollout.finish_reason == ("stop" if stopped else "length")
            assert stopped or len(rollout.response_ids) == LONG.max_tokens
    assert num_cut > 12


def test_health_is_a_number_until_the_worker_is_closed(stage: Stage):
    assert 0.0 <= ray.get(stage.worker.health.remote()) < WAIT_S
