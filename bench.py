"""Seconds, tokens per second, utilisation and memory of whole GRPO steps, or of one phase of them.

    python bench.py --model DIR --prompts 64 --samples 4 --new_tokens 64 --updates 4 --steps 8
    python bench.py --arch 7b --phase update --prompts 16 --new_tokens 1000      random weights, nothing to download
    torchrun --nproc-per-node 8 bench.py --arch 32b --sampler vllm
    python bench.py --arch 32b --plan 8                                          what 8 GPUs would need: before renting

No token ends a response: each has new_tokens tokens. Rewards depend on token ids alone, so that even a random model has
mixed groups. Utilisation compares the FLOPs of matrix products (2 x parameters per token forward, 4 x backward; causal
attention; the head on response tokens; a prompt once per response) with a product of size 4,096 in the same run.
"""

import json
import math
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import common
import numpy as np
import torch
from common import arg
from grpo import Config, advantages, token_loss
from core import tiny
from core.head import CHUNK
from core.rewards import decode
from core.rollout import Rollouts
from core.vllm_sampler import engine_share
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen2Config

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


PHASES = dict(sample="time_sample", logprobs="time_old", update="time_train", sync="time_sync")
FLOPS = dict(sample=1, logprobs=1, update=3, step=4)  # in FLOPs of a forward pass


@dataclass
class Options(Config):
    arch: Literal["", *ARCHS] = arg("", "a Qwen2.5 architecture with random weights in place of --model")
    phase: Literal["all", *PHASES] = arg("all", "time this phase alone")
    plan: int = arg(0, "time nothing: compute the memory that each of so many GPUs would need", least=0)
    prompts: int = arg(64, "prompts per step", least=1)
    samples: int = arg(4, "responses per prompt, which GRPO compares", least=2)
    new_tokens: int = arg(64, "tokens of each response", least=1)
    updates: int = arg(4, "optimizer steps per step", least=1)
    steps: int = arg(8, "timed steps, after one that is not timed", least=1)
    on_tiny = dict(steps=8, eval_data="", reference=False)


class RandomPolicy(common.Policy):
    """Random weights instead of those in a folder. Rank 0 draws them: on the GPU if it is alone, else on the CPU."""

    def load(self, model, config, **how):
        torch.manual_seed(0)
        alone = torch.cuda.is_available() and common.world() == 1
        with torch.device("meta" if common.rank() else "cuda" if alone else "cpu"):
            return AutoModelForCausalLM.from_config(config, **how)  # whose name_or_path is the folder


