"""Token logprobs in chunks against log_softmax in float64, through a model and alone."""

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from rlsys.errors import TrainingError
from rlsys.models.token_logprobs import TokenLogprobModel, chunked_token_logprobs


def naive(hidden, weight, targets, temperature):
    log_probabilities = torch.log_softmax(hidden @ weight.T / temperature, dim=-1)
    entropy = -(log_probabilities.exp() * log_probabilities).sum(-1)
    return log_probabilities.gather(1, targets[:, None])[:, 0], entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("num_tokens", "chunk"), [(50, 1 << 20), (50, 50 * 300), (9000, 9000 * 260), (1, 64)])
def test_values_and_gradients_equal_log_softmax_in_float64(temperature, num_tokens, chunk):
    """One chunk; many blocks of the vocabulary with a ragged last one; many blocks of tokens too; the smallest."""
    generator = torch.Generator().manual_seed(0)
    vocab, width = 1000, 8
    hidden = torch.randn(num_tokens, width, dtype=torch.float64, generator=generator).requires_grad_()
    weight = torch.randn(vocab, width, dtype=torch.float64, generator=generator).requires_grad_()
    targets = torch.randint(0, vocab, (num_tokens,), generator=generator)
    pull = torch.randn(2, num_tokens, dtype=torch.float64, generator=generator)
    results = []
    for function in (naive, lambda *arguments: chunked_token_logprobs(*arguments, chunk)):
        outputs = torch.stack(function(hidden, weight, targets, temperature))
        gradients = torch.autograd.grad((outputs * pull).sum(), (hidden, weight))
        results.append((outputs.detach(), *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_by_hand():
    """Two equal logits: each has probability 1/2, logprob and entropy are -log 2 and log 2."""
    hidden, weight = torch.tensor([[3.0]]), torch.tensor([[2.0], [2.0]])
    logprob, entropy = chunked_token_logprobs(hidden, weight, torch.tensor([1]))
    assert logprob.item() == pytest.approx(-0.693147, abs=1e-6)
    assert entropy.item() == pytest.approx(0.693147, abs=1e-6)


def test_extreme_logits_stay_finite():
    hidden = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight = torch.linspace(-1, 1, 600)[:, None]
    for chunk in (1 << 20, 600):
        logprobs, entropy = chunked_token_logprobs(hidden, weight, torch.tensor([599, 0]), 1.0, chunk)
        (gradient,) = torch.autograd.grad(logprobs.sum() + entropy.sum(), hidden)
        assert torch.isfinite(gradient).all()
        # Neighbouring logits are 2000 / 599 apart, so that the best token has log(1 - exp(-3.339)).
        assert logprobs.tolist() == pytest.approx([-0.036106, -0.036106], abs=1e-4)
        assert torch.isfinite(entropy).all()


def test_bfloat16_gives_float32_results():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(20, 16, generator=generator).bfloat16()
    weight = torch.randn(500, 16, generator=generator).bfloat16()
    targets = torch.arange(20)
    logprobs, _ = chunked_token_logprobs(hidden, weight, targets)
    expected, _ = naive(hidden.double(), weight.double(), targets, 1.0)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=0.05)


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="hidden \\[T, D\\]"):
        chunked_token_logprobs(torch.zeros(3, 4), torch.zeros(5, 4), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_logprobs_and_gradients_equal_those_of_its_logits(tied):
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, tie_word_embeddings=tied,
    )  # fmt: skip
    torch.manual_seed(0)
    plain = LlamaForCausalLM(config).double()
    ours = LlamaForCausalLM(config).double()
    ours.load_state_dict(plain.state_dict())
    ids = torch.randint(0, 50, (3, 7))
    positions = torch.tensor([0, 4, 13, 19])
    targets = torch.tensor([5, 6, 7, 8])
    logits = plain(input_ids=ids).logits.reshape(-1, 50)[positions]
    expected = torch.stack(naive_from_logits(logits, targets))
    got = TokenLogprobModel(ours)(ids, torch.arange(7).expand(3, 7), positions, targets, 1.0)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    (expected[0].sum() + 2 * expected[1].sum()).backward()
    (got[0].sum() + 2 * got[1].sum()).backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), ours.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, rtol=1e-8, atol=1e-10, msg=name)


def naive_from_logits(logits, targets):
    log_probabilities = torch.log_softmax(logits, -1)
    return log_probabilities.gather(1, targets[:, None])[:, 0], -(log_probabilities.exp() * log_probabilities).sum(-1)


def test_a_model_that_caps_its_logits_is_refused():
    config = Gemma2Config(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        intermediate_size=24, final_logit_softcapping=3.0,
    )  # fmt: skip
    model = TokenLogprobModel(Gemma2ForCausalLM(config))
    with pytest.raises(TrainingError, match=r"changes its logits after the head.*got 'Gemma2ForCausalLM'"):
        model(torch.ones(1, 4, dtype=torch.long), torch.arange(4)[None], torch.tensor([0]), torch.tensor([1]), 1.0)
