"""A whole run in small, ledger, stream, chain file and checkpoints together, killed with -9 again and again."""

import hashlib
import random
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chain_audit import audit_ends
from killable_child import die_at_event, run_child

from rlsys.checkpoint.chain_file import ChainFile
from rlsys.checkpoint.checkpoint_store import CheckpointStore
from rlsys.checkpoint.saved_rollouts import load_rollouts, save_rollouts
from rlsys.rollouts.experience_buffer import ExperienceBuffer
from rlsys.rollouts.ledger import Ledger
from rlsys.rollouts.ledger_records import LedgerSettings
from rlsys.rollouts.prompt_stream import PromptStream, sample_seed
from rlsys.types import Experience, GroupSummary, Rollout, Verdict

SEED = 3
SETTINGS = LedgerSettings(batch_groups=4, max_staleness=0, total_batches=30, max_attempts=50)
ROWS = [(f"p{i}", (), np.array([i], np.int32), (), "") for i in range(10)]


class Run:
    """Its learner's weights are a hash of everything that it was trained on, in order."""

    def __init__(self, folder: Path, settings: LedgerSettings, luck: int) -> None:
        self.stream, self.chain = PromptStream(ROWS, SEED), ChainFile(folder / "ends.jsonl")
        self.store, self.luck = CheckpointStore(folder / "checkpoints"), random.Random(luck)
        self.buffer: ExperienceBuffer[tuple[Experience, ...]] = ExperienceBuffer()
        found = self.store.recover()
        if found.checkpoint is None:
            self.ledger, self.weights, self.step = Ledger(settings), b"start", 0
            self.chain.rewind(0)
            return
        saved = found.checkpoint.manifest.metadata
        self.ledger, self.step = Ledger.from_state_dict(settings, saved["ledger"]), found.checkpoint.step
        self.chain.rewind(saved["ends"])
        with found.checkpoint.open("weights") as stream:
            self.weights = stream.read()
        for group in load_rollouts(found.checkpoint.path / "rollouts").finished:
            self.buffer.put(summarise(group), group)
        self.ledger.published(self.step)

    def sample(self, ordinal: int) -> tuple[Experience, ...]:
        """Two responses whose tokens follow from weights, prompt and seed: sampled again they are the same."""
        prompt = self.stream[ordinal]
        group = []
        for index in range(2):
            text = b"%s %d %d" % (self.weights, prompt.token_ids[0], sample_seed(SEED, ordinal, index))
            ids = np.frombuffer(hashlib.sha256(text).digest()[:12], np.int32).copy()
            versions = np.full(3, self.ledger.version, np.int32)
            rollout = Rollout(ordinal, index, ids, ids.astype(np.float32), versions, "stop")
            group.append(Experience(prompt, rollout, (Verdict("x", "correct", 1.0, 0.0),), 1.0))
        return tuple(group)

    def go(self) -> None:
        while not self.ledger.done:
            for ordinal in self.ledger.admit(self.luck.choice([None, 1, 3])):
                if sample_seed(9, ordinal, 0) % 5 == 0:
                    self.ledger.filtered(ordinal, "equal rewards")
                    continue
                if self.luck.random() < 0.05:
                    self.ledger.failed(ordinal, "died")
                    continue
                group = self.sample(ordinal)
                assert self.ledger.finished(ordinal, self.ledger.version, self.ledger.version)
                self.buffer.put(summarise(group), group)
            batch = self.ledger.take_batch()
            self.buffer.retain([*self.ledger.buffered, *(batch.ordinals if batch else ())])
            if batch is None:
                continue
            for group in self.buffer.take(batch.ordinals):
                for experience in group.reference:
                    text = self.weights + experience.rollout.response_ids.tobytes()
                    self.weights = hashlib.sha256(text).hexdigest().encode()
            self.step += 1
            self.ledger.trained(batch, self.step)
            if self.step % 2 == 0 or self.ledger.done:
                self.commit()
            self.ledger.published(self.step)

    def commit(self) -> None:
        position = self.chain.append(end.record(ordinal) for ordinal, end in self.ledger.drain_ends())
        transaction = self.store.begin(self.step)
        (transaction.folder / "weights").write_bytes(self.weights)
        save_rollouts(transaction.folder / "rollouts", finished=[group.reference for group in self.buffer.groups()])
        transaction.commit(metadata={"ledger": self.ledger.state_dict(), "ends": position})
        self.store.remove_old()


def summarise(group: tuple[Experience, ...]) -> GroupSummary:
    versions = np.concatenate([experience.rollout.versions for experience in group])
    oldest, newest = int(versions.min()), int(versions.max())
    return GroupSummary(group[0].prompt.ordinal, (3, 3), 1, oldest, newest, ("stop", "stop"), (0.0, 0.0), ((), ()))


def killed_run(folder: Path, settings: LedgerSettings, luck: int) -> None:
    """One start of the run, killed after a random number of events if it is not through by then."""
    die_at_event(random.Random(luck).randint(20, 170))
    Run(folder, settings, luck).go()


def finish(folder: Path, settings: LedgerSettings, first_luck: int) -> tuple[int, list[int]]:
    """Starts the run until it ends; gives the number of kills, and the step that each start went on from."""
    steps: list[int] = []
    for luck in range(first_luck, first_luck + 500):
        steps.append(max(CheckpointStore(folder / "checkpoints").steps, default=0))
        exit_code = run_child(killed_run, folder, settings, luck)
        assert exit_code in (0, -signal.SIGKILL)
        if exit_code == 0:
            return luck - first_luck, steps
    raise AssertionError("the run never came to its end")


def audit(folder: Path, settings: LedgerSettings) -> bytes:
    found = CheckpointStore(folder / "checkpoints").recover()
    assert found.checkpoint is not None and found.checkpoint.step == settings.total_batches
    ledger = Ledger.from_state_dict(settings, found.checkpoint.manifest.metadata["ledger"])
    kinds = audit_ends(ChainFile(folder / "ends.jsonl").records(), ledger.low_water_mark)
    assert ledger.num_in_flight == 0 and kinds.total() == ledger.low_water_mark
    assert kinds["trained"] == settings.total_batches * settings.batch_groups and kinds["filtered"] > 0
    return found.checkpoint.open("weights").read()


def test_a_synchronous_run_killed_again_and_again_ends_with_the_weights_of_one_that_was_not(tmp_path: Path):
    (tmp_path / "whole").mkdir()
    Run(tmp_path / "whole", SETTINGS, luck=0).go()
    expected = audit(tmp_path / "whole", SETTINGS)
    num_kills = 0
    for attempt in range(5):
        folder = tmp_path / f"killed-{attempt}"
        folder.mkdir()
        kills, steps = finish(folder, SETTINGS, 1000 * (attempt + 1))
        assert steps == sorted(steps)  # the committed step never goes down
        assert audit(folder, SETTINGS) == expected
        num_kills += kills
    assert num_kills >= 20, num_kills


@pytest.mark.parametrize("max_staleness, over_age", [(1, "drop"), (3, "mask")])
def test_an_asynchronous_run_killed_again_and_again_trains_every_ordinal_once(tmp_path: Path, max_staleness, over_age):
    settings = replace(SETTINGS, max_staleness=max_staleness, over_age=over_age)
    kills, steps = finish(tmp_path, settings, 5000)
    assert kills >= 5 and steps == sorted(steps)
    audit(tmp_path, settings)
