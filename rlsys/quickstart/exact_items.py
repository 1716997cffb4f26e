"""The tiny world's own verifier, and an example of a user's: one function, one line."""

import re
from collections import Counter
from typing import Any

from rlsys.verifiers.registry import verifier


@verifier("exact_items")
def exact_items(response: str, ground_truth: Any, mode: str) -> bool:
    """Whether the response is exactly `count` of the `items`, all different if `distinct`, then the `ending`.

    Case, commas, bullets, quotes and the final stop do not matter: the constraints' own verifier judges those.
    """
    text = response.strip().strip('"').strip().lower()
    if ground_truth["ending"]:
        text = text.removesuffix(ground_truth["ending"].lower())
    words = Counter(re.sub(r"(?m)^\* ", "", text).replace(",", " ").strip().removesuffix(".").split())
    right = words.total() == ground_truth["count"] and set(words) <= set(ground_truth["items"])
    return right and (not ground_truth["distinct"] or max(words.values()) == 1)
