"""The small shared module: configuration, rejection, ratio and clipping, and the run, whose methods are the verbs of
every loop. To read or to fork an algorithm this file is enough; core/ holds what is behind it: data, sampler, rewards,
grading, the trainable model.

Import common before torch and transformers: two settings, the first lines below, have to come before them."""

import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # torch's threads should not spin for long while they wait for work
import torch

if torch.version.cuda is None:  # on a CPU build a torchvision made for CUDA would break the import of transformers
    sys.modules["torchvision"] = sys.modules["torchaudio"] = None
import numpy as np
import torch.distributed as dist
from safetensors import SafetensorError
from tqdm import tqdm  # noqa: F401
from transformers import logging

from core import checkpoint, hub, record
from core.config import (MODELS, about, arg, check_bounds, choose_template, default_out,  # noqa: F401
                         find_check, find_model, longest_sequence, parse, suited)  # fmt: skip
from core.data import TEMPLATES, Problems, draw, fingerprint, load_data, take  # noqa: F401
from core.policy import Policy
from core.processes import all_reduce, bad_input, fail, rank, say, start_processes, world
from core.minibatches import split
from core.rewards import REWARDS, compute_rewards, examine, grade, labelled, reward_names  # noqa: F401
from core.rollout import Batch, OldValues, Rollouts, generate
from core.sampler import TorchSampler, choose_sampler, new_sampler
from core.verify import verify, verify_all  # noqa: F401

logging.set_verbosity_error()
hub.show_downloads()


# ================================================================================================ configuration
@dataclass
class Config:
    # model and problems
    model: str = arg("tiny", "alias (docs/reference.md lists them), hub id or local folder")
    data: str = arg("numina-math", "training problems: alias, hub id, or local .jsonl, .parquet or .csv")
    template: str = arg("chat", "prompt template: name in common.TEMPLATES, auto (cot or plain) or text with {problem}")
    system: str = arg("", "system prompt, which comes before the turns of any chat template")
    limit: int = arg(0, "use the first LIMIT training problems only (0: all)", least=0)
    check: str = arg("", "FILE.py with check(response, problem) -> score, which replaces the built-in grading")
    # size of the run
    steps: int = arg(300, "training steps; each samples, verifies and updates", least=1)
    prompts_per_step: int = arg(1024, "prompts sampled in a step, over all processes", least=1)
    samples_per_prompt: int = arg(4, "responses per prompt", least=1)
    updates_per_step: int = arg(2, "optimizer steps in a step, each on an equal share of its prompts", least=1)
    max_prompt_tokens: int = arg(1024, "problems with a longer prompt are dropped and counted", least=1)
    max_new_tokens: int = arg(4096, "longest response, in tokens; a longer one is cut off and is `truncated`", least=1)
    temperature: float = arg(1.0, "sampling temperature; the trainer's logprobs are computed at it too", above=0)
    seed: int = arg(0, "seed of the data order and of every response's random stream", least=0)
    # reward
    reward: str = arg("ground_truth", "what is rewarded: names in common.REWARDS, combined with & (and) and ! (not)")
    votes: int = arg(64, "responses that vote on a label, for the rewards majority_fixed and incorrect", least=1)
    # update
    lr: float = arg(1e-6, "AdamW learning rate", above=0)
    max_grad_norm: float = arg(1.0, "clip the gradient to this norm", above=0)
    loss_norm: Literal["token", "sequence", "constant", "all_tokens"] = arg(
        "token", "what the loss is divided by: kept tokens; kept responses x own length; kept responses x "
        "MAX_NEW_TOKENS; all tokens, with rejected responses in the batch at advantage 0")  # fmt: skip
    kl_coef: float = arg(0.0, "weight of the KL penalty to the initial policy in the loss", least=0)
    kl_loss: Literal["k3", "k2"] = arg("k3", "estimator in that penalty, see kl_k3 and kl_k2")
    reference: bool = arg(False, "keep the initial policy to log kl, also with kl_coef 0")
    entropy_coef: float = arg(0.0, "weight of the entropy bonus in the loss", least=0)
    tis_cap: float = arg(2.0, "cap of the truncated importance weight, sampler to trainer (0: off)", least=0)
    # memory and processes
    tokens_per_micro: int = arg(16384, "tokens of a micro-batch on one device: training's memory knob", least=1)
    shard_size: int = arg(0, "processes that share a copy of the trained state, within a node (0: all)", least=0)
    recompute: int = arg(1, "GPUs: blocks computed again in the backward pass: 1 all, 2 every second, 0 none", least=0)
    offload: bool = arg(False, "keep master weights and optimizer on the CPU: less GPU memory, slower updates")
    compile: bool = arg(True, "on GPUs, torch.compile the transformer's blocks")
    # sampler
    sampler: Literal["auto", "hf", "vllm"] = arg("auto", "hf: plain torch; auto: vllm if installed and there is a GPU")
    tp: int = arg(1, "vllm: processes that share an engine, for a model larger than one GPU", least=1)
    vllm_memory: float = arg(0, "vllm: share of a GPU for its weights and KV cache (0: what is free)", least=0, most=1)
    request_seeds: bool = arg(False, "vllm: a random stream for each response; slows sampling")
    # evaluation, checkpoints, logs
    eval_data: str = arg("", "problems to evaluate on: tiny-test, math500, ... or as --data (empty: none)")
    eval_problems: int = arg(200, "problems of an evaluation", least=1)
    eval_every: int = arg(0, "evaluate every so many steps (0: before and after training only)", least=0)
    save_every: int = arg(0, "write a checkpoint every so many steps (0: at the end only)", least=0)
    keep: int = arg(0, "keep the newest KEEP checkpoints and delete older ones (0: keep all)", least=0)
    out: str = arg("", "output folder (default: out/ALGORITHM-MODEL-sSEED)")
    show: bool = arg(True, "write show.html at the end, a page of what was pushed up and down, token by token")
    resume: bool = arg(False, "continue from the newest complete checkpoint in the output folder")
    tensorboard: bool = arg(False, "log to TensorBoard as well (needs the tensorboard package)")
    wandb: bool = arg(False, "log to Weights & Biases as well (needs the wandb package)")


