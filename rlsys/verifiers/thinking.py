"""Which part of a response is its answer: what follows the last `</think>`."""

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"


def answer_part(response: str) -> str | None:
    """The text after the last `</think>`, the whole response if it never thinks, None if a block stays open.

    >>> answer_part("<think>4?</think> It is 5.")
    ' It is 5.'
    >>> answer_part("5 <think>or 4") is None
    True
    """
    _, _, answer = response.rpartition(THINK_CLOSE)
    return None if THINK_OPEN in answer else answer
