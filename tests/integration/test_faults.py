"""Real processes are killed, stopped and broken while RLVR runs on them; what happens is docs/faults.md's table.

One cluster for all of it. With `deterministic`, a run that lost its learner, value model and reference must end with
the very bits of one that was left alone, and of a straight loop without ledger, pump, buffer or supervision.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
from fault_lab import (
    ROOT,
    Faults,
    assert_same_weights,
    assert_whole,
    fail_verdicts,
    fault_context,
    hold_steps,
    pid_of,
    pids_of,
    raise_in_steps,
    skip_steps,
    train,
)
from tiny_recipe import sampling_and_update

from actors.groups import ModelGroup, RankGroup
from actors.learner import Learner
from actors.publication import RayEngine, RayLearner
from actors.pump import RolloutPump
from actors.pump_records import LostGroups, PumpSettings
from actors.reference_model import ReferenceModel
from actors.shards import GroupReference, ShardReference
from launch.context import RunContext
from launch.rlvr_run import MAX_IN_A_ROW
from launch.rlvr_setup import load_models, read_prompts
from rlsys.algorithms.schedule import learning_rate
from rlsys.checkpoint.run_folder import LOCK
from rlsys.checkpoint.saved_rollouts import load_rollouts
from rlsys.errors import ActorError, PlacementError, TrainingError, VerifierError
from rlsys.recipe.algorithm import SafetySettings
from rlsys.recipe.rollout import SamplingSettings
from rlsys.recipe.stages import CheckpointSettings, RlvrStage
from rlsys.rollouts.experience_buffer import balance
from rlsys.rollouts.prompt_stream import PromptStream, hash_integers
from rlsys.telemetry.tracker import read_metrics
from rlsys.types import Prompt
from rlsys.weights.publisher import PublicationSettings, WeightPublisher

pytestmark = [pytest.mark.integration, pytest.mark.alone, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Iterator[RunContext]:
    with fault_context(tmp_path_factory.mktemp("faults")) as context:
        yield context


# --- straight loop ---------------------------------------------------------------------------------------------------


def straight_loop(context: RunContext, settings: RlvrStage, folder: Path) -> None:
    """What RLVR at staleness 0 does, in order, with nothing under way at the same time."""
    crew, algorithm = context.crew, settings.algorithm
    seed = hash_integers(context.recipe.seed, 2, bits=32)  # RLVR is the second stage
    stream = PromptStream(read_prompts(context, settings, folder), seed)
    load_models(context, settings)
    handles = list(crew.workers)
    publication = PublicationSettings(
        mode="in_flight", transport="gloo", digest="fold64", cap_bytes=256 << 20, update_timeout_s=120.0,
        drain_timeout_s=600.0, canary_tolerance=1e-3,
    )  # fmt: skip
    engines = [RayEngine(handle, name=f"rollout-{place}") for place, handle in enumerate(handles)]
    publisher = WeightPublisher(RayLearner(crew.learner.ranks.handles, publication), engines, publication)
    publisher.publish(0, canary_ids=context.model.canary_ids[:48])
    steps = algorithm.epochs_per_batch * algorithm.minibatches
    for batch in range(settings.batches):
        ordinals = range(batch * settings.batch_groups, (batch + 1) * settings.batch_groups)
        verified, places = [], {}
        for place, handle in enumerate(handles):
            own = [ordinal for ordinal in ordinals if ordinal % len(handles) == place]
            prompts = [stream[ordinal] for ordinal in own]
            _, rollouts = handle.generate.remote(
                prompts, num_samples=settings.samples, sampling=settings.sampling, seed=seed
            )
            summaries, experiences = next(iter(crew.verifiers)).verify.remote(prompts, rollouts)
            verified.append(summaries)
            places |= {ordinal: GroupReference(experiences, index) for index, ordinal in enumerate(own)}
        groups = {summary.ordinal: summary for summaries in ray.get(verified) for summary in summaries}
        lengths = [sum(groups[o].lengths) + len(groups[o].lengths) * groups[o].prompt_length for o in ordinals]
        shards = [ShardReference(tuple(places[ordinals[i]] for i in share)) for share in balance(lengths, 1)]
        temperature = settings.sampling.temperature
        proximal = crew.learner.logprobs(shards, temperature=temperature).get()
        reference = crew.reference.logprobs(shards, temperature=temperature).get()
        values = crew.value.values(shards).get()
        advantages, returns, _ = crew.learner.advantages(
            shards, algorithm, proximal=proximal, reference=reference, values=values, oldest_version=batch
        ).get()
        first, total = batch * steps, settings.batches * steps
        rates = [
            learning_rate(step, settings.learner.lr, settings.learner.schedule, total_steps=total)
            for step in range(first, first + steps)
        ]
        common = {"lrs": rates, "seed": hash_integers(seed, batch, bits=32), "oldest_version": batch}
        crew.value.train_value(shards, algorithm, returns=returns, old_values=values, **common).get()
        crew.learner.train_policy(
            shards, algorithm, advantages=advantages, proximal=proximal, reference=reference,
            max_response_length=settings.sampling.max_tokens, temperature=temperature, version=batch, **common,
        ).get()  # fmt: skip
        publisher.publish(batch + 1, canary_ids=context.model.canary_ids[:48])
    crew.learner.export_hf(str(folder / "hf")).get()


@pytest.fixture(scope="module")
def undisturbed(context: RunContext) -> SimpleNamespace:
    return train(context, "undisturbed")


def test_staleness_0_equals_a_straight_loop_bit_for_bit(context: RunContext, undisturbed: SimpleNamespace):
    assert_whole(undisturbed)
    folder = context.folder / "straight"
    folder.mkdir()
    straight_loop(context, undisturbed.settings, folder)
    assert_same_weights(undisturbed.folder, folder)
    context.forget_models()  # the engines' group is the loop's now


def test_sampling_never_overlaps_the_update_at_staleness_0(context: RunContext, monkeypatch):
    """Not only where a deterministic run waits for everything."""
    monkeypatch.setattr(context, "recipe", context.recipe.model_copy(update={"deterministic": False}))
    run = train(context, "synchronous")
    assert {row["staleness/max_steps"] for row in run.rows} == {0.0}
    sampling, update, both = sampling_and_update(context.folder, "synchronous")
    assert sampling > 0.0 and update > 0.0
    assert both == 0.0


def test_the_value_model_warms_up_alone(context: RunContext, monkeypatch):
    """For one of two batches the policy keeps its bits; its learning rates begin after it."""

    def export(version: int) -> None:
        for kind, group in (("policy", context.crew.learner), ("value", context.crew.value)):
            group.export_hf(str(context.folder / "warm-up" / f"{kind}-{version}" / "hf")).get()

    Faults().around(monkeypatch, RunContext, "publish", before=lambda call: export(call - 1))
    algorithm = context.recipe.stage[1].algorithm.model_copy(update={"value_warmup_batches": 1})
    run = train(context, "warm-up", batches=2, algorithm=algorithm)
    assert_whole(run)
    assert_same_weights(run.folder / "policy-0", run.folder / "policy-1")
    for before, after in (("policy-1", "policy-2"), ("value-0", "value-1"), ("value-1", "value-2")):
        with pytest.raises(AssertionError):
            assert_same_weights(run.folder / before, run.folder / after)
    first, second = run.rows
    assert "optim/lr" not in first and "loss/policy" not in first
    assert second["optim/lr"] == pytest.approx(3e-3 * (1 + 0.75 + 0.5 + 0.25) / 4)
    assert first["optim/value_lr"] == pytest.approx(3e-3 * (8 + 7 + 6 + 5) / 32)


def test_a_policy_that_no_step_reaches_ends_the_run_after_its_line(context: RunContext, monkeypatch):
    """Whatever the value model does; the four passes over a batch count once."""
    (rank,) = context.crew.learner.ranks.handles

    def after(call: int) -> None:
        if call == 1:
            skip_steps(rank, "loss_not_finite")

    Faults().around(monkeypatch, RunContext, "publish", after=after)
    safety = SafetySettings(max_skipped_in_a_row=2)
    algorithm = context.recipe.stage[1].algorithm.model_copy(update={"safety": safety})
    with pytest.raises(TrainingError, match="2 updates of the policy in a row were skipped, the last one for loss_not"):
        train(context, "skipped", algorithm=algorithm)
    rows = [row for row in read_metrics(context.folder / "metrics.jsonl") if row["stage"] == "skipped"]
    assert [row["step"] for row in rows] == [1, 2]
    assert [row["skipped/loss_not_finite"] for row in rows] == [4, 8]
    assert [(row["optim/skipped"], row["optim/value_skipped"]) for row in rows] == [(1, 0)] * 2


def test_killed_ranks_change_no_bit_of_the_result(context: RunContext, undisturbed: SimpleNamespace, monkeypatch):
    """The learner and the value model go back to the last checkpoint together; the reference starts again alone."""
    faults = Faults()

    def in_update(call: int) -> None:
        if call == 1:
            faults.signal("learner in an update before any checkpoint", pids_of("LearnerRank"))
        if call == 4:  # batch 0 (killed), 0, 1, and now 2
            faults.signal("value model in an update", pids_of("ValueModelRank"))

    def in_save(call: int) -> None:
        if call == 3:  # learner's and value model's at step 2, and now at step 4
            faults.signal("learner in a checkpoint", pids_of("LearnerRank"))

    def before_reference(call: int) -> None:
        if call == 9:  # batches 0 (killed), 0, 1, 2 (killed), 2, 3 (killed), 2, 3, and now 4
            faults.signal("reference before an update", pids_of("ReferenceModelRank"))

    faults.around(monkeypatch, Learner, "train_policy", after=in_update)
    faults.around(monkeypatch, ModelGroup, "save", after=in_save)
    faults.around(monkeypatch, ReferenceModel, "logprobs", before=before_reference)
    run = train(context, "killed-ranks")
    assert len(faults.injected) == 4
    assert_whole(run)
    assert run.rows[-1]["perf/rollbacks"] == 3
    restarts = {kind: context.crew.restarts.counts[kind] for kind in ("learner", "value", "reference")}
    assert restarts == {"learner": 2, "value": 1, "reference": 1}
    assert_same_weights(undisturbed.folder, run.folder)


def test_a_killed_workers_place_is_waited_for_where_bits_depend_on_it(
    context: RunContext, undisturbed: SimpleNamespace, monkeypatch
):
    """A deterministic run: the successor gets the weights though another worker serves, and samples the same groups."""
    faults, workers = Faults(), context.crew.workers
    workers.wait_for_all()

    def after(version: int) -> None:
        if version == 2:
            faults.signal("rollout worker before its groups", [pid_of(workers.serving[1].handle)])

    faults.around(monkeypatch, RunContext, "publish", after=lambda n: after(n - 1))
    run = train(context, "killed-place")
    assert len(faults.injected) == 1
    assert_whole(run)
    assert run.rows[-1]["rollout/lost_groups"] == 4, "half of a batch"
    assert run.rows[-1]["perf/rollbacks"] == 0
    assert_same_weights(undisturbed.folder, run.folder)


def test_a_rank_that_dies_while_its_group_starts_costs_one_restart_more(context: RunContext, monkeypatch):
    faults, crew = Faults(), context.crew
    before, submit = crew.restarts.counts["reference"], RankGroup.submit_each

    def submit_each(group: RankGroup, method: str, arguments: Sequence[dict[str, Any]]) -> Any:
        if method == "join" and not faults.injected:
            faults.signal("reference while it starts", [pid_of(group.handles[0])])
        return submit(group, method, arguments)

    monkeypatch.setattr(RankGroup, "submit_each", submit_each)
    assert crew.restart("reference")
    assert len(faults.injected) == 1
    assert crew.restarts.counts["reference"] == before + 2
    assert crew.fallen() == []


def test_prompts_that_come_to_nothing_again_and_again_end_the_run(context: RunContext):
    for handle in context.crew.workers:
        hold_steps(handle, first_ordinal=0, caps={0: 0})
    told = r"16 prompts in a row came to nothing, each tried 2 times, the last one because timeout"
    with pytest.raises(ActorError, match=told):
        train(context, "hopeless", group_timeout_s=0.5, max_attempts=2, batch_groups=16)
    for handle in context.crew.workers:
        hold_steps(handle, first_ordinal=0, caps={})


def test_verdicts_that_fail_are_counted_though_no_batch_holds_them(context: RunContext):
    """One sample a prompt: a failed verdict masks its whole group, which leaves before any batch."""
    (verifier,) = context.crew.verifiers
    fail_verdicts(verifier, every=2)
    run = train(context, "half-judged", batches=2)
    for row in run.rows:
        shares = {name: share for name, share in row.items() if name.endswith("/timeout_frac")}
        assert max(shares.values()) > 0.2
        assert row["verifier/alarm"] == 1
    masked = [end for end in run.ends if end[1] == "masked"]
    assert len(masked) >= 8 and run.summary["ledger"]["trained"] == 16
    fail_verdicts(verifier, every=1)
    with pytest.raises(VerifierError, match=r"10 prompts in a row .* could judge; got '(\w+: timeout(, )?)+'"):
        train(context, "not-judged", batches=2)
    fail_verdicts(verifier, every=0)
    run = train(context, "judged", batches=1)
    assert run.rows[0]["verifier/alarm"] == 0


def test_workers_are_replaced_while_training_goes_on(context: RunContext, monkeypatch):
    """Killed, stopped and broken workers, at publications, while sampling, while scoring: no group is lost."""
    faults, crew, built = Faults(), context.crew, {}
    monkeypatch.setattr(context, "recipe", context.recipe.model_copy(update={"deterministic": False}))
    before_all = Counter(crew.restarts.counts)

    def before(version: int) -> None:
        built[version] = len(crew.workers)
        if version == 1:
            faults.signal("verifier while it scores", pids_of("VerifierWorker"))
        if version == 3:
            faults.signal("rollout worker at a publication", [pid_of(crew.workers.serving[0].handle)])
        if version in (6, 10):
            crew.workers.wait_for_all()
        if version == 10:
            for handle in crew.workers:
                raise_in_steps(handle)
            faults.injected.append("exception in every engine")

    def after(version: int) -> None:
        if version == 6:
            faults.signal("rollout worker while it samples", [pid_of(crew.workers.serving[1].handle)])
        if version == 8:
            faults.signal("verifier hangs", pids_of("VerifierWorker"), signal.SIGSTOP)

    # Publication 1 of the run is of version 0.
    faults.around(monkeypatch, RunContext, "publish", before=lambda n: before(n - 1), after=lambda n: after(n - 1))
    run = train(
        context, "killed-workers", max_staleness=1, batches=12, checkpoint=CheckpointSettings(every=0),
        batch_groups=16, groups_per_call=1,
    )  # fmt: skip
    assert len(faults.injected) == 5
    assert_whole(run)
    assert Counter(crew.restarts.counts) - before_all == {"rollout": 4, "verifier": 2}
    assert built[4] == built[5] == 1, "two batches were trained on while the killed worker's successor started"
    assert run.rows[-1]["rollout/lost_groups"] >= MAX_IN_A_ROW, "each in a call of its own"
    assert run.rows[-1]["perf/rollbacks"] == 0
    assert max(row["staleness/max_steps"] for row in run.rows) <= 1


def sampled(run: SimpleNamespace) -> list[dict[str, Any]]:
    """Everything that was trained on."""
    return [row for path in (run.folder / "rollouts").glob("*.parquet") for row in pq.read_table(path).to_pylist()]


def test_a_rollback_goes_on_with_groups_that_were_under_way(context: RunContext, monkeypatch):
    """The checkpoint after batch 1 holds responses begun under two versions; a learner killed later loses none."""
    monkeypatch.setattr(context, "recipe", context.recipe.model_copy(update={"deterministic": False}))
    workers, faults = context.crew.workers, Faults()
    workers.wait_for_all()
    for handle in workers:
        hold_steps(handle, first_ordinal=16, caps={1: 12, 2: 24})

    def let_go(call: int) -> None:
        for handle in workers:
            hold_steps(handle, first_ordinal=16, caps={})

    def in_update(call: int) -> None:
        if call == 3:
            faults.signal("learner after a checkpoint with groups under way", pids_of("LearnerRank"))

    faults.around(monkeypatch, RolloutPump, "under_way", after=let_go)
    faults.around(monkeypatch, Learner, "train_policy", after=in_update)
    sampling = SamplingSettings(max_tokens=48, ignore_end=True)
    # The last batch takes them all; of two that are left, the first might take others, and they would be too old then.
    run = train(
        context, "gone-on", max_staleness=1, batches=3, sampling=sampling, save_rollouts_every=1,
        checkpoint=CheckpointSettings(every=2, background=False),
    )  # fmt: skip
    assert len(faults.injected) == 1
    assert_whole(run)
    assert run.rows[-1]["perf/rollbacks"] == 1
    assert max(row["staleness/max_steps"] for row in run.rows) <= 1
    saved = load_rollouts(run.folder / "checkpoints" / "step_000002" / "rollouts.safetensors").partial
    begun = {(g.prompt.ordinal, r.sample_index): r for g in saved for r in g.responses if len(r.response_ids)}
    assert [row["rollout/continued"] for row in run.rows] == [0, 0, len(begun)]
    trained = {(row["ordinal"], row["sample_index"]): row for row in sampled(run)}
    num_mixed = 0
    for key, response in begun.items():
        cut, row = len(response.response_ids), trained[key]
        assert row["response_ids"][:cut] == response.response_ids.tolist()
        assert row["logprobs"][:cut] == response.logprobs.tolist()
        assert row["versions"][:cut] == response.versions.tolist()
        num_mixed += 1 in response.versions and cut < len(row["versions"]) and row["versions"][cut] == 2
    assert num_mixed > 0, "the engines had version 2 only: what is of version 1 was sampled before the rollback"


@pytest.fixture
def updating(context: RunContext, monkeypatch) -> Iterator[Callable[[str], None]]:
    """Has the engines updated in another way, in runs that need not be deterministic; both workers are there."""

    def update(mode: str) -> None:
        rollout = context.recipe.rollout.model_copy(update={"update": mode})
        recipe = context.recipe.model_copy(update={"deterministic": False, "rollout": rollout})
        monkeypatch.setattr(context, "recipe", recipe)

    context.crew.workers.wait_for_all()
    context.forget_models()  # the publisher knows how it updates
    yield update
    context.forget_models()
    for handle in context.crew.workers:
        hold_steps(handle, first_ordinal=0, caps={})


def test_a_straggler_does_not_hold_up_a_publication_that_drains(context: RunContext, updating):
    """A worker stands still with groups of the next batch: they are ended, and sampled under the next version."""
    updating("drain")
    hold_steps(context.crew.workers.serving[0].handle, first_ordinal=16, caps={1: 4})
    sampling = SamplingSettings(max_tokens=48, ignore_end=True)
    run = train(
        context, "drained", max_staleness=1, batches=3, sampling=sampling, save_rollouts_every=1, group_timeout_s=4.0
    )
    assert_whole(run)
    assert run.rows[-1]["rollout/lost/timeout"] >= 1
    assert all(len(set(row["versions"])) == 1 for row in sampled(run)), "nothing runs across an update"


def test_responses_are_asked_for_anew_where_an_update_ends_them(context: RunContext, updating):
    updating("abort_and_continue")
    for handle in context.crew.workers:
        hold_steps(handle, first_ordinal=16, caps={1: 8})
    before = sum(ray.get(handle.stats.remote())["num_restarted"] for handle in context.crew.workers)
    sampling = SamplingSettings(max_tokens=48, ignore_end=True)
    run = train(context, "restarted", max_staleness=1, batches=3, sampling=sampling, save_rollouts_every=1)
    assert_whole(run)
    restarted = sum(ray.get(handle.stats.remote())["num_restarted"] for handle in context.crew.workers) - before
    mixed = [row for row in sampled(run) if len(set(row["versions"])) > 1]
    assert 0 < len(mixed) <= restarted
    assert {(row["versions"][0], row["versions"][-1]) for row in mixed} == {(1, 2)}
    assert max(row["staleness/max_steps"] for row in run.rows) == 1


def test_workers_are_added_to_a_live_run_and_taken_away(context: RunContext, monkeypatch):
    """`rlsys scale`, twice: another worker of each kind joins, and later they leave again, with no group lost."""
    monkeypatch.setattr(context, "recipe", context.recipe.model_copy(update={"deterministic": False}))
    crew, asked, faults, verifiers = context.crew, [], Faults(), set()
    crew.workers.wait_for_all()

    def scale(rollout: int, verifier: int) -> None:
        numbers = ["--rollout-workers", str(rollout), "--verifier-workers", str(verifier)]
        command = [sys.executable, "-m", "launch.cli", "scale", str(context.folder), *numbers]
        asked.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT))

    def before(version: int) -> None:
        if version in (2, 8):
            scale(*((3, 2) if version == 2 else (1, 1)))
        if version == 6:
            crew.workers.wait_for_all()
            crew.verifiers.wait_for_all()
            verifiers.update(pids_of("VerifierWorker"))

    with (context.folder / LOCK).open("w") as lock:  # `run_recipe` holds it
        fcntl.flock(lock, fcntl.LOCK_EX)
        faults.around(monkeypatch, RunContext, "publish", before=lambda n: before(n - 1))
        run = train(context, "scaled", max_staleness=1, batches=14, checkpoint=CheckpointSettings(every=0))
    answers = [process.communicate(timeout=60)[0] for process in asked]
    assert [process.returncode for process in asked] == [0, 0], answers
    assert [answer.split(" from ")[0] for answer in answers] == ["3 rollout workers", "1 rollout workers"]
    assert [answer.strip().split(", ")[-1] for answer in answers] == ["2 verifiers", "1 verifiers"]
    workers = [int(row["perf/rollout_workers"]) for row in run.rows]
    assert workers == sorted(workers[:7]) + sorted(workers[7:], reverse=True)
    assert (workers[0], workers[6], workers[-1]) == (2, 3, 1)
    assert_whole(run)
    assert run.rows[-1]["rollout/lost_groups"] == 0
    assert len(pids_of("RolloutWorker")) == 1
    assert len(verifiers) == 2 and len(verifiers & set(pids_of("VerifierWorker"))) == 1
    crew.scale(rollout=2, verifier=None)
    crew.workers.wait_for_all()


def test_a_scale_that_the_cluster_cannot_hold_changes_nothing(context: RunContext):
    with pytest.raises(PlacementError, match=r"no room for rollout\["):
        context.crew.scale(rollout=10_000, verifier=None)
    assert context.crew.workers.size == 2


def test_idle_workers_that_die_or_hang_are_noticed(context: RunContext):
    workers, cluster = context.crew.workers, context.recipe.cluster
    workers.wait_for_all()
    killed, hanging = workers.built
    pids = [pid_of(member.handle) for member in (killed, hanging)]
    started = time.monotonic()
    os.kill(pids[0], signal.SIGKILL)
    os.kill(pids[1], signal.SIGSTOP)
    noticed: dict[str, float] = {}
    while len(noticed) < 2 and time.monotonic() - started < 120:
        workers.beat()
        ray.wait(workers.starting or [ray.put(0)], timeout=0.2)
        for member in (killed, hanging):
            if member not in workers:
                noticed.setdefault(member.name, time.monotonic() - started)
    assert noticed[killed.name] < 60
    assert noticed[hanging.name] < cluster.hang_timeout_s + 10
    workers.wait_for_all()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_late_group_is_aborted_on_its_engine(context: RunContext):
    """A chunk past its deadline is lost, and its engine stops sampling it."""
    context.reinforce()
    prompt = Prompt(5, "late", (), np.array(context.model.canary_ids[:8], np.int32))
    sampling = SamplingSettings(max_tokens=80, ignore_end=True)
    settings = PumpSettings(num_samples=200, sampling=sampling, seed=0, groups_per_worker=512, group_timeout_s=0.0)
    pump = RolloutPump(context.crew.workers, context.crew.verifiers, settings, prompts=lambda ordinal: prompt)
    worker = context.crew.workers.serving[0].handle
    finished = ray.get(worker.stats.remote())["num_groups"]
    pump.start([5])
    while not ray.get(worker.stats.remote())["num_unfinished"]:
        assert pump.num_running == 1
    (lost,) = pump.poll(timeout_s=0.0)
    assert isinstance(lost, LostGroups)
    assert (lost.ordinals, lost.reason, pump.num_running) == ((5,), "timeout", 0)
    deadline = time.monotonic() + 30
    while (stats := ray.get(worker.stats.remote()))["num_unfinished"]:
        assert time.monotonic() < deadline
    assert stats["num_groups"] == finished


def test_a_run_whose_restarts_are_spent_ends_with_one_error(context: RunContext, monkeypatch):
    monkeypatch.setattr(context.crew.restarts, "limit", 0)
    pids = [pid_of(handle) for handle in context.crew.workers]
    faults = Faults()
    with pytest.raises(ActorError, match=r"no rollout worker is left: rollout-\d died; got '\d+ restarts'"):
        faults.around(
            monkeypatch, Learner, "advantages",
            after=lambda call: faults.signal("every rollout worker", pids) if call == 1 else None,
        )  # fmt: skip
        train(context, "spent")
    assert faults.injected == ["every rollout worker"]
