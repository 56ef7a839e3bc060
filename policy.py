"""The trainable model and nothing else: packed forward, chunked logprobs, sharding, micro-batches, update.

A reader of the algorithms does not need this file; it is for whoever asks where the memory and the time go.
  pack     sequences lie end to end in one row, without padding; attention stays inside each sequence
  chunks   the vocabulary's logits exist for a chunk of tokens at a time, never for the whole micro-batch
  shards   under torchrun the parameters, gradients and optimizer state are split over the ranks (FSDP2)
  plan     every rank computes the same token-balanced micro-batches and takes its own column
  update   the weights of the token losses come from the global batch: micro-batches and ranks don't change a gradient
"""

import heapq
import inspect
import math
import warnings

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.distributed.checkpoint.state_dict as dcp_state
import torch.nn as nn
import torch.nn.functional as F
import torch.nn.attention.varlen as varlen
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # a checkpoint of one process
from processes import all_reduce, rank, world  # before transformers, whose import it prepares
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM


# ------------------------------------------------------------------------------------------------ plan
def plan(lengths: list[int], tokens_per_micro: int, ranks: int) -> list[list[list[int]]]:
    """Token-balanced micro-batches: result[m][r] lists the rows of micro-batch m on rank r, longest row first.

    Deterministic, so every rank computes the same plan and all run the same number of micro-batches. Greedy: rows from
    the longest to the shortest, each to the emptiest of ranks x M bins, M the smallest number that respects the budget.
    A row longer than the budget gets a bin of its own; a bin can be empty (the rank then runs a zero-weight row).
    """
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
    by_load = sorted(heap, key=lambda item: (-item[0], item[1]))  # bins of like load run at the same time
    rows = [[bins[b] for _, b in by_load[m * ranks : (m + 1) * ranks]] for m in range(micros)]
    return [column[::-1] if m % 2 else column for m, column in enumerate(rows)]  # and the ranks take turns


# ------------------------------------------------------------------------------------------------ packed attention
class Pack:
    """A micro-batch as one row of T tokens: ids and positions [1, T], and where its response tokens are predicted.

    On the CPU a prompt is there once for all of its responses, which all attend to it: a laptop's responses are short,
    so prompts weigh. The CUDA kernel wants a sequence in one piece, so there every response has a copy of its own."""

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
        # A token is predicted by the hidden state of the one before it; nobody predicts the tokens of a prompt.
        at, targets = (np.concatenate(x) for x in zip(*[(s[len(batch.prompts[i]) - 1 : -1], s[len(batch.prompts[i]) :])
                                                        for i, s in zip(rows, spans)]))  # fmt: skip
        tensor = lambda x: torch.from_numpy(x).to(device)
        self.ids, self.positions, self.at, self.targets = map(tensor, (ids[None], positions[None], at, ids[targets]))
        lengths = [len(span) for span in spans]
        self.cu_seqlens, self.max_length = tensor(np.cumsum([0, *lengths]).astype(np.int32)), max(lengths)
        self.padded = self._pad(spans, end) if shared else None

    @staticmethod
    def _pad(spans, tokens):
        """Index lists for attention on the CPU: groups of rows within a factor of two in length, each padded to its
        longest. `into` [slots]: the token in a slot; `back` [T]: the slot that a token's result is taken from; `dead`:
        slots that give none, pads and all but the first copy of a prompt; `copies`: (tokens, slots) of the others."""
        spans = sorted(spans, key=len, reverse=True)
        shapes, into, dead, copies, slots = [], [], [], {}, 0
        back, seen = np.full(tokens, -1), np.zeros(tokens, dtype=int)
        while spans:
            longest, rows = len(spans[0]), [span for span in spans if 2 * len(span) >= len(spans[0])]
            shapes.append((len(rows), longest))
            for span in rows:
                slot = np.arange(slots, slots := slots + longest)
                into.append(span[np.minimum(slot - slot[0], len(span) - 1)])
                new = seen[span] == 0
                back[span[new]] = slot[: len(span)][new]
                again = slot[: len(span)][~new]
                dead += [again, slot[len(span) :]]
                if len(again):
                    copies.setdefault(seen[span[0]], []).append((span[~new], again))
                seen[span] += 1
            spans = spans[len(rows) :]
        flat = lambda x: torch.from_numpy(np.concatenate(x))
        copies = [tuple(map(flat, zip(*pairs))) for pairs in copies.values()]
        return shapes, flat(into), torch.from_numpy(back), flat(dead), copies


