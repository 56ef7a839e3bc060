"""Packing: the sequences of a micro-batch laid end to end in one row, and attention that stays inside each of them.

The row has no padding, so the model computes nothing for tokens that are not there; position ids start again at 0 with
each sequence. Attention alone has to know where a sequence ends, and it has two paths:

  CUDA   torch's variable-length flash kernel, which takes the row as it is and the ends of its sequences
  CPU    there is no such kernel, and prompts would be most of the work, because a laptop's responses are short. So
         what sequences share stands in the row once: first the tokens with which all prompts begin (the examples in a
         template), then the rest of each prompt, then the responses. Attention has a part for each of the three, in
         rectangles of similar lengths, and the parts are joined by their log-sum-exp.
"""

import inspect
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.attention.varlen as varlen
from transformers import AttentionInterface, AttentionMaskInterface


def shared_start(prompts: list[np.ndarray]) -> int:
    """The number of tokens with which all of these prompts begin; 0 if they are too few, or the prompts, to be worth a
    treatment of their own. It leaves at least one token of each prompt."""
    least = min(map(len, prompts)) - 1
    first = np.stack([prompt[:least] for prompt in prompts])
    same = int((first == first[0]).all(0).cumprod().sum())
    return same if len(prompts) > 1 and same >= 16 else 0


class Pack:
    """A micro-batch as one row of T tokens: ids and positions [1, T]; `at` [N]: where each response token is predicted;
    `targets` [N]: the response tokens themselves, both in the order of `rows`.

    whole: each sequence stands in one piece, with a prompt of its own, as the CUDA kernel needs it; otherwise a prompt
    stands there once for all of its responses (rows with the same array as prompt). Default: not on the CPU."""

    def __init__(self, batch, rows: list[int], device, whole=None):
        whole = torch.device(device).type != "cpu" if whole is None else whole
        ids, positions, end = [], [], 0

        def put(tokens, first):
            """Add tokens to the row, whose positions start at `first`; returns where they stand."""
            nonlocal end
            ids.append(tokens)
            positions.append(np.arange(first, first + len(tokens)))
            return np.arange(end, end := end + len(tokens))

        groups = {}  # rows of the same prompt
        for i in rows:
            groups.setdefault(i if whole else id(batch.prompts[i]), []).append(i)
        prompts = [batch.prompts[group[0]] for group in groups.values()]
        start = 0 if whole else shared_start(prompts)
        common = put(prompts[0][:start], 0)
        rests = [] if whole else [put(prompt[start:], start) for prompt in prompts]
        responses = {}
        for g, group in enumerate(groups.values()):
            if whole:
                rests.append(put(prompts[g], 0))
            responses |= {i: put(batch.responses[i], len(prompts[g])) for i in group}
        last = {i: rest[-1:] for rest, group in zip(rests, groups.values()) for i in group}
        ids, lengths = np.concatenate(ids).astype(np.int64), [len(batch.prompts[i]) + len(responses[i]) for i in rows]
        send = lambda x: torch.from_numpy(x).to(device)
        self.ids, self.positions = send(ids[None]), send(np.concatenate(positions)[None])
        # A token is predicted by the hidden state of the token before it. Prompt tokens are not predicted at all.
        self.at = send(np.concatenate([x for i in rows for x in (last[i], responses[i][:-1])]))
        self.targets = send(ids[np.concatenate([responses[i] for i in rows])])
        self.cu_seqlens, self.max_length = send(np.cumsum([0, *lengths]).astype(np.int32)), max(lengths)
        self.rectangles = None
        if not whole:
            spans = [span for span in (common, *rests, *responses.values()) if len(span)]
            self.rectangles = rectangles(spans, spans, causal=True)
            after = [np.concatenate([responses[i] for i in group]) for group in groups.values()]
            self.rectangles += rectangles(after, rests) + rectangles([np.arange(start, end)], [common])


# ------------------------------------------------------------------------------------------------ the CPU path
flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Rectangle(NamedTuple):
    """Attention from B spans of tokens to one span of keys for each; spans are padded to the longest of their kind by
    repeating their last token."""

    queries: torch.Tensor  # [B, M], places in the row
    keys: torch.Tensor  # [B, S]
    real: torch.Tensor  # [B, M] bool: not padding
    mask: torch.Tensor | None  # [B, 1, 1, S], -inf at padded keys; None where there are none, or nobody sees them
    causal: bool  # a query sees no key that stands behind it


def rectangles(queries: list[np.ndarray], keys: list[np.ndarray], causal=False) -> list[Rectangle]:
    """Spans of queries, and the span of keys that each attends to, in few rectangles: spans of queries within a factor
    of two in length share one. Spans without keys are left out."""
    pairs = sorted((pair for pair in zip(queries, keys) if len(pair[1])), key=lambda pair: -len(pair[0]))
    found = []
    while pairs:
        few = [pair for pair in pairs if 2 * len(pair[0]) >= len(pairs[0][0])]
        pairs = pairs[len(few) :]
        filled, real = [], []
        for spans in zip(*few):
            lengths = np.array([len(span) for span in spans])[:, None]
            places = np.arange(lengths.max())
            padded = [span[np.minimum(places, len(span) - 1)] for span in spans]
            filled.append(torch.from_numpy(np.stack(padded)))
            real.append(torch.from_numpy(places < lengths))
        mask = None if causal or real[1].all() else torch.zeros(real[1].shape).masked_fill(~real[1], -torch.inf)
        found.append(Rectangle(*filled, real[0], mask if mask is None else mask[:, None, None], causal))
    return found


