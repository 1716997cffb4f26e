"""Adapters, resuming with another number of ranks, and weights on their way out."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from learner_ranks import (
    Ranks,
    load,
    num_targets,
    oracle_loss,
    oracle_model,
    plain_sgd,
    random_rows,
    ranks,  # noqa: F401
    share,
    squared_values,
    tiny_model,
    weighted_logprobs,
    whole_weights,
)
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from actors.rank import Rank
from rlsys.errors import TrainingError
from rlsys.models.state import _writer
from rlsys.recipe.learner import LearnerSettings, LoraSettings

pytestmark = pytest.mark.integration

LORA = LoraSettings(rank=4, alpha=8.0)


def train(rank: Rank, first_step: int, num_steps: int, kind: str = "policy") -> None:
    for step in range(first_step, first_step + num_steps):
        units = share(rank, random_rows(8, seed=step))
        objective = weighted_logprobs if kind == "policy" else squared_values
        counts = {"tokens": num_targets(units), "rows": float(len(units))}
        rank.engine.train_step(units, objective, lr=1e-2, denominators=counts)


def adapters_step(rank: Rank, zero_stage: int, folder: str):
    """The first step moves only the second factors, whose gradient is B' = scale G A^T; two more move both."""
    rank.load(model=tiny_model(), learner=plain_sgd(lora=LORA, zero_stage=zero_stage, tokens_per_micro_batch=64))
    before = whole_weights(rank)
    units = share(rank, random_rows(8))
    rank.engine.train_step(units, weighted_logprobs, lr=1.0, denominators={"tokens": num_targets(units)})
    after = whole_weights(rank)
    train(rank, 1, 2)
    rank.export_hf(folder=folder)
    rows = random_rows(4, seed=9)
    with pytest.raises(TrainingError, match="adapters end with their stage"):
        rank.begin_stage(learner=rank.engine.settings)
    return before, after, whole_weights(rank), rank.engine.logprobs(rows)


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_adapters_train_as_in_float64_and_leave_merged(ranks: Ranks, zero_stage: int, tmp_path):  # noqa: F811
    from peft import LoraConfig, get_peft_model

    before, after, last, logprobs = ranks.run(2, adapters_step, zero_stage=zero_stage, folder=str(tmp_path))[0]
    oracle = oracle_model(tiny_model(), before)
    frozen = {name for name in before if "embed" in name or "norm" in name}
    for name in before:
        moved = np.abs(last[name] - before[name]).max()
        assert (moved == 0) == (name in frozen), f"{name} moved by {moved}"
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", exclude_modules=["lm_head"])
    adapted = get_peft_model(oracle, config)
    factors = first_factors(tiny_model().init_seed, adapted)
    oracle_loss(adapted, random_rows(8), 1.0).backward()
    for name, parameter in adapted.named_parameters():
        if ".lora_B." not in name:
            continue
        gradient = parameter.grad.numpy()
        second = -gradient / (np.abs(gradient) + 1.0)
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_B.default.weight")
        expected = 2.0 * second @ factors[layer]
        weight = f"{layer}.weight"
        np.testing.assert_allclose(after[weight] - before[weight], expected, atol=1e-5, err_msg=name)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    for row, values in zip(random_rows(4, seed=9), logprobs, strict=True):
        ids = torch.from_numpy(row.token_ids).long()[None]
        expected = torch.log_softmax(exported(input_ids=ids).logits[0, :-1], -1).gather(1, ids[0, 1:, None])[:, 0]
        np.testing.assert_allclose(values[1:], expected.detach().numpy() * row.fields["mask"][1:], atol=1e-5)


def first_factors(seed: int, adapted: torch.nn.Module) -> dict[str, np.ndarray]:
    """Give the oracle the factors that the ranks draw, which are as wide as its own, and tell them."""
    from rlsys.models.loading import draw

    drawn, widths = {}, []
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name:
            inner = name.removeprefix("base_model.model.")
            std = (3 * parameter.shape[1]) ** -0.5
            widths.append((parameter.detach() / std).flatten().numpy())
            draw(parameter, std, f"{seed}/{inner}")
            drawn[inner.removesuffix(".lora_A.default.weight")] = parameter.detach().double().numpy()
    assert np.std(np.concatenate(widths)) == pytest.approx(1.0, rel=0.1), "peft's own deviation"
    return drawn


