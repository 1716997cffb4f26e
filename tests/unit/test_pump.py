"""Calls that fail on their way to a verdict: whose fault it was, who is replaced, and what ends the run."""

import pickle
from typing import Any

import numpy as np
import pytest
import ray.exceptions
from fake_ray import FakeRay, Handle, Ref, died, failed, install

from actors import pump as pump_module
from actors import roster as roster_module
from actors.deaths import DEATHS
from actors.pump import MAX_VERIFICATIONS, RolloutPump
from actors.pump_records import LostGroups, PumpSettings, RewardScoring, VerifiedGroup
from actors.roster import Restarts, Roster
from rlsys.errors import ActorError, DataError, RlsysError, VerifierError
from rlsys.recipe.cluster import ClusterSettings
from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.sampling_engine import PromptRefused
from rlsys.types import GroupSummary, Prompt


class Lab:
    """A pump between workers and verifiers whose calls end as a test says."""

    def __init__(self, *, workers: int = 1, verifiers: int = 1, limit: int = 10, **options: Any) -> None:
        self.generated: list[tuple[Ref, Ref]] = []
        self.verified: list[tuple[Ref, Ref]] = []
        self.asked: list[Handle] = []
        """Of each call, the verifier."""
        self.restarts = Restarts(limit)
        abort = lambda *_, **__: Ref().answer()  # noqa: E731
        self.workers = self._roster("rollout", size=workers, generate=self._call(self.generated), abort=abort)
        self.verifiers = self._roster("verifier", size=verifiers)
        self.pump = self.another_pump(**options)

    def another_pump(self, *, scoring: RewardScoring | None = None, **settings: Any) -> RolloutPump:
        """Between the same workers and verifiers."""
        settings = {"num_samples": 1, "sampling": SamplingSettings(), "seed": 0, "groups_per_worker": 512} | settings
        return RolloutPump(self.workers, self.verifiers, PumpSettings(**settings), prompts=_prompt, scoring=scoring)

    def _call(self, calls: list[tuple[Ref, Ref]]) -> Any:
        def call(*_: Any, **__: Any) -> tuple[Ref, Ref]:
            calls.append((Ref(), Ref()))
            return calls[-1]

        return call

    def _roster(self, kind: str, *, size: int = 1, **answers: Any) -> Roster:
        def create(slot: int) -> tuple[Handle, Ref]:
            handle = Handle(health=lambda: Ref().answer(0.0), verify=lambda *_, **__: self._verify(handle), **answers)
            return handle, Ref().answer()

        cluster = ClusterSettings(heartbeat_s=1.0, hang_timeout_s=10.0)
        roster = Roster(
            kind, create=create, ask=lambda handle: handle.health.remote(), size=size, cluster=cluster,
            restarts=self.restarts, join=False,
        )  # fmt: skip
        roster.wait_for_all()
        return roster

    def _verify(self, handle: Handle) -> tuple[Ref, Ref]:
        self.asked.append(handle)
        return self._call(self.verified)()

    def start(self, *ordinals: int, sampled: bool = True) -> None:
        """Has groups sampled, and verified next."""
        self.pump.start(ordinals)
        for sampling, rollouts in self.generated if sampled else ():
            sampling.answer()
            rollouts.answer([])

    def fail_sampling(self, error: Exception) -> list[VerifiedGroup | LostGroups]:
        """The newest generate call fails, and with it the verify call that waits for it; what comes through then."""
        for ref in (*self.generated[-1], *self.verified[-1]):
            ref.fail(error)
        return self.pump.poll(timeout_s=1.0)

    def fail_verdicts(self, error: Exception) -> list[VerifiedGroup | LostGroups]:
        """The newest verify call fails; what comes through then, with a successor built."""
        for ref in self.verified[-1]:
            ref.fail(error)
        return self.pump.poll(timeout_s=1.0) + self.pump.poll(timeout_s=0.0)

    def verify(self) -> list[VerifiedGroup | LostGroups]:
        """The newest verify call returns."""
        summaries, experiences = self.verified[-1]
        summaries.answer([GroupSummary(0, (1,), 1, 0, 0, ("stop",), (1.0,), ((),))])
        experiences.answer([])
        return self.pump.poll(timeout_s=1.0)