def matmul_rate(size: int = 4096, seconds: float = 2.0) -> float:
    """FLOP/s of a product of two square matrices in the compute precision: the best of several, summed over ranks."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    rate, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        (a @ a)[0, 0].item()  # waits for the product
        rate = max(rate, 2 * size**3 / (time.perf_counter() - start))
    return common.all_reduce(torch.tensor(rate, dtype=torch.float64)).item()


def forward_flops(lm, prompts: list[int], new_tokens: int) -> float:
    """FLOPs of the matrix products of a forward pass over prompts of these lengths, each with new_tokens more."""
    head = lm.get_output_embeddings().weight.numel()
    tables = {id(w): w.numel() for w in (lm.get_input_embeddings().weight, lm.get_output_embeddings().weight)}
    body = sum(p.numel() for p in lm.parameters() if p.dim() > 1) - sum(tables.values())
    width = lm.config.num_hidden_layers * lm.config.hidden_size
    return sum(2 * body * (p + new_tokens) + 2 * head * new_tokens + 2 * width * (p + new_tokens) ** 2 for p in prompts)


def open_run(cfg, folder: str):
    """A training run without its loop, on made-up prompts of 16 to 24 characters that look like arithmetic."""
    file, count = Path(folder, "prompts.jsonl"), cfg.prompts * (cfg.steps + 1)
    texts = [f"{i * 7919 % 10**7:07}+*-{i}".ljust(15 + 5 * i % 9, "1") + "=" for i in range(count)]
    file.write_text("".join(json.dumps(dict(problem=text, answer="0")) + "\n" for text in texts))
    cfg.data, cfg.template, cfg.max_prompt_tokens, cfg.max_new_tokens = str(file), "none", 64, cfg.new_tokens
    cfg.prompts_per_step, cfg.samples_per_prompt, cfg.updates_per_step = cfg.prompts, cfg.samples, cfg.updates
    if cfg.arch:
        architecture(cfg.arch).save_pretrained(folder)
        tiny.make_tokenizer().save_pretrained(folder)
        save_file(dict(none=torch.zeros(1)), Path(folder, "model.safetensors"))  # RandomPolicy does not read it
        common.Policy, cfg.model = RandomPolicy, folder
    run = common.Run(cfg)
    run.policy.vocab = None if cfg.arch else run.policy.vocab  # None: all of it; the sampler is built for it
    run.start_sampler()
    run.sampler.eos, run.sampler.exact = run.sampler.eos[:0], run.sampler.exact and cfg.phase != "logprobs"
    zeros = np.zeros(cfg.new_tokens, dtype=np.float32)  # logprobs and entropies
    ids = np.random.default_rng(0).integers(32, 127, size=(cfg.prompts * cfg.samples, cfg.new_tokens))
    run.invented = Rollouts(run.problems[: cfg.prompts], [(row, zeros, zeros, True) for row in ids])
    return run


def step(run, phase: str) -> dict:
    """The metrics of one step, or of one phase of it. If sampling is not timed, the responses are invented."""
    cfg, start = run.cfg, time.perf_counter()
    run.new_step()
    run.sync()
    rollouts = run.sample() if phase in ("all", "sample") else run.invented
    decode(rollouts.responses, run.tokenizer)
    rewards = torch.tensor([np.mean(x % 7 == 0) for x in rollouts.batch.responses]).view(-1, cfg.samples).float()
    run._lap("time_verify")
    run.old_logprobs(rollouts)
    if phase == "logprobs":
        rollouts.tokens.old  # asks for the pass  # noqa: B018
        run._lap("time_train")
    run.metrics.update(time_old=run.metrics["time_train"], time_train=None)
    for batch in run.minibatches(rollouts, *advantages(rewards, cfg)) if phase in ("all", "update") else ():
        run.update(batch, token_loss)
    return run.metrics | dict(step=time.perf_counter() - start, lengths=list(map(len, rollouts.batch.prompts)))


def main():
    if any(flag.startswith("--arch") for flag in sys.argv):  # not the built-in model, which has a default of its own
        Options.on_tiny = Options.on_tiny | dict(tokens_per_micro=Config.tokens_per_micro)
    cfg = common.parse(Options, __doc__)
    if cfg.plan:
        config = architecture(cfg.arch) if cfg.arch else common.find_model(cfg.model, "model")[1]
        return print(report(config, cfg.shard_size or cfg.plan, cfg.tokens_per_micro, cfg.offload, cfg.recompute))
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(cfg, folder)
        laps = [step(run, cfg.phase) for _ in common.tqdm(range(cfg.steps + 1), desc="steps", leave=False)]
    tokens, rate = cfg.prompts * cfg.samples * cfg.new_tokens, matmul_rate()
    forward = forward_flops(run.policy.lm, laps[-1]["lengths"], cfg.new_tokens)
    peak = torch.cuda.max_memory_allocated() if run.device == "cuda" else 1024 * resource.getrusage(0).ru_maxrss
    peak = common.all_reduce(torch.tensor(peak / 2**30)).item() / common.world()
    result = dict(model=cfg.arch or cfg.model, tokens=tokens, ranks=common.world(), steps=cfg.steps, peak_gib=peak,
                  matmul_gflops=rate / 1e9, floor=4 * forward / rate)  # fmt: skip
    common.say(f"{'phase':10}{'seconds':>9}{'fastest':>9}{'slowest':>9}{'tokens/s':>11}{'utilisation':>13}")
    for name in ("step", *PHASES):
        seconds = sorted(lap[PHASES.get(name, "step")] or 0 for lap in laps[1:])  # the first is not timed
        middle = float(np.median(seconds))
        spared = name == "logprobs" and run.sampler.exact and not run.reference  # nothing to compute
        if cfg.phase in ("all", name) and middle > 1e-4 and not spared:
            use = FLOPS.get(name, 0) * forward / rate / middle
            result[name] = dict(seconds=middle, fastest=seconds[0], slowest=seconds[-1], utilisation=use)
            common.say(f"{name:10}{middle:9.3f}{seconds[0]:9.3f}{seconds[-1]:9.3f}{tokens / middle:11.0f}{use:13.2f}")
    common.say(f"floor by FLOPs, sampling and updates: {result['floor']:.3f} s; peak memory {peak:.2f} GiB per process")
    common.say(json.dumps(result))


if __name__ == "__main__":
    main()
