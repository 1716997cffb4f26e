"""Attention by document against attention under the mask that transformers builds."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from rlsys.models import document_attention
from rlsys.models.document_attention import BY_DOCUMENT, attend_by_document

SHAPE = {
    "vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48,
}  # fmt: skip
POSITIONS = torch.tensor([[*range(5), *range(3), 0, *range(3)], [*range(7), *range(5)]])


CPU = torch.device("cpu")


def results(model: torch.nn.Module) -> list[torch.Tensor]:
    """Logits and gradients."""
    ids = torch.arange(24).reshape(2, 12) % 50
    model.zero_grad()
    logits = model(input_ids=ids, position_ids=POSITIONS, use_cache=False).logits
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize(
    "model",
    [LlamaForCausalLM(LlamaConfig(**SHAPE)), MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=3))],
    ids=["full", "window"],
)
def test_logits_and_gradients_are_those_under_the_mask(model: torch.nn.Module, monkeypatch):
    model = model.double()
    model.set_attn_implementation("sdpa")
    expected = results(model)
    attend_by_document(model, CPU)
    assert model.config._attn_implementation == BY_DOCUMENT
    calls = []
    own = document_attention.sdpa_attention_forward
    monkeypatch.setattr(
        document_attention,
        "sdpa_attention_forward",
        lambda module, query, *rest, **arguments: (
            calls.append(query.shape[2]) or own(module, query, *rest, **arguments)
        ),
    )
    found = results(model)
    assert calls[: len(calls) // 2] == ([12] if model.config.model_type == "mistral" else [5, 3, 1, 3, 7, 5])
    assert len(found) == len(expected) > 10
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def test_rows_of_one_document_are_one_call(monkeypatch):
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    attend_by_document(model, CPU)
    shapes = []
    own = document_attention.sdpa_attention_forward

    def spy(module, query, key, value, mask, **arguments):
        shapes.append((tuple(query.shape), mask))
        return own(module, query, key, value, mask, **arguments)

    monkeypatch.setattr(document_attention, "sdpa_attention_forward", spy)
    model(input_ids=torch.zeros(3, 6, dtype=torch.long), position_ids=torch.arange(6).expand(3, 6), use_cache=False)
    assert shapes == [((3, 4, 6, 8), None)] * 2


def test_a_model_that_is_still_on_cpu_and_bound_for_a_gpu_keeps_its_attention():
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    attend_by_document(model, torch.device("cuda", 0))
    assert model.device.type == "cpu" and model.config._attn_implementation == "sdpa"
