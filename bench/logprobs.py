"""Token logprobs in chunks against log_softmax over whole logits: time and peak memory of forward and backward.

    python bench/logprobs.py [--vocab 131072] [--tokens 1024] [--hidden 512 1024 2048] [--repeats 3]

Each case runs in a process of its own. Memory is the peak of resident memory above what inputs, weight and the weight's
gradient take, since any way of computing it needs those. Time is CPU time on one thread, the least of the repeats, so
that a busy machine does not show.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from rlsys.models.token_logprobs import DEFAULT_CHUNK, chunked_token_logprobs


def naive(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `transformers` and a textbook do."""
    log_probabilities = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return log_probabilities.gather(1, targets[:, None])[:, 0], entropy


def naive_without_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Cross entropy alone: the cheapest that keeps the whole logits."""
    return (-torch.nn.functional.cross_entropy((hidden @ weight.T).float(), targets, reduction="none"),)


def chunked(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours."""
    return chunked_token_logprobs(hidden, weight, targets, 1.0, DEFAULT_CHUNK)


METHODS = {"naive": naive, "cross_entropy": naive_without_entropy, "chunked": chunked}


def measure(method: str, num_tokens: int, hidden_size: int, vocab: int, repeats: int) -> dict[str, float]:
    """Seconds and peak bytes of one forward and backward pass, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight = torch.randn(vocab, hidden_size).mul_(hidden_size**-0.5).requires_grad_()
    hidden = torch.randn(num_tokens, hidden_size, requires_grad=True)
    targets = torch.randint(0, vocab, (num_tokens,))
    gradient = torch.ones(vocab, hidden_size)  # as large as the projection's gradient, made without a second copy
    before = resident_bytes()
    del gradient
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        outputs = METHODS[method](hidden, weight, targets)
        gradients = torch.autograd.grad(sum(output.mean() for output in outputs), (hidden, weight))
        seconds.append(time.process_time() - started)
        del outputs, gradients
    return {"seconds": min(seconds), "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before}


def resident_bytes() -> int:
    """Of this process, now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def main() -> None:
    """Prints a table, one line a hidden size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=131072)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, nargs="+", default=[512, 1024, 2048])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--method", choices=METHODS, help="measure this one alone and print JSON")
    arguments = parser.parse_args()
    if arguments.method:
        (hidden_size,) = arguments.hidden
        measured = measure(arguments.method, arguments.tokens, hidden_size, arguments.vocab, arguments.repeats)
        print(json.dumps(measured))
        return
    print(f"{arguments.tokens} tokens, vocabulary {arguments.vocab}, one thread")
    for hidden_size in arguments.hidden:
        results = {}
        for method in METHODS:
            options = {"tokens": arguments.tokens, "vocab": arguments.vocab, "repeats": arguments.repeats}
            flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
            command = [sys.executable, __file__, "--method", method, "--hidden", str(hidden_size), *flags]
            results[method] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        ours = results["chunked"]
        parts = [f"{name} {r['seconds']:.2f} s {r['bytes'] / 2**20:.0f} MiB" for name, r in results.items()]
        ratios = [
            f"against {name}: time x{ours['seconds'] / r['seconds']:.2f}, memory 1/{r['bytes'] / ours['bytes']:.1f}"
            for name, r in results.items()
            if name != "chunked"
        ]
        print(f"hidden {hidden_size}: {'; '.join(parts)}; {'; '.join(ratios)}", flush=True)


if __name__ == "__main__":
    main()
