"""Packing: all sequences of a micro-batch lie end to end in one row. Attention stays inside each sequence.

The row has no padding, so the model computes no padding tokens. Position ids start again at 0 in each sequence.
Only attention has to know where a sequence ends. There are two paths:

  CUDA   torch's variable-length flash kernel. It reads the row and the ends of its sequences.
  CPU    This kernel does not exist here. A laptop's responses are short, so most of the work would be the prompts.
         The row therefore contains shared tokens only once: first the start that all prompts share (the examples in
         a template), then the rest of each prompt, then the responses. Attention to each of these parts is
         computed separately, in rectangles of similar lengths. The results are joined by their log-sum-exp.
"""

import inspect
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.attention.varlen as varlen
from transformers import AttentionInterface, AttentionMaskInterface


def shared_start(prompts: list[np.ndarray]) -> int:
    """How many tokens all of these prompts share at their start. At least one token of each prompt is left over.
    0 for a single prompt, and below 16 shared tokens: a separate part would not pay off."""
    least = min(map(len, prompts)) - 1
    first = np.stack([prompt[:least] for prompt in prompts])
    same = int((first == first[0]).all(0).cumprod().sum())
    return same if len(prompts) > 1 and same >= 16 else 0


class Pack:
    """A micro-batch as one row of T tokens: ids and positions [1, T].
    targets [N]: the response tokens, in the order of `rows`. at [N]: where in the row each of them is predicted.

    whole: each sequence is in one piece, with its own copy of the prompt. The CUDA kernel needs this. Otherwise the
    row has each prompt once for all of its responses (rows with the same array as prompt). Default: not on the CPU."""

    def __init__(self, batch, rows: list[int], device, whole=None):
        whole = torch.device(device).type != "cpu" if whole is None else whole
        ids, positions, end = [], [], 0

        def put(tokens, first):
            """Add tokens to the row. Their positions start at `first`. Returns their places in the row."""
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
    """Attention from B spans of queries, each to its own span of keys. Shorter spans are padded to the longest one:
    their last token is repeated."""

    queries: torch.Tensor  # [B, M], places in the row
    keys: torch.Tensor  # [B, S]
    real: torch.Tensor  # [B, M] bool: not padding
    mask: torch.Tensor | None  # [B, 1, 1, S], -inf at padded keys; None if there are none, or if causal hides them
    causal: bool  # a query sees no key to its right


def rectangles(queries: list[np.ndarray], keys: list[np.ndarray], causal=False) -> list[Rectangle]:
    """Put spans of queries into few rectangles. keys: for each of them, the span that it attends to.
    Queries share a rectangle if their lengths are within a factor of two. Spans without keys are left out."""
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
    """Tokens x [T, heads, D] at places [B, M] -> [B, heads * copies, M, D]. Each head is repeated `copies` times."""
    x = x.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)
    return x if copies == 1 else x.repeat_interleave(copies, 1)


def add(x, places, values):
    """Add values [B, heads, M, D] to tokens x [T, heads, D] at places [B, M]."""
    x.index_add_(0, places.flatten(), values.transpose(1, 2).flatten(0, 1))


class Attention(torch.autograd.Function):
    """q [T, H, D], k and v [T, K, D] -> [T, H, D]. A token can be a query in several rectangles: their results are
    joined by their log-sum-exp. Backwards, the flash kernel computes probabilities from a log-sum-exp. Here this is the
    log-sum-exp over all rectangles, so the gradients of each one are right (ring attention, arXiv 2310.01889)."""

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
            whole = fill(lse[..., None], r.queries)[..., 0].masked_fill(~r.real[:, None], 1e30)  # padding: p = 0
            more = flash_backward(fill(grad, r.queries), fill(q, r.queries), keys, values, fill(out, r.queries), whole,
                                  0.0, r.causal, attn_mask=r.mask, scale=scale)
            add(sums[0], r.queries, more[0])
            for total, part in zip(sums[1:], more[1:]):
                add(total, r.keys, part if heads == 1 else part.unflatten(1, (-1, heads)).sum(2))
        return *sums, None, None


# ------------------------------------------------------------------------------------------------ both paths
def grouped_heads(kernel) -> dict:
    """varlen_attn's argument for several query heads per key head. The kernel of torch 2.11 needs none."""
    return dict(enable_gqa=True) if "enable_gqa" in inspect.signature(kernel).parameters else {}


GROUPED = grouped_heads(varlen.varlen_attn)


def refuse_attention(softcap, s_aux, tokens: int, window):
    """Raises ValueError if the model's attention does more than softmax(q k) v, or if its sliding window is shorter
    than a sequence of `tokens` tokens. tokens 0: the caller computes the window itself."""
    if softcap is not None or s_aux is not None:
        raise ValueError(f"its attention has {'sinks' if softcap is None else 'soft caps'}, which is not supported")
    if window and tokens > window:
        raise ValueError(f"sequences of {tokens} tokens exceed this model's attention window {window}")


def packed_attention(module, query, key, value, attention_mask, scaling=None, pack=None, sliding_window=None,
                     softcap=None, s_aux=None, **kwargs):
    """Causal attention inside each sequence of a pack. query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].
    sliding_window: a token sees this many tokens, itself included (None: all before it).
    transformers calls this in every layer. Raises ValueError if it can't compute a model's attention."""
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