def save_after_three_steps(rank: Rank, kind: str, learner: LearnerSettings, folder: str):
    """What is written while three more steps are trained is the state before them."""
    load(rank, kind, tiny_model(), learner)
    train(rank, 0, 3, kind)
    gate = threading.Event()
    _writer(rank.engine)._thread.submit(gate.wait)
    rank.save(folder=folder)
    train(rank, 3, 3, kind)
    assert not rank.saved_files(folder=folder)
    assert not [path for path in Path(folder).rglob("*.pt") if path.stat().st_size]
    rank.group.barrier()
    gate.set()
    while not rank.saved_files(folder=folder):
        time.sleep(0.01)
    rank.group.barrier()
    return whole_weights(rank)


def go_on(rank: Rank, kind: str, learner: LearnerSettings, folder: str):
    load(rank, kind, tiny_model().model_copy(update={"init_seed": 5}), learner)
    rank.restore(folder=folder)
    train(rank, 3, 3, kind)
    return whole_weights(rank)


@pytest.mark.parametrize(
    ("num_ranks", "kind", "zero_stage"),
    [((2, 1), "policy", 3), ((1, 2), "policy", 3), ((2, 1), "policy", 1), ((2, 1), "scalar", 3)],
)
def test_another_number_of_ranks_goes_on_from_a_universal_checkpoint(
    ranks: Ranks,  # noqa: F811
    num_ranks: tuple[int, int],
    kind: str,
    zero_stage: int,
    tmp_path: Path,
):
    written_by, read_by = num_ranks
    learner = LearnerSettings(eps=1e-3, zero_stage=zero_stage)
    arguments = {"kind": kind, "learner": learner, "folder": str(tmp_path / "state")}
    straight = ranks.run(written_by, save_after_three_steps, **arguments)[0]
    resumed = ranks.run(read_by, go_on, **arguments)[0]
    for name in straight:
        np.testing.assert_allclose(resumed[name], straight[name], atol=1e-5, rtol=0, err_msg=name)
    assert [path.name for path in tmp_path.iterdir()] == ["state"], "the converted folder stays"


def sizes_and_shards(rank: Rank, folder: str, cap_bytes: int):
    from rlsys.data.tokenizer import tokenizer_of
    from rlsys.models.weights import export_hf, weight_buckets

    rank.load(model=tiny_model(tied=False), learner=LearnerSettings())
    buckets = [[(name, tensor.nbytes) for name, tensor in b] for b in weight_buckets(rank.engine, cap_bytes)]
    export_hf(rank.engine, folder, tokenizer_of(tiny_model()), max_shard_bytes=cap_bytes)
    return buckets, whole_weights(rank)


def test_weights_leave_in_buckets_under_the_cap_and_files_match_the_index(ranks: Ranks, tmp_path):  # noqa: F811
    cap = 4000
    (buckets, weights), (idle, _) = ranks.run(2, sizes_and_shards, folder=str(tmp_path), cap_bytes=cap)
    assert all(sum(size for _, size in bucket) <= cap for bucket in buckets) and len(buckets) > 3
    assert idle == [[]] * len(buckets)
    names = [name for bucket in buckets for name, _ in bucket]
    assert len(names) == len(set(names)) and "lm_head.weight" in names
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {name for name, _ in model.named_parameters()} == set(names)
    for name, parameter in model.named_parameters():
        assert np.array_equal(parameter.detach().numpy(), weights[name].astype(np.float32)), name
    files = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(files) == len(buckets)
    for file, bucket in zip(files, buckets, strict=True):
        with safe_open(file, "pt") as tensors:
            assert set(tensors.keys()) == {name for name, _ in bucket}


def export_twice(rank: Rank, folder: str):
    """The second file of the first export is too large for the disk."""
    from rlsys.data.tokenizer import tokenizer_of
    from rlsys.errors import CheckpointError
    from rlsys.models import weights

    rank.load(model=tiny_model(), learner=LearnerSettings())
    save, saved = weights.save_file, []

    def save_file(tensors, path, **options):
        saved.append(path)
        if len(saved) == 2:
            raise OSError("No space left on device")
        save(tensors, path, **options)

    weights.save_file = save_file
    told = ""
    try:
        weights.export_hf(rank.engine, folder + "/full", tokenizer_of(tiny_model()), max_shard_bytes=4000)
    except CheckpointError as error:
        told = str(error)
    finally:
        weights.save_file = save
    weights.export_hf(rank.engine, folder + "/good", tokenizer_of(tiny_model()), max_shard_bytes=4000)
    return told, len(saved)


def test_a_disk_that_is_full_at_an_export_is_told_by_every_rank_and_the_next_export_works(ranks: Ranks, tmp_path):  # noqa: F811
    (told, saved), (told_too, saved_too) = ranks.run(2, export_twice, folder=str(tmp_path))
    assert told == told_too and "the model's folder cannot be written: No space left on device" in told
    assert (saved, saved_too) == (2, 0)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "good").num_parameters() > 0
