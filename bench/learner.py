"""The learner against bare loops, and packing against padding: tokens a second on one rank and one thread.

    python bench/learner.py loops   [--size tiny|13m] [--zero-stage 3] [--rounds 5]
    python bench/learner.py packing [--data ../shared/data] [--rows 128] [--rounds 2] [--mask]

`loops` trains the same model on the same rows, packed alike and attended to document by document, in three ways: plain
PyTorch and AdamW; a bare DeepSpeed loop (`engine(...)`, `backward`, `step`); and `TrainEngine.train_step` with its
packing, metrics and safety. `packing` trains on real chats, 64 a step, with best-fit packing and with batches of 8
randomly chosen rows padded to the longest; with `--mask` packed rows are attended to under transformers' mask instead.

The ways take turns in one process, round by round, and each reports its best round, so that a busy machine weighs on
all alike. Seconds are CPU seconds: with one thread and one rank they are what an idle machine's clock would show.
"""

import argparse
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

ROWS_OF_STEP, ROWS_PADDED = 64, 8
"""Of one step of `packing`; of one of its padded batches."""
SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SIZES = {
    "tiny": dict(zip(SHAPE, (400, 64, 3, 4, 192), strict=True)),
    "13m": dict(zip(SHAPE, (6400, 384, 6, 6, 1024), strict=True)),
}
"""Llamas with tied embeddings of 0.19 M and 13 M parameters."""
ROWS_A_STEP = {"tiny": (64, 34), "13m": (16, 128)}
"""Rows of a step, and their mean length."""


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["loops", "packing"])
    parser.add_argument("--size", choices=SIZES, default="13m")
    parser.add_argument("--zero-stage", type=int, default=3)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mask", action="store_true")
    arguments = parser.parse_args()
    os.environ["DS_ACCELERATOR"] = "cpu"
    group = join()
    if arguments.what == "loops":
        compare_loops(group, arguments.size, arguments.zero_stage, arguments.rounds)
    else:
        compare_packing(group, Path(arguments.data), arguments.rows, arguments.rounds, mask=arguments.mask)


def join() -> Any:
    """A group of one."""
    import torch

    from rlsys.models.process_group import join_process_group

    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    cpu = torch.device("cpu")
    return join_process_group(address="127.0.0.1", port=port, rank=0, world_size=1, device=cpu, timeout_s=600)


def settings(size: str, zero_stage: int, **changes: Any) -> tuple[Any, Any]:
    """Model and learner sections."""
    from rlsys.recipe.learner import LearnerSettings
    from rlsys.recipe.model import ModelSettings

    config = {"model_type": "llama", "max_position_embeddings": 2048, "tie_word_embeddings": True} | SIZES[size]
    return ModelSettings(config=config, init_std=0.02, tokenizer="."), LearnerSettings(zero_stage=zero_stage, **changes)


def compare_loops(group: Any, size: str, zero_stage: int, rounds: int) -> None:
    """Three ways over the same steps."""
    import torch

    rng = np.random.default_rng(0)
    num_rows, mean = ROWS_A_STEP[size]
    steps = []
    for _ in range(6 if size == "tiny" else 2):
        lengths = np.clip(rng.normal(mean, mean / 3, num_rows), 8, 2 * mean).astype(int)
        steps.append([rng.integers(0, SIZES[size]["vocab_size"], length).astype(np.int32) for length in lengths])
    tokens = sum(len(row) for rows in steps for row in rows)
    torch.set_num_threads(1)
    ways = {
        "PyTorch": pytorch_way(group, size, zero_stage),
        "DeepSpeed": deepspeed_way(group, size, zero_stage),
        "rlsys": our_way(group, *settings(size, zero_stage)),
    }
    best = time_ways({name: lambda way=way: [way(rows) for rows in steps] for name, way in ways.items()}, rounds)
    print(f"{size}, ZeRO-{zero_stage}, {tokens} tokens in {len(steps)} steps, one rank, one thread")
    for name, seconds in best.items():
        others = ", ".join(f"x{best[other] / seconds:.2f} {other}" for other in best if other != name)
        print(f"{name:10s} {tokens / seconds:8.0f} tokens/s   {others}")


