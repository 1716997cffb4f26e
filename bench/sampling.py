"""How fast one engine samples, and what an update costs it.

    python bench/sampling.py                                  a tiny Llama with random weights, on one core
    python bench/sampling.py --model FOLDER --requests 64     a Hugging Face folder

Prints tokens/s of the whole and by part: with sampler logprobs read flat (what a rollout worker does), through
`LLMEngine.step` (which builds text and a dictionary of logprobs for each token), and for publications of the model's
weights from another thread of this process the seconds of receiving, of a canary, and of the flip.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a Hugging Face folder; a tiny random Llama unless given")
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=200, help="of each response")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--cores", help="that the engine is bound to, such as 0")
    options = parser.parse_args()

    from rlsys.rollouts.sampling_engine_settings import EngineSettings, engine_environment

    with tempfile.TemporaryDirectory() as folder:
        settings = EngineSettings(
            model=options.model or tiny_llama(Path(folder)),
            end_token_ids=(2,),
            load_format="auto",
            cpu_cores=options.cores,
            vllm={"max_model_len": options.tokens + 64, "max_num_seqs": options.requests},
        )
        variables = engine_environment(settings, on_cpu=True) | {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        os.environ.update(variables)
        started = time.perf_counter()
        from rlsys.rollouts.sampling_engine import SamplingEngine

        engine = SamplingEngine(settings)
        print(f"start               {time.perf_counter() - started:8.1f} s")
        measure(engine, options)


def measure(engine, options: argparse.Namespace) -> None:
    """Everything that is printed after the start."""
    from rlsys.recipe.rollout import SamplingSettings

    sampling = SamplingSettings(max_tokens=options.tokens, ignore_end=True)

    def flat() -> int:
        before = engine.num_tokens
        for index in range(options.requests):
            engine.add_group([5, 6, 7, 8], ordinal=index, num_samples=1, seeds=[index], sampling=sampling)
        while engine.has_work:
            engine.step()
        return engine.num_tokens - before

    def dictionaries() -> int:
        from vllm import SamplingParams

        llm = engine._llm
        for index in range(options.requests):
            params = SamplingParams(max_tokens=options.tokens, logprobs=0, seed=index, detokenize=False)
            llm.add_request(f"r{time.monotonic_ns()}", {"prompt_token_ids": [5, 6, 7, 8]}, params)
        count = 0
        while llm.has_unfinished_requests():
            count += sum(len(output.outputs[0].token_ids) for output in llm.step() if output.finished)
        return count

    flat()
    print_rate("flat logprobs", flat, options.repeat)
    print_rate("LLMEngine.step", dictionaries, options.repeat)
    print_updates(engine, options.updates)


def print_rate(name: str, work: Callable[[], int], repeat: int) -> None:
    """Tokens/s: median, and the least and most of the repetitions."""
    rates = []
    for _ in range(repeat):
        started = time.perf_counter()
        count = work()
        rates.append(count / (time.perf_counter() - started))
    print(f"{name:<20}{statistics.median(rates):8.0f} tokens/s   ({min(rates):.0f} to {max(rates):.0f})")


def print_updates(engine, num_updates: int) -> None:
    """Seconds of each part of an update, medians."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlsys.weights.sender import WeightSender

    model = AutoModelForCausalLM.from_pretrained(engine.settings.model, dtype=torch.float32)
    named = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
    sender = WeightSender("gloo")
    rendezvous = sender.open(host="127.0.0.1", num_receivers=1, deadline_s=60)
    joining = threading.Thread(target=sender.join)
    joining.start()
    engine.connect_weights(rendezvous, rank_offset=1)
    joining.join()
    parts: dict[str, list[float]] = {"receive and load": [], "canary": [], "flip": []}
    for transfer in range(num_updates):
        sending = threading.Thread(target=lambda number=transfer: sender.send(iter([named]), transfer=number))
        sending.start()
        steps = (
            ("receive and load", lambda number=transfer: engine.receive_weights(number)),
            ("canary", lambda: engine.canary_logprobs(list(range(5, 53)))),
            ("flip", lambda number=transfer: engine.commit_version(number)),
        )
        for part, work in steps:
            started = time.perf_counter()
            work()
            parts[part].append(time.perf_counter() - started)
        sending.join()
    size = f"{len(named)} tensors, {sum(tensor.nbytes for _, tensor in named) / 1e6:.1f} MB"
    for part, seconds in parts.items():
        print(f"{part:<20}{statistics.median(seconds) * 1e3:8.1f} ms         ({size})")


def tiny_llama(folder: Path) -> str:
    """186 k parameters, as in the quickstart."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=400,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


if __name__ == "__main__":
    sys.exit(main())
