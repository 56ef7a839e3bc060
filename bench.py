"""Seconds, tokens per second, utilisation and memory of whole GRPO steps, or of one phase of them.

    python bench.py --model DIR --prompts 64 --samples 4 --new_tokens 64 --updates 4 --steps 8
    python bench.py --arch 7b --phase update --prompts 16 --new_tokens 1000      random weights, nothing to download
    torchrun --nproc-per-node 8 bench.py --arch 32b --sampler vllm
    python bench.py --arch 32b --plan 8                                          memory on 8 GPUs, before you rent them

No token ends a response: each has new_tokens tokens. The reward is the share of token ids that 7 divides, so that
rewards differ even with random weights. Utilisation is the FLOP/s of the matrix products, divided by those of large
products in the same run (matmul_rate). A forward pass counts 2 FLOPs per parameter and token, a backward pass 4.
Attention counts as causal, the head on response tokens only, a prompt once per response.
"""

import json
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Literal

from common import (UNUSABLE, Policy, Rollouts, TorchSampler, all_reduce, arg, bad_input, choose_sampler, fail,
                    find_model, full_loss, generate, longest_sequence, parse, rank, say, split, start_processes,
                    observe)
from core.data import encode
from core.linear import linear
from core.memory import CONTEXT, choose, count, engine_room, engine_share, fit, left, training_memory
from core.policy import settings_of
from core.processes import world
from core.rewards import decode
from core.tiny import make_tokenizer
from grpo import Config, advantages, token_loss
import numpy as np
import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm
from transformers import AutoModelForCausalLM, Qwen2Config

PHASES = ("sample", "logprobs", "update", "sync")
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
         "vocab_size", "tie_word_embeddings")
ARCHS = {
    "tiny": (128, 3, 4, 4, 384, 261, True),
    "0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "1.5b": (1536, 28, 12, 2, 8960, 151936, True),
    "3b": (2048, 36, 16, 2, 11008, 151936, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, False),
    "14b": (5120, 48, 40, 8, 13824, 152064, False),
    "32b": (5120, 64, 40, 8, 27648, 152064, False),
}


# ------------------------------------------------------------------------------------------------ the memory plan
def architecture(name: str):
    """The transformers config of a Qwen2.5 architecture."""
    return Qwen2Config(**dict(zip(SIZES, ARCHS[name])), architectures=["Qwen2ForCausalLM"])


def report(cfg, config, gpus: int) -> str:
    """What training needs, and what is left for vLLM, on GPUs of 80 and of 141 GB that share one copy of the state.

    --tokens_per_micro and --recompute are chosen for each kind as a run chooses them, unless they are given."""
    whole, _, table, _ = sizes = count(config)
    heads, least = config.num_key_value_heads, cfg.max_prompt_tokens + cfg.max_new_tokens
    cache = 4 * config.num_hidden_layers * heads * config.hidden_size // config.num_attention_heads  # bytes per token
    reference = 4 * whole / gpus * bool(cfg.reference or cfg.kl_coef) * (not cfg.offload)
    columns, says = [], []
    for total in (80e9, 141e9):
        resident = reference + (0 if cfg.offload else 12 * whole / gpus)
        free = total - CONTEXT - resident
        room = left(free, total)
        tokens, recompute, needed = choose(config, gpus, room, least, cfg.offload, cfg.tokens_per_micro, cfg.recompute)
        memory = training_memory(config, gpus, tokens, cfg.offload, recompute, sizes=sizes) | dict(reference=reference)
        in_gb = {name: f"{size / 1e9:.1f}" for name, size in memory.items()}
        columns.append(dict(tokens_per_micro=str(tokens), recompute=str(recompute)) | in_gb)
        told = "no room for vLLM; give --offload true or take more GPUs"
        for tp in (8, 4, 2, 1) if gpus % 8 == 0 else (1,):  # the last that fits counts
            cached = tp * (engine_room(free, table) - 2.25 * whole / tp) / cache  # tokens
            if heads % tp == 0 and cached > 1e5:  # 25 responses of 4,000 tokens at a time
                size = total * engine_share(free, total, whole, table, tp)
                told = f"vLLM with --tp {tp} gets {size / 1e9:.0f} GB and caches {cached / 1e3:.0f} k tokens"
        if needed > room:
            told = "too small to train on; give --offload true, lower --tokens_per_micro or take more GPUs"
        says.append(f"GPU of {total / 1e9:.0f} GB: {told}")
    lines = [f"{whole / 1e9:.2f} B parameters, {gpus} GPU(s); computed GB per GPU", f"{'':18}{'of 80':>9}{'of 141':>9}"]
    lines += [f"  {name:16}{columns[0][name]:>9}{columns[1][name]:>9}" for name in columns[0]]
    return "\n".join(lines + says)


