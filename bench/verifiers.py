"""Measures the verifiers on the real sets, and the pool against bare math-verify.

python bench/verifiers.py gold      every GSM8K and MATH gold against itself and against its neighbour
python bench/verifiers.py triples   the labelled triples, with each disagreement
python bench/verifiers.py speed     verdicts per core, through the pool and bare
python bench/verifiers.py scaling   verdicts per second by number of workers
python bench/verifiers.py hang      1,000 requests of which 50 hang
python bench/verifiers.py memory    memory of a worker over 100,000 verdicts

The sets are looked for in ../shared/data. "Per core" counts the CPU seconds of every process that takes part (this one,
the broker, the workers), so that other load on the machine changes nothing.
"""

import argparse
import gzip
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from rlsys.verifiers.boxes import find_boxes
from rlsys.verifiers.pool import VerifierPool, VerifyRequest

DATA = Path(__file__).parents[2] / "shared" / "data"


def rows_of(path: str) -> list[dict]:
    with gzip.open(DATA / path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def gsm8k(split: str) -> list[tuple[str, str]]:
    """(solution, answer) of a split."""
    return [(row["answer"], row["answer"].rpartition("####")[2].strip()) for row in rows_of(f"gsm8k/{split}.jsonl.gz")]


def math(split: str) -> list[tuple[str, str]]:
    """(solution, answer) of a split; the answer is what the last box holds."""
    if split == "train":
        import pyarrow.parquet as parquet

        table = parquet.read_table(DATA / "math" / "math_train.parquet", columns=["reward_model"])
        solutions = [row["ground_truth"]["solution"] for row in table["reward_model"].to_pylist()]
    else:
        solutions = [row["solution"] for row in rows_of("math/test.jsonl.gz")]
    return [(solution, find_boxes(solution)[-1].content) for solution in solutions]


def neighbours(answers: list[str]) -> Iterator[tuple[str, str]]:
    """Each gold with the next one that is written differently."""
    for place, gold in enumerate(answers):
        other = next((answer for answer in answers[place + 1 :] if answer != gold), None)
        if other is not None:
            yield gold, other


def measure_gold(pool: VerifierPool) -> None:
    for name, load, frame in (("gsm8k", gsm8k, "#### {}"), ("math", math, "\\boxed{{{}}}")):
        for split in ("train", "test"):
            rows = load(split)
            own = pool.verify_many([VerifyRequest(name, gold, solution) for solution, gold in rows])
            wrong = [(gold, verdict) for (_, gold), verdict in zip(rows, own, strict=True) if verdict.score < 1]
            share = 1 - len(wrong) / len(rows)
            print(
                f"{name} {split}: {len(rows)} golds, {len(wrong)} not correct against themselves ({share:.2%} correct)"
            )
            for gold, verdict in wrong:
                print(f"    {gold!r}: {verdict.outcome} {dict(verdict.detail)}"[:200])
            pairs = list(neighbours([gold for _, gold in rows]))
            crossed = pool.verify_many([VerifyRequest(name, gold, frame.format(other)) for gold, other in pairs])
            paid = [pair for pair, verdict in zip(pairs, crossed, strict=True) if verdict.score > 0]
            print(f"{name} {split}: {len(pairs)} golds against their neighbour's answer, {len(paid)} rewarded: {paid}")


def measure_triples(pool: VerifierPool) -> None:
    rows = rows_of("verifiers/math_triples.jsonl.gz")
    names = ["gsm8k" if row["kind"].startswith("gsm8k") else "math" for row in rows]
    requests = [
        VerifyRequest(name, row["gold"], row["response"], "eval") for name, row in zip(names, rows, strict=True)
    ]
    verdicts = pool.verify_many(requests)
    disagreements = [
        (place, row, verdict)
        for place, (row, verdict) in enumerate(zip(rows, verdicts, strict=True))
        if verdict.score != row["expected"]
    ]
    print(f"triples: {len(rows)}, agreement {1 - len(disagreements) / len(rows):.2%}")
    for place, row, verdict in disagreements:
        said = verdict.detail.get("reason", "")
        print(
            f"    {place}: expected {row['expected']}, gold {row['gold']!r}, "
            f"{row['response'][-90:]!r}: {verdict.outcome} {said}"
        )


def group_cpu_seconds(group: int) -> float:
    """CPU time of all processes of a process group, with that of their children that ended."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += sum(int(ticks) for ticks in fields[11:15])
    return total / os.sysconf("SC_CLK_TCK")


def per_core(pool: VerifierPool, requests: list[VerifyRequest]) -> float:
    """Verdicts per CPU second of everything involved."""
    pool.verify_many(requests[:200])
    before = group_cpu_seconds(pool.broker_pid) + time.process_time()
    pool.verify_many(requests)
    return len(requests) / (group_cpu_seconds(pool.broker_pid) + time.process_time() - before)


def easy_math(number: int) -> list[VerifyRequest]:
    response = "The two numbers add up to {}, and therefore the final result is $\\boxed{{{}}}$."
    return [VerifyRequest("math", str(n), response.format(n, n)) for n in range(number)]


def bare_math_verify(requests: Iterable[VerifyRequest]) -> float:
    """The same by calling math-verify in this process, per CPU second."""
    import math_verify

    logging.disable(logging.WARNING)
    requests = list(requests)
    started = time.process_time()
    for request in requests:
        gold = math_verify.parse(f"${request.ground_truth}$", parsing_timeout=None)  # pyright: ignore
        answer = math_verify.parse(request.response, parsing_timeout=None)  # pyright: ignore
        assert math_verify.verify(gold, answer, timeout_seconds=None)
    return len(requests) / (time.process_time() - started)


def ifeval_requests(number: int, *, language: bool) -> list[VerifyRequest]:
    """Real GPT-4 responses; with the language check, or without any."""
    requests = []
    for row in rows_of("ifeval/gpt4_verdicts_half.jsonl.gz"):
        keep = [
            place for place, name in enumerate(row["instruction_id_list"]) if name.startswith("language:") is language
        ]
        truth = {
            "instruction_id_list": [row["instruction_id_list"][place] for place in keep],
            "kwargs": [row["kwargs"][place] for place in keep],
        }
        if keep and not (not language and any("english" in name for name in truth["instruction_id_list"])):
            requests.append(VerifyRequest("ifeval", truth, row["response"]))
    return (requests * (number // len(requests) + 1))[:number]


def measure_speed(pool: VerifierPool) -> None:
    easy = easy_math(4_000)
    through, bare = per_core(pool, easy), bare_math_verify(easy[:1_000])
    print(
        f"easy math: {through:,.0f} verdicts per core through the pool, "
        f"{bare:,.0f} bare math-verify ({through / bare:.0%})"
    )
    hard = [VerifyRequest("math", gold, solution) for solution, gold in math("test")]
    print(f"MATH test solutions: {per_core(pool, hard):,.0f} verdicts per core")
    solved = [VerifyRequest("gsm8k", gold, solution) for solution, gold in gsm8k("train")]
    print(f"GSM8K: {per_core(pool, solved):,.0f} verdicts per core")
    print(f"IFEval: {per_core(pool, ifeval_requests(4_000, language=False)):,.0f} verdicts per core")
    print(f"IFEval, language checks: {per_core(pool, ifeval_requests(300, language=True)):,.0f} verdicts per core")


def measure_scaling(_: VerifierPool) -> None:
    requests = [VerifyRequest("math", gold, solution) for solution, gold in math("test")] * 2
    for num_workers in (1, 2, 3, 4)[: os.cpu_count()]:
        with VerifierPool(num_workers) as pool:
            pool.verify_many(requests[:500])
            started = time.perf_counter()
            pool.verify_many(requests)
            print(f"{num_workers} workers: {len(requests) / (time.perf_counter() - started):,.0f} verdicts/s")


def measure_hang(_: VerifierPool) -> None:
    """50 of 1,000 spin until their limit of one CPU second."""
    with VerifierPool(2, cpu_limit_s=1.0, modules=["spinning_verifier"]) as pool:
        requests = [VerifyRequest("spin" if n % 20 == 7 else "gsm8k", "18", "#### 18") for n in range(1_000)]
        started = time.perf_counter()
        verdicts = pool.verify_many(requests)
        elapsed = time.perf_counter() - started
        print(
            f"{Counter((v.verifier, v.outcome) for v in verdicts)} in {elapsed:.1f} s, "
            "of which hangs cost 25.0 s at the least"
        )
        started = time.perf_counter()
        again = Counter(v.outcome for v in pool.verify_many([r for r in requests if r.verifier == "gsm8k"]))
        print(f"right after: {again} in {time.perf_counter() - started:.2f} s")


def worker_memory_mib(group: int) -> list[float]:
    """Resident memory of the processes of a group, largest first."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            found.append(int(fields[21]) * os.sysconf("SC_PAGE_SIZE") / 2**20)
    return sorted(found, reverse=True)


def measure_memory(_: VerifierPool) -> None:
    requests = [VerifyRequest("math", gold, solution) for solution, gold in math("test")]
    requests += [VerifyRequest("gsm8k", gold, solution) for solution, gold in gsm8k("train")]
    with VerifierPool(2) as pool:
        done = 0
        while done < 100_000:
            pool.verify_many(requests[:10_000])
            done += 10_000
            print(
                f"{done} verdicts: {[f'{mib:.0f}' for mib in worker_memory_mib(pool.broker_pid)]} MiB (all processes)"
            )


MEASUREMENTS: dict[str, Callable[[VerifierPool], None]] = {
    "gold": measure_gold,
    "triples": measure_triples,
    "speed": measure_speed,
    "scaling": measure_scaling,
    "hang": measure_hang,
    "memory": measure_memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurement", choices=MEASUREMENTS)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    with VerifierPool(arguments.workers) as pool:
        MEASUREMENTS[arguments.measurement](pool)


if __name__ == "__main__":
    main()
