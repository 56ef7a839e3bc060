"""The head of a model: from hidden states to logprobs and entropies, one chunk of tokens at a time."""

import torch

from core.linear import linear

CHUNK = 2**27  # most logits at one time on a GPU, in elements
FP32 = False  # True: on a GPU, the head gives fp32 logits, in trainer and sampler. See docs/scale.md for the figures


class Product(torch.autograd.Function):
    """x [N, H] and weight [V, H] in bf16 -> x weight^T [N, V] in fp32, on a GPU. Gradients are in bf16.

    An ordinary product would round each logit to 8 bits of mantissa. torch.mm has no derivative with out_dtype."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return torch.mm(x, weight.T, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad):
        (x, weight), grad = ctx.saved_tensors, grad.to(ctx.saved_tensors[0].dtype)
        return grad @ weight, grad.T @ x


def logits_of(lm, hidden):
    """Hidden states [N, H] -> logits [N, V] of the model's head. Some families change the output of the linear head:
    Granite divides it, Cohere multiplies it, Gemma 2 caps it."""
    head, config = lm.get_output_embeddings(), lm.config
    if FP32 and hidden.is_cuda and hidden.dtype == torch.bfloat16:
        logits = Product.apply(hidden, head.weight)
        logits = logits if head.bias is None else logits + head.bias
    else:
        logits = linear(hidden, head.weight, head.bias)
    scale = getattr(config, "logit_scale", 1) / getattr(config, "logits_scaling", 1)
    logits = logits * scale if scale != 1 else logits  # skip a scale of 1: it costs a pass over all logits
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


class Chunks(torch.autograd.Function):
    """(logprobs [N], entropies [N]) = head(hidden [N, H], targets [N], entropy_grad), `size` tokens at a time.
    The logits of all tokens never exist together: the backward pass computes each chunk again. It sums the gradients
    of the head's parameters in fp32, because in bf16 a long sum would round away most of the later chunks."""

    @staticmethod
    def forward(ctx, head, size, targets, entropy_grad, hidden, *parameters):
        ctx.how, ctx.parameters = (head, size, targets, entropy_grad), parameters
        ctx.save_for_backward(hidden)
        chunks = [head(x, y, entropy_grad) for x, y in zip(hidden.split(size), targets.split(size))]
        return tuple(torch.cat(parts) for parts in zip(*chunks))

    @staticmethod
    def backward(ctx, *grads):
        (head, size, targets, entropy_grad), (hidden,) = ctx.how, ctx.saved_tensors
        grad_hidden, sums = [], []
        for x, y, *grad in zip(hidden.split(size), targets.split(size), *(g.split(size) for g in grads)):
            x = x.detach().requires_grad_()
            with torch.enable_grad():
                outs = [(out, g) for out, g in zip(head(x, y, entropy_grad), grad) if out.requires_grad]
            first, *rest = torch.autograd.grad([out for out, _ in outs], [x, *ctx.parameters], [g for _, g in outs])
            grad_hidden.append(first)
            sums = [total.add_(part) for total, part in zip(sums, rest)] or [part.float() for part in rest]
        sums = [total.to(p.dtype) for total, p in zip(sums, ctx.parameters)]
        return None, None, None, None, torch.cat(grad_hidden), *sums
