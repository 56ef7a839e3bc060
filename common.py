"""The small shared module: config, ratio and clipping, and the run, whose methods are the verbs of every loop.
Scripts reach everything through it. Below it: rewards.py, rollout.py, sampler.py and data.py (from problems to rewarded
responses), policy.py (the trainable model), verify.py (grading). A reader of the algorithms needs this file alone."""

import argparse
import difflib
import importlib
import json
import math
import os
import shutil
import signal
import sys
import textwrap
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal, get_type_hints

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # before torch: threads that wait by spinning crawl on a shared core

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import plot
from data import TEMPLATES, draw, load_data  # noqa: F401
from policy import Policy
from processes import all_reduce, bad_input, fail, rank, say, start_processes, world
from rewards import REWARDS, labelled, reward, reward_names  # noqa: F401
from rollout import Batch, Rollouts, examine, generate, grade, split, with_interval
from safetensors import SafetensorError
from sampler import TorchSampler, choose_sampler, describe, streams  # noqa: F401
from transformers import AutoConfig, AutoTokenizer, HfArgumentParser, logging
from verify import verify, verify_all  # noqa: F401

logging.set_verbosity_error()
logging.disable_progress_bar()


def _hint(kind, error, trace, show=sys.excepthook):
    show(kind, error, trace)
    if issubclass(kind, torch.OutOfMemoryError):
        print("error: out of GPU memory; lower --tokens_per_micro (training) or --vllm_memory (sampling), or give "
              "--offload true", file=sys.stderr)  # fmt: skip


sys.excepthook = _hint


# ======================================================================================================= config
def arg(default, help):
    """A field of Config: its default, and the line that --help shows."""
    return field(default=default, metadata={"help": help})


@dataclass
class Config:
    model: str = arg("tiny", "alias (README lists them), hub id or local folder")
    data: str = arg("numina-math", "training problems: alias, hub id, or a local .jsonl, .parquet or .csv file")
    template: str = arg("chat", "prompt template: a name of common.TEMPLATES, or any text with {problem}")
    limit: int = arg(0, "use the first LIMIT training problems only (0: all)")
    steps: int = arg(300, "training steps; each samples, verifies and updates")
    seed: int = arg(0, "seed of the data order and of every response's random stream")
    out: str = arg("", "output folder (default: out/ALGORITHM-MODEL-sSEED)")
    prompts_per_step: int = arg(1024, "prompts sampled in a step, over all processes")
    samples_per_prompt: int = arg(4, "responses per prompt")
    updates_per_step: int = arg(2, "optimizer steps in a step, each on an equal share of its prompts")
    lr: float = arg(1e-6, "AdamW learning rate, constant")
    max_grad_norm: float = arg(1.0, "clip the gradient to this norm")
    max_prompt_tokens: int = arg(1024, "problems with a longer prompt are dropped and counted")
    max_new_tokens: int = arg(4096, "longest response, in tokens; a longer one is cut off and counts as truncated")
    temperature: float = arg(1.0, "sampling temperature; the trainer's logprobs are computed at it too")
    reward: str = arg("ground_truth", "what is rewarded: names of common.REWARDS, combined with & (and) and ! (not)")
    votes: int = arg(64, "responses that vote on a label, for the rewards majority_fixed and incorrect")
    loss_norm: Literal["token", "sequence", "constant"] = arg("token", "how a loss is normalised, see token_weights")
    kl_coef: float = arg(0.0, "weight of the KL penalty to the initial policy (k3 estimator) in the loss")
    reference: bool = arg(False, "keep the initial policy to log kl, also with kl_coef 0")
    entropy_coef: float = arg(0.0, "weight of the entropy bonus in the loss")
    tis_cap: float = arg(2.0, "cap of the truncated importance weight between sampler and trainer (0: off)")
    tokens_per_micro: int = arg(16384, "tokens of a micro-batch on one device: the memory knob of training")
    shard_size: int = arg(0, "processes that share one copy of the trained state; fewer than all: one node (0: all)")
    offload: bool = arg(False, "keep master weights and optimizer on the CPU: less GPU memory, slower updates")
    compile: bool = arg(False, "torch.compile the transformer's blocks")
    sampler: Literal["auto", "hf", "vllm"] = arg("auto", "hf: plain torch; auto: vllm if installed and there is a GPU")
    tp: int = arg(1, "vllm: processes that share an engine, for a model larger than one GPU")
    vllm_memory: float = arg(0.5, "vllm: share of a GPU's memory that it takes while it samples: weights and KV cache")
    request_seeds: bool = arg(False, "vllm: a random stream for each response; slows sampling")
    eval_data: str = arg("", "problems to evaluate on: tiny-test, tiny-hard, or as --data (empty: none)")
    eval_problems: int = arg(200, "problems of an evaluation")
    eval_every: int = arg(0, "evaluate every so many steps (0: before and after training only)")
    save_every: int = arg(0, "write a checkpoint every so many steps (0: at the end only)")
    resume: bool = arg(False, "continue from the newest complete checkpoint in the output folder")
    tensorboard: bool = arg(False, "log to TensorBoard as well (needs the tensorboard package)")
    wandb: bool = arg(False, "log to Weights & Biases as well (needs the wandb package)")


