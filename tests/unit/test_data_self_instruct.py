"""Growth from seed tasks: only new, usable tasks, the same after any number of kills, answered and counted."""

import asyncio
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from scripted_writer import ScriptedWriter

from rlsys.data.judge_backend import Question
from rlsys.data.novelty import rouge_l
from rlsys.data.self_instruct import grow_tasks, parse_tasks, refusal
from rlsys.errors import DataError
from rlsys.recipe.synthesis import SelfInstructSettings, WriterSettings

SEEDS = [
    "Name three rivers of Europe.",
    "Translate the sentence into French: Good morning.",
    "Why is the sky blue?",
    "Write a haiku about autumn leaves.",
    "Sort these numbers: 3, 1, 2.",
]
VERBS = ["Explain", "Compare", "List", "Describe", "Summarise", "Criticise", "Defend", "Rewrite"]
SUBJECTS = ["volcanoes", "parliament", "sourdough", "jazz harmony", "tax law", "penguins", "glass", "wedding customs"]


def script(question: Question) -> str | None:
    """Continues the list with two new tasks, one seed task again, one that needs a picture, and one that breaks off."""
    asked = question.messages[-1]["content"]
    if question.key.startswith("answer/"):
        return "I am ChatGPT." if "penguins" in asked else f"An answer to: {asked}"
    _, number, place = question.key.split("/")
    shown = [int(mark) for mark in re.findall(r"^(\d+)\. ", asked, re.MULTILINE)]
    index = int(number) * 2 + int(place)
    tasks = [
        f"{VERBS[index % 8]} what matters about {SUBJECTS[index * 3 % 8]} to {SUBJECTS[(index + 2) % 8]}, at {index}.",
        SEEDS[index % len(SEEDS)],
        "Describe the picture on the left side.",
        f"Give {index + 2} reasons against {SUBJECTS[(index * 5 + 1) % 8]}; {VERBS[(index + 3) % 8].lower()} one.",
        "Write a story that",
    ]
    return "Here you are:\n" + "\n".join(f"{len(shown) + place + 1}. {task}" for place, task in enumerate(tasks))


def settings(folder: Path, **changes: object) -> SelfInstructSettings:
    seeds = folder / "seeds.jsonl"
    seeds.write_text("".join(json.dumps({"instruction": seed, "output": "x"}) + "\n" for seed in SEEDS))
    given = {
        "writer": WriterSettings(local_model="scripted"),
        "seeds": str(seeds),
        "target": 12,
        "requests_per_round": 2,
        "seed_examples": 3,
        "grown_examples": 2,
    }
    return SelfInstructSettings(**given | changes)  # pyright: ignore[reportArgumentType]


def grow(folder: Path, recipe: SelfInstructSettings, writer: ScriptedWriter, name: str = "out"):
    return asyncio.run(grow_tasks(recipe, writer, folder / name))


def test_tasks_are_new_usable_and_answered(tmp_path: Path):
    writer = ScriptedWriter(script)
    made = grow(tmp_path, settings(tmp_path), writer)
    tasks = [row.messages[0]["content"] for row in made.rows]
    assert made.counts["grown"] == 12
    assert len(tasks) == 12 - made.counts["answer/other_models"] == made.counts["rows"]
    assert made.counts["answer/other_models"] > 0
    everything = [*SEEDS, *tasks]
    for place, task in enumerate(tasks):
        assert max(rouge_l(task, other) for other in everything[: len(SEEDS) + place]) < 0.7
        assert made.rows[place].response == f"An answer to: {task}"
    assert made.counts["task/not_text"] == made.counts["rounds"] * 2
    assert made.counts["task/not_new"] >= made.counts["rounds"] * 2 - 1
    card = json.loads((tmp_path / "out" / "data_card.json").read_text())
    assert card["marks"] == ["synthetic"] and card["sources"] == {"self_instruct": len(tasks)}


def test_requests_show_seeds_and_then_grown_tasks(tmp_path: Path):
    shown: dict[str, str] = {}

    def spy(question: Question) -> str | None:
        shown[question.key] = question.messages[-1]["content"]
        return script(question)

    grow(tmp_path, settings(tmp_path), ScriptedWriter(spy))
    first, later = shown["round/0/0"], shown["round/1/0"]
    assert sum(seed in first for seed in SEEDS) == 5 and "what matters" not in first
    assert sum(seed in later for seed in SEEDS) == 3
    assert "Go on with numbers 6 to 13" in first


def test_a_killed_growth_comes_out_the_same(tmp_path: Path):
    recipe = settings(tmp_path)
    whole_writer = ScriptedWriter(script)
    whole = grow(tmp_path, recipe, whole_writer, "whole")
    asked: Counter[str] = Counter()
    for stop_after in (3, 4, 5):
        writer = ScriptedWriter(script, stop_after=stop_after)
        with pytest.raises(KeyboardInterrupt):
            grow(tmp_path, recipe, writer, "killed")
        asked += writer.asked
    last = ScriptedWriter(script)
    resumed = grow(tmp_path, recipe, last, "killed")
    assert resumed.rows == whole.rows
    assert asked + last.asked == whole_writer.asked
    assert set(whole_writer.asked.values()) == {1}


def test_growth_ends_after_its_rounds(tmp_path: Path):
    made = grow(tmp_path, settings(tmp_path, target=1000, max_rounds=3), ScriptedWriter(script))
    assert made.counts["rounds"] == 3
    assert made.counts["grown"] < 1000


def test_no_seeds_or_nothing_grown_is_an_error(tmp_path: Path):
    recipe = settings(tmp_path, max_rounds=1)
    with pytest.raises(DataError, match="no synthetic row"):
        grow(tmp_path, recipe, ScriptedWriter(lambda question: "I would rather not."))
    (tmp_path / "seeds.jsonl").write_text('{"nothing": 1}\n')
    with pytest.raises(DataError, match="no seed task"):
        grow(tmp_path, recipe, ScriptedWriter(script), "other")


def test_lists_are_parsed():
    assert parse_tasks("9. Name a river.\n 10) Sort\n a list?\nTask 11: Why") == ["Name a river.", "Sort a list?"]
    assert parse_tasks("no list at all.") == []
    assert parse_tasks("1. \n2. Do it.") == ["Do it."]


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("Go on.", "too_short"),
        ("word " * 151, "too_long"),
        ("Describe what the image shows us.", "not_text"),
        ("- write a list of things", "odd_start"),
        ('"Carpe diem" means what exactly?', None),
        ("Imagine a world without money.", None),
    ],
)
def test_unusable_tasks_are_refused(tmp_path: Path, task: str, reason: str | None):
    assert refusal(task, settings(tmp_path)) == reason