# ==================================================================================================== rejection
def all_correct(rewards):
    """[P] bool: prompts all of whose responses are right, from rewards [P, n]."""
    return (rewards > 0).all(1)


def all_wrong(rewards):
    """[P] bool: prompts all of whose responses are wrong, from rewards [P, n]."""
    return (rewards <= 0).all(1)


def mixed(rewards):
    """[P] bool: prompts whose responses differ in reward [P, n]; only these allow a comparison."""
    return rewards.amax(1) > rewards.amin(1)


def first_mixed(rewards, count):
    """[P] bool: the first `count` of the mixed prompts."""
    return mixed(rewards) & (mixed(rewards).cumsum(0) <= count)


def token_moments(x, keep, lengths=None):
    """Mean and standard deviation (Bessel's) of x [P, n] over the tokens of the kept responses; keep and lengths [P, n]
    (without lengths each response counts once). Without spread the deviation is infinite: x divided by it is 0."""
    weights = keep * (torch.ones_like(x) if lengths is None else lengths)
    mean = (weights * x).sum() / weights.sum()
    variance = (weights * (x - mean) ** 2).sum() / (weights.sum() - 1)
    return mean, variance.sqrt() if len(x[keep].unique()) > 1 else math.inf


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


def clip_binds(new, old, adv, cfg) -> tuple:
    """Two masks [T]: tokens where the lower and the upper clip bind, as PPO counts it. They have no gradient."""
    ratio = torch.exp(new - old)
    low, high = getattr(cfg, "clip_low", math.inf), getattr(cfg, "clip_high", math.inf)
    return (ratio < 1 - low) & (adv < 0), (ratio > 1 + high) & (adv > 0)


def clip_counts(new, old, adv, cfg) -> dict:
    """Number of tokens where the clip binds."""
    return {name: binds.sum() for name, binds in zip(("clip_low", "clip_high"), clip_binds(new, old, adv, cfg))}