# alias: (hub id or folder, the defaults that suit it). Explicit flags win over these, and these over Config's.
_TINY = dict(data="tiny", eval_data="tiny-test", eval_every=10, steps=40, prompts_per_step=64, lr=1e-4,
             max_new_tokens=64, tokens_per_micro=8192)  # fmt: skip
_COT = dict(template="cot")
_MATH = dict(template="qwen-math", max_new_tokens=3072)  # with 1,024 prompt tokens this fills the context of 4,096
MODELS = {
    "tiny": (str(Path(__file__).parent / "models/tiny"), _TINY),
    "tiny-badcode": (str(Path(__file__).parent / "models/tiny-badcode"), _TINY),
    **{f"qwen2.5-math-{size}": (f"Qwen/Qwen2.5-Math-{size.upper()}", _MATH) for size in ("1.5b", "7b")},
    **{f"qwen2.5-{size}": (f"Qwen/Qwen2.5-{size.upper()}", _COT) for size in ("0.5b", "1.5b", "3b", "7b")},
    "llama-3.2-3b-instruct": ("meta-llama/Llama-3.2-3B-Instruct", _COT),
    "llama-3.1-8b-instruct": ("meta-llama/Llama-3.1-8B-Instruct", _COT),
    "olmo-2-7b": ("allenai/OLMo-2-1124-7B", dict(template="plain", max_new_tokens=3072)),
    "r1-distill-qwen-1.5b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", _COT | dict(max_new_tokens=8192)),
    "r1-distill-qwen-7b": ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", _COT | dict(max_new_tokens=8192)),
}


MAY_BE_ZERO = "tis_cap clip_low clip_high value_clip gamma lam label_smoothing".split()  # beside defaults of zero


def parse(config_class, doc: str, argv: list[str] | None = None):
    """The resolved configuration: Config's defaults, over them the model alias', over them explicit flags. A Config
    can have `on_tiny`, a dict of defaults of its own for the built-in models."""
    style = type("Help", (argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter), {})
    parser = HfArgumentParser(config_class, description=doc, allow_abbrev=False, formatter_class=style)
    parser.error = lambda message: fail(f"{message} (--help lists the flags)")
    argv = sys.argv[1:] if argv is None else argv
    model = parser.parse_known_args([x for x in argv if x not in ("-h", "--help")])[0].model
    own = getattr(config_class, "on_tiny", {}) if model.startswith("tiny") else {}
    suits, names = MODELS.get(model, (None, {}))[1] | own, [item.name for item in fields(config_class)]
    parser.set_defaults(**{name: value for name, value in suits.items() if name in names})  # eval.py has fewer
    cfg, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True, look_for_args_file=False)
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], parser._option_string_actions, 1)
        fail(f"unknown argument {unknown[0]}" + (f", did you mean {near[0]}?" if near else " (--help lists the flags)"))
    hints = get_type_hints(config_class)  # the parser has made a float of each float | None
    for item in fields(cfg):
        value, zero = getattr(cfg, item.name), item.default == 0 or item.name in MAY_BE_ZERO
        if hints[item.name] in (int, float) and not (value > 0 or zero and value == 0):
            fail(f"--{item.name} {value}: must be {'0 or above' if zero else 'above 0'}")
    cfg.out = str(Path(cfg.out or f"out/{Path(sys.argv[0]).stem}-{Path(cfg.model).name}-s{cfg.seed}"))
    return cfg


