"""Writes the tiny world's files: demonstrations with bad habits, prompts with checks, held-out sets.

The demonstrator breaks each rule with a fixed probability, so that supervised fine-tuning does not saturate and most
prompts give both right and wrong samples: pairs for DPO, signal for PPO. Every file is a pure function of the seed.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from rlsys.quickstart import arithmetic, instructions

FORGOTTEN_CARRY_HABIT = 0.6
NO_BOX_HABIT = 0.1


def sum_row(rng: Random, *, held_out: bool, with_habits: bool) -> dict:
    """One sum: messages with a demonstration, and its check."""
    a, b = arithmetic.sample_sum(rng, held_out=held_out)
    answer = arithmetic.worked_answer(
        a,
        b,
        forget_carry=with_habits and rng.random() < FORGOTTEN_CARRY_HABIT,
        omit_box=with_habits and rng.random() < NO_BOX_HABIT,
    )
    return _row(arithmetic.sum_prompt(rng, a, b), answer, [{"verifier": "math", "ground_truth": str(a + b)}], "math")


def instruction_row(rng: Random, *, held_out: bool, with_habits: bool) -> dict:
    """One writing task: messages with a demonstration, and its checks."""
    task = instructions.sample_task(rng, held_out=held_out)
    answer = instructions.demonstrate(rng, task, with_habits=with_habits)
    return _row(instructions.task_prompt(task), answer, instructions.task_checks(task), "instructions")


def rows(seed: int, count: int, *, held_out: bool, with_habits: bool) -> Iterator[dict]:
    """`count` rows, the two kinds in turn; prompts of held-out rows are all different."""
    rng = Random(f"rlsys quickstart {seed} {held_out} {with_habits}")
    seen: set[str] = set()
    made = 0
    while made < count:
        make = (sum_row, instruction_row)[made % 2]
        row = make(rng, held_out=held_out, with_habits=with_habits)
        prompt = row["messages"][0]["content"]
        if held_out and prompt in seen:
            continue
        seen.add(prompt)
        made += 1
        yield row


def write_world(folder: Path, *, seed: int, demonstrations: int, prompts: int, held_out: int) -> dict[str, int]:
    """Writes demonstrations.jsonl, prompts.jsonl, development.jsonl and test.jsonl; returns the rows of each.

    The two held-out sets share no prompt with training or with each other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = [_without_answer(row) for row in rows(seed, 2 * held_out, held_out=True, with_habits=False)]
    files = {
        "demonstrations": list(rows(seed, demonstrations, held_out=False, with_habits=True)),
        "prompts": [_without_answer(row) for row in rows(seed + 1, prompts, held_out=False, with_habits=True)],
        "development": held[:held_out],
        "test": held[held_out:],
    }
    for name, content in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        (folder / f"{name}.jsonl").write_text(text)
    return {name: len(content) for name, content in files.items()}


def _row(prompt: str, answer: str, checks: list[dict], source: str) -> dict:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": messages, "checks": checks, "source": source}


def _without_answer(row: dict) -> dict:
    return {**row, "messages": row["messages"][:1]}
