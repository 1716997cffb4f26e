"""An engine of two worker processes: each receives, checks and loads its half, and none outlives the engine."""

import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest
from leftovers import shared_memory, unused_shared_memory
from weight_lab import CANARY, PARITY, Lab, change, hf_logprobs, rollout_logprobs

from rlsys.recipe.rollout import SamplingSettings
from rlsys.rollouts.sampling_engine import SamplingEngine
from rlsys.types import Rollout

pytestmark = [
    pytest.mark.integration,
    pytest.mark.alone,
    pytest.mark.timeout(280),
    pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="tensor parallelism on CPU needs two cores"),
]

PROMPT = [5, 6, 7]


def sample(engine: SamplingEngine) -> list[Rollout]:
    """Runs in the engine's process."""
    sampling = SamplingSettings(max_tokens=20, ignore_end=True)
    engine.add_group(PROMPT, ordinal=0, num_samples=4, seeds=[1, 2, 3, 4], sampling=sampling)
    groups = []
    while engine.has_work:
        groups += engine.step()
    return list(groups[0].rollouts)


def test_parity_after_updates_and_no_process_left_behind(tmp_path: Path):
    first, second = sorted(os.sched_getaffinity(0))[:2]
    memory_before = shared_memory()
    lab = Lab(tmp_path, tied=True, num_ranks=2, cpu_cores=f"{first}|{second}", vllm={"tensor_parallel_size": 2})
    assert lab.engine.run(lambda engine: engine.world_size) == 2
    for version in (1, 2):
        change(lab.model, seed=version)
        receipts = lab.update(version=version)
        assert len(receipts) == 2
        assert np.abs(lab.canary() - hf_logprobs(lab.model, CANARY)).max() < PARITY
    for rollout in lab.engine.run(sample):
        assert rollout.versions.tolist() == [2] * 20
        assert np.abs(rollout.logprobs - rollout_logprobs(lab.model, PROMPT, rollout)).max() < PARITY
    left_out = "model.layers.1.mlp.gate_proj.weight"
    _, receipts = lab.transfer([[(n, p.detach()) for n, p in lab.model.named_parameters() if n != left_out]])
    for receipt in receipts:
        assert receipt.problems == ("no weights arrived for model.layers.1.mlp.gate_up_proj (6144 of 12288 elements)",)

    processes = psutil.Process(lab.engine.pid).children(recursive=True)
    assert len(processes) >= 2
    for pid in (lab.engine.pid, *(process.pid for process in processes)):
        os.kill(pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert alive == []
    assert unused_shared_memory(memory_before) == set(), "nobody was left who could take a name away"
    lab.sender.close()
