"""Sums with worked, boxed answers: the half of the tiny world that stands for maths."""

import hashlib
from random import Random

PHRASINGS = (
    "What is {a} + {b}?",
    "Add {a} and {b}.",
    "Find {a} + {b}.",
    "Sum of {a} and {b}?",
    "{a} plus {b} is?",
    "{name} has {a} {things} and gets {b} more. How many {things} now?",
    "{name} sold {a} {things}, then {b} more. How many in all?",
    "There are {a} {things} here and {b} there. How many in all?",
)
NAMES = ("Eva", "Tom", "Ana", "Ben", "Mia", "Leo", "Ida", "Max")
THINGS = ("cups", "pens", "books", "coins", "eggs", "cards", "hats", "keys")
HELD_OUT_FRACTION = 0.2


def is_held_out(a: int, b: int) -> bool:
    """Whether the sum belongs to the held-out prompts: decided on the unordered pair, for b + a too."""
    low, high = sorted((a, b))
    digest = hashlib.sha256(f"sum {low} {high}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32 < HELD_OUT_FRACTION


def sample_sum(rng: Random, *, held_out: bool) -> tuple[int, int]:
    """Two numbers of 1 to 99 whose pair is on the wanted side of the split."""
    while True:
        a, b = rng.randint(1, 99), rng.randint(1, 99)
        if is_held_out(a, b) == held_out:
            return a, b


def sum_prompt(rng: Random, a: int, b: int) -> str:
    """The question in a random phrasing."""
    return rng.choice(PHRASINGS).format(a=a, b=b, name=rng.choice(NAMES), things=rng.choice(THINGS))


def worked_answer(a: int, b: int, *, forget_carry: bool = False, omit_box: bool = False) -> str:
    r"""The sum worked digit by digit, right unless a habit breaks it.

    >>> worked_answer(74, 46)
    '4+6=10, 7+4+1=12, so \\boxed{120}.'
    >>> worked_answer(74, 46, forget_carry=True)
    '4+6=10, 7+4=11, so \\boxed{110}.'
    """
    units = a % 10 + b % 10
    tens_a, tens_b = a // 10, b // 10
    carry = int(units >= 10 and not forget_carry)
    tens = tens_a + tens_b + carry
    work = f"{a % 10}+{b % 10}={units}"
    work += f", {tens_a}+{tens_b}{'+1' if carry else ''}={tens}"
    total = 10 * tens + units % 10
    return f"{work}, so {total}." if omit_box else f"{work}, so \\boxed{{{total}}}."
