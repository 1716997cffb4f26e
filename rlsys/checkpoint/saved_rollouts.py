"""Finished and partial groups of rollouts as one file: every token with its logprob and version.

One safetensors file: the tokens of all responses one after the other, with offsets; the rest as JSON. A float32 logprob
comes back bit for bit.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.checkpoint.arrays import load_arrays, save_arrays
from rlsys.rollouts.partial_group import PartialGroup, PartialResponse, Response
from rlsys.types import Check, Experience, Prompt, Rollout, Verdict

TOKEN_ARRAYS = ("response_ids", "logprobs", "versions")
UNFINISHED = "unfinished"


@dataclass(frozen=True, slots=True)
class SavedRollouts:
    """What a resume gets back. Groups are in the order in which they were saved."""

    finished: tuple[tuple[Experience, ...], ...]
    partial: tuple[PartialGroup, ...]


def save_rollouts(
    path: Path, *, finished: Sequence[Sequence[Experience]] = (), partial: Sequence[PartialGroup] = ()
) -> None:
    """Writes groups to a new file; a transaction makes it durable.

    Args:
        path: of the file, `rollouts.safetensors`.
        finished: for each verified group, its experiences; none empty.
        partial: groups to go on with.

    Raises:
        OSError: the disk is full, say.
    """
    prompts = [group[0].prompt for group in finished] + [group.prompt for group in partial]
    responses: list[Response] = []
    groups: list[dict[str, Any]] = []
    rewards: list[float] = []
    scores: list[float] = []
    for experiences in finished:
        responses += [experience.rollout for experience in experiences]
        rewards += [experience.reward for experience in experiences]
        scores += [math.nan if e.reward_model_score is None else e.reward_model_score for e in experiences]
        verdicts = [[_verdict_tree(verdict) for verdict in experience.verdicts] for experience in experiences]
        groups.append({"samples": [_sample_tree(e.rollout) for e in experiences], "verdicts": verdicts})
    for group in partial:
        of_group = (*group.finished, *group.unfinished)
        responses += of_group
        groups.append({"samples": [_sample_tree(response) for response in of_group]})
    arrays = {
        "prompt_ids": _join((prompt.token_ids for prompt in prompts), np.int32),
        "prompt_offsets": _offsets(prompt.token_ids for prompt in prompts),
        "response_ids": _join((response.response_ids for response in responses), np.int32),
        "logprobs": _join((response.logprobs for response in responses), np.float32),
        "versions": _join((response.versions for response in responses), np.int32),
        "offsets": _offsets(response.response_ids for response in responses),
        # Beside the JSON, as the reward of a masked response is NaN.
        "rewards": np.asarray(rewards, np.float64),
        "reward_model_scores": np.asarray(scores, np.float64),
    }
    tree = {"prompts": [_prompt_tree(prompt) for prompt in prompts], "groups": groups}
    save_arrays(path, arrays, tree)


def load_rollouts(path: Path) -> SavedRollouts:
    """Reads what `save_rollouts` wrote.

    Raises:
        CheckpointError: it is no safetensors file.
    """
    arrays, tree = load_arrays(path)
    prompt_ids = _split(arrays["prompt_ids"], arrays["prompt_offsets"])
    ids, logprobs, versions = (_split(arrays[name], arrays["offsets"]) for name in TOKEN_ARRAYS)
    tokens = zip(ids, logprobs, versions, strict=True)
    rewards, scores = (iter(arrays[name].tolist()) for name in ("rewards", "reward_model_scores"))
    finished: list[tuple[Experience, ...]] = []
    partial: list[PartialGroup] = []
    for prompt_tree, token_ids, group in zip(tree["prompts"], prompt_ids, tree["groups"], strict=True):
        prompt = _prompt(prompt_tree, token_ids)
        responses = [_response(prompt.ordinal, sample, next(tokens)) for sample in group["samples"]]
        begun = PartialGroup.of(prompt, responses)
        if "verdicts" in group:
            verdicts = [tuple(Verdict(*verdict) for verdict in sample) for sample in group["verdicts"]]
            finished.append(
                tuple(
                    Experience(prompt, r, v, next(rewards), _score(next(scores)))
                    for r, v in zip(begun.finished, verdicts, strict=True)
                )
            )
        else:
            partial.append(begun)
    return SavedRollouts(tuple(finished), tuple(partial))


def _score(stored: float) -> float | None:
    return None if math.isnan(stored) else stored


def _prompt_tree(prompt: Prompt) -> dict[str, Any]:
    return {
        "ordinal": prompt.ordinal,
        "id": prompt.id,
        "messages": [dict(message) for message in prompt.messages],
        "checks": [[check.verifier, check.ground_truth, check.weight] for check in prompt.checks],
        "source": prompt.source,
    }


def _prompt(tree: Mapping[str, Any], token_ids: np.ndarray) -> Prompt:
    checks = tuple(Check(*check) for check in tree["checks"])
    return Prompt(tree["ordinal"], tree["id"], tuple(tree["messages"]), token_ids, checks, tree["source"])


def _sample_tree(response: Response) -> list[Any]:
    return [response.sample_index, response.finish_reason if isinstance(response, Rollout) else UNFINISHED]


def _response(ordinal: int, sample: Sequence[Any], tokens: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Response:
    sample_index, finish_reason = sample
    if finish_reason == UNFINISHED:
        return PartialResponse(sample_index, *tokens)
    return Rollout(ordinal, sample_index, *tokens, finish_reason)


def _verdict_tree(verdict: Verdict) -> list[Any]:
    return [verdict.verifier, verdict.outcome, verdict.score, verdict.seconds, dict(verdict.detail)]


def _join(parts: Iterable[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False)


def _offsets(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.asarray([0, *accumulate(len(part) for part in parts)], np.int64)


def _split(flat: np.ndarray, offsets: np.ndarray) -> list[np.ndarray]:
    return [flat[start:end].copy() for start, end in pairwise(offsets.tolist())]
