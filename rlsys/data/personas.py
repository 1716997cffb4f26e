"""Prompts written in the voice of personas, answered several times, and kept where the verifiers agree.

    personas --draw--> requests --writer--> prompts --new?--> answers (n each) --verified--> rows --clean?--> rows.jsonl

consumes: a list of personas, a model     produces: answers.jsonl (all that was ever said), rows.jsonl, data_card.json
after a kill: asks for what answers.jsonl does not have, and for nothing else
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlsys.data.asking import ask_all
from rlsys.data.duplicates import DuplicateIndex, signature
from rlsys.data.judge_backend import Question, TextBackend
from rlsys.data.novelty import NoveltyFilter
from rlsys.data.persona_tasks import TASKS, PersonaTask, python_block, written_prompt
from rlsys.data.preference_constraints import VerifyAll, add_constraints
from rlsys.data.preference_records import PreferencePrompt
from rlsys.data.records import data_files, read_records
from rlsys.data.response_store import ResponseStore
from rlsys.data.row import Origin, Row
from rlsys.data.sampling import draw
from rlsys.data.synthetic_rows import Synthetic, finish_rows
from rlsys.errors import DataError
from rlsys.recipe.synthesis import PersonaSettings
from rlsys.types import Check


@dataclass(frozen=True, slots=True)
class Persona:
    """Someone in whose voice prompts are written."""

    text: str
    origin: Origin


def read_personas(path: str) -> list[Persona]:
    """The personas of a file: one a line, or JSON lines with the key `persona`; repeated ones count once.

    Raises:
        DataError: the file cannot be read, or has none.
    """
    found: dict[str, Persona] = {}
    for file in data_files(path):
        for record in read_records(file):
            if record is None or record.refused is not None:
                continue
            text = record.value.get("persona", record.value.get("text"))
            if isinstance(text, str) and text.strip():
                found.setdefault(text.strip(), Persona(text.strip(), record.origin))
    if not found:
        raise DataError("the file has no persona", value=path, fix='write one a line, or lines of {"persona": "…"}')
    return list(found.values())


@dataclass(frozen=True, slots=True)
class _Written:
    """A prompt on its way to a row."""

    key: str
    task: PersonaTask
    persona: Persona
    prompt: PreferencePrompt

    @property
    def question(self) -> str:
        """What the answering model is given."""
        return "\n\n".join(filter(None, (self.prompt.messages[-1]["content"], self.task.answer_request)))


async def write_from_personas(
    settings: PersonaSettings, writer: TextBackend, verify: VerifyAll, folder: Path
) -> Synthetic:
    """Writes, answers, verifies, filters and decontaminates prompts; goes on where the folder was left.

    Args:
        settings: personas, tasks, counts.
        writer: the model that writes and answers.
        verify: judges model text in processes that can be killed.
        folder: gets answers.jsonl, rows.jsonl and data_card.json.

    Raises:
        DataError: no persona, or no row is left at the end.
    """
    counts: Counter[str] = Counter()
    personas = read_personas(settings.personas)
    with ResponseStore(folder / "answers.jsonl") as store:
        written = await _write_prompts(settings, personas, writer, store, counts)
        questions = [
            Question(f"{one.key}/answer/{sample}", ({"role": "user", "content": one.question},))
            for one in written
            for sample in range(settings.answers)
        ]
        answers = await ask_all(writer, questions, store, counts)
    by_prompt = [
        [answers[key] for sample in range(settings.answers) if (key := f"{one.key}/answer/{sample}") in answers]
        for one in written
    ]
    rows = _verified_rows(settings, written, by_prompt, verify, counts)
    rows = _without_near_duplicates(settings, rows, counts)
    return finish_rows(rows, counts, folder, writer=writer.name, gate=settings.decontamination, seed=settings.seed)


async def _write_prompts(
    settings: PersonaSettings,
    personas: Sequence[Persona],
    writer: TextBackend,
    store: ResponseStore,
    counts: Counter[str],
) -> list[_Written]:
    plan: list[tuple[str, PersonaTask, Persona]] = []
    for name in settings.tasks:
        ids = [f"{name}/{persona.text}" for persona in personas]
        for index, repetition in draw(ids, settings.prompts_per_task, seed=settings.seed):
            plan.append((f"{name}/{personas[index].origin.line}.{repetition}", TASKS[name], personas[index]))
    questions = [
        Question(f"{key}/prompt", ({"role": "user", "content": task.request(persona.text)},))
        for key, task, persona in plan
    ]
    texts = await ask_all(writer, questions, store, counts)
    novelty = {name: NoveltyFilter(settings.similarity) for name in settings.tasks}
    written = []
    for key, task, persona in plan:
        text = texts.get(f"{key}/prompt")
        if text is None:
            continue  # counted as failed
        prompt = written_prompt(task, text)
        if prompt is None:
            counts["prompt_unreadable"] += 1
        elif not novelty[task.name].admit(prompt):
            counts["prompt_not_new"] += 1
        else:
            request = PreferencePrompt(key, ({"role": "user", "content": prompt},), f"persona_{task.name}", "persona")
            if task.name == "instruction":
                request = add_constraints(request, max_constraints=settings.max_constraints, seed=settings.seed)
            written.append(_Written(key, task, persona, request))
    counts["prompts"] = len(written)
    return written


def _verified_rows(
    settings: PersonaSettings,
    written: Sequence[_Written],
    answers: Sequence[Sequence[str]],
    verify: VerifyAll,
    counts: Counter[str],
) -> list[Row]:
    """A row for each prompt that has an answer which holds: see `_asked_of`."""
    asked = [_asked_of(one, texts) for one, texts in zip(written, answers, strict=True)]
    flat = [(check, text) for requests in asked for _, check, text in requests]
    outcomes = iter(verify(flat) if flat else [])
    rows = []
    for one, texts, requests in zip(written, answers, asked, strict=True):
        votes: Counter[int] = Counter()
        for index, _, _ in requests:
            outcome = next(outcomes)
            counts[f"verdict/{outcome}"] += 1
            votes[index] += outcome == "correct"
        needed = settings.min_agreeing if one.task.answer_request and one.task.name != "code" else 1
        if one.task.name == "code":
            votes.update(index for index, text in enumerate(texts) if python_block(text) is not None)
        best = max(votes, key=lambda index: (votes[index], -index), default=None)
        if best is None or votes[best] < needed:
            counts[f"not_verified/{one.task.name}"] += 1
            continue
        counts[f"verified/{one.task.name}"] += 1
        rows.append(_row(one, texts[best]))
    return rows


def _asked_of(one: _Written, texts: Sequence[str]) -> list[tuple[int, Check, str]]:
    """(answer that stands or falls by it, check, text): whether each other answer agrees with an answer's result, or
    whether the answer keeps the constraints."""
    constraint = one.prompt.constraint_check
    if constraint is not None:
        return [(index, constraint, text) for index, text in enumerate(texts)]
    claims = [(index, check) for index, text in enumerate(texts) if (check := one.task.claimed_check(text)) is not None]
    return [(index, check, text) for index, check in claims for text in texts]


def _row(one: _Written, answer: str) -> Row:
    claimed = one.task.claimed_check(answer)
    check = one.prompt.constraint_check or claimed
    messages = (
        {"role": "user", "content": one.prompt.messages[-1]["content"]},
        {"role": "assistant", "content": answer},
    )
    name = f"persona_{one.task.name}"
    return Row(one.key, name, one.persona.origin, messages, checks=() if check is None else (check,))


def _without_near_duplicates(settings: PersonaSettings, rows: list[Row], counts: Counter[str]) -> list[Row]:
    if settings.near_duplicates is None:
        return rows
    near = settings.near_duplicates.model_copy(update={"scope": "prompt"})
    index = DuplicateIndex(near)
    kept = [row for row in rows if index.reason_to_remove(None, signature(row, near)) is None]
    counts["near_duplicate"] += len(rows) - len(kept)
    return kept
