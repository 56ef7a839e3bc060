"""Split a global batch into the updates of a step, and an update into its micro-batches."""

import heapq
import math

import numpy as np
import torch


def token_weights(lengths, norm: str, max_new_tokens: int) -> torch.Tensor:
    """The weight of each token in the loss of an update with responses of these lengths: [sum of lengths].

    token: 1 / all tokens. sequence: 1 / (responses x own length). constant: 1 / (responses x max_new_tokens)."""
    lengths = torch.as_tensor(lengths)
    divisor = lengths.sum()
    if norm == "sequence":
        divisor = len(lengths) * lengths
    elif norm == "constant":
        divisor = torch.tensor(len(lengths) * max_new_tokens)
    return (1 / divisor.float()).expand(len(lengths)).repeat_interleave(lengths)


def token_moments(x, keep, lengths=None):
    """Mean and standard deviation (Bessel's) of x [P, n] over the tokens of the kept responses.

    keep, lengths [P, n]. Without lengths each response counts once. If all values are equal, the deviation is infinite,
    so that x divided by it is 0."""
    weights = keep * (torch.ones_like(x) if lengths is None else lengths)
    mean = (weights * x).sum() / weights.sum()
    variance = (weights * (x - mean) ** 2).sum() / (weights.sum() - 1)
    return mean, variance.sqrt() if len(x[keep].unique()) > 1 else torch.inf


def split(rollouts, adv: torch.Tensor, keep: torch.Tensor, cfg, together=False, order=None, whole=False) -> list[tuple]:
    """For each update, the (rows, units) of its kept responses: see Batch.select(). keep: [P, n]. adv: [P, n] or [N].

    Each update has an equal share of the prompts that keep a response, in the given order (default: as sampled).
    together: the kept responses to a prompt stay in one micro-batch.

    Sets tokens.adv, and tokens.weight, which normalises the loss over the kept responses of an update. A kept response
    with advantage 0 and no KL or entropy term has no gradient. It counts in the weights, but it is not in the rows,
    unless `whole`. So an update can have no rows.
    --loss_norm all_tokens keeps every response, the rejected ones with advantage 0, as the code released with arXiv
    2504.11343 does. Raises ValueError for values of another shape."""
    batch, tokens, size = rollouts.batch, rollouts.tokens, rollouts.lengths.shape
    shape = lambda x: list(x.shape) if torch.is_tensor(x) else type(x).__name__
    if shape(adv) not in (list(size), shape(tokens.sampler)):
        raise ValueError(f"adv is {shape(adv)}; it needs {list(size)}, one value per response, or "
                         f"{shape(tokens.sampler)}, one per token")
    if shape(keep) != list(size) or keep.dtype != torch.bool:
        raise ValueError(f"keep is {shape(keep)}, {getattr(keep, 'dtype', '')}; it needs {list(size)}, torch.bool")
    tokens.adv = (rollouts.per_token(adv) if adv.dim() > 1 else adv).float()
    if cfg.loss_norm == "all_tokens":
        tokens.adv = tokens.adv * rollouts.per_token(keep)
        keep = torch.ones_like(keep)
    tokens.weight, keep = torch.zeros_like(tokens.adv), keep.numpy()
    for name, value in vars(tokens).items():
        if shape(value) != shape(tokens.sampler):
            raise ValueError(f"tokens.{name} is {shape(value)}; it needs {shape(tokens.sampler)}, one value per "
                             "response token: see rollouts.per_token")
        if name in ("response", "position"):
            raise ValueError(f"tokens.{name}: the name is taken, see common.Run.update; choose another")
    moves = np.logical_or.reduceat(tokens.adv.numpy() != 0, batch.starts).reshape(keep.shape)
    moves = keep & (moves | bool(whole or cfg.kl_coef or cfg.entropy_coef))
    if together:
        moves = keep & moves.any(1, keepdims=True)
    rows, parts = np.arange(keep.size).reshape(keep.shape), []
    prompts = [i for i in (range(len(keep)) if order is None else order) if keep[i].any()]
    for share in np.array_split(np.array(prompts, dtype=np.int64), cfg.updates_per_step):
        kept = rows[share][keep[share]]
        if len(kept):
            weights = token_weights(rollouts.lengths.flatten()[kept], cfg.loss_norm, cfg.max_new_tokens)
            tokens.weight[batch.token_index(kept)] = weights
        counts, units = moves[share].sum(1), None
        if together:
            units = [unit.tolist() for unit in np.split(np.arange(counts.sum()), np.cumsum(counts)[:-1]) if len(unit)]
        parts.append((rows[share][moves[share]], units))
    return parts


def plan(lengths: list[int], tokens_per_micro: int, ranks: int) -> list[list[list[int]]]:
    """Token-balanced micro-batches: result[m][r] lists the units of micro-batch m on rank r, the longest first. A unit
    is a row, or a group of rows that stay together.

    Every rank computes the same plan, and all ranks run the same number of micro-batches. Greedy: from the longest to
    the shortest, each unit goes to the emptiest of ranks x M bins. M grows until each bin has at most tokens_per_micro.
    A unit longer than that has a bin of its own. Where a bin is empty, its rank runs a unit of weight 0."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    micros = max(1, math.ceil(sum(min(n, tokens_per_micro) for n in lengths) / (ranks * tokens_per_micro)))
    while True:
        heap, bins = [(0, b) for b in range(micros * ranks)], [[] for _ in range(micros * ranks)]
        for i in order:
            load, b = heap[0]
            bins[b].append(i)
            heapq.heapreplace(heap, (load + lengths[i], b))
        if all(load <= tokens_per_micro or len(bins[b]) == 1 for load, b in heap):
            break
        micros = max(micros + 1, math.ceil(micros * 1.02))
    by_load = sorted(heap, key=lambda item: (-item[0], item[1]))  # bins of similar load run at the same time
    micro_batches = [[bins[b] for _, b in by_load[m * ranks : (m + 1) * ranks]] for m in range(micros)]
    return [row[::-1] if m % 2 else row for m, row in enumerate(micro_batches)]  # every rank gets large and small bins
