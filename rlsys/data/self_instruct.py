"""Grows tasks from seed tasks: a model is shown some and writes more; what is new is answered and kept.

    seeds + grown --draw--> requests --writer--> tasks --new? usable?--> grown      (rounds, until the target)
    grown --writer--> answers --decontaminated--> rows.jsonl

After Wang et al., Self-Instruct (arXiv 2212.10560). After a kill it asks for what answers.jsonl does not have: rounds
are replayed from it, and since every draw depends on the seed alone, they come out the same.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rlsys.data.asking import ask_all
from rlsys.data.drops import DropLog
from rlsys.data.filters import RowFilter
from rlsys.data.judge_backend import Question, TextBackend
from rlsys.data.novelty import NoveltyFilter
from rlsys.data.preference_pairs import seeded_random
from rlsys.data.reader import read_rows
from rlsys.data.response_store import ResponseStore
from rlsys.data.row import Origin, Row
from rlsys.data.synthetic_rows import Synthetic, finish_rows
from rlsys.errors import DataError
from rlsys.recipe.data import FilterSettings
from rlsys.recipe.synthesis import SelfInstructSettings

_ITEM = re.compile(r"^\s*(?:Task\s*)?\d+\s*[.):]\s*", re.MULTILINE)
_NEEDS_MORE_THAN_TEXT = re.compile(
    r"\b(?:image|images|picture|photo|graph|graphs|plot|video|audio|file|files|map|attached|attachment|link)\b",
    re.IGNORECASE,
)
"""Tasks that a model of text cannot do, as the paper leaves out."""


async def grow_tasks(settings: SelfInstructSettings, writer: TextBackend, folder: Path) -> Synthetic:
    """Grows and answers tasks until there are as many as wanted; goes on where the folder was left.

    Args:
        settings: seeds, target, filters.
        writer: the model that writes and answers.
        folder: gets answers.jsonl, rows.jsonl and data_card.json.

    Raises:
        DataError: no seed task, or nothing is left.
    """
    counts: Counter[str] = Counter()
    seeds = _seed_tasks(settings, counts)
    with ResponseStore(folder / "answers.jsonl") as store:
        grown = await _grow(settings, seeds, writer, store, counts)
        questions = [
            Question(f"answer/{number}", ({"role": "user", "content": task},)) for number, task in enumerate(grown)
        ]
        answers = await ask_all(writer, questions, store, counts)
    keep = RowFilter(FilterSettings(other_models=True))
    rows = []
    for number, task in enumerate(grown):
        answer = answers.get(f"answer/{number}", "").strip()
        messages = ({"role": "user", "content": task}, {"role": "assistant", "content": answer})
        row = Row(f"self_instruct/{number}", "self_instruct", Origin(settings.seeds, 1), messages)
        if not answer:
            counts["answer_empty"] += 1
        elif (reason := keep.reason_to_remove(row)) is not None:
            counts[f"answer/{reason}"] += 1
        else:
            rows.append(row)
    return finish_rows(rows, counts, folder, writer=writer.name, gate=settings.decontamination, seed=settings.seed)


def parse_tasks(text: str) -> list[str]:
    """The tasks of a numbered list; what stands before it, and a last task that breaks off, are left out.

    >>> parse_tasks("Sure:\\n9. Name three rivers.\\n10) Sort a list.\\n11. Write about")
    ['Name three rivers.', 'Sort a list.']
    """
    tasks = [" ".join(piece.split()) for piece in _ITEM.split(text)[1:]]
    if tasks and not tasks[-1].endswith((".", "?", "!", '"', ")", ":")):
        tasks.pop()
    return [task for task in tasks if task]


def refusal(task: str, settings: SelfInstructSettings) -> str | None:
    """Why a task is unusable: `too_short`, `too_long`, `not_text` or `odd_start`; None if it is usable."""
    words = task.split()
    if len(words) < settings.min_words:
        return "too_short"
    if len(words) > settings.max_words:
        return "too_long"
    if _NEEDS_MORE_THAN_TEXT.search(task):
        return "not_text"
    if not task[0].isalnum() and task[0] not in "\"'(":
        return "odd_start"
    return None


def _seed_tasks(settings: SelfInstructSettings, counts: Counter[str]) -> list[str]:
    drops = DropLog()
    prompts = (row.prompt for row in read_rows(settings.seeds, drops=drops))
    tasks = list(dict.fromkeys(" ".join(prompt[-1]["content"].split()) for prompt in prompts if prompt))
    counts.update({f"seed/{reason}": count for reason, count in drops.by_reason.items()})
    counts["seeds"] = len(tasks)
    if not tasks:
        raise DataError("the file has no seed task", value=settings.seeds, fix="give conversations or instructions")
    return tasks


async def _grow(
    settings: SelfInstructSettings,
    seeds: Sequence[str],
    writer: TextBackend,
    store: ResponseStore,
    counts: Counter[str],
) -> list[str]:
    novelty = NoveltyFilter(settings.similarity)
    for task in seeds:
        novelty.admit(task)
    grown: list[str] = []
    for number in range(settings.max_rounds):
        shown = [_examples(settings, seeds, grown, f"{number}/{place}") for place in range(settings.requests_per_round)]
        questions = [
            Question(f"round/{number}/{place}", ({"role": "user", "content": _request(examples, settings)},))
            for place, examples in enumerate(shown)
        ]
        texts = await ask_all(writer, questions, store, counts, with_cut=True)  # of a list the whole tasks are read
        counts["rounds"] += 1
        for question in questions:
            for task in parse_tasks(texts.get(question.key, "")):
                reason = refusal(task, settings) or (None if novelty.admit(task) else "not_new")
                if reason is not None:
                    counts[f"task/{reason}"] += 1
                    continue
                grown.append(task)
                if len(grown) == settings.target:
                    counts["grown"] = len(grown)
                    return grown
    counts["grown"] = len(grown)
    return grown


def _examples(settings: SelfInstructSettings, seeds: Sequence[str], grown: Sequence[str], place: str) -> list[str]:
    rng = seeded_random(settings.seed, "examples", place)
    own = rng.sample(grown, min(settings.grown_examples, len(grown)))
    wanted = settings.seed_examples + settings.grown_examples - len(own)
    examples = rng.sample(seeds, min(wanted, len(seeds))) + own
    rng.shuffle(examples)
    return examples


def _request(examples: Sequence[str], settings: SelfInstructSettings) -> str:
    listing = "\n".join(f"{number}. {task}" for number, task in enumerate(examples, 1))
    last = len(examples) + settings.tasks_per_request
    return (
        "Here is a list of tasks for a helpful assistant that reads and writes text. Continue it with tasks of other "
        "kinds, on other subjects and in other words: questions, things to write, rewrite, sort, explain, work out. "
        "Each is complete in itself, in one to three sentences, and needs no picture, file or link.\n\n"
        f"{listing}\n\nGo on with numbers {len(examples) + 1} to {last}, one task a number, and write nothing else."
    )