# =========================================================================================== ratio and clipping
def clipped_loss(new, old, adv, cfg):
    """The clipped surrogate of PPO, per token [T]: -min(s A, clip(s, 1 - low, 1 + high) A) with s = exp(new - old).

    --clip false: -s A. --dual_clip c: at least c A where A < 0 (arXiv 1912.09729), so that one token can't dominate."""
    ratio = torch.exp(new - old)
    if not cfg.clip:
        return -ratio * adv
    surrogate = torch.minimum(ratio * adv, ratio.clamp(1 - cfg.clip_low, 1 + cfg.clip_high) * adv)
    if getattr(cfg, "dual_clip", 0):
        surrogate = torch.where(adv < 0, torch.maximum(surrogate, cfg.dual_clip * adv), surrogate)
    return -surrogate


def clip_stats(new, old, adv, sampler, cfg) -> dict:
    """Sums over tokens of where the clip binds, as PPO counts it, and of |new - sampler|; and the largest ratio."""
    ratio = torch.exp(new - old)
    low, high = getattr(cfg, "clip_low", math.inf), getattr(cfg, "clip_high", math.inf)
    return dict(clip_low=((ratio < 1 - low) & (adv < 0)).sum(), clip_high=((ratio > 1 + high) & (adv > 0)).sum(),
                mismatch=(new - sampler).abs().sum(), mismatch_max=(new - sampler).abs().max(), ratio_max=ratio.max())


def kl_k3(logprob, ref):
    """Schulman's k3 estimate of KL(policy || reference) per token: e^d - d - 1 >= 0 with d = ref - logprob."""
    d = (ref - logprob).clamp(-10, 10)
    return d.exp() - d - 1


# ========================================================================================================== run
METRICS = ("step reward accuracy all_correct all_wrong kept loss entropy kl clip_low clip_high ratio_max grad_norm lr "
           "mismatch mismatch_max length truncated boxed verify_timeouts skipped_updates time_sample time_verify "
           "time_train time_sync tokens_per_second eval_accuracy").split()  # fmt: skip


def trackers(cfg) -> list:
    """Functions of (metrics, step) that log to the services asked for."""
    logs = []
    try:
        if cfg.tensorboard:
            board = importlib.import_module("torch.utils.tensorboard").SummaryWriter(cfg.out)
            logs.append(lambda metrics, step: [board.add_scalar(name, x, step) for name, x in metrics.items()])
        if cfg.wandb:
            logs.append(importlib.import_module("wandb").init(project="nanorlvr", name=cfg.out, config=vars(cfg)).log)
    except ImportError as error:
        fail(f"--tensorboard and --wandb need their package: pip install {error.name}")
    return logs


BROKEN = OSError, SafetensorError  # weights that are missing or not whole


