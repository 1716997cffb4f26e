"""What is done to scores and groups before any tensor exists. Needs no torch: buffers and drivers call it."""

import math
from collections.abc import Sequence


def is_informative(scores: Sequence[float]) -> bool:
    """DAPO's dynamic sampling (arXiv 2503.14476, eq. 11): whether a group's scores differ, so that it has a gradient.

    The equation counts correct answers: give it scores without `overlong_penalty`, by which a group that is right
    throughout differs in length alone. NaN marks a response whose verifier failed; it is left out. Fewer than two
    scores cannot differ.

    >>> is_informative((0.0, 1.0)), is_informative((1.0, 1.0)), is_informative((1.0, float("nan")))
    (True, False, False)
    """
    kept = [score for score in scores if not math.isnan(score)]
    return bool(kept) and min(kept) < max(kept)


def overlong_penalty(num_tokens: int, *, max_tokens: int, buffer_tokens: int, penalty: float = 1.0) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13), to be added to a score; never positive.

    0 up to max_tokens - buffer_tokens, then linearly down to -penalty at max_tokens. A buffer of 0 turns it off.

    >>> overlong_penalty(90, max_tokens=100, buffer_tokens=20)
    -0.5
    """
    if not 0 <= buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens must lie in 0..max_tokens = {max_tokens}; got {buffer_tokens}")
    if buffer_tokens == 0:
        return 0.0
    over = num_tokens - (max_tokens - buffer_tokens)
    return -penalty * min(max(over / buffer_tokens, 0.0), 1.0)