def died_of(death: type[Exception]) -> Exception:
    """An error of that kind."""
    return death() if issubclass(death, ray.exceptions.RayActorError) else death("gone")


def _prompt(ordinal: int) -> Prompt:
    return Prompt(ordinal, str(ordinal), (), np.array([5], np.int32))


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return install(monkeypatch, pump_module, roster_module)


def test_a_step_that_fails_costs_its_worker_whatever_it_raises():
    """A ValueError of the engine's own is no prompt's fault."""
    lab = Lab()
    lab.start(0, sampled=False)
    (worker,) = lab.workers
    (lost,) = lab.fail_sampling(failed(ValueError("no valid block")))
    assert isinstance(lost, LostGroups) and (lost.ordinals, lost.reason) == ((0,), "rollout_worker_failed")
    assert worker.killed and lab.restarts.counts == {"rollout": 1}
    assert lab.pump.num_running == 0


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: death.__name__)
def test_a_worker_is_replaced_whatever_it_died_of(death: type[Exception], capsys: pytest.CaptureFixture[str]):
    """Of Ray's memory monitor, too, which raises no `RayActorError`."""
    lab = Lab()
    lab.start(0, sampled=False)
    (lost,) = lab.fail_sampling(died_of(death))
    assert isinstance(lost, LostGroups) and (lost.ordinals, lost.reason) == ((0,), "rollout_worker_died")
    assert lab.restarts.counts == {"rollout": 1}
    how = "was ended by Ray's memory monitor" if death is ray.exceptions.OutOfMemoryError else "died"
    assert capsys.readouterr().out == f"rollout-0 {how}; it is replaced\n"
    lab.pump.poll(timeout_s=0.0)  # its successor is built
    lab.start(1)
    assert lab.fail_verdicts(died_of(death)) == []
    assert lab.restarts.counts == {"rollout": 1, "verifier": 1}


def test_a_worker_is_given_no_more_than_keeps_it_busy():
    """What waits here is neither late nor lost with a worker."""
    lab = Lab(workers=2, groups_per_worker=2, group_timeout_s=100.0)
    lab.start(*range(7), sampled=False)
    assert [member.load for member in lab.workers.serving] == [2, 2]
    assert (len(lab.generated), lab.pump.num_running) == (4, 7)
    summary = GroupSummary(0, (1,), 1, 0, 0, ("stop",), (1.0,), ((),))
    for sampling, _ in lab.generated[:2]:
        sampling.answer()
    lab.verified[0][0].answer([summary])
    assert len(lab.pump.poll(timeout_s=1.0)) == 1
    lab.pump.poll(timeout_s=0.0)
    assert (len(lab.generated), lab.pump.num_running) == (5, 6)
    lab.pump.abort()
    assert [member.load for member in lab.workers.serving] == [0, 0]


def test_pumps_do_not_wait_for_each_others_groups():
    """An evaluation begins while all that the workers take is under way for training, and nobody collects that."""
    lab = Lab(groups_per_worker=2)
    lab.start(0, 1, 2, sampled=False)
    assert len(lab.generated) == 2
    evaluation = lab.another_pump(groups_per_worker=2, tag="eval")
    evaluation.start([0, 1, 2])
    assert len(lab.generated) == 4
    assert [member.load for member in lab.workers.serving] == [4]


def test_a_prompt_that_no_engine_takes_is_the_users_to_mend():
    lab = Lab()
    lab.start(0, sampled=False)
    refused = PromptRefused("a prompt needs 1 to 95 tokens", value=96, fix="leave it out")
    with pytest.raises(DataError, match="a prompt needs 1 to 95 tokens; got 96; leave it out") as told:
        lab.fail_sampling(failed(pickle.loads(pickle.dumps(refused))))
    assert told.value.exit_status == 2
    assert lab.restarts.counts == {}


