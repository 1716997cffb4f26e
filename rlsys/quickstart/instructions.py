"""Short writing tasks under IFEval constraints: the half of the tiny world that stands for instruction following."""

import hashlib
from dataclasses import dataclass
from random import Random

# fmt: off
WORDS = (
    "sun", "moon", "star", "tree", "rock", "sand", "wind", "rain", "snow", "fire", "lake", "hill", "road", "ship",
    "boat", "car", "bus", "bed", "cup", "pen", "hat", "bag", "box", "key", "map", "bell", "door", "lamp",
)
# fmt: on
CATEGORIES = {
    "fruits": ["apple", "pear", "plum", "fig", "lemon", "mango"],
    "colors": ["red", "blue", "green", "pink", "gray", "black"],
    "animals": ["dog", "cat", "cow", "pig", "hen", "fox"],
    "cities": ["rome", "paris", "oslo", "cairo", "lima", "delhi"],
    "foods": ["bread", "cheese", "egg", "ham", "jam", "pasta"],
}
PHRASES = ("Good night.", "That is all.", "The end.", "See you soon.", "All done.", "Take care.")
COUNTS = (2, 3, 4, 5)
CONSTRAINTS = ("capital", "lowercase", "no_comma", "end_phrase", "quotation", "bullets")
# A constraint's demonstrator breaks it this often, so that supervised fine-tuning leaves something to learn.
HABITS = {"capital": 0.5, "lowercase": 0.1, "no_comma": 0.55, "end_phrase": 0.45, "quotation": 0.4, "bullets": 0.3}
WRONG_COUNT_HABIT = 0.1
_CONFLICTS = ({"capital", "lowercase"}, {"quotation", "bullets"}, {"bullets", "no_comma"})
HELD_OUT_FRACTION = 0.25


@dataclass(frozen=True, slots=True)
class Task:
    """One writing task: `subject` is a word to repeat, or a category to list from."""

    subject: str
    count: int
    constraints: tuple[str, ...]
    phrase: str = ""

    @property
    def is_held_out(self) -> bool:
        """Decided on everything but the order of constraints, so that no held-out prompt has a training twin."""
        key = f"{self.subject} {self.count} {sorted(self.constraints)} {self.phrase}"
        return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") / 2**32 < HELD_OUT_FRACTION


def sample_task(rng: Random, *, held_out: bool) -> Task:
    """A task on the wanted side of the split: one constraint, or two that do not conflict (about 35 %)."""
    while True:
        subject = rng.choice(WORDS) if rng.random() < 0.5 else rng.choice(tuple(CATEGORIES))
        chosen = rng.sample(CONSTRAINTS, 1 if rng.random() < 0.6 else 2)
        if any(conflict <= set(chosen) for conflict in _CONFLICTS):
            continue
        phrase = rng.choice(PHRASES) if "end_phrase" in chosen else ""
        task = Task(subject, rng.choice(COUNTS), tuple(chosen), phrase)
        if task.is_held_out == held_out:
            return task


def task_prompt(task: Task) -> str:
    """The request, constraints in the task's order.

    >>> task_prompt(Task("sun", 4, ("capital", "no_comma")))
    'Write the word sun 4 times. Use only capital letters. Do not use commas.'
    """
    if task.subject in CATEGORIES:
        request = f"List {task.count} {task.subject}."
    else:
        request = f"Write the word {task.subject} {task.count} times."
    texts = {
        "capital": "Use only capital letters.",
        "lowercase": "Use only lower case letters.",
        "no_comma": "Do not use commas.",
        "end_phrase": f"End with the phrase: {task.phrase}",
        "quotation": "Wrap it in double quotes.",
        "bullets": "Use bullet points.",
    }
    return " ".join([request, *(texts[constraint] for constraint in task.constraints)])


def demonstrate(rng: Random, task: Task, *, with_habits: bool) -> str:
    """An answer; right, or with each rule broken as often as the demonstrator's habits say.

    >>> demonstrate(Random(0), Task("sun", 3, ("capital", "end_phrase"), "The end."), with_habits=False)
    'SUN, SUN, SUN. THE END.'
    """
    kept = {c for c in task.constraints if not (with_habits and rng.random() < HABITS[c])}
    count = task.count
    if with_habits and rng.random() < WRONG_COUNT_HABIT:
        count += rng.choice((-1, 1))
    listed = task.subject in CATEGORIES
    items = rng.sample(CATEGORIES[task.subject], count) if listed else [task.subject] * count
    if "bullets" in kept:
        text = "\n".join(f"* {item}" for item in items)
        text += f"\n{task.phrase}" if "end_phrase" in kept else ""
    else:
        text = (" " if "no_comma" in kept else ", ").join(items).capitalize() + "."
        text += f" {task.phrase}" if "end_phrase" in kept else ""
    if "capital" in kept:
        text = text.upper()
    elif "lowercase" in kept:
        text = text.lower()
    elif "lowercase" in task.constraints and text.islower():
        text = text.capitalize() if text[0].isalpha() else text.upper()
    return f'"{text}"' if "quotation" in kept else text


def task_checks(task: Task) -> list[dict]:
    """The task's checks: IFEval's own verifier for the constraints, and the exact items."""
    instructions = {
        "capital": ("change_case:english_capital", {}),
        "lowercase": ("change_case:english_lowercase", {}),
        "no_comma": ("punctuation:no_comma", {}),
        "end_phrase": ("startend:end_checker", {"end_phrase": task.phrase}),
        "quotation": ("startend:quotation", {}),
        "bullets": ("detectable_format:number_bullet_lists", {"num_bullets": task.count}),
    }
    chosen = [instructions[constraint] for constraint in task.constraints]
    listed = task.subject in CATEGORIES
    return [
        {
            "verifier": "ifeval",
            "ground_truth": {"instruction_id_list": [c[0] for c in chosen], "kwargs": [c[1] for c in chosen]},
        },
        {
            "verifier": "exact_items",
            "ground_truth": {
                "items": CATEGORIES[task.subject] if listed else [task.subject],
                "count": task.count,
                "distinct": listed,
                "ending": task.phrase,
            },
        },
    ]
