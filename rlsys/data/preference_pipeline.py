"""Preference data by a judge, from prompts to pairs, in one folder that every restart goes on from.

    prompts --> pool of models --> responses.jsonl --> judge --> ratings.jsonl --> binarise --> pairs.jsonl

consumes: prompts; backends that answer      produces: the three files, every response and rating kept
waits for: all responses, then all ratings   after a kill: asks for what is not in the files, and for nothing else
"""

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.data.judge import Rater
from rlsys.data.judge_backend import TextBackend
from rlsys.data.preference_binarise import binarise
from rlsys.data.preference_ratings import rate_responses
from rlsys.data.preference_records import PreferencePair, PreferencePrompt
from rlsys.data.preference_responses import collect_responses
from rlsys.data.response_store import ResponseStore
from rlsys.errors import DataError
from rlsys.recipe.preferences import JudgedPreferenceSettings


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """The pairs of a run, and what it came to."""

    pairs: list[PreferencePair]
    responses: Counter[str]
    """`asked`, `failed`, `kept` from before a restart, `failed/<kind>`."""
    ratings: Counter[str]
    """Replies by status, and ratings `kept` from before a restart."""
    binarised: Counter[str]
    """See `binarise`."""

    def counts(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "responses": dict(self.responses),
            "ratings": dict(self.ratings),
            "binarised": dict(self.binarised),
        }


async def judged_pairs(
    prompts: Sequence[PreferencePrompt],
    pool: Mapping[str, TextBackend],
    judge: Rater,
    folder: Path,
    *,
    settings: JudgedPreferenceSettings,
) -> JudgedPairs:
    """Runs the whole pipeline in a folder, or the rest of it where it was begun.

    Args:
        prompts: with unique ids.
        pool: a backend for each model of `settings.pool`, by name.
        judge: rates on `settings.judge.aspects`.
        folder: holds responses.jsonl and ratings.jsonl, and pairs.jsonl once all is done.

    Raises:
        DataError: ids are not unique, the pool lacks a model, or the folder belongs to other prompts or is in use.
        EndpointError: an endpoint cannot be called at all; what was answered is kept.
    """
    _require_usable(prompts, pool, settings)
    on_policy = next((model.name for model in settings.pool if model.on_policy), None)
    with ResponseStore(folder / "responses.jsonl") as store:
        responses, response_counts = await collect_responses(
            prompts,
            pool,
            store,
            num_responses=settings.responses_per_prompt,
            on_policy=on_policy,
            seed=settings.seed,
        )
    with ResponseStore(folder / "ratings.jsonl") as store:
        rated, rating_counts = await rate_responses(judge, prompts, responses, store, aspects=settings.judge.aspects)
    pairs, binarised = binarise(rated, seed=settings.seed)
    result = JudgedPairs(pairs, response_counts, rating_counts, binarised)
    write_pairs(folder / "pairs.jsonl", pairs)
    return result


def write_pairs(file: Path, pairs: Sequence[PreferencePair]) -> None:
    """Writes pairs as JSON lines that the data reader takes; the file appears whole or not at all."""
    partial = file.with_suffix(".partial")
    with open(partial, "w", encoding="ascii") as stream:
        for pair in pairs:
            stream.write(json.dumps(pair.to_json()) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
    partial.replace(file)


def _require_usable(
    prompts: Sequence[PreferencePrompt], pool: Mapping[str, TextBackend], settings: JudgedPreferenceSettings
) -> None:
    repeated = [id for id, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if repeated:
        raise DataError("two prompts share an id", value=repeated[:3], fix="give the sources names of their own")
    names = {model.name for model in settings.pool}
    if names != set(pool):
        raise DataError(
            "the pool's backends are not those of the settings", value=sorted(pool), fix=f"give {sorted(names)}"
        )
