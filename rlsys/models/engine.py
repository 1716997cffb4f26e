"""One rank of one model: forward passes over rows, optimizer steps over units, weights out. No Ray, no topology.

Every public method is collective: all ranks of the model call it, in the same order, each with its own part of the
work. A rank with fewer micro-batches runs dummies, because each pass gathers and reduces with the others.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from rlsys.algorithms.metric_sums import MetricSums, add_sums, finish_sums
from rlsys.algorithms.step_guard import ADVANTAGE, ALL_MASKED, GRADIENT, LOSS, StepReport
from rlsys.data.packing import MicroBatch, Row, Unit, dummy_micro_batch, micro_batches
from rlsys.errors import TrainingError
from rlsys.models.hardware import model_flop_utilisation, peak_flops, peak_memory_bytes
from rlsys.models.loading import whole_size
from rlsys.models.process_group import ProcessGroup
from rlsys.models.sequence_parallel import SequenceParallel
from rlsys.models.token_logprobs import TokenLogprobModel
from rlsys.recipe.learner import LearnerSettings

Denominators: TypeAlias = Mapping[str, float]
"""Global counts of the optimizer step by name, such as `tokens` and `samples`."""


@dataclass(frozen=True, slots=True)
class StepInput:
    """What an objective sees of one micro-batch: outputs with gradients, and the rows' fields, all `[R, L]`."""

    fields: Mapping[str, Tensor]
    """Float32, 0 at padding; `mask` is 0 at each document's first token too."""
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
    """Of a scalar model: float32, its estimate before each token: the head at the token before; 0 at the first."""
    scores: Tensor | None = None
    """Of a scalar model: `[N]` float32, the head at each document's last token."""


Objective: TypeAlias = Callable[[StepInput], tuple[Tensor, MetricSums]]
"""Losses of all micro-batches and ranks ADD to the loss of the step: divide by a global denominator."""


