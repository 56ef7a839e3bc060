"""GPU memory: what training and vLLM's engine need, computed before they take it. All sizes are in bytes."""

import math

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from core.head import CHUNK
from core.processes import all_reduce, say

CONTEXT = 1e9  # CUDA and NCCL themselves
ASLEEP = 2e9  # what a sleeping engine keeps: CUDA graphs and workspaces. An estimate
TOKENS = (16384, 8192, 4096)  # --tokens_per_micro, the best first: larger ones save little time
RECOMPUTE = (0, 4, 3, 2, 1)  # --recompute, the fastest first: no block, every fourth, ..., all


def count(config) -> tuple[int, int, int, float]:
    """Numbers of parameters: the whole model, embedding plus head (one table if tied), the larger of the two tables.
    And the activations of a block relative to Llama's: Qwen3, OLMo 2 and Gemma 3 have more norms."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    tables = [p.numel() for p in {lm.get_input_embeddings().weight, lm.get_output_embeddings().weight}]
    norms = sum(type(module).__name__.endswith("Norm") for module in lm.modules())
    more = 1.35 if norms > 2 * config.num_hidden_layers + 1 else 1.0
    return sum(p.numel() for p in lm.parameters()), sum(tables), max(tables), more


def training_memory(config, gpus: int, tokens: int, offload=False, recompute=1, chunk=CHUNK,
                    sizes=None) -> dict[str, float]:
    """Bytes on each of `gpus` GPUs that share one copy of the state. A micro-batch has `tokens` tokens. sizes: those of
    count(), which takes a moment.

      gathered     bf16 weights of embedding and head, the head's gradient, and 6 bytes per parameter of one block
      activations  in bf16. Each block keeps its input. A block that is not computed again also keeps all that
                   transformers' Llama and Qwen compute inside it. So does the one block that is at work
      logits       of a chunk of tokens: in bf16, in fp32, logprobs, probabilities, and probabilities x logprobs
      peak         the most that is there at the same time. It can be in a block, in the head, or at the end, with
                   the gradients of embedding and head in both bf16 and fp32. Add CONTEXT to it"""
    whole, ends, table, more = sizes or count(config)
    layers, hidden = config.num_hidden_layers, config.hidden_size
    mlp = getattr(config, "intermediate_size", None) or 4 * hidden
    kept = layers - len(range(0, layers, recompute)) if recompute else layers  # blocks that keep their activations
    own = more * tokens * (19 * hidden + 8 * mlp)  # activations of one block
    stored = 2 * tokens * layers * hidden + kept * own  # from the forward pass to the backward pass
    working = more * tokens * (24 * hidden + 12 * mlp) - (own if kept else 0)  # what the backward pass of a block adds
    parts = dict(parameters=4 * whole / gpus, gradients=4 * whole / gpus, optimizer=8 * whole / gpus,  # in fp32
                 gathered=2 * ends + 2 * table + 6 * (whole - ends) / layers,
                 activations=stored + working, logits=18 * min(chunk, tokens * config.vocab_size))
    if offload:  # one GPU alone sums up the gradients of an update before they go to the CPU
        parts.update(parameters=0, optimizer=0, gradients=4 * whole if gpus == 1 else 0)
    in_a_block = parts["gradients"] + parts["gathered"] + parts["activations"]
    sums = 4 * table if tokens * config.vocab_size > chunk else 0  # the head's gradient in fp32, a sum over chunks
    in_the_head = 2 * ends + 2 * table + sums + parts["logits"] + stored
    at_the_end = parts["gradients"] * (1 - ends / whole) + 6 * ends
    peak = parts["parameters"] + parts["optimizer"] + max(in_a_block, in_the_head, at_the_end)
    return parts | dict(peak=peak)


def choose(config, gpus: int, room: float, least: int, offload=False, tokens=0, recompute=-1) -> tuple[int, int, float]:
    """(tokens per micro-batch, recompute, bytes needed) of an update that fits into `room` bytes. Master weights and
    optimizer are not counted: they are there already.

    The choice is the least recomputation that fits, then the most tokens. If nothing fits, it is the last one tried.
    tokens, recompute: what the user gave, or 0 and -1. least: tokens that have to stay in one micro-batch, such as the
    longest sequence."""
    sizes = count(config)
    for again in RECOMPUTE if recompute < 0 else [recompute]:
        for size in [tokens] if tokens else TOKENS:
            parts = training_memory(config, gpus, max(size, least), offload, again, sizes=sizes)
            needed = parts["peak"] - parts["parameters"] - parts["optimizer"]
            if needed <= room:
                return size, again, needed
    return size, again, needed


def left(free: float, total: float, sampler: float = ASLEEP) -> float:
    """Bytes for an update: the free ones, minus 5 % of the GPU for fragments, minus those of the sampler."""
    return free - 0.05 * total - sampler


def fit(cfg, items: dict, engine: bool) -> dict:
    """On GPUs, before the engine starts: choose --tokens_per_micro and --recompute, unless they are given. Then set
    them in each trained model in `items`. Returns {"memory": what was chosen}, or {} without a GPU.
    engine: the sampler will be vLLM, which sleeps during updates. The torch sampler has a whole copy of the model.

    All ranks call this together. Masters and optimizers are there already, so the free memory is what they leave."""
    if not torch.cuda.is_available():
        return {}
    models = [item for item in items.values() if hasattr(item, "tokens_per_micro")]
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    sampler = ASLEEP if engine else 2 * sum(p.numel() for p in models[0].lm.parameters())
    room = all_reduce(torch.tensor(left(free, total, sampler), dtype=torch.float64), dist.ReduceOp.MIN).item()
    least = (cfg.max_prompt_tokens + cfg.max_new_tokens) * getattr(cfg, "together", 1)
    tokens, recompute, needed = choose(models[0].lm.config, models[0].shards, room, least, cfg.offload,
                                       cfg.tokens_per_micro, cfg.recompute)
    for model in models:
        model.tokens_per_micro = tokens
        model.recompute(recompute)
    again = {0: "no block is", 1: "all blocks are", 2: "every second block is", 3: "every third block is"}
    again = again.get(recompute, f"one block in {recompute} is")
    say(f"memory: micro-batches of {tokens} tokens, {again} computed again in the backward pass; an update takes "
        f"{needed / 1e9:.0f} GB (computed), of {max(0, room) / 1e9:.0f} free of {total / 1e9:.0f}")
    if needed > room:
        say("WARNING: this update may not fit; lower --tokens_per_micro, set --offload true, or use more GPUs")
    return dict(memory=dict(tokens_per_micro=tokens, recompute=recompute))


def engine_room(free: float, table: int) -> float:
    """Bytes for an engine, of the `free` ones beside the trainer's state. A tenth is kept for CUDA, NCCL and fragments.

    A push needs 6 bytes for each entry of the largest tensor, the `table`: three copies of it in bf16. vLLM pads the
    vocabulary, so it puts embedding and head aside until the end of the push."""
    return 0.9 * free - 6 * table


def engine_share(free: int, total: int, parameters: int, table: int, tp: int) -> float:
    """The share of a GPU's `total` bytes for an engine. `free` bytes are left beside the trainer's state.

    Activations and gradients need no room, because the engine sleeps while they exist. table: see engine_room().
    Raises ValueError if the engine does not fit. It needs its weights (bf16, split over tp GPUs), an eighth of them
    for its activations, and 1 GB of KV cache."""
    room, least = engine_room(free, table), 2.25 * parameters / tp + 1e9
    if room < least:
        raise ValueError(f"the trainer leaves {free / 1e9:.1f} of a GPU's {total / 1e9:.1f} GB, and vLLM needs "
                         f"{(least + 6 * table) / 0.9 / 1e9:.1f} GB; raise --tp (now {tp}), set --offload true, or "
                         "use more GPUs")
    return math.floor(1000 * room / total) / 1000
