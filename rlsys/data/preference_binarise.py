"""From rated responses to pairs: the best mean is chosen, the rejected one is drawn from the LOWER means only."""

from collections import Counter
from collections.abc import Iterable, Sequence

from rlsys.data.preference_pairs import seeded_random
from rlsys.data.preference_records import PreferencePair, PreferencePrompt, RatedResponse


def binarise(
    rated: Iterable[tuple[PreferencePrompt, Sequence[RatedResponse]]], *, seed: int
) -> tuple[list[PreferencePair], Counter[str]]:
    """At most one pair a prompt (Tülu 3, arXiv 2411.15124, section 5.2.1).

    Chosen is a response of the highest mean (drawn, where several share it), rejected is drawn evenly from those whose
    mean is strictly lower: equal means are never a pair. Responses without a settled mean, and a rejected text equal to
    the chosen one, take no part. A draw depends on (seed, prompt id, the prompt's responses) alone.

    Returns:
        The pairs in the order of the prompts, and counts: `pairs`, prompts that are `tied` or have `too_few` settled
        responses, responses that are `unsettled`, and of them those with a `malformed` or a `failed` rating.
    """
    pairs: list[PreferencePair] = []
    counts: Counter[str] = Counter(pairs=0, tied=0, too_few=0, unsettled=0, malformed=0, failed=0)
    for prompt, responses in rated:
        _count_unsettled(responses, counts)
        settled = [(response.mean, response) for response in responses if response.mean is not None]
        if len(settled) < 2:
            counts["too_few"] += 1
            continue
        settled.sort(key=lambda item: item[1].response.name)
        best_mean = max(mean for mean, _ in settled)
        draw = seeded_random(seed, prompt.id)
        chosen = draw.choice([response for mean, response in settled if mean == best_mean])
        lower = [
            (mean, response)
            for mean, response in settled
            if mean < best_mean and response.response.text != chosen.response.text
        ]
        if not lower:
            counts["tied"] += 1
            continue
        rejected_mean, rejected = draw.choice(lower)
        counts["pairs"] += 1
        pairs.append(
            PreferencePair(
                prompt=prompt,
                chosen=chosen.response,
                rejected=rejected.response,
                chosen_score=float(best_mean),
                rejected_score=float(rejected_mean),
                decided_by="judge",
            )
        )
    return pairs, counts


def _count_unsettled(responses: Sequence[RatedResponse], counts: Counter[str]) -> None:
    for response in responses:
        statuses = {rating.status for rating in response.ratings.values()}
        counts["unsettled"] += response.mean is None
        counts["malformed"] += "malformed" in statuses
        counts["failed"] += "failed" in statuses