def time_ways(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Least CPU seconds of each way over the rounds, after one to warm up."""
    best = dict.fromkeys(ways, float("inf"))
    for turn in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if turn:
                best[name] = min(best[name], time.process_time() - started)
    return best


def packed(rows: Sequence[np.ndarray]) -> list[Any]:
    """The micro-batches that every way trains on."""
    from rlsys.data.packing import Row, micro_batches

    units = [[Row(row, {"mask": np.ones(len(row), np.float32)})] for row in rows]
    return micro_batches(units, tokens_per_micro_batch=8192)


def bare_loss(model: Any, batch: Any, vocab_size: int, denominator: float) -> Any:
    """Cross entropy over whole logits, as a script would write it."""
    import torch

    ids, positions = torch.from_numpy(batch.input_ids), torch.from_numpy(batch.position_ids)
    mask = torch.from_numpy(batch.fields["mask"] * (batch.position_ids > 0))[:, 1:]
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.reshape(-1, vocab_size), ids[:, 1:].reshape(-1), reduction="none")
    return (losses * mask.reshape(-1)).sum() / denominator


def bare_model(group: Any, size: str, zero_stage: int) -> Any:
    """The model of both bare ways, which attends as ours does."""
    from rlsys.models.document_attention import attend_by_document
    from rlsys.models.loading import load_causal_lm

    model = load_causal_lm(settings(size, zero_stage)[0])
    attend_by_document(model, group.device)
    return model


def pytorch_way(group: Any, size: str, zero_stage: int) -> Callable[[Sequence[np.ndarray]], None]:
    """Plain PyTorch."""
    import torch

    model = bare_model(group, size, zero_stage)
    adam = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)

    def step(rows: Sequence[np.ndarray]) -> None:
        denominator = float(sum(len(row) - 1 for row in rows))
        for batch in packed(rows):
            bare_loss(model, batch, SIZES[size]["vocab_size"], denominator).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        adam.zero_grad()

    return step


def deepspeed_way(group: Any, size: str, zero_stage: int) -> Callable[[Sequence[np.ndarray]], None]:
    """A bare DeepSpeed loop with DeepSpeed's own defaults."""
    import deepspeed
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": zero_stage},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.0, "torch_adam": True}},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 62,
    }
    while_loading = HfDeepSpeedConfig(config) if zero_stage == 3 else None
    model = bare_model(group, size, zero_stage)
    del while_loading
    engine, *_ = deepspeed.initialize(model=model, config=config, dist_init_required=False)

    def step(rows: Sequence[np.ndarray]) -> None:
        denominator = float(sum(len(row) - 1 for row in rows))
        batches = packed(rows)
        for index, batch in enumerate(batches):
            engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            engine.backward(bare_loss(engine, batch, SIZES[size]["vocab_size"], denominator))
        engine.step()

    return step


def our_way(group: Any, model: Any, learner: Any) -> Callable[[Sequence[np.ndarray]], None]:
    """`TrainEngine.train_step`."""
    from rlsys.algorithms.supervised_loss import supervised_loss
    from rlsys.data.packing import Row
    from rlsys.models.build import build_engine

    engine = build_engine("policy", model=model, learner=learner, group=group)

    def objective(step: Any) -> Any:
        return supervised_loss(step.logprobs, step.fields["mask"], denominator=step.denominators["tokens"])

    def step(rows: Sequence[np.ndarray]) -> None:
        units = [[Row(row, {"mask": np.ones(len(row), np.float32)})] for row in rows]
        denominator = float(sum(len(row) - 1 for row in rows))
        assert engine.train_step(units, objective, lr=1e-3, denominators={"tokens": denominator}).fault is None

    return step


def compare_packing(group: Any, data: Path, num_rows: int, rounds: int, *, mask: bool) -> None:
    """Best-fit packing against batches of 8 random rows padded to the longest of them, in steps of the same rows."""
    import tempfile
    from contextlib import nullcontext

    import torch

    from rlsys.data.prepare import prepare_store
    from rlsys.data.token_store import TokenStore
    from rlsys.recipe.data import DataSettings, SourceSettings

    torch.set_num_threads(1)
    source = SourceSettings(path=str(data / "chat" / "oasst_en_100_tree.jsonl.gz"))
    with tempfile.TemporaryDirectory() as folder:
        prepare_store(DataSettings(source=(source,)), str(data / "tokenizers" / "minimind"), Path(folder) / "store")
        store = TokenStore(Path(folder) / "store")
        order = np.random.default_rng(0).permutation(len(store))
        rows = [store.row(int(i)).token_ids[:1024] for i in order[:num_rows]]
    model, learner = settings("13m", 3, tokens_per_micro_batch=8192, row_length=1024)
    with patch("rlsys.models.build.attend_by_document") if mask else nullcontext():
        way = our_way(group, model, learner)

    def steps() -> None:
        for start in range(0, len(rows), ROWS_OF_STEP):
            way(rows[start : start + ROWS_OF_STEP])

    def padded_steps() -> None:
        with patch("rlsys.models.engine.micro_batches", padded_batches):
            steps()

    best = time_ways({"padded": padded_steps, "packed": steps}, rounds)
    tokens = sum(len(row) for row in rows)
    lengths = sorted(len(row) for row in rows)
    print(
        f"{len(rows)} chats, {tokens} tokens, lengths {lengths[0]} to {lengths[-1]}, median {lengths[len(rows) // 2]}"
    )
    for name, seconds in best.items():
        print(f"{name:8s} {tokens / seconds:8.0f} useful tokens/s   x{best['padded'] / seconds:.2f}")


def padded_batches(units: Sequence[Any], **_: Any) -> list[Any]:
    """In place of the engine's micro-batches: rows as they come, each batch padded to its longest."""
    from rlsys.data.packing import micro_batches

    parts = [units[start : start + ROWS_PADDED] for start in range(0, len(units), ROWS_PADDED)]
    return [
        batch for part in parts for batch in micro_batches(part, tokens_per_micro_batch=1 << 62, packing="bucketed")
    ]


if __name__ == "__main__":
    main()
