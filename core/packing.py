"""Packing: the sequences of a micro-batch laid end to end in one row, and attention that stays inside each of them.

The row has no padding, so the model computes nothing for tokens that are not there; position ids start again at 0 with
each sequence. Attention alone has to know where a sequence ends, and it has two paths:

  CUDA   torch's variable-length flash kernel, which takes the row as it is and the ends of its sequences
  CPU    there is no such kernel: the rows are padded to a rectangle inside attention, and nowhere else. The pads stand
         behind a sequence, so the causal rule alone hides them, and no mask is ever built.
"""

import inspect

import numpy as np
import torch
import torch.nn.attention.varlen as varlen
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface


class Pack:
    """A micro-batch as one row of T tokens: ids and positions [1, T]; `at` [N]: where each response token is predicted;
    `targets` [N]: the response tokens themselves.

    On the CPU a prompt stands in the row once, and all of its responses attend to it: a laptop's responses are short,
    so prompts would be a large part of the work. The CUDA kernel needs each sequence in one piece, so there every
    response has a prompt of its own."""

    def __init__(self, batch, rows: list[int], device):
        shared = torch.device(device).type == "cpu"
        ids, positions, spans, prompts, end = [], [], [], {}, 0
        for i in rows:
            prompt, response = batch.prompts[i], batch.responses[i]
            key = id(prompt) if shared else i
            if key not in prompts:
                prompts[key] = np.arange(end, end := end + len(prompt))
                ids.append(prompt)
                positions.append(np.arange(len(prompt)))
            spans.append(np.concatenate([prompts[key], np.arange(end, end := end + len(response))]))
            ids.append(response)
            positions.append(np.arange(len(prompt), len(spans[-1])))
        ids, positions = np.concatenate(ids).astype(np.int64), np.concatenate(positions)
        # A token is predicted by the hidden state of the token before it. Prompt tokens are not predicted at all.
        starts = [len(batch.prompts[i]) for i in rows]
        at = np.concatenate([span[start - 1 : -1] for span, start in zip(spans, starts)])
        targets = ids[np.concatenate([span[start:] for span, start in zip(spans, starts)])]
        self.ids, self.positions = torch.from_numpy(ids[None]).to(device), torch.from_numpy(positions[None]).to(device)
        self.at, self.targets = torch.from_numpy(at).to(device), torch.from_numpy(targets).to(device)
        lengths = [len(span) for span in spans]
        self.cu_seqlens = torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int32)).to(device)
        self.max_length = max(lengths)
        self.rectangles = Rectangles(spans, end) if shared else None


# ------------------------------------------------------------------------------------------------ the CPU path
class Rectangles:
    """How the sequences of a row fill rectangles [rows, longest] for attention on the CPU.

    spans: for each sequence, where its tokens stand in the row of `tokens` tokens. Sequences within a factor of two in
    length share a rectangle, padded to its longest. A slot is a place in a rectangle.
      shapes   (rows, longest) of each rectangle
      into     [slots]: the token that fills a slot; a pad repeats the last token of its sequence
      back     [tokens]: the slot from which a token takes its result
      unused   slots whose result nobody takes: pads, and every copy of a shared prompt but the first
      copies   (tokens, slots) of the further copies of shared prompts, through which gradients also flow"""

    def __init__(self, spans: list[np.ndarray], tokens: int):
        spans = sorted(spans, key=len, reverse=True)
        into, unused, copies, slots = [], [], {}, 0
        back, seen = np.full(tokens, -1), np.zeros(tokens, dtype=int)
        self.shapes = []
        while spans:
            longest, rows = len(spans[0]), [span for span in spans if 2 * len(span) >= len(spans[0])]
            self.shapes.append((len(rows), longest))
            for span in rows:
                slot = np.arange(slots, slots := slots + longest)
                into.append(span[np.minimum(slot - slot[0], len(span) - 1)])
                new = seen[span] == 0
                back[span[new]] = slot[: len(span)][new]
                again = slot[: len(span)][~new]
                unused += [again, slot[len(span) :]]
                if len(again):  # copies of equal number never share a token, so each group can be added at once
                    copies.setdefault(seen[span[0]], []).append((span[~new], again))
                seen[span] += 1
            spans = spans[len(rows) :]
        flat = lambda parts: torch.from_numpy(np.concatenate(parts))
        self.into, self.back, self.unused = flat(into), torch.from_numpy(back), flat(unused)
        self.copies = [tuple(map(flat, zip(*pairs))) for pairs in copies.values()]


class Gather(torch.autograd.Function):
    """rows = x[index]. The backward pass gathers as well, by `inverse`, which is faster than a scatter. Rows of x in
    `unused` get no gradient; rows that were taken more than once also get the gradients of their `copies`."""

    @staticmethod
    def forward(ctx, x, index, inverse, unused, copies):
        ctx.how = inverse, unused, copies
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        inverse, unused, copies = ctx.how
        out = grad.index_select(0, inverse)
        if unused is not None:
            out.index_fill_(0, unused, 0.0)
        for tokens, slots in copies:
            out.index_add_(0, tokens, grad.index_select(0, slots))
        return out, None, None, None, None


def padded_attention(q, k, v, scaling, rectangles: Rectangles):
    """Causal attention inside each sequence: q [T, H, D], k and v [T, K, D] -> [T, H x D]."""
    fill = lambda x: Gather.apply(x.flatten(1), rectangles.into, rectangles.back, None, rectangles.copies)
    q, k, v = (fill(x).unflatten(1, x.shape[1:]) for x in (q, k, v))
    outs, first = [], 0
    for rows, longest in rectangles.shapes:
        part = [x[first : first + rows * longest].unflatten(0, (rows, longest)).transpose(1, 2) for x in (q, k, v)]
        out = F.scaled_dot_product_attention(*part, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
        outs.append(out.transpose(1, 2).reshape(rows * longest, -1))
        first += rows * longest
    outs = outs[0] if len(outs) == 1 else torch.cat(outs)
    return Gather.apply(outs, rectangles.back, rectangles.into, rectangles.unused, ())


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
                     softcap=None, s_aux=None, **kwargs):  # fmt: skip
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
        out = padded_attention(q, k, v, scaling, pack.rectangles).unflatten(1, (-1, q.shape[2]))
    return out[None], None


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", lambda *args, **kwargs: None)
