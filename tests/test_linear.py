"""Linear layers on a CPU: oneDNN gives what torch gives, forwards and backwards, in a model too."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from core import linear as module
from core.linear import LEAST, Linear, Product, linear, quicken

fast = pytest.mark.skipif(not module.FAST, reason="torch without oneDNN, or not an x86 CPU")


def layer(rows=(7,), inputs=96, outputs=800, dtype=torch.float32):
    """x, weight and bias, which need gradients. The layer is large enough for oneDNN."""
    generator = torch.Generator().manual_seed(0)
    shapes = (*rows, inputs), (outputs, inputs), (outputs,)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def grads(function, tensors):
    """The output and the gradients of a sum in which each output has its own weight."""
    out = function(*tensors)
    weights = torch.linspace(-1, 1, out.numel()).to(out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), [t for t in tensors if t is not None])]


@fast
@pytest.mark.parametrize("rows", [(1,), (7,), (300,), (2, 5), (1, 40)])
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_double_precision(rows, bias):
    tensors = layer(rows)
    assert tensors[1].numel() >= LEAST
    tensors = tensors if bias else tensors[:2] + [None]
    double = [t if t is None else t.detach().double().requires_grad_() for t in tensors]
    for ours, exact in zip(grads(linear, tensors), grads(F.linear, double), strict=True):
        assert (ours - exact).abs().max() <= 5e-5 * exact.abs().max()


@fast
def test_large_layers_in_fp32_use_onednn_and_others_do_not(monkeypatch):
    used = []
    monkeypatch.setattr(module, "product", lambda x, weight, *rest: used.append(1) or F.linear(x, weight))
    linear(*layer())
    assert len(used) == 1
    for x, weight, bias in (layer(outputs=600), layer(dtype=torch.bfloat16), layer((0,))):
        assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    monkeypatch.setattr(module, "FAST", False)  # a Mac
    assert torch.equal(linear(*layer()), F.linear(*layer()))
    assert len(used) == 1


@fast
def test_gradients_that_nobody_needs_are_not_computed(monkeypatch):
    x, weight, bias = layer()
    out, calls = Product.apply(x.detach(), weight, bias), []
    monkeypatch.setattr(module, "product", lambda a, b, *rest: calls.append(1) or F.linear(a, b))
    out.sum().backward()
    assert len(calls) == 1 and x.grad is None and weight.grad is not None


def small_model():
    """A Qwen2 of one block. Its MLP and its head are large enough, its attention is not."""
    torch.manual_seed(0)
    config = Qwen2Config(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
                         intermediate_size=1100, vocab_size=1200, tie_word_embeddings=True)
    return Qwen2ForCausalLM(config)


def test_a_model_keeps_its_values_its_names_and_its_copies():
    plain = small_model()
    quick = copy.deepcopy(plain)
    quicken(quick)
    layers = [one for one in quick.modules() if isinstance(one, nn.Linear)]
    assert layers and all(type(one) is Linear for one in layers)
    assert list(quick.state_dict()) == list(plain.state_dict())
    ids = torch.arange(20)[None]
    for one in (quick, copy.deepcopy(quick)):
        one.zero_grad()
        plain.zero_grad()
        losses = [m(input_ids=ids, labels=ids).loss for m in (plain, one)]
        assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
        for loss in losses:
            loss.backward()
        for (name, a), b in zip(plain.named_parameters(), one.parameters()):
            assert torch.allclose(a.grad, b.grad, atol=2e-6 * a.grad.abs().max().item() + 1e-8), name


def test_other_kinds_of_layers_are_left_alone():
    class Own(nn.Linear):
        pass

    model = nn.Sequential(Own(2, 3), nn.Linear(3, 2), nn.Embedding(3, 2))
    quicken(model)
    assert [type(one) for one in model] == [Own, Linear, nn.Embedding]
