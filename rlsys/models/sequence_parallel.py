"""Ulysses sequence parallelism: n neighbouring ranks compute a micro-batch together, a slice of every row each.

    [R, L] --inputs--> [R, L/n] embedding, norms, MLPs, head: a rank has 1/n of the positions
                       attention: all-to-all -> [R, L] of 1/n of the heads -> all-to-all
    [R, L] <--whole--- [R, L/n]

The exchange around attention is DeepSpeed's (Jacobs et al., arXiv 2309.14509); attention itself, with its mask of
documents, is what transformers runs on one rank. With n = 1 everything here is the identity.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.generic import is_flash_attention_requested

from rlsys.data.packing import MicroBatch
from rlsys.errors import RecipeError
from rlsys.models.process_group import ProcessGroup

T = TypeVar("T")


class SequenceParallel:
    """The ranks that share micro-batches with this one, and how a micro-batch lies on them.

    Args:
        ranks: those that share; their number divides the model's heads, as the recipe checks.
        model: whose attention is to reach over them until `close`.

    Raises:
        RecipeError: tokens of the model see each other otherwise than by attention to everything before them.
    """

    def __init__(self, ranks: ProcessGroup, model: PreTrainedModel) -> None:
        self._config = model.config
        self._attention = str(model.config._attn_implementation)
        self._ranks = ranks
        self._exchanges: dict[int, nn.Module] = {}
        if self.size > 1:
            _refuse_other_layers(model)
            self._attend_locally = ALL_ATTENTION_FUNCTIONS[self._attention]
            # Under its own name, since transformers and its flash attention ask for that name elsewhere.
            ALL_ATTENTION_FUNCTIONS[self._attention] = self._attend

    @property
    def size(self) -> int:
        """Ranks that share a micro-batch."""
        return self._ranks.world_size

    def close(self) -> None:
        """Give the model class its own attention back, and leave the other ranks. Collective."""
        if self.size > 1:
            del ALL_ATTENTION_FUNCTIONS[self._attention]
            dist.destroy_process_group(self._ranks.handle)

    def share(self, items: Sequence[T]) -> tuple[list[T], slice]:
        """The items of all ranks that share, in order of ranks, and which of them are this rank's. Collective."""
        everyone = self._ranks.gather(list(items))
        start = sum(map(len, everyone[: self._ranks.rank]))
        return [item for part in everyone for item in part], slice(start, start + len(items))

    def inputs(self, batch: MicroBatch) -> dict[str, Tensor | None]:
        """What the model is called with on this rank: `[R, L/n]` ids and positions, and the mask of whole rows.

        Flash attention takes its document boundaries from the positions, of a single row alone: it is given one.
        """
        num_rows, width = self._shape(batch)
        padding = -width % self.size
        ids = np.pad(batch.input_ids.reshape(num_rows, width), ((0, 0), (0, padding)))
        positions = batch.position_ids.reshape(num_rows, width)
        # Counting on: the padding belongs to the last document, which cannot see it, and adds no boundary.
        positions = np.concatenate([positions, positions[:, -1:] + 1 + np.arange(padding)], axis=1)
        at = self._columns(width)
        input_ids, position_ids = (torch.from_numpy(x).to(self._ranks.device) for x in (ids, positions))
        return {
            "input_ids": input_ids[:, at].contiguous(),
            "position_ids": position_ids[:, at].contiguous(),
            "attention_mask": self._mask(position_ids) if self.size > 1 else None,
        }

    def local(self, flat: np.ndarray, batch: MicroBatch) -> tuple[np.ndarray, np.ndarray]:
        """Which of the positions `[N]`, flat in `[R * L]`, this rank has, and where: flat in `[R * L/n]`."""
        width = self._shape(batch)[1]
        at = self._columns(width)
        rows, columns = np.divmod(flat, width)
        here = (columns >= at.start) & (columns < at.stop)
        return here, (rows * (at.stop - at.start) + columns - at.start)[here]

    def whole(self, local: Tensor, batch: MicroBatch) -> Tensor:
        """From `[R, L/n]` of every rank to `[R, L]`; gradients reach this rank's part."""
        width = self._shape(batch)[1]
        at = self._columns(width)
        padded = nn.functional.pad(local, (at.start, self.size * (at.stop - at.start) - at.stop))
        return self.add_others(padded)[:, :width].reshape(batch.input_ids.shape)

    def add_others(self, tensor: Tensor) -> Tensor:
        """Sum over the ranks that share, of tensors that are 0 where they are another's; gradients reach one's own."""
        if self.size == 1:
            return tensor
        total = tensor.detach().clone()
        dist.all_reduce(total, group=self._ranks.handle)
        return tensor + (total - tensor.detach())

    def _shape(self, batch: MicroBatch) -> tuple[int, int]:
        rows, width = batch.input_ids.shape
        is_flash = is_flash_attention_requested(requested_attention_implementation=self._attention)
        return (1, rows * width) if is_flash else (rows, width)

    def _columns(self, width: int) -> slice:
        """This rank's of a row, its padding included."""
        part = -(-width // self.size)
        return slice(self._ranks.rank * part, (self._ranks.rank + 1) * part)

    def _mask(self, position_ids: Tensor) -> Tensor | None:
        """As the model would build it from whole rows; it takes a mask of four dimensions as it is."""
        shape_alone = torch.empty(*position_ids.shape, 0, device=position_ids.device)
        return create_causal_mask(  # pyright: ignore[reportReturnType]
            self._config, shape_alone, attention_mask=None, past_key_values=None, position_ids=position_ids
        )

    def _attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
        """Instead of the attention function: `[R, heads, L/n, D]` queries, keys and values."""
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

        num_rows, num_heads, _, head_size = query.shape
        if num_rows not in self._exchanges:  # its number of rows is fixed, unlike their length
            self._exchanges[num_rows] = UlyssesSPAttentionHF(
                self._attend_locally,
                num_rows,
                num_heads,
                head_size,
                kv_head_count=key.shape[1],
                num_hidden_layers=self._config.get_text_config().num_hidden_layers,
                process_group=self._ranks.handle,  # pyright: ignore[reportArgumentType]
                seq_length_is_variable=True,
            )
        return self._exchanges[num_rows](module, query, key, value, mask, **kwargs)


def _refuse_other_layers(model: PreTrainedModel) -> None:
    """State-space, convolution and sliding-window layers would see one rank's slice, or one mask for all layers."""
    config = model.config.to_dict()
    others = set(config.get("layer_types") or ()) - {"full_attention"}
    if model._is_stateful or others or config.get("sliding_window") is not None:
        raise RecipeError(
            "sequence parallelism needs layers of full attention alone",
            value=f"{model.config.model_type} {sorted(others)}",
            fix="set learner.sequence_parallel to 1, or use another model",
        )
