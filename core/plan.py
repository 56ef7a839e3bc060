"""How much of a GPU each part of a run takes, computed: what a user can know before renting.

The formulas are those of FSDP2 with recomputed blocks, bf16 on fp32 masters; torch's MemTracker finds the same to 10 %
(tests/test_gpu_path.py). Compiled blocks need less for their activations.
"""

import math

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from core.policy import CHUNK

SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
         "vocab_size", "tie_word_embeddings")  # fmt: skip
ARCHS = {
    "tiny": (128, 3, 4, 4, 384, 261, True),
    "0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "1.5b": (1536, 28, 12, 2, 8960, 151936, True),
    "3b": (2048, 36, 16, 2, 11008, 151936, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, False),
    "14b": (5120, 48, 40, 8, 13824, 152064, False),
    "32b": (5120, 64, 40, 8, 27648, 152064, False),
}


def architecture(name: str):
    """The transformers config of a Qwen2.5 architecture."""
    return Qwen2Config(**dict(zip(SIZES, ARCHS[name])), architectures=["Qwen2ForCausalLM"])


def count(config) -> tuple[int, int, int]:
    """Numbers of parameters: of the whole model, of embedding and head (one table if they are tied), of one table."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    ends = {lm.get_input_embeddings().weight, lm.get_output_embeddings().weight}
    return sum(p.numel() for p in lm.parameters()), sum(p.numel() for p in ends), max(p.numel() for p in ends)


def training_memory(config, gpus: int, tokens: int, offload=False, recompute=1, chunk=CHUNK) -> dict[str, float]:
    """Bytes on each of `gpus` GPUs that share one copy of the state, for micro-batches of `tokens` tokens.

      state           fp32 masters, gradients and AdamW's two moments: 16 bytes per parameter / gpus
      gathered        bf16 weights of embedding and head, and the head's gradient; 6 bytes per parameter of a block
      activations     bf16: what enters each block; and one block's own, as transformers' Llama and Qwen leave them,
                      with those of every block that is not computed again
      logits          of a chunk of tokens: bf16, fp32, logprobs, probabilities and their product
      peak            the largest sum of what is there at the same time: in a block; in the head; in the last reduction
                      of gradients, those of embedding and head in bf16 and fp32. Without CUDA's and NCCL's own GB
    """
    whole, ends, table = count(config)
    layers, hidden, mlp = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    kept = layers - math.ceil(layers / recompute) if recompute else layers - 1  # blocks that keep their activations
    own = tokens * (24 * hidden + 12 * mlp)  # activations of one block
    stored = 2 * tokens * layers * hidden + kept * own  # from the forward pass to the backward pass
    parts = dict(parameters=4 * whole / gpus, gradients=4 * whole / gpus, optimizer=8 * whole / gpus,
                 gathered=2 * ends + 2 * table + 6 * (whole - ends) / layers,
                 activations=stored + own, logits=18 * min(chunk, tokens * config.vocab_size))  # fmt: skip
    if offload:  # gradients stay where they arise until the update's last micro-batch, if each GPU has all of them
        parts.update(parameters=0, optimizer=0, gradients=4 * whole if gpus == 1 else 0)
    in_a_block = parts["gradients"] + parts["gathered"] + parts["activations"]
    sums = 4 * table if tokens * config.vocab_size > chunk else 0  # in fp32, of the chunks' gradients of the head
    in_the_head = 2 * ends + 2 * table + sums + parts["logits"] + stored
    at_the_end = parts["gradients"] * (1 - ends / whole) + 6 * ends
    peak = parts["parameters"] + parts["optimizer"] + max(in_a_block, in_the_head, at_the_end)
    return parts | dict(peak=peak)


def report(config, gpus: int, tokens: int, offload=False, recompute=1) -> str:
    """A table of the training's memory, and what is left for vLLM on GPUs of 80 and of 141 GB."""
    whole, _, table = count(config)
    memory, heads = training_memory(config, gpus, tokens, offload, recompute), config.num_key_value_heads
    lines = [f"computed GB per GPU: {whole / 1e9:.2f} B parameters, {gpus} GPU(s), {tokens} tokens per micro-batch"]
    lines += [f"  {name:12}{size / 1e9:8.1f}" for name, size in memory.items()]
    state = memory["parameters"] + memory["optimizer"]  # what stays while vLLM samples
    cache = 4 * config.num_hidden_layers * heads * config.hidden_size // config.num_attention_heads  # bytes per token
    for total in (80e9, 141e9):
        says = "no room for vLLM; give --offload true or take more GPUs"
        for tp in (8, 4, 2, 1) if gpus % 8 == 0 else (1,):
            free = total - state - 1e9
            tokens_cached = tp * (0.9 * free - 2 * table - 2.25 * whole / tp) / cache
            if heads % tp == 0 and tokens_cached > 1e5:  # 25 responses of 4,000 tokens at a time
                gets = total * engine_share(free, total, whole, table, tp)
                says = f"vLLM with --tp {tp} gets {gets / 1e9:.0f} GB and caches {tokens_cached / 1e3:.0f} k tokens"
        if memory["peak"] > 0.95 * total:
            says = "too small to train on; give --offload true, lower --tokens_per_micro or take more GPUs"
        lines.append(f"GPU of {total / 1e9:.0f} GB: {says}")
    return "\n".join(lines)


def engine_share(free: int, total: int, parameters: int, table: int, tp: int) -> float:
    """The share of a GPU's `total` bytes that an engine may take when `free` bytes are left beside the trainer's state.

    A tenth of them goes to CUDA, NCCL and fragments, and 2 bytes for each entry of the largest tensor, the `table`, to
    the push of the weights. Activations and gradients need no room, because the engine sleeps while they exist. Raises
    ValueError where its weights (bf16, split over tp GPUs), an eighth of them for what it computes, and 1 GB of KV
    cache do not fit."""
    room, least = 0.9 * free - 2 * table, 2.25 * parameters / tp + 1e9
    if room < least:
        raise ValueError(f"the trainer leaves {free / 1e9:.1f} of a GPU's {total / 1e9:.1f} GB, and vLLM needs "
                         f"{(least + 2 * table) / 0.9 / 1e9:.1f} GB; raise --tp (now {tp}), give --offload true, or "
                         "take more GPUs")  # fmt: skip
    return math.floor(1000 * room / total) / 1000
