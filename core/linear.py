"""The linear layers of a model on a CPU.

torch multiplies fp32 matrices with MKL, which is slow on AMD CPUs. torch also contains oneDNN. On two cores of an EPYC
with AVX-512 it is twice as fast; a layer of Qwen2.5-0.5B, from 896 to 4,864, in GFLOP/s:

    rows      8   32   256   2,048
    MKL      51  112   187     187
    oneDNN  106  250   444     363"""

import platform

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

LEAST = 2**16  # weights of a layer. Smaller ones gain little, so the layers of models/tiny still use F.linear()
product = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
FAST = product is not None and platform.machine() in ("x86_64", "AMD64")


class Product(torch.autograd.Function):
    """x [..., I], weight [O, I], bias [O] or None -> x weight^T + bias [..., O], all in fp32, and its gradients."""

    @staticmethod
    def forward(ctx, x, weight, bias):
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias, "none", [], "")

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        (x, weight), (for_x, for_weight, for_bias) = ctx.saved_tensors, ctx.needs_input_grad
        rows = grad.reshape(-1, grad.shape[-1])
        return (product(grad, weight.T, None, "none", [], "") if for_x else None,
                product(rows.T, x.reshape(-1, x.shape[-1]).T, None, "none", [], "") if for_weight else None,
                rows.sum(0) if for_bias else None)


def linear(x, weight, bias=None):
    """F.linear(), by oneDNN where it is quicker."""
    fp32 = x.dtype == weight.dtype == torch.float32
    if FAST and fp32 and x.device.type == "cpu" and weight.numel() >= LEAST and x.numel():
        return Product.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    """nn.Linear with linear()."""

    def forward(self, x):
        return linear(x, self.weight, self.bias)


def quicken(model):
    """Let each nn.Linear of a model on the CPU compute with linear()."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
