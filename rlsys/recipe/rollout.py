"""`[rollout]`: the engines that sample, and how weights get to them. `[sampling]`: what is asked of them."""

import difflib
import math
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator

from rlsys.recipe.section import Section

UpdateMode = Literal["drain", "in_flight", "abort_and_continue"]
KvOnUpdate = Literal["keep", "recompute"]
WeightTransfer = Literal["gloo", "nccl", "ipc"]

RESERVED: dict[str, str] = {
    "model": "the stage's input decides it",
    "tokenizer": "prompts reach the engine as token ids",
    "skip_tokenizer_init": "prompts reach the engine as token ids",
    "load_format": "weights reach the engine by publication",
    "weight_transfer_config": "rollout.weight_transfer decides it",
    "logprobs_mode": "training needs the logprobs of the distribution that was sampled from",
    "async_scheduling": "a step in flight while the weights change would sample tokens of no exact version",
    "data_parallel_size": "each rollout worker has an engine of its own: set cluster.rollout_workers",
    "pipeline_parallel_size": "it keeps several steps in flight, so that tokens would have no exact version",
}
"""Engine settings that rlsys sets itself, and why."""


class SamplingSettings(Section):
    """What is asked of every response."""

    max_tokens: PositiveInt = 1024
    """The longest response, its end token included."""
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """0 is greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Samples from the likeliest tokens of this much probability together."""
    ignore_end: bool = False
    """Goes on after an end token: for measurements of speed only."""


@cache
def engine_keys() -> frozenset[str]:
    """Names of vLLM's engine settings, read from its source: an import takes 10 s. None where it is not installed."""
    vllm = find_spec("vllm")
    source = Path(vllm.origin or "").parent / "engine" / "arg_utils.py" if vllm else None
    if source is None or not source.is_file():
        return frozenset()
    fields = source.read_text().partition("\nclass EngineArgs:\n")[2].partition("\n    def ")[0]
    return frozenset(re.findall(r"^    (\w+):", fields, re.MULTILINE))


def check_engine_settings(vllm: dict[str, Any]) -> dict[str, Any]:
    """Engine settings that vLLM knows, and none that rlsys sets itself."""
    faults = [f"vllm.{key} cannot be set: {why}; leave it out" for key, why in RESERVED.items() if key in vllm]
    for key in sorted(vllm.keys() - engine_keys()) if engine_keys() else ():
        near = difflib.get_close_matches(key, engine_keys(), n=1)
        faults.append(f"vLLM has no engine setting {key}; {f'did you mean {near[0]}?' if near else 'leave it out'}")
    size = vllm.get("tensor_parallel_size", 1)
    if not isinstance(size, int) or size < 1:
        faults.append(f"vllm.tensor_parallel_size must be a positive integer; got {size!r}")
    if faults:
        raise ValueError("\n".join(faults))
    return vllm


def context_length(vllm: dict[str, Any]) -> int | None:
    """Tokens of the longest prompt with its response, where the engine settings name it."""
    length = vllm.get("max_model_len")
    return length if isinstance(length, int) and length > 0 else None


MAX_NUM_SEQS = 256
"""Responses that an engine samples at the same time, unless `rollout.vllm` says otherwise."""


class RolloutSettings(Section):
    """The engines and the publication of weights."""

    update: UpdateMode = "in_flight"
    """What becomes of unfinished responses when new weights come. `in_flight`: they go on, later tokens are of the new
    version; `drain`: the update waits for them; `abort_and_continue`: they are ended, and asked for anew from where
    they were."""
    kv_on_update: KvOnUpdate = "keep"
    """Keys and values of unfinished responses at an update: those of the old weights are kept, or computed anew."""
    weight_transfer: WeightTransfer | Literal["auto"] = "auto"
    """`nccl` between GPUs, `ipc` where learner and engine share a cluster's only GPU, `gloo` on CPU; `auto` chooses."""
    bucket_mib: PositiveInt = 256
    """The most weights gathered from the learner's ranks at once; a single larger tensor excepted."""
    digest: Literal["fold64", "sha256"] = "fold64"
    """Of each tensor, sent against received: 64 bits computed on the device, or SHA-256 on the CPU."""
    canary_tokens: NonNegativeInt = 48
    """Length of the text whose logprobs engine and learner compare at each publication; 0 compares none."""
    canary_tolerance: PositiveFloat | Literal["auto"] = "auto"
    """A publication fails when these logprobs differ by more on average, or by ten times as much at a token; beyond 1
    nat, by more of the logprob. `auto`: where learner and engine compute in float32, 1e-5 on CPU and 5e-3 on GPUs; else
    0.05."""
    update_timeout_s: PositiveFloat = 120.0
    """Deadline of each phase of a publication, draining excepted."""
    drain_timeout_s: PositiveFloat = 1800.0
    """Deadline for unfinished responses with `update = "drain"`."""
    cpu_cores: str | None = Field(default=None, pattern=r"^[0-9,|-]+$")
    """For engines on CPU: the cores that their threads are bound to, `0`, `0-3`, or `0|1` for a tensor-parallel size
    of 2; free when absent."""
    vllm: dict[str, Any] = Field(default_factory=dict)
    """Any other engine setting, under vLLM's own name."""

    _ours_are_not_set = field_validator("vllm")(check_engine_settings)

    def _faults(self) -> Iterator[str]:
        if self.cpu_cores is not None and self.cpu_cores.count("|") + 1 != self.tensor_parallel_size:
            yield (
                f"cpu_cores must name cores for each of {self.tensor_parallel_size} tensor-parallel workers, "
                f"divided by |; got {self.cpu_cores!r}"
            )

    def groups_per_worker(self, num_samples: int) -> int:
        """Prompts of so many samples that keep an engine busy: a chunk of them counts until its longest is done."""
        return math.ceil(8 * self.vllm.get("max_num_seqs", MAX_NUM_SEQS) / num_samples)

    @property
    def tensor_parallel_size(self) -> int:
        """Processes (GPUs) of one engine."""
        return self.vllm.get("tensor_parallel_size", 1)