@pytest.mark.parametrize(
    "error", [VerifierError("the verifier pool is closed"), OSError("no processes left"), MemoryError()]
)
def test_what_a_verifier_fails_on_another_verifies(error: Exception):
    lab = Lab(verifiers=2)
    lab.start(0)
    assert lab.fail_verdicts(failed(error)) == []
    first, second = lab.asked
    assert first.killed and not second.killed and first is not second
    assert lab.restarts.counts == {"verifier": 1}
    (done,) = lab.verify()
    assert isinstance(done, VerifiedGroup) and len(lab.generated) == 1, "sampled once"
    assert [member.load for member in (*lab.workers.serving, *lab.verifiers.serving)] == [0, 0, 0]


def test_what_every_verifier_fails_on_ends_the_run():
    lab = Lab(verifiers=2)
    lab.start(0)
    for _ in range(MAX_VERIFICATIONS - 1):
        assert lab.fail_verdicts(failed(ZeroDivisionError("injected"))) == []
    with pytest.raises(ActorError, match=r"verifying failed: ZeroDivisionError\('injected'\)"):
        lab.fail_verdicts(failed(ZeroDivisionError("injected")))
    assert len(lab.asked) == MAX_VERIFICATIONS


def test_what_every_verifier_says_of_itself_is_told_in_its_words():
    lab = Lab(limit=2)
    lab.start(0)
    closed = VerifierError("the verifier pool is closed")
    for _ in range(MAX_VERIFICATIONS - 1):
        assert lab.fail_verdicts(failed(closed)) == []
    with pytest.raises(RlsysError, match=r"no verifier worker is left: verifier-0 failed \(VerifierError"):
        lab.fail_verdicts(failed(closed))


def test_a_ground_truth_that_is_wrong_on_every_verifier_ends_the_run_at_once():
    lab = Lab(verifiers=2)
    lab.start(0)
    with pytest.raises(DataError, match="a ground truth is no JSON value"):
        lab.fail_verdicts(failed(DataError("a ground truth is no JSON value")))
    assert lab.restarts.counts == {}


def test_a_chunk_that_verifiers_die_of_is_given_up():
    lab = Lab()
    lab.start(0)
    for _ in range(MAX_VERIFICATIONS - 1):
        assert lab.fail_verdicts(died()) == []
    (lost,) = lab.fail_verdicts(died())
    assert isinstance(lost, LostGroups) and lost.reason == "verifier_died"


def test_rollouts_that_are_lost_are_no_verifiers_fault():
    lab = Lab()
    lab.start(0)
    error = pump_module.ray.exceptions.ObjectLostError("00" * 28, None, "")
    (lost,) = lab.fail_verdicts(error)
    assert isinstance(lost, LostGroups) and lost.reason == "rollouts_lost"
    assert lab.restarts.counts == {}


def test_a_reward_model_that_takes_too_long_is_asked_for_that_call_again(fake: FakeRay):
    """`Crew.fallen` finds it held in the call, though it answers a ping."""
    model: Any = _Scorer()
    lab = Lab(scoring=RewardScoring(lambda: model, weight=1.0, timeout_s=30.0))
    lab.start(0)
    while lab.pump.reward_model_error is None:
        assert lab.pump.poll(timeout_s=5.0) == []
        assert fake.now < 60.0
    assert "no answer within 30 s" in str(lab.pump.reward_model_error)
    assert model.ranks.unanswered == model.asked


def test_ranks_beside_one_that_failed_are_asked_about(fake: FakeRay):
    """They may wait for it in a collective, and answer pings there."""
    model: Any = _Scorer(num_ranks=2)
    lab = Lab(scoring=RewardScoring(lambda: model, weight=1.0, timeout_s=30.0))
    lab.start(0)
    while not model.asked:
        assert lab.pump.poll(timeout_s=1.0) == []
    model.asked[0].fail(died())
    assert lab.pump.poll(timeout_s=1.0) == []
    assert lab.pump.reward_model_error is not None
    assert model.ranks.unanswered == model.asked[1:]


class _Scorer:
    def __init__(self, num_ranks: int = 1) -> None:
        self._num_ranks = num_ranks
        self.ranks = self
        self.unanswered: list[Ref] = []
        self.asked: list[Ref] = []

    def score(self, prompts: Any, rollouts: Any) -> list[Ref]:
        refs = [Ref() for _ in range(self._num_ranks)]
        self.asked += refs
        return refs
