"""One rank of one model: forward passes over rows, optimizer steps over units, weights out. No Ray, no topology.

Every public method is collective: all ranks of the model call it, in the same order, each with its own part of the
work. A rank with fewer micro-batches runs dummies, because each pass gathers and reduces with the others.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from rlsys.algorithms.metric_sums import MetricSums, finish_sums
from rlsys.data.packing import MicroBatch, Row, Unit, dummy_micro_batch, micro_batches
from rlsys.models.process_group import ProcessGroup
from rlsys.models.token_logprobs import TokenLogprobModel
from rlsys.recipe.learner import LearnerSettings

Denominators: TypeAlias = Mapping[str, float]
"""Global counts of the optimizer step by name, such as `tokens` and `samples`."""


@dataclass(frozen=True, slots=True)
class StepInput:
    """What an objective sees of one micro-batch: outputs with gradients, and the rows' fields, all `[R, L]`."""

    fields: Mapping[str, Tensor]
    """Float32, 0 at padding."""
    document_ids: Tensor
    """Int64, 0 to `num_documents` - 1, -1 at padding; a unit's documents are neighbours, in order."""
    num_documents: int
    last_positions: Tensor
    """`[N]` flat index into `[R * L]` of each document's last token."""
    denominators: Denominators
    logprobs: Tensor | None = None
    """Of a policy: float32, of each token given those before it; 0 where the field `mask` is 0."""
    entropy: Tensor | None = None
    """Of a policy: of the distribution that the token was drawn from; 0 where `mask` is 0."""
    values: Tensor | None = None
    """Of a scalar model: float32."""


Objective: TypeAlias = Callable[[StepInput], tuple[Tensor, MetricSums]]
"""Losses of all micro-batches and ranks ADD to the loss of the step: divide by a global denominator."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer step."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Over all ranks, the same on each; `optim/grad_norm` before clipping, absent when skipped."""
    skipped: str = ""
    """Why the weights did not change; empty when they did."""


