"""What is done with data once, away from the driver: models' folders, tokenised stores, prompt sets, pairs.

Each is a Ray task whose large result stays on disk or in the object store. They ask for no CPU: on a cluster that the
run's actors fill, a task that asks for one would wait for ever.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray

from actors.begun_groups import UnderWay
from actors.shards import GroupReference, fetch_groups
from rlsys.recipe.data import DataSettings
from rlsys.recipe.decontamination import Decontamination
from rlsys.recipe.model import ModelSettings
from rlsys.recipe.preferences import PromptSelectionSettings
from rlsys.recipe.verifiers import VerifierSettings
from rlsys.types import Check, Outcome

HUB = "hf:"
CANARY_TEXT = (
    "Eva has 98 cups and gets 9 more. 8+9=17, 9+1=10, so she has 107 cups now. A cat, two dogs and three birds live in "
    "an old house by the sea; WHO feeds them on Sundays? Nobody knows: ask again."
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """What the actors need to know of the model a run starts from."""

    folder: str
    """Configuration and tokenizer with its chat template; an engine with dummy weights opens it."""
    settings: ModelSettings
    """For the learner: weights from a folder, or from scratch, and the tokenizer of `folder`."""
    end_token_ids: tuple[int, ...]
    canary_ids: list[int]
    """A text for engine and learner to compare logprobs on after a publication."""


@ray.remote(num_cpus=0)
def prepare_model(model: ModelSettings, data: DataSettings, folder: str) -> ModelFolder:
    """Writes configuration and tokenizer, with the chat template that the recipe's data asks for, into `folder`.

    Weights are not copied; those of the hub are downloaded to its cache.

    Raises:
        RecipeError: the folder cannot be loaded, or not safely.
    """
    from transformers import AutoConfig, GenerationConfig

    from rlsys.data.chat import ChatTokenizer
    from rlsys.data.tokenizer import tokenizer_of
    from rlsys.models.model_folder import check_folder

    if model.path is not None and model.path.startswith(HUB):
        from huggingface_hub import snapshot_download

        model = model.model_copy(update={"path": snapshot_download(model.path.removeprefix(HUB))})
    if model.path is not None:
        check_folder(model.path, model.trust_remote_code)
    tokenizer = tokenizer_of(model)
    chat = ChatTokenizer(tokenizer, data.templating)
    if model.path is not None:
        config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    else:
        keys = dict(model.config or {})
        config = AutoConfig.for_model(keys.pop("model_type"), **keys)
        config.architectures = [_causal_lm_class(config)]
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = model.model_copy(update={"tokenizer": folder})
    canary = tokenizer(CANARY_TEXT, add_special_tokens=False).input_ids
    return ModelFolder(folder, settings, tuple(chat.end_ids), canary)


@ray.remote(num_cpus=0)
def digest_model(model: ModelSettings) -> str:
    """`rlsys.data.reference_logprobs.model_digest`: reads all weights."""
    from rlsys.data.reference_logprobs import model_digest

    return model_digest(model)


@ray.remote(num_cpus=0)
def build_store(
    data: DataSettings, tokenizer: str, folder: str, layout: str, gate: Decontamination | None
) -> dict[str, Any]:
    """Tokenises a mixture into a store of `rows` or `pairs`; one that was made from the same data is reused.

    Returns:
        The store's manifest.
    """
    from rlsys.data.prepare import prepare_store

    return prepare_store(data, tokenizer, Path(folder), layout=layout, gate=gate)  # pyright: ignore[reportArgumentType]


@ray.remote(num_cpus=0)
def build_prompts(
    data: DataSettings,
    tokenizer: str,
    folder: str,
    modules: Sequence[str] | None,
    limit: int | None,
    gate: Decontamination | None,
) -> Any:
    """The `PromptSet` of the sources, each ground truth checked by its verifier; the data card goes into `folder`.

    `modules` register the user's verifiers; None: no verifier is asked, and prompts are left without checks.
    """
    from rlsys.data.prepare import prepare_prompts
    from rlsys.verifiers.registry import load_verifier_modules

    load_verifier_modules(modules or ())
    return prepare_prompts(
        data, tokenizer, limit=limit, folder=Path(folder), gate=gate, with_checks=modules is not None
    )


@ray.remote(num_cpus=0)
def write_pairs(groups: Sequence[GroupReference], folder: str, seed: int) -> dict[str, Any]:
    """Verifier-decided pairs of the groups' experiences as a pair store, by the token ids that were sampled."""
    from rlsys.data.preference_pairs import count_groups, verifier_pairs
    from rlsys.data.token_store import write_pair_store

    by_id = {}
    for experiences in fetch_groups(groups):
        prompt = experiences[0].prompt
        by_id[prompt.id] = (prompt.token_ids, [_scored(experience) for experience in experiences])
    samples = [(prompt_id, scored) for prompt_id, (_, scored) in by_id.items()]
    pairs = verifier_pairs(samples, seed=seed)
    tokenized = (_tokenized_pair(by_id[pair.prompt_id][0], pair) for pair in pairs)
    manifest = write_pair_store(folder, tokenized, about=count_groups(samples))
    return manifest