def sum_by(group, x):
    """Sums of x [T] over the tokens of each group: group [T] holds numbers 0..G-1, such as tokens.response -> [G]."""
    return x.new_zeros(int(group.max()) + 1).index_add(0, group, x)


def kl_k2(logprob, ref):
    """Schulman's k2 estimate of KL(policy || reference) per token: d^2 / 2 with d = ref - logprob. On samples of the
    policy the mean of its gradient is the gradient of KL(policy || reference)."""
    return (ref - logprob).clamp(-10, 10) ** 2 / 2


def kl_k3(logprob, ref):
    """Schulman's k3 estimate of KL(policy || reference) per token: e^d - d - 1 >= 0 with d = ref - logprob. Its mean is
    the KL; but on samples of the policy the mean of its gradient is the gradient of KL(reference || policy)."""
    d = (ref - logprob).clamp(-10, 10)
    return d.expm1() - d


# ========================================================================================================== run
METRICS = ("step reward accuracy all_correct all_wrong kept loss entropy kl clip_low clip_high ratio_max grad_norm lr "
           "mismatch mismatch_max length truncated boxed verify_timeouts skipped_updates dropped time_sample "
           "time_verify time_train time_sync tokens_per_second eval_accuracy").split()  # fmt: skip
TIMES = ("time_sample", "time_verify", "time_train", "time_sync")
UNUSABLE = OSError, SafetensorError, ValueError  # weights that are missing or not whole, a model that is not supported