class _Gather(torch.autograd.Function):
    """rows = x[index]. Backward gathers too, by `inverse`, which beats a scatter; `dead` rows get no gradient, and the
    rows of x that were taken more than once get that of their `copies` added."""

    @staticmethod
    def forward(ctx, x, index, inverse, dead, copies):
        ctx.how = inverse, dead, copies
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx, grad):
        inverse, dead, copies = ctx.how
        out = grad.index_select(0, inverse)
        if dead is not None:
            out.index_fill_(0, dead, 0.0)
        for tokens, slots in copies:
            out.index_add_(0, tokens, grad.index_select(0, slots))
        return out, None, None, None, None


def grouped_heads(kernel) -> dict:
    """What tells varlen_attn of several query heads to a key head; that of torch 2.11 takes them without being told."""
    return dict(enable_gqa=True) if "enable_gqa" in inspect.signature(kernel).parameters else {}


GROUPED = grouped_heads(varlen.varlen_attn)


def packed_attention(module, query, key, value, attention_mask, scaling=None, pack=None, sliding_window=None, **kwargs):
    """Causal attention inside each sequence of a pack. query [1, H, T, D], key and value [1, K, T, D] -> [1, T, H, D].

    CUDA: the variable-length flash kernel. CPU: rows are padded here, and nowhere else; the pads stand behind the
    sequence, so the causal rule alone hides them and no mask is ever built."""
    if sliding_window and pack.max_length > sliding_window:
        raise ValueError(f"sequences of {pack.max_length} tokens exceed this model's attention window {sliding_window}")
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    if pack.padded is None:
        cu, longest = pack.cu_seqlens, pack.max_length
        grouped = GROUPED if q.shape[1] != k.shape[1] else {}
        out = varlen.varlen_attn(q, k, v, cu, cu, longest, longest, scale=scaling, window_size=(-1, 0), **grouped)
        return out[None], None
    shapes, into, back, dead, copies = pack.padded
    q, k, v = (_Gather.apply(x.flatten(1), into, back, None, copies).unflatten(1, x.shape[1:]) for x in (q, k, v))
    outs, first = [], 0
    for rows, longest in shapes:
        part = [x[first : first + rows * longest].unflatten(0, (rows, longest)).transpose(1, 2) for x in (q, k, v)]
        out = F.scaled_dot_product_attention(*part, is_causal=True, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
        outs.append(out.transpose(1, 2).reshape(rows * longest, -1))
        first += rows * longest
    out = _Gather.apply(outs[0] if len(outs) == 1 else torch.cat(outs), back, into, dead, ())
    return out.unflatten(1, (-1, q.shape[2]))[None], None


AttentionInterface.register("packed", packed_attention)
AttentionMaskInterface.register("packed", lambda *args, **kwargs: None)


# ------------------------------------------------------------------------------------------------ the policy
class Policy(nn.Module):
    """A causal language model of transformers that returns logprobs, trained with AdamW on fp32 master weights.
    A `batch` is a rollout.Batch: prompts and responses (token ids), and per-token values laid end to end.

    model: a local folder or hub id. vocab: ids at or above it do not exist for the tokenizer; they get no probability
    here and can't be sampled. temperature: that of the sampler; the logits are divided by it. lr None: no optimizer
    (a reference). On CUDA the blocks compute in bf16, reduce in fp32 and recompute activations in the backward pass.
    shard_size: ranks that share one copy of the state (0: all of them); the copies average their gradients (HSDP).
    offload: masters, gradients and optimizer live on the CPU. compile: torch.compile, block by block.
    """

    def __init__(self, model, device, vocab=None, temperature=1.0, lr=None, weight_decay=0.01, tokens_per_micro=16384,
                 shard_size=0, offload=False, compile=False):  # fmt: skip
        super().__init__()
        config = AutoConfig.from_pretrained(model)
        for name, value in config.to_dict().items():  # dropout would make the ratio differ from 1 on the first pass
            if "drop" in name and isinstance(value, float):
                setattr(config, name, 0.0)
        self.lm = self.load(model, config, dtype=torch.float32, attn_implementation="packed")
        full = self.state_dict()
        self.vocab, self.temperature, self.tokens_per_micro = vocab, temperature, tokens_per_micro
        self.device = torch.device(device)
        self.chunk_logits = 2**27 if self.device.type == "cuda" else 2**24  # logits that exist at a time, in elements
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.sharded = dist.is_initialized()
        self.requires_grad_(lr is not None).train(lr is not None)
        if self.device.type == "cuda":
            self.lm.gradient_checkpointing_enable(dict(use_reentrant=False))
        if compile:
            for block in self.blocks():
                block.compile()
        offload = offload and self.device.type == "cuda"
        if self.sharded:
            size = shard_size or world()
            shape = dict(copies=world() // size, shards=size) if size < world() else dict(shards=size)
            mesh = dist.init_device_mesh(self.device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
            how = dict(mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32),
                       offload_policy=CPUOffloadPolicy() if offload else OffloadPolicy())  # fmt: skip
            for block in self.blocks():
                fully_shard(block, **how)
            fully_shard(self, **how)  # embedding and head in one unit: they may be tied
        self.place(full, "cpu" if offload else self.device)
        del full
        if lr is not None:
            self.optimizer = torch.optim.AdamW(self.parameters(), lr, weight_decay=weight_decay, fused=True)
            for p in self.parameters():  # there from the start: a checkpoint before the first update must not differ
                step = torch.zeros((), device=p.device)
                self.optimizer.state[p] = dict(step=step, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))

    def load(self, model, config, kind=AutoModelForCausalLM, **how):
        """The transformers model; other ranks than 0 leave it without weights. A critic overrides this and head()."""
        if rank() == 0:
            lm = kind.from_pretrained(model, config=config, use_safetensors=True, **how)
        else:
            with torch.device("meta"):
                lm = kind.from_config(config, **how)
        if world() > 1:
            found = [getattr(lm, "generation_config", None)]  # a file that from_config does not look for
            dist.broadcast_object_list(found, 0)  # here the others wait for rank 0 to read, or download
            lm.generation_config = found[0]
        return lm

    def place(self, full: dict, device):
        """Move the shards to their device. Rank 0 hands out its weights, `full`, tensor by tensor, and each rank keeps
        its shards of them: only the host of rank 0 needs room for a whole model."""
        self.to_empty(device=device) if rank() else self.to(device)
        if world() > 1:
            self.lm.tie_weights()  # to_empty has parted them
            how = dcp_state.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            dcp_state.set_model_state_dict(self, full, options=how)
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)

    def blocks(self):
        """The transformer blocks, in order."""
        names = set(self.lm._no_split_modules or [])
        return [module for module in self.lm.modules() if type(module).__name__ in names]

    def forward(self, pack: Pack, entropy_grad: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprob and entropy [N] (nats) of the pack's response tokens under softmax(logits / temperature)."""
        hidden = self.lm.base_model(
            input_ids=pack.ids, position_ids=pack.positions, attention_mask=None, use_cache=False, pack=pack
        )[0][0].index_select(0, pack.at)
        size = max(1, self.chunk_logits // self.lm.config.vocab_size)
        chunks = list(zip(hidden.split(size), pack.targets.split(size)))
        run = lambda *x: checkpoint(self.head, *x, use_reentrant=False) if len(chunks) > 1 else self.head(*x)
        logprobs, entropies = zip(*[run(x, y, entropy_grad) for x, y in chunks])
        return torch.cat(logprobs), torch.cat(entropies)

    def head(self, hidden, targets, entropy_grad):
        """From the hidden states [N, hidden] that predict the tokens `targets` [N] to the two results of forward."""
        logits = self.lm.get_output_embeddings()(hidden)[:, : self.vocab].float()
        logits = logits / self.temperature if self.temperature != 1 else logits
        logp = logits.log_softmax(-1)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(-1, targets[:, None])[:, 0], entropy

    def _micros(self, batch):
        """This rank's micro-batches: (pack, positions of its tokens in batch.values, 1 or 0 for a stand-in row)."""
        units = np.arange(len(batch.responses)).reshape(-1, batch.together)
        lengths = np.array(batch.lengths())[units].sum(1).tolist()
        for column in plan(lengths, self.tokens_per_micro, world()):
            rows = units[column[rank()]].flatten().tolist()
            yield Pack(batch, rows or [0], self.device), batch.token_index(rows or [0]), float(bool(rows))

    @torch.no_grad()
    def logprobs(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprob and entropy [N] of every response token of the batch, on every rank, without gradient."""
        out = torch.zeros(2, int(batch.ends[-1]))
        for pack, index, real in self._micros(batch):
            both = torch.stack(self(pack)).float().cpu()
            if real:
                out[:, index] = both
        return tuple(all_reduce(out))

    def update(self, batch, token_loss, max_grad_norm=1.0, entropy_grad=False) -> dict[str, float]:
        """One optimizer step on loss = sum over tokens of batch.values["weight"] x token_loss.

        token_loss(new, entropy, values) -> (loss [T], stats): `values` holds the batch's per-token tensors, cut to the
        micro-batch; stats are sums over tokens, but for names that end in _max, which are maxima. Returns the stats
        over all ranks, with loss and grad_norm; grad_norm is not finite when the update had to be skipped.
        """
        totals, maxima = {"loss": torch.zeros((), device=self.device)}, {}
        for pack, index, real in self._micros(batch):
            values = {name: value[index].to(self.device) for name, value in batch.values.items()}
            new, entropy = self(pack, entropy_grad)
            losses, stats = token_loss(new, entropy, values)
            loss = real * (values["weight"] * losses).sum()
            (loss * world() if self.sharded else loss).backward()  # FSDP averages over the ranks; here gradients sum
            for name, value in dict(stats, loss=loss.detach()).items():
                if name.endswith("_max"):
                    maxima[name] = torch.maximum(maxima.get(name, value), value)
                else:
                    totals[name] = totals.get(name, 0) + real * value
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if torch.isfinite(norm):
            nn.utils.clip_grads_with_norm_(self.parameters(), max_grad_norm, norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        flat = lambda x: torch.tensor([float(value) for value in x.values()], dtype=torch.float64)
        sums, peaks = all_reduce(flat(totals)), all_reduce(flat(maxima), dist.ReduceOp.MAX)
        return dict(zip([*totals, *maxima], [*sums.tolist(), *peaks.tolist()]), grad_norm=norm.item())

    # -------------------------------------------------------------------------------------------- weights and files
    def weights(self):
        """(name, tensor) of every parameter, gathered one at a time: all ranks have to walk through it together."""
        for name, parameter in self.lm.named_parameters():
            yield name, (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach()

    def save_pretrained(self, folder):
        """A Hugging Face model folder, in the compute precision; gathered tensor by tensor, written by rank 0."""
        state = {name: tensor.to("cpu", self.dtype, copy=True) for name, tensor in self.weights() if rank() == 0}
        if rank() == 0:
            with torch.device("meta"):  # a shell without memory, so that config.json names the saved precision
                shell = AutoModelForCausalLM.from_config(self.lm.config, dtype=self.dtype)
            shell.generation_config = self.lm.generation_config
            shell.save_pretrained(folder, state_dict=state)

    def save_state(self, folder):
        """Masters and optimizer, each rank its own shard; can be loaded with another number of ranks."""
        model, optimizer = dcp_state.get_state_dict(self, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)

    def load_state(self, folder):
        """The inverse of save_state, exact to the bit. Raises when the folder is broken."""
        model, optimizer = dcp_state.get_state_dict(self, self.optimizer)
        state = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=folder)
        dcp_state.set_state_dict(self, self.optimizer, model_state_dict=state["model"],
                                 optim_state_dict=state["optimizer"])  # fmt: skip
