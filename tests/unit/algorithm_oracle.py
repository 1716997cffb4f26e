"""An independent oracle: float64, plain numpy, one sequence after the other, gradients by central differences.

It knows nothing of masks, rows and packing: a batch is a list of sequences, and `Layout` puts them into packed rows for
the code under test.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from rlsys.recipe.algorithm import AlgorithmSettings

GARBAGE = float("nan")
"""What padding holds: anything that reads it shows."""


@dataclass
class Sequence:
    """One response; every array is `[T]` float64 whose values float32 can hold."""

    logprobs: np.ndarray
    old: np.ndarray
    advantages: np.ndarray
    reference: np.ndarray
    entropy: np.ndarray
    lag: np.ndarray

    @property
    def length(self) -> int:
        return len(self.logprobs)


def make_sequences(seed: int, lengths: tuple[int, ...], spread: float = 0.4) -> list[Sequence]:
    """Random responses whose ratios lie on both sides of every clip."""
    rng = np.random.default_rng(seed)

    def draw(size: int, scale: float, centre: float = 0.0) -> np.ndarray:
        return (centre + scale * rng.standard_normal(size)).astype(np.float32).astype(np.float64)

    return [
        Sequence(
            logprobs=(logprobs := draw(size, 0.8, -2.0)),
            old=(logprobs + draw(size, spread)).astype(np.float32).astype(np.float64),
            advantages=draw(size, 1.0, 0.3),
            reference=(logprobs + draw(size, spread)).astype(np.float32).astype(np.float64),
            entropy=np.abs(draw(size, 1.0)),
            lag=np.abs(draw(size, 0.5, 1.0)),
        )
        for size in lengths
    ]


class Layout:
    """Where sequences lie in packed rows: two a row, a prompt of two positions before each, padding at the end."""

    PROMPT = 2

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self.places: list[tuple[int, slice]] = []
        rows = [lengths[start : start + 2] for start in range(0, len(lengths), 2)]
        for row, sizes in enumerate(rows):
            end = 0
            for size in sizes:
                start = end + self.PROMPT
                end = start + size
                self.places.append((row, slice(start, end)))
        self.shape = (len(rows), max(place.stop for _, place in self.places) + 1)

    def put(self, arrays: list[np.ndarray], *, requires_grad: bool = False) -> torch.Tensor:
        """`[R, L]` float32 with garbage wherever there is no response token."""
        rows = np.full(self.shape, GARBAGE, np.float32)
        for (row, place), array in zip(self.places, arrays, strict=True):
            rows[row, place] = array
        return torch.from_numpy(rows).requires_grad_(requires_grad)

    def mask(self) -> torch.Tensor:
        mask = torch.zeros(self.shape)
        for row, place in self.places:
            mask[row, place] = 1
        return mask

    def sequence_ids(self) -> torch.Tensor:
        """A sequence's prompt carries its id too; padding carries -1."""
        ids = torch.full(self.shape, -1, dtype=torch.int64)
        for number, (row, place) in enumerate(self.places):
            ids[row, place.start - self.PROMPT : place.stop] = number
        return ids

    def take(self, rows: torch.Tensor) -> np.ndarray:
        """The response tokens of all sequences, one after the other, float64."""
        values = rows.detach().double().numpy()
        return np.concatenate([values[row, place] for row, place in self.places])


def central_difference(function: Callable[[np.ndarray], float], at: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """d function / d at, float64."""
    gradient = np.empty_like(at)
    for index in range(len(at)):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (function(up) - function(down)) / (2 * step)
    return gradient


def split(flat: np.ndarray, lengths: tuple[int, ...]) -> list[np.ndarray]:
    return np.split(flat, np.cumsum(lengths)[:-1])


def policy_oracle(
    flat_logprobs: np.ndarray, sequences: list[Sequence], settings: AlgorithmSettings, *, max_length: int, lag: bool
) -> float:
    """The loss of a batch that is the whole step; what has a stopped gradient uses the sequences' own logprobs."""
    lengths = tuple(sequence.length for sequence in sequences)
    total = 0.0
    for logprobs, sequence in zip(split(flat_logprobs, lengths), sequences, strict=True):
        in_sequence = 0.0
        for t in range(sequence.length):
            loss = _token_loss(t, logprobs, sequence, settings)
            if lag:
                loss *= sequence.lag[t]
            if settings.kl_in == "loss":
                difference = logprobs[t] - sequence.reference[t]
                k2, k3 = difference**2 / 2, np.exp(-difference) - 1 + difference
                loss += settings.kl_beta * {"k2": k2, "k3": k3}[settings.kl_estimator]
            in_sequence += loss - settings.entropy_coef * sequence.entropy[t]
        per = {
            "token": sum(lengths),
            "sequence": sequence.length * len(lengths),
            "fixed_length": max_length * len(lengths),
        }
        total += in_sequence / per[settings.aggregation]
    return total


def _token_loss(t: int, logprobs: np.ndarray, sequence: Sequence, settings: AlgorithmSettings) -> float:
    advantage = sequence.advantages[t]
    low, high = 1 - settings.clip, 1 + (settings.clip_high if settings.clip_high is not None else settings.clip)
    if settings.policy_loss == "reinforce":
        return -advantage * logprobs[t]
    if settings.policy_loss == "cispo":
        stopped = min(max(np.exp(sequence.logprobs[t] - sequence.old[t]), low), high)
        return -stopped * advantage * logprobs[t]
    log_ratio = logprobs[t] - sequence.old[t]
    if settings.policy_loss == "gspo":
        log_ratio = np.mean(logprobs - sequence.old)
    ratio = np.exp(log_ratio)
    objective = min(ratio * advantage, min(max(ratio, low), high) * advantage)
    if settings.dual_clip is not None and advantage < 0:
        objective = max(objective, settings.dual_clip * advantage)
    return -objective


def relative_error(found: np.ndarray | float, wanted: np.ndarray | float) -> float:
    """Largest difference, relative to the largest wanted number."""
    found, wanted = np.atleast_1d(found), np.atleast_1d(wanted)
    assert np.isfinite(found).all() and np.abs(wanted).max() > 0
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