class Run:
    """A training run. The loop of every algorithm calls its verbs in this order: begin; then in each of the steps sync,
    sample, reward, old_logprobs, (the algorithm), minibatches and update, evaluate, log, save; at last finish.

    An algorithm may use and change: cfg; problems; metrics, the step's, which log() writes; lr, the learning rate of
    the next update; checkpointed, {name: dict, or object with state_dict and load_state_dict} that checkpoints save and
    begin() resumes; generator, a torch.Generator for the draws of a step, the same on every rank.
    check(response, problem) -> score replaces the built-in grading; so does --check FILE.py.

    Rollouts, for P problems and n responses each, have: problems (P dicts), n, responses (P x n tuples), lengths [P, n]
    in tokens, on_policy [P, n], tokens (per-token values, N of them, all responses end to end) and per_token(x), which
    makes [N] of [P, n]; after reward() also texts (P x n), scores, correct and boxed [P, n]. See core/rollout.py."""

    def __init__(self, cfg, check=None):
        self.device = start_processes()  # first, for whatever fails from here on may fail on one rank alone
        cfg.out = cfg.out or default_out(cfg)
        self.cfg, self.check, self.lr, self.folder = cfg, check or find_check(cfg.check), cfg.lr, Path(cfg.out)
        checkpoint.check_trackers(cfg)
        self.source, config, self.tokenizer = find_model(cfg.model, "model")
        described, cfg.template = about(cfg), choose_template(cfg.template, self.tokenizer)
        self.config = vars(cfg) | dict(about=described)
        if rank() == 0:
            checkpoint.check_folder(self.folder, self.config)
        self.step = self.drawn = self.sampled = 0  # steps done, problems drawn from the data, problems sampled
        self.failures = self.idle_steps = 0
        self.asked_to_stop = self.stop = False  # this process, all processes (save() asks them)
        self.synced = False
        self.metrics, self.evaluated, self.decoded = {}, None, {}
        with bad_input():
            reward_names(cfg.reward)
            self.sampler_kind = choose_sampler(cfg)
        longest = longest_sequence(config, self.device == "cuda" and self.sampler_kind is not TorchSampler)
        if cfg.max_prompt_tokens + cfg.max_new_tokens > longest:
            fail(f"--max_prompt_tokens {cfg.max_prompt_tokens} + --max_new_tokens {cfg.max_new_tokens} exceed the "
                 f"context of {cfg.model}, {longest} tokens; lower one of them")  # fmt: skip
        with bad_input():
            graded = self.check is None
            self.problems = Problems(cfg.data, self.tokenizer, cfg, graded)
            self.data_mark = fingerprint(self.problems) if rank() == 0 else None
            some = self.problems.first(cfg.limit) if cfg.limit else self.problems.first(1000, within=1000)
            self.problems = some if cfg.limit else self.problems
            tests = cfg.eval_data and load_data(cfg.eval_data, self.tokenizer, cfg, cfg.eval_problems, graded, "test")
            self.tests = tests or []
        if world() % (cfg.shard_size or 1):
            fail(f"--shard_size {cfg.shard_size}: does not divide the {world()} processes")
        self.policy = self.new_model(lr=cfg.lr)
        self.reference = self.new_model() if cfg.reference or cfg.kl_coef else None
        self.checkpointed = dict(trainer=self.policy)
        self.teacher = None
        if getattr(cfg, "teacher", ""):
            source, _, tokenizer = find_model(cfg.teacher, "teacher")
            if tokenizer.get_vocab() != self.tokenizer.get_vocab():
                fail(f"--teacher {cfg.teacher}: its tokenizer is not that of {cfg.model}; distil within a model family")
            teacher = self.new_model(source=source, flag="teacher", offload=True)  # only its weights are needed, once
            self.teacher = new_sampler(self.sampler_kind, teacher, tokenizer)
            self.teacher.sync(teacher)
            self.teacher.rest()
            self.sampler_kind = TorchSampler  # vLLM: one engine per process

    def start_sampler(self):
        """Build the sampler, when all models are there: a vLLM engine takes its share of the memory that they leave."""
        self.sampler = new_sampler(self.sampler_kind, self.policy, self.tokenizer)

    def new_model(self, kind=None, lr=None, source=None, flag="model", offload=False):
        """A model with the settings of the policy: the policy itself, the reference (lr None: no optimizer), a teacher,
        or of another class, PPO's critic. source: a folder or hub id, default the policy's; flag: what named it."""
        cfg = self.cfg
        with bad_input(f"--{flag} {getattr(cfg, flag)}: ", UNUSABLE):
            return (kind or Policy)(
                source or self.source, self.device, lr=lr, vocab=len(self.tokenizer), temperature=cfg.temperature,
                tokens_per_micro=cfg.tokens_per_micro, shard_size=cfg.shard_size, offload=cfg.offload or offload,
                compile=cfg.compile and self.device == "cuda", recompute=cfg.recompute)  # fmt: skip

    def _stop_after_this_step(self, number, frame):
        if self.asked_to_stop:
            raise KeyboardInterrupt
        self.asked_to_stop = True
        say(f"{signal.Signals(number).name}: leaving after this step; --resume continues (once more: leaving at once)")

    def _write(self, name: str, row: dict):
        if rank() == 0:
            with open(self.folder / name, "a") as file:
                file.write(json.dumps(row, default=float) + "\n")  # a tensor of one number counts as a number

    def _lap(self, name: str):
        """Add the seconds since the last lap to this metric."""
        last, self.clock = self.clock, time.perf_counter()
        self.metrics[name] = (self.metrics[name] or 0) + self.clock - last

    def new_step(self):
        """Forget the metrics of the last step, start the clock, and seed what is drawn in the step, so that a resumed
        run draws what this one does."""
        seed = int(np.random.SeedSequence([self.cfg.seed, self.step]).generate_state(1)[0])  # torch takes 32 bits
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.metrics = dict.fromkeys(METRICS) | dict(step=self.step, skipped_updates=0, dropped=0)
        self.totals, self.updates, self.tried_updates, self.kept_tokens, self.passes = {}, 0, 0, 0, []
        self.clock = time.perf_counter()

    # -------------------------------------------------------------------------------------------- the loop's verbs
    def begin(self):
        """Start the sampler; open the output folder, or continue the run in it; vote on labels if the reward needs
        them; evaluate."""
        cfg = self.cfg
        checkpoint.check(self.checkpointed)
        self.resumed = set(self.checkpointed)
        self.start_sampler()
        state = checkpoint.load(self.folder, self.checkpointed) if cfg.resume else {}
        self.step, self.drawn, self.sampled = (state.get(name, 0) for name in ("step", "drawn", "sampled"))
        if rank() == 0:
            checkpoint.open_folder(self.folder, self.config, state, self.data_mark)
        self.trackers = checkpoint.trackers(cfg) if rank() == 0 else []
        record.introduction(self)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop_after_this_step)
        if reward_names(cfg.reward) & {"majority_fixed", "incorrect"}:
            self.sampler.sync(self.policy)
            with bad_input():
                self.problems = labelled(self.problems, cfg, self.folder / "labels.jsonl", self.step > 0, self.sampler,
                                         self.tokenizer, self.check)  # fmt: skip
        if self.step == 0 and self.tests:
            self.evaluate()
            self._write("metrics.jsonl", dict(step=0, **self.metrics))

    def steps(self):
        """The numbers of the steps that are left, under a progress bar; fewer if a signal asks to leave."""
        if late := sorted(self.checkpointed.keys() - self.resumed):
            fail(f"run.checkpointed[{late[0]!r}]: it has to be there before run.begin(), which resumes it")
        with record.training_bar(self) as self.bar:
            while self.step < self.cfg.steps and not self.stop:
                self.step += 1
                self.new_step()
                self.stop = None
                yield self.step
                if self.stop is None:
                    fail(f"step {self.step}: the loop did not call run.save(), which also leaves on Ctrl-C")
                self.bar.update()

    def sync(self):
        """Push the policy's weights to the sampler."""
        self.sampler.sync(self.policy)
        self.synced = True
        self._lap("time_sync")

    def sample(self, problems: list[dict] | None = None, temperature: float | None = None) -> Rollouts:
        """Responses to the next problems of the data, or to these of run.problems; the whole batch, on every rank. At
        another temperature than cfg's they are not from the current policy, and are marked so: rollouts.on_policy."""
        cfg = self.cfg
        if problems is None:
            before = self.drawn
            with bad_input():  # a broken row
                problems, self.drawn = take(self.problems, before, cfg.prompts_per_step, cfg.seed)
            self.metrics["dropped"] = (self.metrics.get("dropped") or 0) + self.drawn - before - len(problems)
        if self.sampler.asleep or not self.synced:
            self.sync()
        temperature = cfg.temperature if temperature is None else temperature
        if self.teacher:
            self.teacher.wake()
        rollouts = generate(self.teacher or self.sampler, problems, cfg.samples_per_prompt, cfg.seed,
                            cfg.max_new_tokens, temperature, first=self.sampled)  # fmt: skip
        self.sampled += len(problems)
        if self.teacher or temperature != cfg.temperature:
            rollouts.on_policy[:] = False
        self._lap("time_sample")
        return rollouts

    def reward(self, rollouts: Rollouts) -> torch.Tensor:
        """Grade the responses; their rewards [P, n]. rollouts.correct [P, n] is the truth, whatever is rewarded."""
        grade(rollouts, self.tokenizer, self.check)
        rewards = compute_rewards(self.cfg.reward, rollouts)
        if rollouts.labels:
            self.metrics["agreement"] = (rewards == rollouts.correct).float().mean().item()
        self._lap("time_verify")
        return rewards

    def old_logprobs(self, rollouts: Rollouts):
        """Add to rollouts.tokens: `old` and `entropy`, of the policy as it is now, and `ref`, the reference's logprobs.

        An exact sampler has given the first two. Else they take a pass of the policy, which is put off until somebody
        asks for them; if nobody does before the updates, the pass leaves out what the first update will see anyway."""
        self.sampler.sleep()
        if self.teacher:
            self.teacher.rest()
        self.old = OldValues(rollouts, self.policy, self.sampler.exact)
        if self.reference:
            rollouts.tokens.ref = self.reference.logprobs(rollouts.batch)[0]
        self._lap("time_train")

    def minibatches(self, rollouts: Rollouts, adv, keep, together=False, order=None) -> list[Batch]:
        """The kept responses (adv: [P, n], or [N] per token; keep: [P, n]) as one Batch per update, to be used in this
        order. An update with nothing to learn from is skipped and counted. together: the kept responses to a prompt
        stay in one micro-batch. order: indices of prompts, in which equal shares are cut (default: as sampled)."""
        with bad_input():  # values of a wrong shape
            parts = split(rollouts, adv, keep, self.cfg, together, order)
        filled = [(rows, units) for rows, units in parts if len(rows)]
        if "old" not in vars(rollouts.tokens):
            self.old.compute(leave_out=filled[0][0] if filled else ())
        rollouts.keep, self.metrics["kept"] = keep, keep.float().mean().item()
        self.metrics["skipped_updates"] += len(parts) - len(filled)
        self.kept_tokens += int(rollouts.lengths[keep].sum())
        return [rollouts.batch.select(rows, units) for rows, units in filled]

    def update(self, batch: Batch, token_loss):
        """One optimizer step on the sum over tokens of weight x (token_loss x truncated importance weight + KL term -
        entropy term). token_loss(new, tokens, cfg) -> [T], or ([T], sums): own sums over tokens, which stand in the
        metrics, as shares of the kept tokens, in place of clip_low and clip_high.

        tokens, of a micro-batch, has as attributes [T]: old; adv; entropy (of the policy that sampled); sampler (its
        logprobs); on_policy; ref, if a reference is kept; weight, which normalises the loss; response, the number of
        the token's response, 0..B-1, which is never parted; position, its place in that; and the algorithm's own."""
        cfg, m, first = self.cfg, self.metrics, self.tried_updates == 0
        if not first and batch.values["old"].isnan().any():
            raise RuntimeError("update() has to get the batches in the order in which minibatches() gives them")

        def objective(new, entropy, tokens):
            now = new.detach()
            # Gaps are left to the first update, in which the policy still is the old one.
            tokens.old = torch.where(tokens.old.isnan(), now, tokens.old)
            tokens.entropy = torch.where(tokens.entropy.isnan(), entropy.detach(), tokens.entropy)
            loss = token_loss(new, tokens, cfg)
            self.own_sums = isinstance(loss, tuple)
            loss, sums = loss if self.own_sums else (loss, clip_counts(now, tokens.old, tokens.adv, cfg))
            if getattr(loss, "shape", None) != new.shape:
                got = list(loss.shape) if torch.is_tensor(loss) else type(loss).__name__
                fail(f"token_loss returned {got}; it needs {list(new.shape)}, one value per token")
            # Trainer against engine under the same weights. PPO's ratio is new policy against old, both by the trainer.
            if cfg.tis_cap and not self.sampler.exact:
                weight = (tokens.old - tokens.sampler).exp().clamp(max=cfg.tis_cap)
                loss = loss * torch.where(tokens.on_policy, weight, 1)
            if cfg.kl_coef:
                kl = kl_k2 if cfg.kl_loss == "k2" else kl_k3
                loss = loss + cfg.kl_coef * kl(new, tokens.ref)
            if cfg.entropy_coef:
                loss = loss - cfg.entropy_coef * entropy
            return loss, sums | dict(ratio_max=(now - tokens.old).exp().max())

        seen = torch.zeros(2, int(batch.ends[-1]))
        stats = self.policy.update(batch, objective, cfg.max_grad_norm, bool(cfg.entropy_coef), self.lr, seen)
        if first:
            self.old.learn(batch, *seen)
        self._lap("time_train")
        self.tried_updates += 1
        if not math.isfinite(stats["grad_norm"]):
            self.failures, m["skipped_updates"] = self.failures + 1, m["skipped_updates"] + 1
            say(f"warning: step {self.step}: the gradient norm is {stats['grad_norm']}; update skipped")
            if self.failures == 10:
                fail(f"step {self.step}: ten updates in a row without a finite gradient; lower --lr, then --resume")
            return
        self.failures, self.updates = 0, self.updates + 1
        binds = torch.logical_or(*clip_binds(seen[0], batch.values["old"], batch.values["adv"], cfg))
        self.passes.append((batch.index, None if self.own_sums else binds))
        for name, value in stats.items():
            last = self.totals.get(name, 0)
            self.totals[name] = max(last, value) if name.endswith("_max") else last + value

    def evaluate(self):
        """Every eval_every steps, and before and after training: mean accuracy on the test problems."""
        cfg = self.cfg
        due = self.step in (0, cfg.steps) or cfg.eval_every and self.step % cfg.eval_every == 0
        if not self.tests or not due:
            return
        self.sampler.sync(self.policy)
        self.evaluated = examine(self.sampler, self.tokenizer, self.tests, 4, cfg.seed, cfg, check=self.check)
        self.metrics["eval_accuracy"] = self.evaluated.correct.mean().item()
        if rank() == 0:
            record.evaluation(self, self.evaluated)

    def log(self, rollouts: Rollouts, rewards: torch.Tensor):
        """Complete the step's metrics; write them to metrics.jsonl, and some rollouts to samples.jsonl; show them on
        the bar, or in a line where there is no terminal."""
        m, self.clock = self.metrics, time.perf_counter()  # not the time of an evaluation
        record.record(self, rollouts, rewards)
        self._lap("time_train")
        seconds = sum(m[name] or 0 for name in TIMES)
        tokens, gap = rollouts.tokens, self.old.gap()
        if len(gap):
            m.update(mismatch=gap.mean().item(), mismatch_max=gap.max().item())
        if self.reference:
            m["kl"] = kl_k3(tokens.old, tokens.ref).nanmean().item()
        for name, total in self.totals.items():
            whole = self.updates if name in ("loss", "grad_norm") else self.kept_tokens
            m[name] = total if name.endswith("_max") else total / whole
        m.update(rollouts.stats(), reward=rewards.mean().item(), lr=self.lr,
                 tokens_per_second=int(rollouts.lengths.sum()) / seconds)  # fmt: skip
        if not (m["mismatch"] or 0) <= 0.05:  # also when it is not a number
            say(f"warning: step {self.step}: sampler and trainer differ by {m['mismatch']:.3f} nats: stale weights?")
        differ = mixed(rewards).any() or rollouts.n == 1 and rewards.amin() < rewards.amax()
        self.idle_steps = self.idle_steps + 1 if differ and not self.tried_updates else 0
        if self.idle_steps:
            say(f"warning: step {self.step}: rewards differ, but every kept advantage is 0: nothing was learned")
        if self.idle_steps == 10:
            fail(f"step {self.step}: ten steps in a row in which nothing was learned; look at advantages and rejection")
        self._write("metrics.jsonl", m)
        for track in self.trackers:
            track({name: x for name, x in m.items() if x is not None}, self.step)
        record.progress(self, seconds)

    def save(self):
        """Write a checkpoint, if one is due or a signal has asked to leave."""
        cfg = self.cfg
        self.stop = bool(all_reduce(torch.tensor(int(self.asked_to_stop)), dist.ReduceOp.MAX))
        due = self.step == cfg.steps or cfg.save_every and self.step % cfg.save_every == 0
        if due or self.stop:
            state = dict(step=self.step, drawn=self.drawn, sampled=self.sampled, data=self.data_mark)
            folder = self.folder / f"step_{self.step:06d}"
            checkpoint.save(folder, self.policy, self.tokenizer, self.checkpointed, state)
            if rank() == 0:
                checkpoint.prune(self.folder, self.step, cfg.keep)

    def finish(self):
        """Write final/, curves.png and show.html, and say what happened; after a signal only say how to go on."""
        if self.step < self.cfg.steps:
            return say(f"left after step {self.step}, which is saved; the same command with --resume continues")
        checkpoint.save(self.folder / "final", self.policy, self.tokenizer)
        if rank() == 0:
            record.conclusion(self)
