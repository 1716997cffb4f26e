"""Sums over the sequences of packed rows.

Shapes: R rows, L positions, S sequences. `sequence_ids [R, L]` int64 says which sequence, 0 to S - 1, a position
belongs to (-1: none, as padding); without it each row is one sequence. A sequence lies whole in one row of one call.
"""

import torch


def _ids_and_count(mask: torch.Tensor, sequence_ids: torch.Tensor | None) -> tuple[torch.Tensor, int]:
    """Ids `[R, L]`, none below 0, and S."""
    if sequence_ids is None:
        return torch.arange(mask.shape[0], device=mask.device)[:, None].expand(mask.shape), mask.shape[0]
    assert sequence_ids.shape == mask.shape, (sequence_ids.shape, mask.shape)
    return sequence_ids.clamp(min=0), int(sequence_ids.max()) + 1 if sequence_ids.numel() else 0


def sequence_sums(x: torch.Tensor, mask: torch.Tensor, sequence_ids: torch.Tensor | None = None) -> torch.Tensor:
    """`[S]`: the sum of `x [R, L]` over each sequence's positions where `mask [R, L]` is not 0. Differentiable."""
    ids, num_sequences = _ids_and_count(mask, sequence_ids)
    values = torch.where(mask != 0, x, torch.zeros_like(x))
    return values.new_zeros(num_sequences).scatter_add(0, ids.reshape(-1), values.reshape(-1))


def sequence_lengths(mask: torch.Tensor, sequence_ids: torch.Tensor | None = None) -> torch.Tensor:
    """`[S]` float32: how many positions of each sequence the mask counts."""
    return sequence_sums(torch.ones_like(mask, dtype=torch.float32), mask, sequence_ids)


def spread(per_sequence: torch.Tensor, mask: torch.Tensor, sequence_ids: torch.Tensor | None = None) -> torch.Tensor:
    """`[R, L]`: each sequence's value of `per_sequence [S]` at its positions, 0 where the mask is 0. Differentiable."""
    ids, _ = _ids_and_count(mask, sequence_ids)
    values = per_sequence[ids]
    return torch.where(mask != 0, values, torch.zeros_like(values))


def last_positions(mask: torch.Tensor) -> torch.Tensor:
    """`[R, L]` bool: True at the last counted position of each row."""
    keep = mask != 0
    counted_from_here = keep.flip(-1).cumsum(-1).flip(-1)
    return keep & (counted_from_here == 1)


def token_weights(
    mask: torch.Tensor,
    aggregation: str,
    *,
    sequence_ids: torch.Tensor | None = None,
    max_length: int | None = None,
) -> torch.Tensor:
    """The weight `[R, L]` of each token, so that a loss is sum(weights x loss) / denominator.

    - `token` (DAPO, arXiv 2503.14476, eq. 8): 1; the denominator is the step's number of tokens.
    - `sequence` (GRPO, arXiv 2402.03300, eq. 3): 1 / length of its sequence; the denominator is the number of
      sequences.
    - `fixed_length` (Dr. GRPO, arXiv 2503.20783): 1 / max_length; the denominator is the number of sequences.

    Raises:
        ValueError: an unknown aggregation, or `fixed_length` without `max_length`.
    """
    ones = (mask != 0).to(torch.float32)
    if aggregation == "token":
        return ones
    if aggregation == "sequence":
        return spread(1 / sequence_lengths(mask, sequence_ids).clamp(min=1), mask, sequence_ids)
    if aggregation == "fixed_length":
        if not max_length:
            raise ValueError(f"aggregation 'fixed_length' needs max_length; got {max_length}")
        return ones / max_length
    raise ValueError(f"unknown aggregation {aggregation!r}; use 'token', 'sequence' or 'fixed_length'")


def count_denominator(mask: torch.Tensor, aggregation: str) -> torch.Tensor:
    """What rows of one sequence each add to the denominator that `token_weights` asks for; the caller adds up ranks
    and micro-batches."""
    if aggregation == "token":
        return (mask != 0).sum().to(torch.float64)
    return (mask != 0).any(-1).sum().to(torch.float64)
