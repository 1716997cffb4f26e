"""Time and memory of decontaminating MATH train against MATH test, at 1, 4 and 16 times the training rows.

    python bench/decontamination.py [--data ../shared/data] [--mode ngram] [--growth 1 4 16]

Each size runs in a process of its own, so that its peak memory is its own. Rows beyond the first 7,500 are the same
questions with their sentences in another order, by a seeded shuffle: as many tokens, other n-grams at the seams.
"""

import argparse
import gzip
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rlsys.data.decontamination import decontaminate
from rlsys.recipe.decontamination import Decontamination


def main() -> None:
    """Prints the table, or, called with --times, one row of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--mode", choices=("ngram", "exact", "char-ngram"), default="ngram")
    parser.add_argument("--growth", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.times is not None:
        print(measure(arguments.data, arguments.mode, arguments.times))
        return
    print(
        "| training rows | evaluation rows | seconds | rows/s | peak memory, MiB |\n|---|---|---|---|---|", flush=True
    )
    for times in arguments.growth:
        shared = ("--data", str(arguments.data), "--mode", arguments.mode)
        subprocess.run([sys.executable, __file__, *shared, "--times", str(times)], check=True)


def measure(data: Path, mode: str, times: int) -> str:
    """One row of the table: reading is not counted, indexing the evaluation set is."""
    import pyarrow.parquet as pq

    table = pq.read_table(data / "math" / "math_train.parquet", columns=["prompt"])["prompt"].to_pylist()
    train = [messages[0]["content"] for messages in table]
    with gzip.open(data / "math" / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        evaluation = [json.loads(line)["problem"] for line in file]
    settings = Decontamination.model_validate({"mode": mode})
    started = time.perf_counter()
    (pair,) = decontaminate({"train": _grown(train, times)}, {"math": evaluation}, settings).pairs
    seconds = time.perf_counter() - started
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = pair.num_train_rows
    return f"| {rows:,} | {pair.num_eval_rows:,} | {seconds:.2f} | {rows / seconds:,.0f} | {peak_mib:.0f} |"


def _grown(train: list[str], times: int) -> Iterator[str]:
    yield from train
    for copy in range(1, times):
        rng = random.Random(copy)
        for text in train:
            sentences = text.split(". ")
            rng.shuffle(sentences)
            yield ". ".join(sentences)


if __name__ == "__main__":
    main()