@ray.remote(num_cpus=0)
def select_preference_prompts(
    sources: Mapping[str, DataSettings],
    settings: PromptSelectionSettings,
    folder: str,
    gate: Decontamination | None,
) -> Any:
    """The `PromptSelection` of a stage of judged preferences."""
    from rlsys.data.preference_sources import prepare_preference_prompts

    return prepare_preference_prompts(sources, settings, Path(folder), gate=gate)


@ray.remote(num_cpus=0)
def verify_texts(asked: Sequence[tuple[Check, str]], settings: VerifierSettings) -> list[Outcome]:
    """What the verifiers say of (check, response) pairs, in order, from processes that can be killed."""
    from rlsys.verifiers.pool import VerifierPool, VerifyRequest

    requests = [VerifyRequest(check.verifier, check.ground_truth, text, settings.mode) for check, text in asked]
    with VerifierPool(
        settings.workers,
        wall_limit_s=settings.wall_limit_s,
        cpu_limit_s=settings.cpu_limit_s,
        memory_limit_mib=settings.memory_limit_mib,
        modules=settings.modules,
    ) as pool:
        return [verdict.outcome for verdict in pool.verify_many(requests)]


@ray.remote(num_cpus=0)
def write_rollouts(groups: Sequence[GroupReference], path: str, tokenizer: str, step: int | None) -> int:
    """One parquet file with a row a sample: prompt and response as text and tokens, versions, verdicts, reward.

    `step` is the batch that was trained on them; None, as of an evaluation, has no column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    decode = _tokenizer(tokenizer).decode
    rows = [
        ({} if step is None else {"step": step})
        | {
            "ordinal": experience.prompt.ordinal,
            "prompt_id": experience.prompt.id,
            "source": experience.prompt.source,
            "sample_index": experience.rollout.sample_index,
            "prompt": decode(experience.prompt.token_ids.tolist()),
            "response": decode(experience.rollout.response_ids.tolist()),
            "prompt_ids": experience.prompt.token_ids,
            "response_ids": experience.rollout.response_ids,
            "logprobs": experience.rollout.logprobs,
            "versions": experience.rollout.versions,
            "finish_reason": experience.rollout.finish_reason,
            "verifiers": [verdict.verifier for verdict in experience.verdicts],
            "outcomes": [verdict.outcome for verdict in experience.verdicts],
            "scores": [verdict.score for verdict in experience.verdicts],
            "reward_model_score": experience.reward_model_score,
            "reward": experience.reward,
        }
        for group in fetch_groups(groups)
        for experience in group
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    draft = Path(path).with_suffix(".draft")
    pq.write_table(pa.Table.from_pylist(rows), draft)
    draft.rename(path)
    return len(rows)


@ray.remote(num_cpus=0)
def save_buffer(groups: Sequence[GroupReference], under_way: UnderWay, path: str) -> list[dict[str, int]]:
    """The finished groups that wait for a batch, and those that are under way, into a checkpoint's folder.

    Returns:
        For each group under way its `ordinal`, its `oldest_version` and `num_responses` that have a token.
    """
    from rlsys.checkpoint.saved_rollouts import save_rollouts

    partial = under_way.fetch()
    save_rollouts(Path(path), finished=fetch_groups(groups), partial=partial)
    return [
        {"ordinal": g.prompt.ordinal, "oldest_version": g.oldest_version, "num_responses": g.num_begun} for g in partial
    ]


@ray.remote(num_cpus=0)
def load_buffer(path: str) -> tuple[Any, ...]:
    """What `save_buffer` wrote, in its order, each thing an object of its own.

    Returns:
        Summaries and experiences of the finished groups, as a verify call returns them; then the groups under way.
    """
    from actors.verifier_worker import summarize
    from rlsys.checkpoint.saved_rollouts import load_rollouts

    saved = load_rollouts(Path(path))
    groups = [list(group) for group in saved.finished]
    return [summarize(group) for group in groups], groups, *saved.partial


@lru_cache(maxsize=1)
def _tokenizer(folder: str) -> Any:
    from rlsys.data.tokenizer import load_tokenizer

    return load_tokenizer(folder)


def _causal_lm_class(config: Any) -> str:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]


def _scored(experience: Any) -> Any:
    from rlsys.data.preference_pairs import ScoredSample

    passed = all(verdict.score == 1.0 for verdict in experience.verdicts) and experience.rollout.finish_reason == "stop"
    return ScoredSample(experience.rollout.response_ids, float(passed), experience.masked)


def _tokenized_pair(prompt_ids: Any, pair: Any) -> Any:
    import numpy as np

    from rlsys.data.tokenized import TokenizedPair, TokenizedRow

    rows = []
    for response in (pair.chosen_ids, pair.rejected_ids):
        weights = np.concatenate([np.zeros(len(prompt_ids), np.float32), np.ones(len(response), np.float32)])
        rows.append(TokenizedRow(np.concatenate([prompt_ids, response]).astype(np.int32), weights))
    return TokenizedPair(*rows, margin=pair.chosen_score - pair.rejected_score)
