"""Times instruction-following verdicts on real GPT-4 responses: `python bench/ifeval.py`, on one core.

A verdict is one response with all its instructions. Seconds are of CPU time, so that other work on the machine does not
count. Reads ../shared/data/ifeval.
"""

import argparse
import gzip
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rlsys.verifiers.ifeval import verify_ifeval
from rlsys.verifiers.ifeval.language import detect_language

DATA = Path(__file__).parents[2] / "shared/data/ifeval/gpt4_verdicts_half.jsonl.gz"
NEVER = {"instruction_id_list": ["language:response_language"], "kwargs": [{"language": "sw"}]}

Row: TypeAlias = dict[str, Any]


def read_rows() -> list[Row]:
    """The responses with their instruction lists."""
    with gzip.open(DATA, "rt") as lines:
        return [json.loads(line) for line in lines]


def truth_of(row: Row) -> dict[str, Any]:
    """The ground truth of a row."""
    return {"instruction_id_list": row["instruction_id_list"], "kwargs": row["kwargs"]}


def per_second(act: Callable[[Row], object], rows: Sequence[Row], seconds: float) -> float:
    """How often `act` runs in a second of CPU time, over all rows again and again."""
    num_done, started = 0, time.process_time()
    while time.process_time() - started < seconds:
        for row in rows:
            act(row)
        num_done += len(rows)
    return num_done / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=4.0, help="CPU seconds for each line")
    seconds = parser.parse_args().seconds
    rows = read_rows()
    in_language = [row for row in rows if "language:response_language" in row["instruction_id_list"]]
    in_case = [row for row in rows if any(id.startswith("change_case:english") for id in row["instruction_id_list"])]
    others = [row for row in rows if row not in in_language and row not in in_case]
    for row in rows:
        verify_ifeval(row["response"], truth_of(row), "eval")
    for name, some in (("neither", others), ("one case", in_case), ("one language", in_language), ("all", rows)):
        for mode in ("reward", "eval"):
            rate = per_second(lambda row, mode=mode: verify_ifeval(row["response"], truth_of(row), mode), some, seconds)
            print(f"{mode:>6}, {name:>12} ({len(some):>3} responses): {rate:>7,.0f} verdicts/s")
    wrong = per_second(lambda row: verify_ifeval(row["response"], NEVER, "reward"), rows, seconds)
    print(f"reward, in another language than asked, strict and loose: {wrong:,.0f} verdicts/s")
    print(f"detect_language: {per_second(lambda row: detect_language(row['response']), rows, seconds):,.0f} texts/s")


if __name__ == "__main__":
    main()
