"""Persona prompts: parsed, answered, and kept only where the real verifiers agree; killed anywhere they go on."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from scripted_writer import ScriptedWriter

from rlsys.data.judge_backend import Question
from rlsys.data.persona_tasks import TASKS, python_block, written_prompt
from rlsys.data.personas import read_personas, write_from_personas
from rlsys.data.reader import read_rows
from rlsys.errors import DataError
from rlsys.recipe.data import NearDuplicateSettings
from rlsys.recipe.decontamination import Decontamination
from rlsys.recipe.synthesis import PERSONA_TASKS, PersonaSettings, WriterSettings
from rlsys.types import Check, Outcome
from rlsys.verifiers.registry import get_verifier

PERSONAS = ["a beekeeper", "a tram driver", "a chess coach", "a baker"]
NUMBERS = {"a beekeeper": 2, "a tram driver": 3, "a chess coach": 5, "a baker": 7}


def judged(asked: Sequence[tuple[Check, str]]) -> list[Outcome]:
    """The real verifiers, in this process: the texts here are written by this file."""
    return [get_verifier(check.verifier).judge(text, check.ground_truth, "reward").outcome for check, text in asked]


def script(question: Question) -> str | None:
    """Writes prompts that name their persona; answers sums right twice of three times, and constraints not always."""
    key, asked = question.key, question.messages[-1]["content"]
    name, _, kind, *sample = key.split("/")
    if kind == "prompt":
        persona = next(one for one in PERSONAS if one in asked)
        return {
            "math": f"Of course. Problem: What is {NUMBERS[persona]}^2 for {persona}?\n\nSolution: no",
            "grade_school_math": f"Problem: {persona} has {NUMBERS[persona]} hats and buys 10 more. How many hats now?",
            "algebra": f"I cannot think of a problem about {persona}.",
            "code": f"Task: Write hats(n) that says how many hats {persona} has.",
            "instruction": f"Request: Explain to {persona} why rain falls.",
        }[name]
    number = next(NUMBERS[one] for one in PERSONAS if one in asked)
    wrong = sample == ["1"]
    if name == "math":
        return rf"It is {number} times itself, so \boxed{{{number**2 + wrong}}}."
    if name == "grade_school_math":
        if number == 7:
            return f"I guess.\n#### {20 + int(sample[0])}"  # no two answers agree
        return f"{number} + 10 = {number + 10}.\n#### {number + 10 + wrong}.00"
    if name == "code":
        return "```python\ndef hats(n:\n```" if wrong or number == 7 else "```python\ndef hats(n):\n    return n\n```"
    return "the rain falls, because clouds are heavy" if number == 7 else "RAIN"


def settings(folder: Path, **changes: object) -> PersonaSettings:
    (folder / "personas.txt").write_text("\n".join([*PERSONAS, "", PERSONAS[0]]) + "\n")
    writer = WriterSettings(local_model="scripted")
    given = {
        "writer": writer,
        "personas": str(folder / "personas.txt"),
        "prompts_per_task": 4,
        "max_constraints": 1,
        "similarity": 1.0,
    }
    return PersonaSettings(**given | changes)  # pyright: ignore[reportArgumentType]


def write(folder: Path, recipe: PersonaSettings, writer: ScriptedWriter, name: str = "out"):
    return asyncio.run(write_from_personas(recipe, writer, judged, folder / name))


def test_only_what_the_verifiers_accept_is_kept(tmp_path: Path):
    made = write(tmp_path, settings(tmp_path), ScriptedWriter(script))
    kept = Counter(row.source for row in made.rows)
    assert kept["persona_math"] == 4
    assert kept["persona_grade_school_math"] == 3  # the baker's answers all differ
    assert kept["persona_code"] == 3
    assert kept["persona_algebra"] == 0
    assert made.counts["prompt_unreadable"] == 4
    assert made.counts["not_verified/grade_school_math"] == 1
    assert made.counts["rows"] == len(made.rows)
    rows = {row.messages[0]["content"]: row for row in made.rows}
    square = rows["What is 5^2 for a chess coach?"]
    assert square.checks == (Check("math", "25"),)
    assert square.response == r"It is 5 times itself, so \boxed{25}."
    assert square.origin.line == 3
    hats = rows["a beekeeper has 2 hats and buys 10 more. How many hats now?"]
    assert hats.checks == (Check("gsm8k", "12.00"),)
    for row in made.rows:
        for check in row.checks:
            assert judged([(check, str(row.response))]) == ["correct"]
    card = json.loads((tmp_path / "out" / "data_card.json").read_text())
    assert (card["marks"], card["written_by"], card["rows"]) == (["synthetic"], "scripted", len(made.rows))
    assert list(read_rows(tmp_path / "out" / "rows.jsonl")) == list(made.rows)


def test_constraints_are_verified(tmp_path: Path):
    made = write(tmp_path, settings(tmp_path, tasks=("instruction",)), ScriptedWriter(script))
    verified = 0
    for row in made.rows:
        (check,) = row.checks
        assert check.verifier == "ifeval"
        assert judged([(check, str(row.response))]) == ["correct"]
        verified += 1
    assert made.counts.get("verified/instruction", 0) == verified
    assert verified + made.counts.get("not_verified/instruction", 0) == 4


def test_a_killed_run_goes_on_without_asking_twice(tmp_path: Path):
    recipe = settings(tmp_path)
    whole_writer = ScriptedWriter(script)
    whole = write(tmp_path, recipe, whole_writer, "whole")
    total = whole_writer.asked.total()
    asked: Counter[str] = Counter()
    for stop_after in (7, 13, 11):
        writer = ScriptedWriter(script, stop_after=stop_after)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, recipe, writer, "killed")
        asked += writer.asked
    last = ScriptedWriter(script)
    resumed = write(tmp_path, recipe, last, "killed")
    asked += last.asked
    assert resumed.rows == whole.rows
    assert (tmp_path / "killed" / "rows.jsonl").read_bytes() == (tmp_path / "whole" / "rows.jsonl").read_bytes()
    assert asked == whole_writer.asked
    assert set(asked.values()) == {1} and total == last.asked.total() + 31


def test_failures_are_counted_and_asked_again_next_time(tmp_path: Path):
    recipe = settings(tmp_path, tasks=("math",), min_agreeing=1)
    failing = ScriptedWriter(lambda question: None if question.key.endswith("answer/0") else script(question))
    first = write(tmp_path, recipe, failing)
    assert (first.counts["failed"], first.counts["failed/timeout"]) == (4, 4)
    second = ScriptedWriter(script)
    write(tmp_path, recipe, second)
    assert {key.rsplit("/", 2)[-1] for key in second.asked} == {"0"}
    assert second.asked.total() == 4


def test_prompts_like_earlier_ones_are_not_new(tmp_path: Path):
    made = write(tmp_path, settings(tmp_path, tasks=("math", "code"), similarity=0.5), ScriptedWriter(script))
    # "What is N^2 for a …?" shares half of its words with any other, and is compared within its task alone
    assert made.counts["prompt_not_new"] == 6
    assert [row.source for row in made.rows] == ["persona_math", "persona_code"]


def test_near_duplicates_across_tasks_and_evaluation_prompts_are_dropped(tmp_path: Path):
    evals = tmp_path / "evals.jsonl"
    evals.write_text(json.dumps({"prompt": "Write hats(n) that says how many hats a baker has."}) + "\n")
    recipe = settings(
        tmp_path,
        tasks=("code", "math"),
        near_duplicates=NearDuplicateSettings(threshold=0.9),
        decontamination=Decontamination(evals=(str(evals),)),
    )
    made = write(tmp_path, recipe, ScriptedWriter(script))
    assert {row.source for row in made.rows} == {"persona_math"}
    assert made.counts["contaminated"] == 3
    assert made.counts["near_duplicate"] == 0
    assert json.loads((tmp_path / "out" / "decontamination.json").read_text())["pairs"]


def test_nothing_left_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="no synthetic row is left"):
        write(tmp_path, settings(tmp_path, tasks=("algebra",)), ScriptedWriter(script))


def test_personas_are_read_once_each(tmp_path: Path):
    settings(tmp_path)
    assert [(one.text, one.origin.line) for one in read_personas(str(tmp_path / "personas.txt"))] == [
        (text, line) for line, text in enumerate(PERSONAS, 1)
    ]
    (tmp_path / "personas.jsonl").write_text('{"persona": "a poet", "id": 1}\n{"oops"\n')
    assert [one.text for one in read_personas(str(tmp_path / "personas.jsonl"))] == ["a poet"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match="no persona"):
        read_personas(str(tmp_path / "empty.txt"))


@pytest.mark.parametrize("name", PERSONA_TASKS)
def test_every_task_has_a_template_that_names_the_persona_and_the_marker(name: str):
    task = TASKS[name]  # pyright: ignore[reportArgumentType]
    asked = task.request("a {curly} poet")
    assert "a {curly} poet" in asked and "{persona}" not in asked
    assert task.marker in asked


def test_prompts_are_told_from_what_surrounds_them():
    task = TASKS["math"]
    assert written_prompt(task, "Sure! **Problem:** no. Problem: What is 3^4?\n\n**Solution:** 81") == "What is 3^4?"
    assert written_prompt(task, 'Problem: "What is 3^4?"') == "What is 3^4?"
    assert written_prompt(task, "What is 3^4?") is None
    assert written_prompt(task, "Problem: 3^4") is None
    assert written_prompt(task, "Problem: " + "word " * 401) is None


def test_code_must_parse_and_define():
    assert python_block("```python\ndef f():\n    return 1\n```") == "def f():\n    return 1\n"
    assert python_block("```py\nclass A:\n    pass\n```\nand\n```python\nprint(1)\n```") is None
    assert python_block("```python\ndef f(:\n```") is None
    assert python_block("def f(): pass") is None
    assert python_block("```python\n" + "(" * 5000 + "\n```") is None
