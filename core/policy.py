"""The trainable model: where the memory and the time of training go.

  pack     sequences stand end to end in one row, without padding: packing.py
  chunks   logits exist for a chunk of tokens at a time, never for the whole micro-batch: head.py
  plan     all ranks compute the same token-balanced micro-batches, and each takes its own column: minibatches.py
  shards   under torchrun, parameters, gradients and optimizer state are split over the ranks (FSDP2)
  update   the weights of the tokens' losses come from the global batch. So a gradient depends neither on the
           micro-batches nor on the number of ranks
"""

import os
import warnings
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.distributed.checkpoint.state_dict as dcp_state
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import AutoConfig, AutoModelForCausalLM

from core.head import CHUNK, Chunks, logits_of
from core.linear import quicken
from core.memory import TOKENS
from core.minibatches import plan
from core.packing import Pack
from core.processes import all_reduce, rank, trim, world
from core.rollout import Tokens

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said when a lone process saves a checkpoint


# ------------------------------------------------------------------------------------------------ the policy
UNUSABLE = OSError, SafetensorError, ValueError  # weights are missing or broken, or the model is not supported


def settings_of(cfg, device: str, offload=False) -> dict:
    """What a run's configuration says of all its models, as arguments of Policy."""
    return dict(temperature=cfg.temperature, tokens_per_micro=cfg.tokens_per_micro or TOKENS[0],
                shard_size=cfg.shard_size, offload=cfg.offload or offload, compile=cfg.compile and device == "cuda",
                recompute=1 if cfg.recompute < 0 else cfg.recompute)


def make_savable(generation):
    """Some models have a generation config that transformers loads but refuses to save, such as do_sample false beside
    a temperature. Drop its sampling settings: here they are flags."""
    try:
        generation and generation.validate(strict=True)
    except ValueError:
        generation.update(**{name: None for name in generation.to_diff_dict() if not name.endswith("token_id")})


