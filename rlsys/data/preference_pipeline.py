"""Preference data by a judge, from prompts to pairs, in one folder that every restart goes on from.

    prompts --> pool of models --> responses.jsonl --> judge --> ratings.jsonl --> binarise --> verify --> pairs.jsonl
       '--> one constraint relaxed --^  (rewritings.jsonl)

consumes: prompts; backends that answer      produces: the files, every response and rating kept
waits for: all responses, then all ratings   after a kill: asks for what is not in the files, and for nothing else
"""

import asyncio
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys.checkpoint.durable_file import write_durably
from rlsys.data.judge import Rater
from rlsys.data.judge_backend import TextBackend
from rlsys.data.preference_binarise import binarise
from rlsys.data.preference_constraints import VerifyAll, keep_verified, relaxed_pairs
from rlsys.data.preference_ratings import rate_responses
from rlsys.data.preference_records import RELAXED_KINDS, PreferencePair, PreferencePrompt
from rlsys.data.preference_responses import collect_responses
from rlsys.data.preference_rewriting import relaxed_prompts
from rlsys.data.response_store import ResponseStore
from rlsys.errors import DataError
from rlsys.recipe.preferences import JudgedPreferenceSettings

PAIRS_FILE = "pairs.jsonl"


@dataclass(frozen=True, slots=True)
class JudgedPairs:
    """The pairs of a run, and what it came to."""

    pairs: list[PreferencePair]
    """Of rated prompts, then of relaxed ones; each in the order of the prompts."""
    responses: Counter[str]
    """`asked`, `failed`, `kept` from before a restart, `failed/<kind>`."""
    ratings: Counter[str]
    """Replies by status, and ratings `kept` from before a restart."""
    binarised: Counter[str]
    """See `binarise`."""
    verified: Counter[str]
    """See `keep_verified`."""
    relaxed: Counter[str]
    """See `relaxed_prompts` and `relaxed_pairs`."""

    def counts(self) -> dict[str, Any]:
        """JSON values only."""
        return {
            "responses": dict(self.responses),
            "ratings": dict(self.ratings),
            "binarised": dict(self.binarised),
            "verified": dict(self.verified),
            "relaxed": dict(self.relaxed),
        }


async def judged_pairs(
    prompts: Sequence[PreferencePrompt],
    pool: Mapping[str, TextBackend],
    judge: Rater,
    folder: Path,
    *,
    settings: JudgedPreferenceSettings,
    verify: VerifyAll,
) -> JudgedPairs:
    """Runs the whole pipeline in a folder, or the rest of it where it was begun.

    Args:
        prompts: with unique ids; those of `RELAXED_KINDS` have constraints, and are not judged.
        pool: a backend for each model of `settings.pool`, by name.
        judge: rates on `settings.judge.aspects`.
        folder: holds responses.jsonl, ratings.jsonl and rewritings.jsonl, and pairs.jsonl once all is done.
        verify: whether responses keep constraints; called in a thread.

    Raises:
        DataError: ids are not unique, the pool lacks a model, or the folder belongs to other prompts or is in use.
        EndpointError: an endpoint cannot be called at all; what was answered is kept.
    """
    _require_usable(prompts, pool, settings)
    on_policy = next((model.name for model in settings.pool if model.on_policy), None)
    to_relax = [prompt for prompt in prompts if prompt.kind in RELAXED_KINDS]
    to_rate = [prompt for prompt in prompts if prompt.kind not in RELAXED_KINDS]
    rewriter = None if settings.rewriter is None else pool[settings.rewriter]
    with ResponseStore(folder / "rewritings.jsonl") as store:
        relaxed, relaxed_counts = await relaxed_prompts(to_relax, rewriter, store, seed=settings.seed)
    with ResponseStore(folder / "responses.jsonl") as store:
        responses, response_counts = await collect_responses(
            [*prompts, *relaxed.values()],
            pool,
            store,
            num_responses=settings.responses_per_prompt,
            on_policy=on_policy,
            seed=settings.seed,
        )
    with ResponseStore(folder / "ratings.jsonl") as store:
        rated, rating_counts = await rate_responses(judge, to_rate, responses, store, aspects=settings.judge.aspects)
    judged, binarised = binarise(rated, seed=settings.seed)
    kept, verified = await asyncio.to_thread(keep_verified, judged, verify)
    by_original = {id: responses[prompt.id] for id, prompt in relaxed.items()}
    wider, counts = await asyncio.to_thread(
        relaxed_pairs,
        [prompt for prompt in to_relax if prompt.id in relaxed],
        responses,
        by_original,
        verify,
        seed=settings.seed,
    )
    relaxed_counts.update(counts)
    pairs = [*kept, *wider]
    write_pairs(folder / PAIRS_FILE, pairs)
    return JudgedPairs(pairs, response_counts, rating_counts, binarised, verified, relaxed_counts)


def write_pairs(file: Path, pairs: Sequence[PreferencePair]) -> None:
    """Writes pairs as JSON lines that the data reader takes; the file appears whole or not at all."""
    write_durably(file, (json.dumps(pair.to_json()).encode() + b"\n" for pair in pairs))


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
