"""Loading models from scratch and from folders, and what is refused."""

import json
import math

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM
from transformers.utils import is_flash_attn_2_available, is_kernels_available

from rlsys.data.tokenizer import tokenizer_of
from rlsys.errors import RecipeError
from rlsys.models.deepspeed_settings import deepspeed_settings
from rlsys.models.loading import ScalarModel, draw, load_causal_lm, load_scalar_model
from rlsys.recipe.learner import LearnerSettings
from rlsys.recipe.model import ModelSettings

CONFIG = {
    "model_type": "llama", "vocab_size": 400, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "tie_word_embeddings": True,
}  # fmt: skip
TOKENIZER = "rlsys/quickstart/tokenizer"


def scratch(**changes) -> ModelSettings:
    return ModelSettings(**{"config": CONFIG, "init_std": 0.05, "tokenizer": TOKENIZER} | changes)


def test_from_scratch_is_a_function_of_the_seed():
    torch.manual_seed(1)
    first = load_causal_lm(scratch()).state_dict()
    torch.manual_seed(2)
    again = load_causal_lm(scratch()).state_dict()
    other = load_causal_lm(scratch(init_seed=1)).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    drawn = [name for name in first if "norm" not in name]
    assert all(not torch.equal(first[name], other[name]) for name in drawn)
    assert not torch.equal(first["model.layers.0.mlp.up_proj.weight"], first["model.layers.1.mlp.up_proj.weight"])
    assert all((first[name] == 1).all() for name in first if "norm" in name)
    everything = torch.cat([first[name].flatten() for name in drawn])
    assert everything.std().item() == pytest.approx(0.05, rel=0.02)
    assert everything.mean().item() == pytest.approx(0.0, abs=0.001)


@pytest.mark.skipif(is_flash_attn_2_available() or is_kernels_available(), reason="flash attention is installed")
@pytest.mark.parametrize("load", [load_causal_lm, load_scalar_model])
@pytest.mark.parametrize(("version", "package"), [(2, r"flash-attn==\S+ or kernels=="), (3, r"kernels==\S+ or flash-")])
def test_flash_attention_that_is_not_there_is_told_with_what_to_install(load, version: int, package: str):
    wanted = scratch(attention=f"flash_attention_{version}")
    with pytest.raises(RecipeError, match=f"model.attention .*got 'flash_attention_{version}'; .*'sdpa'.*{package}"):
        load(wanted, torch.bfloat16)


def test_other_imports_that_fail_are_not_said_to_be_of_attention(monkeypatch: pytest.MonkeyPatch):
    def from_config(*_: object, **__: object) -> None:
        raise ImportError("sentencepiece is not installed")

    monkeypatch.setattr(AutoModelForCausalLM, "from_config", from_config)
    with pytest.raises(ImportError, match=r"^sentencepiece is not installed$"):
        load_causal_lm(scratch())


def test_the_scalar_head_of_a_policy_folder_is_drawn_and_the_rest_kept(tmp_path):
    load_causal_lm(scratch()).save_pretrained(tmp_path)
    model = load_scalar_model(ModelSettings(path=str(tmp_path)))
    head = torch.empty(1, CONFIG["hidden_size"])
    draw(head, 1 / math.sqrt(33), "0/head")  # std 1 / sqrt(d + 1)
    assert torch.equal(model.score.weight, head)
    backbone = AutoModelForCausalLM.from_pretrained(tmp_path).model.state_dict()
    assert all(torch.equal(model.model.state_dict()[name], backbone[name]) for name in backbone)
    other = load_scalar_model(ModelSettings(path=str(tmp_path), init_seed=4))
    assert not torch.equal(model.score.weight, other.score.weight)


def test_values_and_scores_have_the_precision_of_float32_in_a_bfloat16_model():
    """A score of 10 would be a multiple of 1/16: a third of the value clip. Gradients reach the head and the model."""
    model = load_scalar_model(scratch(), torch.bfloat16)
    with torch.no_grad():
        model.score.weight.mul_(10.0)
    module = ScalarModel(model)
    ids, positions = torch.arange(24).reshape(2, 12), torch.arange(12).expand(2, 12)
    scores = module(ids, positions)
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    exact = (hidden.double() @ model.score.weight.double().T)[..., 0]
    assert hidden.dtype == model.score.weight.dtype == torch.bfloat16 and scores.dtype == torch.float32
    assert exact.abs().max() > 10 and (exact.bfloat16() - exact).abs().max() > 0.02
    assert (scores - exact).abs().max() < 1e-5
    scores.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_what_cannot_be_loaded_safely_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="not a Hugging Face model folder"):
        load_causal_lm(ModelSettings(path=str(tmp_path)))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(RecipeError, match=r"pickled weights are never loaded.*save_pretrained"):
        load_causal_lm(ModelSettings(path=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "code.Model"}}))
    with pytest.raises(RecipeError, match=r"needs Python files of its own.*trust_remote_code"):
        load_causal_lm(ModelSettings(path=str(tmp_path)))
    with pytest.raises(RecipeError, match="no tokenizer folder"):
        tokenizer_of(ModelSettings(path="nowhere"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "a", "config": CONFIG, "tokenizer": "t"}, "not both"),
        ({"config": {"hidden_size": 3}, "tokenizer": "t"}, "needs model_type"),
        ({"config": CONFIG}, "no tokenizer of its own"),
        ({"path": "a", "init_std": 0.1}, "init_std applies to"),
        ({"path": "a", "colour": "red"}, "colour"),
    ],
)
def test_impossible_model_sections_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        ModelSettings(**settings)


@pytest.mark.parametrize(
    ("deepspeed", "message"),
    [
        ({"gradient_clipping": 1.0}, "use learner.max_grad_norm"),
        ({"bf16": {"enabled": True}}, "use learner.dtype"),
        ({"zero_optimization": {"stage": 2}}, "use learner.zero_stage"),
    ],
)
def test_deepspeed_settings_that_the_recipe_states_elsewhere_are_refused(deepspeed, message):
    with pytest.raises(ValidationError, match=message):
        LearnerSettings(deepspeed=deepspeed)


def test_native_deepspeed_settings_are_merged_table_by_table():
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "wall_clock_breakdown": True}
    config = deepspeed_settings(LearnerSettings(deepspeed=offload, max_grad_norm=0.5), torch.device("cpu"))
    assert config["zero_optimization"]["stage"] == 3
    assert config["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert config["wall_clock_breakdown"] is True
    assert config["gradient_clipping"] == 0.5
    assert config["bf16"] == {"enabled": False}
    on_gpu = deepspeed_settings(LearnerSettings(), torch.device("cuda"))
    assert on_gpu["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert on_gpu["data_types"] == {"grad_accum_dtype": "fp32"}