def find_model(name: str, flag: str) -> tuple:
    """(folder or hub id, its transformers config, its tokenizer) of the model that a flag names."""
    source = MODELS.get(name, (name,))[0]
    try:
        if "/" not in source and not Path(source).is_dir():
            raise OSError("no such folder")
        return source, AutoConfig.from_pretrained(source), AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        near = difflib.get_close_matches(name, MODELS, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"give a folder, a hub id or one of {', '.join(MODELS)}"
        fail(f"--{flag} {name}: {str(error).splitlines()[0]}; {hint}")


def new_sampler(kind, policy, tokenizer):
    """A sampler of this kind, see choose_sampler, that stops at the end tokens of model and tokenizer."""
    ends = np.atleast_1d(policy.lm.generation_config.eos_token_id or tokenizer.eos_token_id)
    with bad_input():
        return kind(policy, {tokenizer.eos_token_id, *ends.tolist()})


def open_model(cfg) -> tuple:
    """(policy without optimizer, sampler with its weights, tokenizer, what to tell of them) to evaluate cfg.model."""
    source, config, tokenizer = find_model(cfg.model, "model")
    with bad_input():
        kind = choose_sampler(cfg)
    with bad_input(f"--model {cfg.model}: ", BROKEN):
        policy = Policy(source, start_processes(), vocab=len(tokenizer))
    sampler = new_sampler(kind, policy, tokenizer)
    sampler.sync(policy)
    about = describe(policy, sampler) | dict(context=getattr(config, "max_position_embeddings", math.inf))
    return policy, sampler, tokenizer, about


class Run:
    """A training run. The loop of every algorithm calls its verbs in this order: steps, sync, sample, verify, (the
    algorithm), old_logprobs, minibatches and update, log, evaluate, save; and finish after the last step."""

    def __init__(self, cfg):
        self.cfg, self.step, self.drawn, self.failures = cfg, 0, 0, 0
        self.metrics, self.stop, self.evaluated = {}, False, None
        self.device = start_processes()
        self.source, config, self.tokenizer = find_model(cfg.model, "model")
        context = getattr(config, "max_position_embeddings", math.inf)
        if cfg.max_prompt_tokens + cfg.max_new_tokens > context:
            fail(f"--max_prompt_tokens {cfg.max_prompt_tokens} + --max_new_tokens {cfg.max_new_tokens} exceed the "
                 f"context of {cfg.model}, {context} tokens; lower one of them")  # fmt: skip
        with bad_input():
            self.rewarded = reward_names(cfg.reward)
            kind = choose_sampler(cfg)
            self.problems = load_data(cfg.data, self.tokenizer, cfg, cfg.limit)
            self.tests = load_data(cfg.eval_data, self.tokenizer, cfg, cfg.eval_problems) if cfg.eval_data else []
        if world() % (cfg.shard_size or 1):
            fail(f"--shard_size {cfg.shard_size}: does not divide the {world()} processes")
        self.shape = dict(vocab=len(self.tokenizer), temperature=cfg.temperature, tokens_per_micro=cfg.tokens_per_micro,
                          shard_size=cfg.shard_size, offload=cfg.offload, compile=cfg.compile)  # fmt: skip
        with bad_input(f"--model {cfg.model}: ", BROKEN):
            self.policy = Policy(self.source, self.device, lr=cfg.lr, **self.shape)
            self.reference = Policy(self.source, self.device, **self.shape) if cfg.reference or cfg.kl_coef else None
        self.trained = dict(trainer=self.policy)  # what a checkpoint holds; PPO adds its critic before the first step
        self.teacher = None
        if getattr(cfg, "teacher", ""):
            source, _, tokenizer = find_model(cfg.teacher, "teacher")
            if tokenizer.get_vocab() != self.tokenizer.get_vocab():
                fail(f"--teacher {cfg.teacher}: its tokenizer is not that of {cfg.model}; distil within a model family")
            with bad_input(f"--teacher {cfg.teacher}: ", BROKEN):
                teacher = Policy(source, self.device, **self.shape)
            self.teacher, kind = new_sampler(kind, teacher, tokenizer), TorchSampler  # one engine a process
            self.teacher.sync(teacher)
        self.sampler = new_sampler(kind, self.policy, self.tokenizer)

    def _leave(self, number, frame):
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        say(f"{signal.Signals(number).name}: leaving after this step; --resume continues (once more: leaving at once)")

    def _open(self):
        """The output folder: a new one (an earlier run's is moved aside), or the one that --resume continues."""
        cfg, self.folder = self.cfg, Path(self.cfg.out)
        checkpoints = sorted(self.folder.glob("step_" + "[0-9]" * 6), reverse=True) if cfg.resume else []
        for checkpoint in checkpoints:
            try:
                state = json.loads((checkpoint / "trainer.json").read_text())
                for name, model in self.trained.items():
                    model.load_state(checkpoint / name)
                self.step, self.drawn = state["step"], state["drawn"]
                break
            except (Exception, dist.checkpoint.CheckpointException) as error:  # whatever a broken file raises
                say(f"warning: {checkpoint} is broken ({type(error).__name__}); trying the one before it")
        if checkpoints and not self.step:
            fail(f"--resume: no checkpoint in {cfg.out} is whole; give another --out to start afresh")
        if rank() == 0:
            if self.folder.exists() and not cfg.resume:
                spare = next(p for i in range(1, 10**6) if not (p := Path(f"{cfg.out}.{i}")).exists())
                say(f"{cfg.out} holds an earlier run, which is {self.folder.rename(spare)} from now on")
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "config.json").write_text(json.dumps(vars(cfg), indent=1))
            for file in (self.folder / "metrics.jsonl", self.folder / "samples.jsonl"):  # cut back to the checkpoint
                lines = file.read_text().splitlines(True) if self.step and file.exists() else []
                lines = [x for x in lines if x.endswith("}\n") and json.loads(x)["step"] <= self.step]
                file.with_suffix(".cut").write_text("".join(lines))
                file.with_suffix(".cut").rename(file)
        self.trackers = trackers(cfg) if rank() == 0 else []
        say(textwrap.fill("  ".join(f"{name}={value}" for name, value in vars(cfg).items()), 118))
        say(f"first prompt: {self.problems[0]['text']!r}")

    def _write(self, name: str, row: dict):
        if rank() == 0:
            with open(self.folder / name, "a") as file:
                file.write(json.dumps(row) + "\n")

    def _lap(self, name: str):
        """Add the seconds since the last lap to this metric."""
        last, self.clock = self.clock, time.perf_counter()
        self.metrics[name] = (self.metrics[name] or 0) + self.clock - last

    # -------------------------------------------------------------------------------------------- the loop's verbs
    def steps(self):
        """The numbers of the steps that are left, under a progress bar; before the first, an evaluation."""
        self._open()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._leave)
        cfg = self.cfg
        if self.rewarded & {"majority_fixed", "incorrect"}:
            self.sampler.sync(self.policy)
            with bad_input():
                arguments = self.folder / "labels.jsonl", self.step > 0, self.sampler, self.tokenizer
                self.problems = labelled(self.problems, cfg, *arguments)
        if self.step == 0 and self.tests:
            self.evaluate()
            self._write("metrics.jsonl", dict(step=0, **self.metrics))
        with tqdm(total=cfg.steps, initial=self.step, desc="training", disable=rank() > 0) as self.bar:
            while self.step < cfg.steps:
                self.step, self.began = self.step + 1, time.perf_counter()
                self.clock, self.metrics = self.began, dict.fromkeys(METRICS) | dict(skipped_updates=0, lr=cfg.lr)
                self.metrics["step"] = self.step
                torch.manual_seed((cfg.seed << 32) + self.step)  # a resumed run then draws what this one would
                yield self.step
                self.bar.update()

    def sync(self):
        """Push the policy's weights to the sampler."""
        self.sampler.sync(self.policy)
        self._lap("time_sync")

    def sample(self, more: Rollouts | None = None) -> Rollouts:
        """Responses to the next prompts of the data, added to those of `more`; the whole batch, on every rank."""
        cfg, first = self.cfg, self.drawn
        problems = draw(self.problems, first, cfg.prompts_per_step, cfg.seed)
        responses = generate(self.teacher or self.sampler, problems, cfg.samples_per_prompt, first, cfg.seed, cfg)
        keys = streams(cfg.seed, range(first, first + len(problems)), cfg.samples_per_prompt)
        self.drawn += cfg.prompts_per_step
        self._lap("time_sample")
        if more:
            problems, responses, keys = more.problems + problems, more.responses + responses, np.append(more.keys, keys)
        return Rollouts(problems, responses, keys)

    def verify(self, rollouts: Rollouts) -> torch.Tensor:
        """Rewards [P, n]. rollouts.correct [P, n] is the truth, whatever is rewarded."""
        grade(rollouts, self.tokenizer)
        rewards = reward(self.cfg.reward, rollouts)
        if rollouts.labels:
            self.metrics["agreement"] = (rewards == rollouts.correct).float().mean().item()
        self._lap("time_verify")
        return rewards

    def old_logprobs(self, rollouts: Rollouts):
        """Add `old`, logprobs of the policy as it is now, and `ref`, the reference's, to the values. An exact sampler's
        are `old`, and save a pass; the first update, which still sees the weights that sampled, measures `mismatch`."""
        values = rollouts.batch.values
        self.sampler.sleep()
        if self.teacher:  # what it sampled is off-policy by intent: nothing to warn of, nothing to correct
            values["old"], values["entropy"] = self.policy.logprobs(rollouts.batch)
            values["sampler"] = values["old"]
        elif self.sampler.exact:
            values["old"] = values["sampler"]
        else:
            values["old"], values["entropy"] = self.policy.logprobs(rollouts.batch)
            gap = (values["old"] - values["sampler"]).abs()
            self.metrics.update(mismatch=gap.mean().item(), mismatch_max=gap.max().item())
        if self.reference:
            values["ref"] = self.reference.logprobs(rollouts.batch)[0]
            self.metrics["kl"] = kl_k3(values["old"], values["ref"]).mean().item()
        self._lap("time_train")

    def minibatches(self, rollouts: Rollouts, adv: torch.Tensor, keep: torch.Tensor, together=1, epochs=1):
        """The kept responses (adv: [P, n], or [N] per token; keep: [P, n]) as one Batch an update, `epochs` times over;
        an update with none is skipped and counted. `together`: rows that are not to be parted, see Batch."""
        batches = list(split(rollouts, adv, keep, self.cfg)) * epochs
        filled = [batch for batch in batches if batch.responses]
        for batch in filled:
            batch.together = together
        self.metrics.update(kept=keep.float().mean().item(), skipped_updates=len(batches) - len(filled))
        self.updates, self.kept_tokens = len(filled), rollouts.lengths[keep.flatten().numpy()].sum() * epochs
        return filled

    def update(self, batch: Batch, token_loss):
        """One optimizer step on sum of weight x (token_loss x truncated importance weight + KL - entropy)."""
        cfg, m = self.cfg, self.metrics

        def objective(new, entropy, v):
            loss = token_loss(new, v["old"], v["adv"], cfg)
            # Trainer against engine under the same weights. PPO's ratio is new policy against old, both by the trainer.
            if cfg.tis_cap and not self.sampler.exact:
                loss = loss * (v["old"] - v["sampler"]).exp().clamp(max=cfg.tis_cap)
            if cfg.kl_coef:
                loss = loss + cfg.kl_coef * kl_k3(new, v["ref"])
            if cfg.entropy_coef:
                loss = loss - cfg.entropy_coef * entropy
            return loss, clip_stats(new.detach(), v["old"], v["adv"], v["sampler"], cfg)

        stats = self.policy.update(batch, objective, cfg.max_grad_norm, bool(cfg.entropy_coef))
        self._lap("time_train")
        if not math.isfinite(stats["grad_norm"]):
            self.failures, m["skipped_updates"] = self.failures + 1, m["skipped_updates"] + 1
            say(f"warning: step {self.step}: the gradient norm is {stats['grad_norm']}; update skipped")
            if self.failures == 10:
                fail(f"step {self.step}: ten updates in a row without a finite gradient; lower --lr, then --resume")
            return
        self.failures = 0
        if m["mismatch"] is None:
            m["mismatch"], m["mismatch_max"] = stats["mismatch"] / int(batch.ends[-1]), stats["mismatch_max"]
        for name in ("clip_low", "clip_high", "loss", "grad_norm"):  # shares of the kept tokens; means over updates
            m[name] = (m[name] or 0) + stats[name] / (self.kept_tokens if "clip" in name else self.updates)
        m["ratio_max"] = max(m["ratio_max"] or 0, stats["ratio_max"])

    def log(self, rollouts: Rollouts, rewards: torch.Tensor):
        """Complete the step's metrics, show the main ones on the bar, and write some rollouts to samples.jsonl."""
        m, seconds = self.metrics, time.perf_counter() - self.began
        m.update(rollouts.stats(), reward=rewards.mean().item(), tokens_per_second=rollouts.lengths.sum() / seconds)
        if not (m["mismatch"] or 0) <= 0.05:  # also when it is not a number
            say(f"warning: step {self.step}: sampler and trainer differ by {m['mismatch']:.3f} nats: stale weights?")
        shown = [name for name in ("reward", "accuracy", "entropy", "kl", "length") if m[name] is not None]
        self.bar.set_postfix({name: f"{m[name]:.3g}" for name in shown})
        for row in range(min(4, len(rollouts.lengths))):
            reward = rewards.flatten()[row].item()
            self._write("samples.jsonl", dict(step=self.step, reward=reward) | rollouts.show(row, self.tokenizer))

    def evaluate(self):
        """Every eval_every steps, and before and after training: mean accuracy on the test problems."""
        cfg = self.cfg
        if self.tests and (self.step in (0, cfg.steps) or cfg.eval_every and self.step % cfg.eval_every == 0):
            self.sampler.sync(self.policy)
            self.evaluated = examine(self.sampler, self.tokenizer, self.tests, 4, 0, cfg.seed, cfg)
            self.metrics["eval_accuracy"] = accuracy = self.evaluated.correct.mean().item()
            if rank() == 0:
                _, low, high = with_interval(self.evaluated.correct.mean(1))
                file = self.folder / f"eval/step_{self.step:06d}/{Path(cfg.eval_data).stem}.jsonl"
                file.parent.mkdir(parents=True, exist_ok=True)  # folders that eval.py --compare and --rescore read
                file.write_text("".join(json.dumps(row) + "\n" for row in self.evaluated.rows(cfg.seed)))
                say(f"step {self.step}: accuracy {accuracy:.1%} on {len(self.tests)} test problems, 4 responses each, "
                    f"95 % interval {low:.1%} to {high:.1%}")  # fmt: skip

    def save(self):
        """Write the step's metrics; and a checkpoint, if one is due or a signal asked to leave."""
        self._write("metrics.jsonl", self.metrics)
        for track in self.trackers:
            track({name: x for name, x in self.metrics.items() if x is not None}, self.step)
        self.stop = bool(all_reduce(torch.tensor(int(self.stop)), dist.ReduceOp.MAX))
        if self.stop or self.step == self.cfg.steps or self.cfg.save_every and self.step % self.cfg.save_every == 0:
            self._checkpoint(self.folder / f"step_{self.step:06d}", trainer=True)
        if self.stop:
            raise SystemExit(0)

    def _checkpoint(self, folder: Path, trainer: bool):
        """A model folder (with the trainer's state); written under another name and renamed once it is complete."""
        partial = folder.with_name(folder.name + ".tmp")
        if rank() == 0:
            shutil.rmtree(partial, ignore_errors=True)  # what a killed run left
        self.policy.save_pretrained(partial)
        for name, model in self.trained.items() if trainer else ():
            model.save_state(partial / name)
        if rank() == 0:
            self.tokenizer.save_pretrained(partial)
            if trainer:
                (partial / "trainer.json").write_text(json.dumps(dict(step=self.step, drawn=self.drawn)))
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)

    def finish(self):
        """Write final/ and curves.png, and say what happened."""
        out = self.cfg.out
        self._checkpoint(self.folder / "final", trainer=False)
        if rank() == 0:
            plot.draw([out], out + "/curves.png")
            for row in (0, 4) if self.evaluated else ():
                say("\n".join(f"{k}: {x}" for k, x in self.evaluated.show(row, self.tokenizer).items()) + "\n")
            rows = [json.loads(line) for line in open(self.folder / "metrics.jsonl")]
            if tests := [row["eval_accuracy"] for row in rows if row["eval_accuracy"] is not None]:
                say(f"accuracy on {len(self.tests)} test problems: {tests[0]:.1%} before, {tests[-1]:.1%} after")
            say(f"model: {out}/final   curves: {out}/curves.png   numbers: {out}/metrics.jsonl")