class TrainEngine:
    """A model with its DeepSpeed engine on this rank.

    Args:
        module: a `TokenLogprobModel` or `ScalarModel`.
        engine: DeepSpeed's engine around it, or the module itself where it is never trained.
        settings: of this model's section.
        group: the ranks.
    """

    def __init__(
        self, module: nn.Module, *, engine: "nn.Module", settings: LearnerSettings, group: ProcessGroup
    ) -> None:
        self.module = module
        self.engine = engine
        self.settings = settings
        self.group = group

    def logprobs(self, rows: Sequence[Row], *, temperature: float = 1.0) -> list[np.ndarray]:
        """Log-probability of each token given those before it, `[L]` float32 per row; 0 where its field `mask` is 0."""

        def forward(batch: MicroBatch) -> Tensor:
            return self._token_outputs(batch, temperature)[0]

        return self._map_rows(rows, forward)

    def values(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The scalar head at every token, `[L]` float32 per row."""
        return self._map_rows(rows, self._values)

    def scores(self, rows: Sequence[Row]) -> np.ndarray:
        """The scalar head at each row's last token, `[len(rows)]` float32."""
        return np.array([values[-1] for values in self.values(rows)], np.float32)

    def train_step(
        self,
        units: Sequence[Unit],
        objective: Objective,
        *,
        lr: float,
        denominators: Denominators,
        temperature: float = 1.0,
    ) -> StepReport:
        """One optimizer step over the units of all ranks.

        The step is skipped on every rank, the weights staying as they are, where a field, the loss or the gradient is
        not finite, or where all denominators are 0.

        Args:
            units: this rank's share; may be empty.
            objective: the loss of a micro-batch.
            lr: learning rate of this step.
            denominators: this rank's counts; the objective sees their sums over the ranks.
            temperature: of a policy's logits.
        """
        batches = micro_batches(
            units,
            tokens_per_micro_batch=self.settings.tokens_per_micro_batch,
            row_length=self.settings.row_length,
            packing=self.settings.packing,
        )
        finite = all(np.isfinite(values).all() for batch in batches for values in batch.fields.values())
        everyone = self.group.gather((len(batches), finite, dict(denominators)))
        totals = {name: sum(counts[name] for _, _, counts in everyone) for name in denominators}
        if not all(is_finite for _, is_finite, _ in everyone):
            return StepReport({"optim/skipped": 1.0}, "non-finite advantage, target or other input")
        if not any(totals.values()):
            return StepReport({"optim/skipped": 1.0}, "empty batch")
        num_batches = max(count for count, _, _ in everyone)
        batches += [dummy_micro_batch(("mask",))] * (num_batches - len(batches))
        sums = self._accumulate(batches, objective, totals, temperature)
        return self._apply(sums, lr)

    def _accumulate(
        self, batches: Sequence[MicroBatch], objective: Objective, totals: Denominators, temperature: float
    ) -> MetricSums:
        """Gradients of all micro-batches; returns the metric sums of this rank."""
        self.engine.train()
        parts: MetricSums = {}
        for index, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(index == len(batches) - 1)  # pyright: ignore
            outputs = self._outputs(batch, temperature)
            if batch.is_dummy:
                loss = sum(tensor.sum() for tensor in outputs.values()) * 0.0
            else:
                loss, sums = objective(self._step_input(batch, outputs, totals))
                for key, value in sums.items():
                    parts[key] = parts[key] + value if key in parts else value
                if not math.isfinite(loss.item()):
                    # DeepSpeed refuses a step whose gradient norm is not finite; a loss without a usable gradient
                    # must be refused as well, so it poisons the gradient.
                    loss = sum(tensor.sum() for tensor in outputs.values()) * math.nan
            # DeepSpeed averages gradients over ranks; the objective's denominators are global already.
            self.engine.backward(loss * self.group.world_size, scale_wrt_gas=False)  # pyright: ignore
        return parts

    def _apply(self, sums: MetricSums, lr: float) -> StepReport:
        """The optimizer step, unless the gradient is not finite."""
        for group in self.engine.optimizer.param_groups:  # pyright: ignore
            group["lr"] = lr
        self.engine.step()  # pyright: ignore
        everyone = self.group.gather({key: float(value) for key, value in sums.items()})
        keys = {key for part in everyone for key in part}
        metrics = finish_sums({key: sum(part.get(key, 0.0) for part in everyone) for key in keys})
        if not self.engine.was_step_applied():  # pyright: ignore
            return StepReport(metrics | {"optim/skipped": 1.0}, "non-finite loss or gradient")
        norm = float(self.engine.get_global_grad_norm())  # pyright: ignore
        return StepReport(metrics | {"optim/skipped": 0.0, "optim/lr": lr, "optim/grad_norm": norm})

    def _outputs(self, batch: MicroBatch, temperature: float) -> dict[str, Tensor]:
        if isinstance(self.module, TokenLogprobModel):
            logprobs, entropy = self._token_outputs(batch, temperature)
            return {"logprobs": logprobs, "entropy": entropy}
        return {"values": self._values(batch)}

    def _token_outputs(self, batch: MicroBatch, temperature: float) -> Tensor:
        """Logprobs and entropies `[2, R, L]`, aligned with the tokens."""
        wanted = (batch.fields["mask"] != 0) & (batch.position_ids > 0)
        selected = np.flatnonzero(wanted)
        if not len(selected):
            selected = np.ones(1, np.int64)  # any token: the head must run on every rank
        device = self.group.device
        at = torch.from_numpy(selected).to(device)
        input_ids = torch.from_numpy(batch.input_ids).to(device)
        outputs = self.engine(
            input_ids=input_ids,
            position_ids=torch.from_numpy(batch.position_ids).to(device),
            positions=at - 1,
            targets=input_ids.reshape(-1)[at],
            temperature=temperature,
        )
        whole = outputs.new_zeros(2, batch.input_ids.size).index_copy(1, at, outputs)
        return whole.view(2, *batch.input_ids.shape)

    def _values(self, batch: MicroBatch) -> Tensor:
        device = self.group.device
        return self.engine(
            input_ids=torch.from_numpy(batch.input_ids).to(device),
            position_ids=torch.from_numpy(batch.position_ids).to(device),
        )

    def _step_input(self, batch: MicroBatch, outputs: Mapping[str, Tensor], totals: Denominators) -> StepInput:
        device = self.group.device
        width = batch.input_ids.shape[1]
        last = batch.placements[:, 0] * width + batch.placements[:, 1] + batch.placements[:, 2] - 1
        return StepInput(
            fields={name: torch.from_numpy(values).to(device) for name, values in batch.fields.items()},
            document_ids=torch.from_numpy(batch.document_ids).to(device),
            num_documents=batch.num_documents,
            last_positions=torch.from_numpy(last).to(device),
            denominators=totals,
            **outputs,
        )

    @torch.no_grad()
    def _map_rows(self, rows: Sequence[Row], forward: Callable[[MicroBatch], Tensor]) -> list[np.ndarray]:
        batches = micro_batches(
            [[row] for row in rows],
            tokens_per_micro_batch=self.settings.forward_tokens,
            row_length=self.settings.row_length,
            packing=self.settings.packing,
        )
        num_batches = max(self.group.gather(len(batches)))
        results: list[np.ndarray] = [np.zeros(0, np.float32)] * len(rows)
        self.engine.eval()
        for index in range(num_batches):
            if index >= len(batches):
                forward(dummy_micro_batch(("mask",)))
                continue
            values = forward(batches[index]).float().cpu().numpy()
            for row, document in zip(batches[index].row_indices, batches[index].documents(values), strict=True):
                results[row] = document.copy()
        return results
