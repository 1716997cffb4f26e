"""DPO's reference logprobs on disk: found again for the same pairs, model and precision, and for nothing else."""

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from launch import supervised
from rlsys.data.reference_logprobs import ReferenceLogprobs, model_digest
from rlsys.data.token_store import write_pair_store
from rlsys.data.tokenized import TokenizedPair, TokenizedRow
from rlsys.recipe.cluster import ClusterSettings
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings
from rlsys.recipe.stages import DpoStage
from rlsys.telemetry.trace import SpanRecorder

LOGPROBS = np.array([[-1.5, -2.25], [-0.125, -8.0]], np.float32)


def write_pairs(folder: Path, last_token: int = 7) -> Path:
    rows = [TokenizedRow(np.array([5, token], np.int32), np.array([0, 1], np.float32)) for token in (6, last_token)]
    write_pair_store(folder, [TokenizedPair(*rows, margin=1.0)] * 2)
    return folder


def write_model(folder: Path, weight: float = 1.0) -> ModelSettings:
    folder.mkdir(exist_ok=True)
    save_file({"w": np.array([weight, 2.0], np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return ModelSettings(path=str(folder))


def kept(tmp_path: Path, model: ModelSettings, *, precision: str = "auto on CPUs") -> ReferenceLogprobs:
    return ReferenceLogprobs(
        tmp_path / "kept", pairs=tmp_path / "pairs", model=model_digest(model), precision=precision
    )


@pytest.fixture
def model(tmp_path: Path) -> ModelSettings:
    """A model and pairs whose logprobs are kept."""
    write_pairs(tmp_path / "pairs")
    model = write_model(tmp_path / "model")
    assert kept(tmp_path, model).read() is None
    kept(tmp_path, model).write(LOGPROBS)
    return model


def test_the_same_pairs_and_model_hit(tmp_path: Path, model: ModelSettings):
    found = kept(tmp_path, model).read()
    assert found is not None and found.dtype == np.float32
    np.testing.assert_array_equal(found, LOGPROBS)
    write_pairs(tmp_path / "pairs")  # made again from the same data
    copied = write_model(tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("beside the weights")
    assert kept(tmp_path, copied).read() is not None
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [kept(tmp_path, model).path.name]


def test_a_changed_weight_misses(tmp_path: Path, model: ModelSettings):
    """Though neither the file's size nor its time tells it."""
    file = tmp_path / "model" / "model.safetensors"
    before = file.stat()
    write_model(tmp_path / "model", weight=1.0000001)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert kept(tmp_path, model).read() is None
    write_model(tmp_path / "model")
    assert kept(tmp_path, model).read() is not None


def test_another_configuration_another_precision_and_changed_pairs_miss(tmp_path: Path, model: ModelSettings):
    assert kept(tmp_path, model, precision="auto on GPUs").read() is None
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 1e6}))
    assert kept(tmp_path, model).read() is None
    write_model(tmp_path / "model")
    write_pairs(tmp_path / "pairs", last_token=8)
    assert kept(tmp_path, model).read() is None


def test_a_model_from_scratch_is_told_by_what_draws_its_weights():
    scratch = ModelSettings(config={"model_type": "llama", "hidden_size": 8}, tokenizer="here", init_seed=3)
    digest = model_digest(scratch)
    assert model_digest(scratch.model_copy(update={"tokenizer": "there"})) == digest
    assert model_digest(scratch.model_copy(update={"init_seed": 4})) != digest


def test_a_stage_that_finds_them_loads_no_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs, model = write_pairs(tmp_path / "pairs"), write_model(tmp_path / "model")
    monkeypatch.setattr(supervised, "digest_model", SimpleNamespace(remote=model_digest))
    loaded: list[str] = []

    def load(model: ModelSettings, learner: LearnerSettings) -> Any:
        loaded.append(str(model.path))
        return SimpleNamespace(get=lambda timeout_s: None)

    reference = SimpleNamespace(load=load, pair_logprobs=lambda folder: SimpleNamespace(get=lambda: LOGPROBS))
    context: Any = SimpleNamespace(
        folder=tmp_path / "run", spans=SpanRecorder("driver"), policy_settings=lambda folder: model,
        recipe=SimpleNamespace(cluster=ClusterSettings(), tracking=SimpleNamespace(console=False)),
        result=lambda digest, what: digest, await_load=lambda loading, what: loading.get(1.0),
        crew=SimpleNamespace(reference=reference, use_gpus=False),
    )  # fmt: skip
    stage = DpoStage(kind="dpo", learner=LearnerSettings(), batch_size=2)
    for _ in range(2):
        found = supervised._reference_logprobs(context, stage, pairs, tmp_path / "model")
        np.testing.assert_array_equal(found, LOGPROBS)
    assert loaded == [model.path], "the second time nothing is loaded"
    write_model(tmp_path / "model", weight=3.0)
    supervised._reference_logprobs(context, stage, pairs, tmp_path / "model")
    assert loaded == [model.path] * 2