# ------------------------------------------------------------------------------------------------ the phases of a step
@dataclass
class Options(Config):
    arch: Literal["", *ARCHS] = arg("", "a Qwen2.5 architecture with random weights, in place of --model")
    phase: Literal["all", *PHASES] = arg("all", "time this phase alone")
    plan: int = arg(0, "time nothing, compute the memory that training needs on each of PLAN GPUs", least=0)
    prompts: int = arg(64, "prompts per step", least=1)
    samples: int = arg(4, "responses per prompt; GRPO compares them", least=2)
    new_tokens: int = arg(64, "tokens of each response", least=1)
    updates: int = arg(4, "optimizer steps per step", least=1)
    steps: int = arg(8, "timed steps, after one that is not timed", least=1)
    on_tiny = dict(steps=8, reference=False)


class RandomPolicy(Policy):
    """Random weights. Rank 0 draws them, on the GPU if it is the only rank, else on the CPU."""

    def load(self, model, config, **how):
        torch.manual_seed(0)
        alone = torch.cuda.is_available() and world() == 1
        with torch.device("meta" if rank() else "cuda" if alone else "cpu"):
            return AutoModelForCausalLM.from_config(config, **how)


def timed(seconds: dict, name: str, call, *args):
    """call(*args). Adds its seconds to seconds[name]."""
    start, result = time.perf_counter(), call(*args)
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # the GPU may still be at work
    seconds[name] = seconds.get(name, 0) + time.perf_counter() - start
    return result


class Bench:
    """All that a step needs, with the settings of common.Run. folder: an empty one, for the config of --arch."""

    def __init__(self, cfg, folder: str):
        self.cfg, device = cfg, start_processes()
        cfg.max_prompt_tokens, cfg.max_new_tokens, cfg.updates_per_step = 64, cfg.new_tokens, cfg.updates
        if cfg.arch:
            kind, source, config, self.tokenizer = RandomPolicy, folder, architecture(cfg.arch), make_tokenizer()
            config.save_pretrained(folder)
        else:
            kind, (source, config, self.tokenizer) = Policy, find_model(cfg.model, "model")
        if 64 + cfg.new_tokens > longest_sequence(config, windows=device == "cuda"):
            fail(f"--new_tokens {cfg.new_tokens}: more than the model's context, with 64 tokens for the prompt")
        how = settings_of(cfg, device) | dict(vocab=None if cfg.arch else len(self.tokenizer))
        with bad_input(f"--model {cfg.model}: ", UNUSABLE):
            self.policy = kind(source, device, lr=cfg.lr, **how)
            self.reference = kind(source, device, **how) if cfg.reference or cfg.kl_coef else None
        with bad_input():
            kind = choose_sampler(cfg)
            fit(cfg, dict(trainer=self.policy, reference=self.reference), kind is not TorchSampler)
            self.sampler = kind(self.policy, set())  # no token ends a response
        texts = [f"{i * 7919 % 10**7:07}+*-{i}".ljust(15 + 5 * i % 9, "1") + "=" for i in range(cfg.prompts)]
        self.problems = [encode(text, "none", self.tokenizer) for text in texts]  # 16 to 24 characters
        zeros = np.zeros(cfg.new_tokens, dtype=np.float32)  # logprobs and entropies
        ids = np.random.default_rng(0).integers(32, 127, size=(cfg.prompts * cfg.samples, cfg.new_tokens))
        self.made_up = Rollouts(self.problems, [(row, zeros, zeros, True) for row in ids])

    def step(self, number: int, seconds: dict):
        """One step, or one phase of it on made-up responses. Adds the seconds of each phase."""
        cfg, policy, rollouts = self.cfg, self.policy, self.made_up
        timed(seconds, "sync", self.sampler.sync, policy)
        if cfg.phase in ("all", "sample"):
            rollouts = timed(seconds, "sample", generate, self.sampler, self.problems, cfg.samples, cfg.seed,
                             cfg.new_tokens, cfg.temperature, number * cfg.prompts)
        decode(rollouts.responses, self.tokenizer)
        rewards = torch.tensor([np.mean(ids % 7 == 0) for ids in rollouts.batch.responses]).view(-1, cfg.samples)
        self.sampler.sleep()
        if cfg.phase in ("sample", "sync"):
            return
        if torch.cuda.is_available():  # from here on, the peak is that of training alone
            torch.cuda.reset_peak_memory_stats()
        rollouts.prepare(number, cfg.phase == "update" or cfg.phase == "all" and self.sampler.exact, [])
        parts = timed(seconds, "update", split, rollouts, *advantages(rewards.float(), cfg), cfg)
        parts = [(rows, units) for rows, units in parts if len(rows)]
        everything, later = range(rewards.numel()), [row for rows, _ in parts[1:] for row in rows]
        timed(seconds, "logprobs", rollouts.old.fill, policy, everything if cfg.phase == "logprobs" else later)
        if self.reference:
            timed(seconds, "logprobs", rollouts.ref.fill, self.reference, everything)
        objective = lambda *values: full_loss(*values, observe(token_loss), cfg)
        for rows, units in parts if cfg.phase != "logprobs" else ():
            batch = rollouts.select(rows, units)
            batch.values.setdefault("old", batch.values["sampler"])  # the first update's policy is the one that sampled
            timed(seconds, "update", policy.update, batch, objective, cfg.max_grad_norm, bool(cfg.entropy_coef))


