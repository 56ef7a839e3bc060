"""Seconds, tokens per second, utilisation and memory of whole GRPO steps on a local model folder.

    python bench.py                                    the built-in model
    python bench.py --model DIR --prompts 64 --samples 4 --new_tokens 64 --updates 4 --steps 8

One step: sync, sample with the end token suppressed (so that every response has new_tokens tokens), reward, advantages,
old logprobs, updates. The reward is the share of a letter, so that a random model has mixed groups. Utilisation counts
the FLOPs of matrix products (2 x parameters a token forward, 4 x backward; causal attention; the head on responses;
prompts once for each response) against a matrix product of 4,096 measured in the same run, just after the steps.
"""

import argparse
import json
import random
import resource
import statistics
import time
from pathlib import Path

import common  # first: it says how torch's threads are to wait
import numpy as np
import torch
from grpo import Config, advantages, token_loss


def make_prompts(count: int, seed: int = 0) -> list[str]:
    """Arithmetic-looking prompts of 16 to 24 characters."""
    draw = random.Random(seed)
    return ["".join(draw.choice("0123456789+-*") for _ in range(15 + 5 * i % 9)) + "=" for i in range(count)]


def matmul_rate(size: int = 4096, seconds: float = 2.0) -> float:
    """FLOP/s of a square matrix product in the policy's compute precision, the best of repeated runs."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    rates, end = [], time.perf_counter() + seconds
    while len(rates) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        a @ a
        torch.cuda.synchronize() if device == "cuda" else None
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return max(rates)


def forward_flops(lm, prompts: list[int], new_tokens: int) -> float:
    """Matrix-product FLOPs of one forward pass over sequences of these prompt lengths, each with new_tokens more."""
    head = lm.get_output_embeddings().weight.numel()
    tables = {id(w): w.numel() for w in (lm.get_input_embeddings().weight, lm.get_output_embeddings().weight)}
    body = sum(p.numel() for p in lm.parameters() if p.dim() > 1) - sum(tables.values())
    width = lm.config.num_hidden_layers * lm.config.hidden_size
    return sum(2 * body * (p + new_tokens) + 2 * head * new_tokens + 2 * width * (p + new_tokens) ** 2 for p in prompts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=common.MODELS["tiny"][0], help="a local model folder")
    for name, default, what in (("prompts", 64, "prompts a step"), ("samples", 4, "responses per prompt"),
                                ("new_tokens", 64, "tokens of each response"), ("updates", 4, "optimizer steps a step"),
                                ("steps", 8, "timed steps; one more goes before them"),
                                ("tokens_per_micro", 8192, "tokens of a micro-batch")):  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (default {default})")
    args = parser.parse_args()
    if not (Path(args.model) / "config.json").is_file():
        common.fail(f"--model {args.model}: not a model folder (it has no config.json)")
    if min(args.prompts, args.new_tokens, args.updates, args.steps, args.tokens_per_micro) < 1 or args.samples < 2:
        common.fail("--prompts, --new_tokens, --updates, --steps and --tokens_per_micro are at least 1, --samples 2")
    cfg = Config(model=args.model, data="", prompts_per_step=args.prompts, samples_per_prompt=args.samples, lr=1e-4,
                 updates_per_step=args.updates, max_new_tokens=args.new_tokens, max_prompt_tokens=64, template="none",
                 tokens_per_micro=args.tokens_per_micro)  # fmt: skip
    run = common.Run.__new__(common.Run)  # the loop's verbs without data, files and evaluation
    run.cfg, run.step, run.drawn, run.failures, run.reference = cfg, 0, 0, 0, None
    run.tokenizer = common.AutoTokenizer.from_pretrained(args.model)
    run.policy = common.Policy(args.model, common.start_processes(), vocab=len(run.tokenizer), lr=cfg.lr,
                               tokens_per_micro=args.tokens_per_micro)  # fmt: skip
    run.sampler = common.TorchSampler(run.policy, {10**9})  # an end token that no vocabulary has
    texts = make_prompts(args.prompts * (args.steps + 1))
    encode = lambda text: np.array(run.tokenizer(text, add_special_tokens=False)["input_ids"])
    run.problems = [dict(prompt=encode(text), text=text, problem=text, answer="") for text in texts]
    laps = []
    for _ in common.tqdm(range(args.steps + 1), desc="steps", leave=False):
        run.metrics, run.clock = dict.fromkeys(common.METRICS) | dict(skipped_updates=0), time.perf_counter()
        start = run.clock
        run.sync()
        rollouts = run.sample()
        responses = run.tokenizer.batch_decode(rollouts.batch.responses)
        rewards = torch.tensor([text.count("a") / 16 for text in responses]).view(args.prompts, args.samples)
        run._lap("time_verify")
        adv, keep = advantages(rewards, cfg)
        run.old_logprobs(rollouts)
        run.metrics["time_old"], run.metrics["time_train"] = run.metrics["time_train"], None
        for batch in run.minibatches(rollouts, adv, keep):
            run.update(batch, token_loss)
        run.metrics["step_seconds"] = time.perf_counter() - start
        lengths = [len(p) for p in rollouts.batch.prompts]
        laps.append(run.metrics)
    laps = laps[1:]  # the first warms up
    middle = lambda name: statistics.median(lap[name] for lap in laps)
    tokens, rate = args.prompts * args.samples * args.new_tokens, matmul_rate()
    forward = forward_flops(run.policy.lm, lengths, args.new_tokens)
    floor = 4 * forward / rate  # one forward pass to sample, and three times that to train
    seconds = [lap["step_seconds"] for lap in laps]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
    size = sum(p.numel() for p in run.policy.parameters())
    result = dict(model=args.model, parameters=size, steps=args.steps, tokens=tokens, step=middle("step_seconds"),
                  fastest=min(seconds), slowest=max(seconds), sample=middle("time_sample"), logprobs=middle("time_old"),
                  update=middle("time_train"), sync=middle("time_sync"),
                  sample_tokens_per_second=tokens / middle("time_sample"),
                  train_tokens_per_second=tokens / middle("time_train"), matmul_gflops=rate / 1e9, floor=floor,
                  utilisation=floor / middle("step_seconds"), peak_gib=peak)  # fmt: skip
    for name, value in result.items():
        print(f"{name:26} {value:.4g}" if isinstance(value, float) else f"{name:26} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
