"""Times the accounting of rollouts and the checkpoints: `OMP_NUM_THREADS=1 python bench/asynchrony.py`.

Checkpoints are of random bytes, written to a temporary folder in `--folder` (the working directory), which should be
on the disk that runs are on.
"""

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np

from rlsys.checkpoint.checkpoint_store import CheckpointStore, latest_intact
from rlsys.checkpoint.seal import seal
from rlsys.rollouts.experience_buffer import balance
from rlsys.rollouts.ledger import Ledger
from rlsys.rollouts.ledger_records import LedgerSettings
from rlsys.rollouts.prompt_stream import permute, sample_seed

MIB = 1 << 20


def time_ledger(batch_groups: int, max_staleness: int, num_batches: int = 20) -> None:
    """A run in which the ledger is asked after every group, as the topology does."""
    settings = LedgerSettings(batch_groups=batch_groups, max_staleness=max_staleness, total_batches=num_batches)
    ledger, running, rng = Ledger(settings), [], random.Random(0)
    started = time.perf_counter()
    while not ledger.done:
        running += ledger.admit()
        ledger.finished(running.pop(rng.randrange(len(running))), ledger.version, ledger.version)
        batch = ledger.take_batch()
        if batch is not None:
            ledger.trained(batch, batch.index + 1)
            ledger.published(batch.index + 1)
            ledger.drain_ends()
    groups = batch_groups * num_batches
    each_us = 1e6 * (time.perf_counter() - started) / groups
    print(f"ledger, B = {batch_groups}, k = {max_staleness}: {each_us:.0f} us a group, all calls together")


def time_small_functions() -> None:
    """What is called once a prompt or once a batch."""
    started = time.perf_counter()
    for position in range(20_000):
        permute(position, size=29_946, key=(0, 0))
    print(f"prompt stream, 29,946 prompts: {1e6 * (time.perf_counter() - started) / 20_000:.1f} us a prompt")
    started = time.perf_counter()
    for ordinal in range(20_000):
        sample_seed(0, ordinal, 0)
    print(f"sample_seed: {1e6 * (time.perf_counter() - started) / 20_000:.1f} us")
    lengths = [int(n) for n in np.random.default_rng(0).gamma(2.0, 300.0, 1856)]
    started = time.perf_counter()
    shards = balance(lengths, 232)
    seconds = time.perf_counter() - started
    loads = [sum(lengths[index] for index in shard) for shard in shards]
    uneven = max(loads) * 232 / sum(loads)
    print(f"balance, 1,856 groups on 232 ranks: {1e3 * seconds:.0f} ms, heaviest / mean {uneven:.3f}")


def time_checkpoint(folder: Path, num_files: int, mib_each: int) -> None:
    """Write, seal, commit and verify, each by itself."""
    store = CheckpointStore(folder)
    payload = np.random.default_rng(0).bytes(mib_each * MIB)
    transaction = store.begin(num_files)
    laps = [time.perf_counter()]
    for index in range(num_files):
        (transaction.folder / f"rank_{index}.bin").write_bytes(payload)
    laps.append(time.perf_counter())
    sealed = seal(transaction.folder)
    laps.append(time.perf_counter())
    transaction.commit(sealed=sealed)
    laps.append(time.perf_counter())
    assert latest_intact(folder).checkpoint is not None
    laps.append(time.perf_counter())
    write, sync_and_digest, commit, verify = np.diff(laps)
    print(
        f"checkpoint, {num_files} files of {mib_each} MiB: write {write:.2f} s, "
        f"sync and digest {sync_and_digest:.2f} s, commit {commit:.3f} s, verify {verify:.2f} s"
    )


def main() -> None:
    """Prints a line a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("."))
    for batch_groups, max_staleness in ((16, 1), (224, 1), (1856, 1), (1856, 4)):
        time_ledger(batch_groups, max_staleness)
    time_small_functions()
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as scratch:
        for num_files, mib_each in ((8, 1), (8, 64), (64, 8)):
            time_checkpoint(Path(scratch, f"{num_files}x{mib_each}"), num_files, mib_each)


if __name__ == "__main__":
    main()
