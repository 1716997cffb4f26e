"""Log-probabilities and entropies of target tokens, never holding `[tokens, vocab]` whole.

The vocabulary is walked in blocks with a running log-sum-exp, forward and backward, so that each block of the
projection's gradient is written once. With l_v = h.w_v / temperature and p = softmax(l):

    logprob = l_target - log sum exp l          d logprob / d l_v = [v = target] - p_v
    entropy = log sum exp l - sum p l           d entropy / d l_v = -p_v (l_v - sum p l)
"""

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from rlsys.errors import TrainingError

DEFAULT_CHUNK = 1 << 22
"""Elements of `[tokens, vocab]` that are kept, 16 MiB in float32; more is walked in blocks of half as many, of which
about three are alive at once."""

_MAX_TOKENS = 8192
_MIN_COLUMNS = 256


def chunked_token_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, chunk: int = DEFAULT_CHUNK
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target and entropy of its distribution, differentiable in hidden and weight.

    Args:
        hidden: `[T, D]`, any floating type; the projection runs in that type, everything after it in float32
            (float64 where hidden is).
        weight: `[V, D]`, the vocabulary projection.
        targets: `[T]` int64.
        temperature: logits are divided by it.
        chunk: elements of `[T, V]`. What fits in one chunk is kept for the backward pass; larger problems recompute
            the logits there, in blocks of half a chunk.

    Returns:
        logprobs `[T]` and entropies `[T]` in nats.
    """
    if hidden.ndim != 2 or weight.ndim != 2 or targets.shape != hidden.shape[:1] or hidden.shape[1] != weight.shape[1]:
        shapes = (tuple(hidden.shape), tuple(weight.shape), tuple(targets.shape))
        raise ValueError(f"expected hidden [T, D], weight [V, D] and targets [T], got {shapes}")
    return _TokenLogprobs.apply(hidden, weight, targets, temperature, chunk)  # pyright: ignore[reportReturnType]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int):
        if hidden.shape[0] * weight.shape[0] <= chunk:
            logits = _logits(hidden, weight, temperature)
            log_z = torch.logsumexp(logits, dim=-1)
            target_logits = logits.gather(1, targets[:, None])[:, 0]
            mean_logit = (logits.sub(log_z[:, None]).exp_() * logits).sum(-1)
            kept = logits
        else:
            log_z, mean_logit, target_logits = _blockwise_statistics(hidden, weight, targets, temperature, chunk)
            kept = None
        ctx.save_for_backward(hidden, weight, targets, log_z, mean_logit, kept)
        ctx.temperature, ctx.chunk = temperature, chunk
        return target_logits - log_z, log_z - mean_logit

    @staticmethod
    def backward(ctx: Any, grad_logprobs: Tensor, grad_entropy: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, targets, log_z, mean_logit, kept = ctx.saved_tensors
        grad_hidden = torch.zeros_like(hidden, dtype=log_z.dtype) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        columns = _columns(hidden, weight, ctx.chunk)
        for rows in _row_blocks(hidden):
            h, g_logprob, g_entropy = hidden[rows], grad_logprobs[rows, None], grad_entropy[rows, None]
            for start in range(0, weight.shape[0], columns):
                block = weight[start : start + columns]
                logits = _logits(h, block, ctx.temperature) if kept is None else kept[rows]
                probabilities = (logits - log_z[rows, None]).exp_()
                grad = logits.sub_(mean_logit[rows, None]).mul_(g_entropy).add_(g_logprob).mul_(probabilities).neg_()
                inside = targets[rows].sub(start)
                at = ((inside >= 0) & (inside < block.shape[0])).nonzero()[:, 0]
                grad[at, inside[at]] += grad_logprobs[rows][at]
                grad = grad.mul_(1.0 / ctx.temperature).to(hidden.dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] += grad @ block
                if grad_weight is not None:
                    grad_weight[start : start + columns].addmm_(grad.T, h)
        return (None if grad_hidden is None else grad_hidden.to(hidden.dtype)), grad_weight, None, None, None


def _blockwise_statistics(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int):
    """Log-sum-exp, expected logit and target logit of every token, over blocks of the vocabulary."""
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    columns = _columns(hidden, weight, chunk)
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    for rows in _row_blocks(hidden):
        h, target = hidden[rows], targets[rows]
        peak = torch.full_like(target, -torch.inf, dtype=dtype)
        total, weighted, target_logit = (torch.zeros_like(peak) for _ in range(3))
        for start in range(0, weight.shape[0], columns):
            logits = _logits(h, weight[start : start + columns], temperature)
            inside = target - start
            found = (inside >= 0) & (inside < logits.shape[1])
            target_logit += logits.gather(1, inside.clamp(0, logits.shape[1] - 1)[:, None])[:, 0].where(found, 0.0)
            new_peak = torch.maximum(peak, logits.amax(-1))
            scaled = (logits - new_peak[:, None]).exp_()
            rescale = (peak - new_peak).exp_()
            total = total * rescale + scaled.sum(-1)
            weighted = weighted * rescale + logits.mul_(scaled).sum(-1)
            peak = new_peak
        parts.append((peak + total.log(), weighted / total, target_logit))
    return tuple(torch.cat(pieces) for pieces in zip(*parts, strict=True))


def _logits(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = hidden @ weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1.0 else logits.div_(temperature)


def _row_blocks(hidden: Tensor) -> list[slice]:
    return [slice(start, start + _MAX_TOKENS) for start in range(0, max(1, hidden.shape[0]), _MAX_TOKENS)]


def _columns(hidden: Tensor, weight: Tensor, chunk: int) -> int:
    """Vocabulary entries of a block; the whole vocabulary where one chunk holds every token's logits."""
    if hidden.shape[0] * weight.shape[0] <= chunk:
        return weight.shape[0]
    return min(weight.shape[0], max(_MIN_COLUMNS, chunk // 2 // min(hidden.shape[0], _MAX_TOKENS)))


class TokenLogprobModel(nn.Module):
    """A causal language model whose forward pass gives token logprobs and entropies instead of logits.

    The computation replaces `forward` of the model's own head, so that everything the model does before the head
    stays, and so that ZeRO-3's hooks gather and release the head's weight as they do for any module.

    Raises:
        TrainingError: the head has a bias, or the model changes logits after the head (soft-capping, logit scale).
    """

    def __init__(self, causal_lm: nn.Module, chunk: int = DEFAULT_CHUNK) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._chunk = chunk
        self._request: tuple[Tensor, Tensor, float] | None = None
        self._answer: Tensor | None = None
        self._verified = False
        head = causal_lm.get_output_embeddings()  # pyright: ignore[reportCallIssue]
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise TrainingError(
                "the model's head must be a linear layer without bias",
                value=type(head).__name__,
                fix="use another model",
            )
        head.forward = MethodType(self._head_forward, head)

    def _head_forward(self, head: nn.Linear, hidden: Tensor) -> Tensor:
        assert self._request is not None, "the head answers only inside forward()"
        positions, targets, temperature = self._request
        selected = hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)
        answer = torch.stack(chunked_token_logprobs(selected, head.weight, targets, temperature, self._chunk))
        if not self._verified:
            self._answer = answer.detach()
        return answer

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        positions: Tensor,
        targets: Tensor,
        temperature: float,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Stacked logprobs and entropies `[2, N]` of the targets.

        Args:
            input_ids: `[R, L]` int64.
            position_ids: `[R, L]` int64, restarting at each document.
            positions: `[N]` flat indices into `[R * L]` of the tokens that predict the targets.
            targets: `[N]` int64.
            temperature: logits are divided by it.
            attention_mask: as the model takes it; it builds its own from `position_ids` where absent.
        """
        self._request = positions, targets, temperature
        outputs = self.causal_lm(
            input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=False
        )
        if self._answer is not None:
            self._refuse_changed_logits(outputs.logits, self._answer)
        self._request = self._answer = None
        return outputs.logits

    def _refuse_changed_logits(self, logits: Tensor, answer: Tensor) -> None:
        """Once, on the first forward pass: what comes out of the model must be what the head put in."""
        self._verified = True
        if logits.shape != answer.shape or not torch.equal(logits, answer):
            raise TrainingError(
                "the model changes its logits after the head, which token logprobs in chunks cannot follow",
                value=type(self.causal_lm).__name__,
                fix="use a model without logit soft-capping or logit scale",
            )