class Policy(nn.Module):
    """A causal language model of transformers that returns logprobs, trained with AdamW on fp32 master weights.

      model        a local folder or hub id
      vocab        ids from here on are unknown to the tokenizer; their probability is 0
      temperature  the sampler's; logits are divided by it
      lr           None: no optimizer, as for a reference
      shard_size   ranks that share one copy of the state (0: all). The copies average their gradients (HSDP).
      offload      masters, gradients and optimizer live on the CPU. (A lone process adds up gradients on the GPU.)
      compile      torch.compile, block by block. Not on the CPU: it would trace each micro-batch anew.
      recompute    on a GPU, one block in so many does not keep its activations: the backward pass computes them again
                   (0: all keep them). See memory.fit(), which chooses it together with tokens_per_micro

    On CUDA the blocks compute in bf16 and reduce gradients in fp32. A `batch` is a rollout.Batch.
    Raises ValueError for a model whose logprobs transformers computes otherwise."""

    def __init__(self, model, device, vocab=None, temperature=1.0, lr=None, weight_decay=0.01,
                 tokens_per_micro=TOKENS[0], shard_size=0, offload=False, compile=False, recompute=1):
        super().__init__()
        if world() % (shard_size or 1):
            raise ValueError(f"--shard_size {shard_size} does not divide the {world()} processes")
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
        for name, value in config.to_dict().items():  # with dropout the ratio would not be 1 in the first update
            if "drop" in name and isinstance(value, float):
                setattr(config, name, 0.0)
        self.lm = self.load(model, config, dtype=torch.float32, attn_implementation="packed")
        full = self.state_dict()
        self.vocab, self.temperature, self.tokens_per_micro = vocab, temperature, tokens_per_micro
        self.device = torch.device(device)
        self.chunk_logits = CHUNK if self.device.type == "cuda" else 2**24
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self.sharded = dist.is_initialized()
        if self.device.type == "cpu":
            quicken(self.lm)
        self.requires_grad_(lr is not None).train(lr is not None)
        self.refuse_other_models()
        self.recompute(recompute)
        if compile:
            torch._dynamo.config.recompile_limit = 32  # with and without gradient, for each model and kind of block
            for block in self.blocks():
                block.compile(dynamic=True)  # recomputed with the graph of the forward pass
        offload = offload and self.device.type == "cuda"
        if offload:  # torchrun gives a process one thread, too few for the sums and the optimizer of a whole shard
            cores = os.cpu_count() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            torch.set_num_threads(max(cores, torch.get_num_threads()))
        self.shards = size = shard_size or world()
        self.whole = self.sharded and size == 1  # each process holds the whole state
        self.hybrid = self.sharded and 1 < size < world() and not offload  # offload: the sum would stay on the GPU
        if self.sharded:
            shape = dict(copies=world() // size, shards=size) if size < world() else dict(shards=size)
            mesh = dist.init_device_mesh(self.device.type, tuple(shape.values()), mesh_dim_names=tuple(shape))
            how = dict(mesh=mesh, mp_policy=MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32),
                       offload_policy=CPUOffloadPolicy() if offload else OffloadPolicy())
            for block in self.blocks():
                fully_shard(block, **how)
            fully_shard(self, **how)  # embedding and head in one unit: they may be tied
        self.place(full, "cpu" if offload else self.device)
        del full
        if lr is not None:
            self.optimizer = torch.optim.AdamW(self.parameters(), lr, weight_decay=weight_decay, fused=True)
            for p in self.parameters():  # the state exists from the start, also in a checkpoint before the first update
                step = torch.zeros((), device=p.device)
                self.optimizer.state[p] = dict(step=step, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))

    def load(self, model, config, kind=AutoModelForCausalLM, **how):
        """The transformers model. Rank 0 alone reads the weights. A critic overrides this and head()."""
        if rank() == 0:
            try:
                lm = kind.from_pretrained(model, config=config, use_safetensors=True, trust_remote_code=False, **how)
            except (RuntimeError, ImportError) as error:  # weights of another size, a package for quantised ones
                if isinstance(error, torch.OutOfMemoryError):
                    raise
                raise ValueError(" ".join(str(error).split())[:300]) from None
            make_savable(getattr(lm, "generation_config", None))
        else:
            with torch.device("meta"):
                lm = kind.from_config(config, **how)
        if world() > 1:
            found = [getattr(lm, "generation_config", None)]  # from a file that from_config does not read
            dist.broadcast_object_list(found, 0)  # the other ranks wait here until rank 0 has read, or downloaded
            lm.generation_config = found[0]
        return lm

    @torch.no_grad()
    def refuse_other_models(self):
        """On rank 0, while its weights are whole and in fp32: compare the logprobs of a short probe with transformers'.
        Raises ValueError if they differ."""
        if rank() or self.lm.get_output_embeddings() is None or next(self.parameters()).is_cuda:
            return
        rng, ids = np.random.default_rng(0), min(self.vocab or self.lm.config.vocab_size, self.lm.config.vocab_size)
        prompts, responses = [rng.integers(0, ids, n) for n in (5, 3)], [rng.integers(0, ids, n) for n in (11, 7)]
        try:
            packed = self(Pack(SimpleNamespace(prompts=prompts, responses=responses), [0, 1], "cpu"))[0]
            self.lm.set_attn_implementation("eager")
            alone = []
            for prompt, response in zip(prompts, responses):
                row = torch.from_numpy(np.concatenate([prompt, response]))
                logits = self.lm(input_ids=row[None]).logits[0, len(prompt) - 1 : -1, : self.vocab] / self.temperature
                alone.append(logits.log_softmax(-1).gather(1, row[len(prompt) :, None])[:, 0])
            gap = (torch.cat(alone) - packed).abs().max().item()
            if not gap < 1e-3:
                raise ValueError(f"its logprobs would be {gap:.2g} nats off")
        except ValueError as error:
            raise ValueError(f"{type(self.lm).__name__} is not supported: {error}") from None
        self.lm.set_attn_implementation("packed")

    def place(self, full: dict, device):
        """Move the shards to their device. Rank 0 hands out its weights, `full`, tensor by tensor, and each rank keeps
        its shards. So only the host of rank 0 needs room for a whole model."""
        self.to(device) if rank() == 0 else self.to_empty(device=device)
        if world() > 1:
            self.lm.tie_weights()  # to_empty has separated them
            how = dcp_state.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
            dcp_state.set_model_state_dict(self, full, options=how)
            for buffer in self.buffers():
                dist.broadcast(buffer, 0)

    def recompute(self, every: int):
        """On a GPU: one block in `every` does not keep its activations (0: all keep them). Call this before the first
        forward pass."""
        if self.device.type == "cuda":
            self.lm.gradient_checkpointing_disable()
            if every:
                self.lm.gradient_checkpointing_enable(dict(use_reentrant=False), every_n_layers=every)

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
        if len(hidden) <= size:
            return self.head(hidden, pack.targets, entropy_grad)
        return Chunks.apply(self.head, size, pack.targets, entropy_grad, hidden, *self.head_parameters())

    def head_parameters(self):
        """The parameters that head() uses."""
        return list(self.lm.get_output_embeddings().parameters())

    def head(self, hidden, targets, entropy_grad):
        """Hidden states [N, hidden] that predict the tokens `targets` [N] -> logprobs [N], entropies [N]."""
        logits = logits_of(self.lm, hidden)[:, : self.vocab].float()
        logits = logits / self.temperature if self.temperature != 1 else logits
        logp = logits.log_softmax(-1)
        with torch.set_grad_enabled(entropy_grad and torch.is_grad_enabled()):
            entropy = -(logp.exp() * logp).sum(-1)
        return -F.nll_loss(logp, targets, reduction="none"), entropy  # not a view of logp: FSDP warns of views

    def _micros(self, batch):
        """This rank's micro-batches: (pack, rows, real, whether it is the last). real: 1.0, or 0.0 for a stand-in, if
        this rank has no work while others do."""
        shared, most, joined = self.device.type == "cpu", self.tokens_per_micro, []  # shared: see Pack
        for unit in batch.units:
            rows = [*joined[-1], *unit] if joined else unit
            alike = shared and len({id(batch.prompts[row]) for row in rows}) == 1
            if joined and alike and batch.tokens(rows, shared) <= most:  # their prompt stands in the row once
                joined[-1] = rows
            else:
                joined.append(unit)
        columns = plan([batch.tokens(unit, shared) for unit in joined], most, world())
        for number, column in enumerate(columns, 1):
            units = column[rank()]
            rows = [row for unit in units or [0] for row in joined[unit]]
            yield Pack(batch, rows, self.device), rows, float(bool(units)), number == len(columns)

    @torch.no_grad()
    def logprobs(self, batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprob and entropy [N] of every response token of the batch, on every rank, without gradient."""
        out = torch.zeros(2, int(batch.ends[-1]))
        for pack, rows, real, _ in self._micros(batch):
            both = torch.stack(self(pack)).float().cpu()
            if real:
                out[:, batch.token_index(rows)] = both
        if self.sharded:  # FSDP frees embedding and head only after a backward pass
            self.reshard()
        return tuple(all_reduce(out))

    def update(self, batch, objective, max_grad_norm=1.0, entropy_grad=False, lr=None) -> dict:
        """One optimizer step on loss = sum over all tokens of batch.values["weight"] x objective.

        objective(new, entropy, tokens) -> [T], for the T tokens of a micro-batch. new, entropy: under this model.
        tokens has as attributes [T] the batch's values; response, the number of the token's response in the
        micro-batch, 0..B-1; and position, the token's place in it. The objective may set tokens.clipped [T] bool.

        Returns loss; grad_norm, which is not finite if the step had to be skipped; and seen [3, N], from before the
        step: logprobs, entropies, and tokens.clipped. All on every rank. lr: the learning rate from now on."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["lr"] if lr is None else lr
        total, seen = torch.zeros((), device=self.device), torch.zeros(3, int(batch.ends[-1]))
        for pack, rows, real, last in self._micros(batch):
            if self.whole:  # gradients add up where they arise; the copies, or the CPU of --offload, get the sum
                self.set_requires_gradient_sync(last)
            elif self.hybrid:  # each copy adds up its own gradients, and only the last sum crosses nodes
                self.set_requires_all_reduce(last)
            index, lengths = batch.token_index(rows), (batch.ends - batch.starts)[rows]
            tokens = {name: value[index] for name, value in batch.values.items()}
            tokens["response"] = torch.from_numpy(np.repeat(np.arange(len(rows)), lengths))
            tokens["position"] = torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))
            tokens = Tokens(**{name: value.to(self.device) for name, value in tokens.items()})
            new, entropy = self(pack, entropy_grad)
            tokens.clipped = torch.zeros_like(new, dtype=torch.bool)
            loss = real * (tokens.weight * objective(new, entropy, tokens)).sum()
            (loss * world() if self.sharded else loss).backward()  # FSDP averages over the ranks; we want the sum
            total += loss.detach()
            if real:
                seen[:, index] = torch.stack([new, entropy, tokens.clipped]).detach().float().cpu()
        norm = nn.utils.get_total_norm([p.grad for p in self.parameters() if p.grad is not None])
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if torch.isfinite(norm):
            nn.utils.clip_grads_with_norm_(self.parameters(), max_grad_norm, norm)
            self.optimizer.step()
        self.optimizer.zero_grad()
        if self.device.type == "cpu" and sum(p.numel() for p in self.parameters()) > 1e8:
            trim(0)  # glibc keeps freed memory (start_processes), and its fragments took Qwen2.5-0.5B to 24 GB
        return dict(loss=all_reduce(total.double().cpu()).item(), grad_norm=norm.item(), seen=all_reduce(seen))

    # -------------------------------------------------------------------------------------------- weights and files
    def weights(self):
        """(name, tensor) of every parameter in the compute precision, gathered one at a time. All ranks iterate
        together. A shard moves to the device first: NCCL is quicker than gloo, and bf16 is half of fp32."""
        for name, parameter in self.lm.named_parameters():
            tensor = parameter.detach().to(self.device, self.dtype)
            yield name, tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor

    def save_pretrained(self, folder):
        """Write a Hugging Face model folder, in the compute precision. Rank 0 writes."""
        state = {name: tensor.to("cpu", copy=True) for name, tensor in self.weights() if rank() == 0}
        if rank() == 0:
            with torch.device("meta"):  # a shell without memory, so that config.json names the saved precision
                shell = AutoModelForCausalLM.from_config(self.lm.config, dtype=self.dtype)
            shell.generation_config = self.lm.generation_config
            shell.save_pretrained(folder, state_dict=state)

    def save_state(self, folder):
        """Write masters and optimizer, each rank its own shard. Another number of ranks can load them."""
        model, optimizer = dcp_state.get_state_dict(self, self.optimizer)
        dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)

    def load_state(self, folder):
        """The inverse of save_state(), exact to the bit. Raises if the folder is broken."""
        model, optimizer = dcp_state.get_state_dict(self, self.optimizer)
        state = {"model": model, "optimizer": optimizer}
        dcp.load(state, checkpoint_id=folder)
        dcp_state.set_state_dict(self, self.optimizer, model_state_dict=state["model"],
                                 optim_state_dict=state["optimizer"])