def matmul_rate(size: int = 4096) -> float:
    """FLOP/s of a product of two square matrices in the compute precision: the best of several, summed over ranks.

    On a GPU: ten products of twice the size at a time, because one alone would mostly wait."""
    gpu, count = torch.cuda.is_available(), 1
    if gpu:
        size, count = 2 * size, 10
    a = torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=torch.bfloat16 if gpu else torch.float32)
    how = dict(globals=dict(a=a, linear=linear), num_threads=torch.get_num_threads())
    products = Timer(f"for _ in range({count}): linear(a, a)", **how)
    seconds = min(products.blocked_autorange(min_run_time=2).times)
    return all_reduce(torch.tensor(count * 2 * size**3 / seconds, dtype=torch.float64)).item()


def forward_flops(lm, prompts: list[int], new_tokens: int) -> float:
    """FLOPs of the matrix products of a forward pass over prompts of these lengths, each with new_tokens more."""
    head = lm.get_output_embeddings().weight
    ends, width = {head, lm.get_input_embeddings().weight}, lm.config.num_hidden_layers * lm.config.hidden_size
    body = sum(p.numel() for p in lm.parameters() if p.dim() > 1 and p not in ends)
    lengths = [prompt + new_tokens for prompt in prompts]
    return sum(2 * body * n + 2 * head.numel() * new_tokens + 2 * width * n**2 for n in lengths)


def main():
    random = any(flag.startswith("--arch") for flag in sys.argv)
    usual = ["--tokens_per_micro", "0", "--max_new_tokens", "3072"] if random else []  # or they would be those of tiny
    cfg = parse(Options, __doc__, usual + sys.argv[1:])
    if cfg.plan:
        config = architecture(cfg.arch) if cfg.arch else find_model(cfg.model, "model")[1]
        return print(report(cfg, config, cfg.shard_size or cfg.plan))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(cfg, folder)
    laps = [{} for _ in range(cfg.steps + 1)]
    for number, lap in enumerate(tqdm(laps, desc="steps", leave=False, disable=rank() > 0)):
        timed(lap, "step", bench.step, number, lap)
    peak = 1024 * resource.getrusage(0).ru_maxrss
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() - getattr(bench.sampler, "phantom", 0)
    tokens, rate, exact = cfg.prompts * cfg.samples * cfg.new_tokens, matmul_rate(), bench.sampler.exact
    forward = cfg.samples * forward_flops(bench.policy.lm, [len(p["prompt"]) for p in bench.problems], cfg.new_tokens)
    peak = all_reduce(torch.tensor(peak / 2**30)).item() / world()
    result = dict(model=cfg.arch or cfg.model, tokens=tokens, ranks=world(), steps=cfg.steps, peak_gib=peak,
                  matmul_gflops=rate / 1e9, floor=4 * forward / rate)
    say(f"{'phase':10}{'seconds':>9}{'fastest':>9}{'slowest':>9}{'tokens/s':>11}{'utilisation':>13}")
    late = 1 if cfg.phase == "logprobs" else 0 if exact else 1 - 1 / cfg.updates
    passes = dict(step=4, sample=1, logprobs=late + bool(bench.reference), update=3, sync=0)  # a backward pass is 2
    for name in passes if cfg.phase == "all" else [cfg.phase]:
        seconds = sorted(lap[name] for lap in laps[1:])  # the first step is not timed
        middle = float(np.median(seconds))
        if name != "logprobs" or passes[name]:  # an exact sampler has given them
            use = passes[name] * forward / rate / middle
            result[name] = dict(seconds=middle, fastest=seconds[0], slowest=seconds[-1], utilisation=use)
            say(f"{name:10}{middle:9.3f}{seconds[0]:9.3f}{seconds[-1]:9.3f}{tokens / middle:11.0f}{use:13.2f}")
    say(f"floor by FLOPs, sampling and updates: {result['floor']:.3f} s; peak memory {peak:.2f} GiB per process")
    say(json.dumps(result))


if __name__ == "__main__":
    main()