def fill(x, places, copies=1):
    """Tokens x [T, heads, D] in the places [B, M] of a rectangle, each head so many times: [B, heads, M, D]."""
    x = x.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
    return x if copies == 1 else x.repeat_interleave(copies, 1)


def add(x, places, values):
    """Add values [B, heads, M, D] of a rectangle to tokens x [T, heads, D]."""
    x.index_add_(0, places.flatten(), values.transpose(1, 2).flatten(0, 1))


class Attention(torch.autograd.Function):
    """q [T, H, D], k and v [T, K, D] -> [T, H, D]. The rectangles in which a token is a query are the parts of its
    attention, joined by their log-sum-exp. Backwards, the flash kernel computes the probabilities from the log-sum-exp
    that it is given; with that of the whole, the gradients of a part are right (ring attention, arXiv 2310.01889)."""

    @staticmethod
    def forward(ctx, q, k, v, scale, rectangles):
        out, lse, parts, heads = torch.zeros_like(q), q.new_full(q.shape[:2], -torch.inf), [], q.shape[1] // k.shape[1]
        for r in rectangles:
            keys, values = (fill(x, r.keys, heads) for x in (k, v))
            part, its = flash(fill(q, r.queries), keys, values, 0.0, r.causal, attn_mask=r.mask, scale=scale)
            tokens = r.queries[r.real]
            lse[tokens] = torch.logaddexp(lse[tokens], its.transpose(1, 2)[r.real])
            parts.append((part, its.masked_fill(~r.real[:, None], -torch.inf)))
        for r, (part, its) in zip(rectangles, parts):
            add(out, r.queries, part * (its[..., None] - fill(lse[..., None], r.queries)).exp())
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.how = scale, rectangles, heads
        return out

    @staticmethod
    def backward(ctx, grad):
        (q, k, v, out, lse), (scale, rectangles, heads) = ctx.saved_tensors, ctx.how
        sums = [torch.zeros_like(x) for x in (q, k, v)]
        for r in rectangles:
            keys, values = (fill(x, r.keys, heads) for x in (k, v))
            whole = fill(lse[..., None], r.queries)[..., 0].masked_fill(~r.real[:, None], 1e30)  # pads: probability 0
            more = flash_backward(fill(grad, r.queries), fill(q, r.queries), keys, values, fill(out, r.queries), whole,
                                  0.0, r.causal, attn_mask=r.mask, scale=scale)
            add(sums[0], r.queries, more[0])
            for total, part in zip(sums[1:], more[1:]):
                add(total, r.keys, part if heads == 1 else part.unflatten(1, (-1, heads)).sum(2))
        return *sums, None, None


# ------------------------------------------------------------------------------------------------ both paths
def grouped_heads(kernel) -> dict:
    """The argument that tells varlen_attn of several query heads per key head; torch 2.11's kernel needs none."""
    return dict(enable_gqa=True) if "enable_gqa" in inspect.signature(kernel).parameters else {}


GROUPED = grouped_heads(varlen.varlen_attn)


def refuse_attention(softcap, s_aux, tokens: int, window):
    """Raises ValueError for a model whose attention does more than softmax(q k) v, and for sequences with more tokens
    than its sliding window (tokens 0: windows are computed)."""
    if softcap is not None or s_aux is not None:
        raise ValueError(f"its attention has {'sinks' if softcap is None else 'soft caps'}, which is not supported")
    if window and tokens > window:
        raise ValueError(f"sequences of {tokens} tokens exceed this model's attention window {window}")


def packed_attention(module, query, key, value, attention_mask, scaling=None, pack=None, sliding_window=None,
                     softcap=None, s_aux=None, **kwargs):
    """Causal attention inside each sequence of a pack. query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].
    sliding_window: a token sees this many tokens, itself included (None: all before it). Registered with transformers,
    which calls it in every layer. Raises ValueError for what it can't compute."""
    refuse_attention(softcap, s_aux, pack.max_length if pack.rectangles else 0, sliding_window)
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    if pack.rectangles is None:
        cu, longest = pack.cu_seqlens, pack.max_length
        window = (sliding_window - 1 if sliding_window else -1, 0)
        grouped = GROUPED if q.shape[1] != k.shape[1] else {}
        out = varlen.varlen_attn(q, k, v, cu, cu, longest, longest, scale=scaling, window_size=window, **grouped)
    else:
        out = Attention.apply(q, k, v, scaling, pack.rectangles)
    return out[None], None


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", lambda *args, **kwargs: None)
