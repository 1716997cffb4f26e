"""What is asked of a persona, and how its problems are to be answered so that a verifier can tell."""

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

from rlsys.data.ground_truths import boxed_answer, gsm8k_answer
from rlsys.recipe.synthesis import PersonaTaskName
from rlsys.types import Check

_WORDS_LIMIT = 400


@dataclass(frozen=True, slots=True)
class PersonaTask:
    """One kind of prompt."""

    name: PersonaTaskName
    marker: str
    """What the prompt is to begin with, so that it can be told from what is said around it."""
    answer_request: str
    """Added to the prompt when it is answered; empty to add nothing."""
    claimed_check: Callable[[str], Check | None]
    """The result that an answer claims, as a check of other answers; None if it claims none."""

    def request(self, persona: str) -> str:
        """Asks for the prompt, by `templates/persona_<name>.txt`."""
        template = files("rlsys.data").joinpath("templates", f"persona_{self.name}.txt").read_text()
        return template.strip().replace("{persona}", persona)


def written_prompt(task: PersonaTask, text: str) -> str | None:
    """The prompt in a model's answer: what follows the last marker, up to a solution that it was told not to give.

    >>> written_prompt(TASKS["math"], "Sure! Problem: What is 3^4?\\n\\nSolution: 81")
    'What is 3^4?'
    """
    _, found, prompt = text.rpartition(task.marker)
    if not found:
        return None
    prompt = re.split(r"\n\s*(?:\**(?:Solution|Answer|Hint)\**\s*:)", prompt)[0].strip().strip('"').strip()
    return prompt if 3 <= len(prompt.split()) <= _WORDS_LIMIT else None


def python_block(answer: str) -> str | None:
    """The last fenced block of Python in an answer, if it parses and defines something.

    >>> python_block("Here:\\n```python\\ndef f(x):\\n    return x\\n```")
    'def f(x):\\n    return x\\n'
    """
    blocks = re.findall(r"```(?:python|py)?[ \t]*\n(.*?)```", answer, re.DOTALL)
    if not blocks:
        return None
    try:
        tree = ast.parse(blocks[-1])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    defined = any(isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) for node in tree.body)
    return blocks[-1] if defined else None


def _boxed(answer: str) -> Check | None:
    gold = boxed_answer(answer)
    return Check("math", gold) if gold else None


def _marked_number(answer: str) -> Check | None:
    gold = gsm8k_answer(answer)
    return Check("gsm8k", gold) if gold else None


def _nothing(answer: str) -> Check | None:
    return None


_BOX = "Reason step by step and put the final result, and nothing else, in \\boxed{}."

TASKS: dict[PersonaTaskName, PersonaTask] = {
    task.name: task
    for task in (
        PersonaTask("math", "Problem:", _BOX, _boxed),
        PersonaTask(
            "grade_school_math",
            "Problem:",
            'Work it out step by step. End with a line "#### N", where N is the result as a bare number.',
            _marked_number,
        ),
        PersonaTask("algebra", "Problem:", _BOX, _boxed),
        PersonaTask("code", "Task:", "Answer with one block of Python code, fenced by ```python and ```.", _nothing),
        PersonaTask("instruction", "Request:", "", _nothing),
    )
}