class TrainEngine:
    """A model with its DeepSpeed engine on this rank.

    Args:
        module: a `TokenLogprobModel` or `ScalarModel`.
        engine: DeepSpeed's engine around it, or the module itself where it is never trained.
        settings: of this model's section.
        group: the ranks.
        sequence: those of them that share micro-batches.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        engine: Any,
        settings: LearnerSettings,
        group: ProcessGroup,
        sequence: SequenceParallel,
    ) -> None:
        self.module = module
        self.engine = engine
        self.settings = settings
        self.group = group
        self.sequence = sequence

    def logprobs(self, rows: Sequence[Row], *, temperature: float = 1.0) -> list[np.ndarray]:
        """Log-probability of each token given those before it, `[L]` float32 per row; 0 where its field `mask` is 0."""

        def forward(batch: MicroBatch) -> Tensor:
            return self._token_outputs(batch, temperature)[0]

        return self._map_rows(rows, forward)

    def values(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """The estimate before each token (the head at the token before): `[L]` float32 per row, the first entry 0."""
        return self._map_rows(rows, lambda batch: _before(self._head(batch), batch))

    def scores(self, rows: Sequence[Row]) -> np.ndarray:
        """The scalar head at each row's last token, `[len(rows)]` float32."""
        return np.array([head[-1] for head in self._map_rows(rows, self._head)], np.float32)

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
        started = time.perf_counter()
        batches = micro_batches(
            self.sequence.share(units)[0],
            tokens_per_micro_batch=self.settings.tokens_per_micro_batch * self.sequence.size,
            row_length=self.settings.row_length,
            packing=self.settings.packing,
        )
        finite = all(np.isfinite(values).all() for batch in batches for values in batch.fields.values())
        num_tokens = sum(batch.input_ids.size for batch in batches)
        everyone = self.group.gather((len(batches), finite, dict(denominators), num_tokens))
        totals = {name: sum(counts[name] for _, _, counts, _ in everyone) for name in denominators}
        if not all(is_finite for _, is_finite, _, _ in everyone):
            return StepReport({"optim/skipped": 1.0}, ADVANTAGE)
        if not any(totals.values()):
            return StepReport({"optim/skipped": 1.0}, ALL_MASKED)
        num_batches = max(count for count, _, _, _ in everyone)
        batches += [dummy_micro_batch(("mask",))] * (num_batches - len(batches))
        sums, loss_is_finite = self._accumulate(batches, objective, totals, temperature)
        report = self._apply(sums, loss_is_finite, lr)
        peak = peak_flops(self.group.device)
        if peak is not None and report.fault is None:
            num_tokens = sum(tokens for _, _, _, tokens in everyone[:: self.sequence.size])
            report.metrics["perf/mfu"] = model_flop_utilisation(
                self.num_parameters,
                num_tokens,
                seconds=time.perf_counter() - started,
                peak=peak * self.group.world_size,
            )
        return report

    @cached_property
    def num_parameters(self) -> int:
        """Of the whole model, tied ones once."""
        return sum(whole_size(parameter) for parameter in self.module.parameters())

    def begin_stage(self, settings: LearnerSettings) -> None:
        """Take another stage's settings: the weights stay, Adam's moments are forgotten.

        Raises:
            TrainingError: the stage needs another DeepSpeed engine, or a model with adapters is loaded; load the model
                from the exported folder instead.
        """
        if self.settings.lora is not None:
            # The folder has them merged, and a run that is resumed in this stage begins with it and fresh adapters.
            raise TrainingError("adapters end with their stage", fix="export the model and load it again")
        for name in (
            "zero_stage",
            "dtype",
            "gradient_checkpointing",
            "logits_chunk",
            "sequence_parallel",
            "liger",
            "lora",
            "deepspeed",
        ):
            if getattr(settings, name) != getattr(self.settings, name):
                raise TrainingError(
                    f"learner.{name} cannot change while a model is loaded", fix="export the model and load it again"
                )
        self.settings = settings
        optimizer = self.engine.optimizer
        optimizer.clip_grad = settings.max_grad_norm
        for group in optimizer.param_groups:
            group |= {"betas": settings.betas, "eps": settings.eps, "weight_decay": settings.weight_decay}
        for state in optimizer.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def _accumulate(
        self, batches: Sequence[MicroBatch], objective: Objective, totals: Denominators, temperature: float
    ) -> tuple[MetricSums, bool]:
        """Gradients of all micro-batches; returns this rank's metric sums and whether its losses are finite."""
        self.engine.train()
        parts: list[MetricSums] = []
        loss_is_finite = True
        for index, batch in enumerate(batches):
            self.engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            outputs = self._outputs(batch, temperature)
            if batch.is_dummy:
                loss = sum(tensor.sum() for tensor in outputs.values()) * 0.0
            else:
                loss, sums = objective(self._step_input(batch, outputs, totals))
                parts.append(sums)
                if not math.isfinite(loss.item()):
                    loss_is_finite = False
                    # DeepSpeed refuses a step whose gradient norm is not finite; a loss without a usable gradient
                    # must be refused as well, so it poisons the gradient.
                    loss = sum(tensor.sum() for tensor in outputs.values()) * math.nan
            # DeepSpeed averages gradients over ranks; the objective's denominators are global already.
            self.engine.backward(loss * self.group.world_size, scale_wrt_gas=False)
        return add_sums(parts), loss_is_finite

    def _apply(self, sums: MetricSums, loss_is_finite: bool, lr: float) -> StepReport:
        """The optimizer step, unless the gradient is not finite."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        self.engine.step()
        memory = peak_memory_bytes(self.group.device)
        everyone = self.group.gather((loss_is_finite, {key: float(value) for key, value in sums.items()}, memory))
        if not self.engine.was_step_applied():
            fault = GRADIENT if all(is_finite for is_finite, _, _ in everyone) else LOSS
            return StepReport({"optim/skipped": 1.0}, fault)
        parts = [part for _, part, _ in everyone[:: self.sequence.size]]  # ranks that share have the same sums
        keys = {key for part in parts for key in part}
        metrics = finish_sums({key: sum(part.get(key, 0.0) for part in parts) for key in keys})
        metrics["perf/peak_mem_gib"] = max(memory for _, _, memory in everyone) / 2**30
        norm = float(self.engine.get_global_grad_norm())
        return StepReport(metrics | {"optim/skipped": 0.0, "optim/lr": lr, "optim/grad_norm": norm})

    def _outputs(self, batch: MicroBatch, temperature: float) -> dict[str, Tensor]:
        if isinstance(self.module, TokenLogprobModel):
            logprobs, entropy = self._token_outputs(batch, temperature)
            return {"logprobs": logprobs, "entropy": entropy}
        head = self._head(batch)
        last = torch.from_numpy(_last_positions(batch)).to(head.device)
        return {"values": _before(head, batch), "scores": head.reshape(-1)[last]}

    def _token_outputs(self, batch: MicroBatch, temperature: float) -> Tensor:
        """Logprobs and entropies `[2, R, L]`, aligned with the tokens."""
        wanted = (batch.fields["mask"] != 0) & (batch.position_ids > 0)
        selected = np.flatnonzero(wanted)
        here, positions = self.sequence.local(selected - 1, batch)
        selected = selected[here]
        is_idle = not len(selected)
        if is_idle:
            selected = positions = np.zeros(1, np.int64)  # any token: the head must run on every rank
        device = self.group.device
        at = torch.from_numpy(selected).to(device)
        outputs = self.engine(
            **self.sequence.inputs(batch),
            positions=torch.from_numpy(positions).to(device),
            targets=torch.from_numpy(batch.input_ids.reshape(-1)[selected]).to(device),
            temperature=temperature,
        )
        outputs = outputs * 0.0 if is_idle else outputs
        whole = outputs.new_zeros(2, batch.input_ids.size).index_copy(1, at, outputs)
        return self.sequence.add_others(whole).view(2, *batch.input_ids.shape)

    def _head(self, batch: MicroBatch) -> Tensor:
        return self.sequence.whole(self.engine(**self.sequence.inputs(batch)), batch)

    def _step_input(self, batch: MicroBatch, outputs: Mapping[str, Tensor], totals: Denominators) -> StepInput:
        device = self.group.device
        # Nothing predicts a document's first token: whatever the mask says, it is no target.
        fields = {**batch.fields, "mask": np.where(batch.position_ids > 0, batch.fields["mask"], np.float32(0))}
        return StepInput(
            fields={name: torch.from_numpy(values).to(device) for name, values in fields.items()},
            document_ids=torch.from_numpy(batch.document_ids).to(device),
            num_documents=batch.num_documents,
            last_positions=torch.from_numpy(_last_positions(batch)).to(device),
            denominators=totals,
            **outputs,
        )

    @torch.no_grad()
    def _map_rows(self, rows: Sequence[Row], forward: Callable[[MicroBatch], Tensor]) -> list[np.ndarray]:
        rows, mine = self.sequence.share(rows)
        batches = micro_batches(
            [[row] for row in rows],
            tokens_per_micro_batch=self.settings.forward_tokens * self.sequence.size,
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
        return results[mine]


def _last_positions(batch: MicroBatch) -> np.ndarray:
    row, start, length = batch.placements.T
    return row * batch.input_ids.shape[1] + start + length - 1


def _before(head: Tensor, batch: MicroBatch) -> Tensor:
    """Shift `[R, L]` by one position to the right, 0 at the first token of each document."""
    shifted = torch.cat([torch.zeros_like(head[:, :1]), head[:, :-1]], dim=1)
    return shifted.masked_fill(torch.from_numpy(batch.position_ids == 0).to(head.device), 0.0)
