"""Attention over packed rows, document by document.

Under a mask `scaled_dot_product_attention` computes all `[L, L]` scores of a row and throws away those between
documents and those that look ahead; a causal call for each document computes neither. It is for CPUs: on GPUs flash
attention takes the boundaries itself (`model.attention = "flash_attention_2"`), and many small calls cost launches.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

BY_DOCUMENT = "sdpa_by_document"
"""The name under which transformers finds `document_attention`."""


def attend_by_document(model: PreTrainedModel, device: torch.device) -> None:
    """Has a model that uses SDPA, and will run on CPU, attend document by document; others stay as they are."""
    if device.type == "cpu" and model.config._attn_implementation == "sdpa":
        AttentionInterface.register(BY_DOCUMENT, document_attention)
        AttentionMaskInterface.register(BY_DOCUMENT, sdpa_mask)
        model.set_attn_implementation(BY_DOCUMENT)


def document_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None = None,
    **arguments: Any,
) -> tuple[Tensor, None]:
    """Causal attention within documents, which begin where `position_ids` `[R, L]` is 0.

    The mask is obeyed instead where it says more than that: windows, a cache, positions of a part of the row.

    Args:
        module: of transformers, the caller.
        query: `[R, heads, L, d]`.
        key: `[R, kv heads, L, d]`.
        value: as `key`.
        attention_mask: None where every row is one document.
        position_ids: restarting at each document.
        arguments: of transformers' own SDPA.

    Returns:
        `[R, L, heads, d]`, and no weights.
    """
    num_rows, _, length, _ = query.shape
    whole_rows = position_ids is not None and tuple(position_ids.shape) == (num_rows, length) == key.shape[::2]
    if attention_mask is None or not whole_rows or arguments.get("sliding_window") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **arguments)
    assert position_ids is not None

    def attend(row: int, start: int, stop: int) -> Tensor:
        q, k, v = (x[row, None, :, start:stop] for x in (query, key, value))
        return sdpa_attention_forward(module, q, k, v, None, **arguments)[0]

    rows = []
    for row in range(num_rows):
        starts = {0, *torch.nonzero(position_ids[row] == 0)[:, 0].tolist()}
        documents = pairwise([*sorted(starts), length])
        rows.append(torch.cat([attend(row, start, stop) for start, stop in documents], dim=1))
    return torch.cat(rows), None
