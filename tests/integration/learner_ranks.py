"""Ranks that run test programs on a real DeepSpeed engine, and the tiny models they load."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from actors.groups import Placement, RankGroup
from actors.rank import Rank, remote_rank
from rlsys.data.packing import Row
from rlsys.models.engine import StepInput
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings
from rlsys.types import Experience, Prompt, Rollout, Verdict

VOCAB = 48
TOKENIZER = str(Path(__file__).parents[2] / "rlsys/quickstart/tokenizer")


@remote_rank
class ProgramRank(Rank):
    """A rank that runs whatever function of its engine a test gives it."""

    def run(self, *, program: Callable[..., Any], **arguments: Any) -> Any:
        return program(self, **arguments)


class Ranks:
    """Groups of 1, 2 and 4 ranks, started when first asked for."""

    def __init__(self) -> None:
        self._groups: dict[int, RankGroup] = {}

    def run(self, num_ranks: int, program: Callable[..., Any], **arguments: Any) -> list[Any]:
        """What `program(rank, **arguments)` answers, by rank."""
        if num_ranks not in self._groups:
            placement = Placement("test", num_ranks, cpus=0.01, start_timeout_s=900, operation_timeout_s=600)
            self._groups[num_ranks] = RankGroup.start(ProgramRank, placement)
        return self._groups[num_ranks].submit("run", program=program, **arguments).get()

    def shutdown(self) -> None:
        for group in self._groups.values():
            group.shutdown()


@pytest.fixture(scope="module")
def ranks() -> Iterator[Ranks]:
    ray.init(
        address="local",
        include_dashboard=False,
        num_cpus=4,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).parent)}},  # the programs are pickled by name
    )
    ranks = Ranks()
    yield ranks
    ranks.shutdown()
    ray.shutdown()


def load(rank: Rank, kind: Literal["policy", "scalar"], model: ModelSettings, learner: LearnerSettings) -> None:
    """Load either kind; the rank's own is to load policies."""
    rank.kind = kind
    rank.load(model=model, learner=learner)
    rank.kind = "policy"


def tiny_model(tied: bool = True, **changes: Any) -> ModelSettings:
    """A Llama of a few thousand weights, large enough gradients to be worth comparing."""
    config = {
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": tied,
    }  # fmt: skip
    return ModelSettings(config=config | changes, init_std=0.2, tokenizer=TOKENIZER)


def plain_sgd(**changes: Any) -> LearnerSettings:
    """With eps far above the gradients, a first Adam step is lr g / (|g| + eps): it shows the gradient."""
    return LearnerSettings(**({"eps": 1.0, "max_grad_norm": 0.0, "tokens_per_micro_batch": 4096} | changes))


def random_rows(num: int, seed: int = 0, longest: int = 24) -> list[Row]:
    """Rows of random tokens, about half of which are targets, with a random advantage each."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        length = int(rng.integers(3, longest + 1))
        mask = (rng.random(length) < 0.5).astype(np.float32)
        mask[-1] = 1.0
        advantages = rng.normal(size=length).astype(np.float32)
        rows.append(Row(rng.integers(0, VOCAB, length).astype(np.int32), {"mask": mask, "advantages": advantages}))
    return rows


def whole_weights(rank: Rank) -> dict[str, np.ndarray]:
    """Every weight, on rank 0; an empty dictionary elsewhere."""
    from rlsys.models.weights import weight_buckets

    buckets = weight_buckets(rank.engine, 1 << 20)
    return {name: tensor.double().numpy().copy() for bucket in buckets for name, tensor in bucket}


def make_experience(rng: np.random.Generator, ordinal: int, sample_index: int = 0) -> Experience:
    """A response that another policy gave; the verifier failed on those of prompt 5."""
    num_prompt, num_response = rng.integers(2, 9), rng.integers(1, 14)
    prompt = Prompt(ordinal, f"test/{ordinal}", (), rng.integers(0, VOCAB, num_prompt).astype(np.int32))
    logprobs = rng.normal(-3.9, 0.8, num_response).astype(np.float32)
    rollout = Rollout(
        ordinal, sample_index, rng.integers(0, VOCAB, num_response).astype(np.int32), logprobs,
        np.zeros(num_response, np.int32), "stop",
    )  # fmt: skip
    failed = ordinal == 5
    verdict = Verdict("math", "timeout" if failed else "correct", 0.0 if failed else 1.0, 0.1)
    return Experience(prompt, rollout, (verdict,), float("nan") if failed else float(rng.choice([-10.0, 0.0, 10.0])))


def master_weights(rank: Rank) -> dict[str, np.ndarray]:
    """The float32 weights that the optimizer has of each; on every rank."""
    from deepspeed.utils import safe_get_full_fp32_param

    from rlsys.models.weights import hf_model

    parameters = hf_model(rank.engine).named_parameters()
    return {name: safe_get_full_fp32_param(parameter).double().numpy().copy() for name, parameter in parameters}


def weighted_logprobs(step: StepInput):
    """A policy-gradient loss with an entropy term, over a global denominator."""
    fields = step.fields
    loss = -(step.logprobs * fields["advantages"] * fields["mask"]).sum() - 0.1 * (step.entropy * fields["mask"]).sum()
    return loss / step.denominators["tokens"], {"@tokens": (fields["mask"] != 0).sum().double()}


def squared_values(step: StepInput):
    """A loss of values and scores, over a global number of rows."""
    loss = (step.values * step.fields["advantages"]).square().sum() + step.scores.square().sum()
    return loss / step.denominators["rows"], {"loss@rows": loss.detach().double(), "@rows": step.num_documents}


def share(rank: Rank, rows: list[Row]) -> list[list[Row]]:
    return [[row] for row in rows[rank.group.rank :: rank.group.world_size]]


def num_targets(units: list[list[Row]]) -> float:
    return float(sum(np.count_nonzero(row.fields["mask"][1:]) for unit in units for row in unit))


def oracle_model(model: ModelSettings, weights: dict[str, np.ndarray], dtype=torch.float64):
    config = AutoConfig.for_model(**model.config)
    oracle = AutoModelForCausalLM.from_config(config, dtype=dtype)
    oracle.load_state_dict({name: torch.from_numpy(value).to(dtype) for name, value in weights.items()}, strict=False)
    return oracle


def oracle_loss(oracle, rows: list[Row], temperature: float):
    """Document by document, without padding, packing or chunks."""
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.from_numpy(row.token_ids).long()[None]
        logprobs = torch.log_softmax(oracle(input_ids=ids).logits[0, :-1] / temperature, -1)
        taken = logprobs.gather(1, ids[0, 1:, None])[:, 0]
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        mask = torch.from_numpy(row.fields["mask"])[1:].double()
        advantages = torch.from_numpy(row.fields["advantages"])[1:].double()
        total = total - (taken * advantages * mask).sum() - 0.1 * (entropy * mask).sum()
        tokens += int(mask.sum())
    return total / tokens
