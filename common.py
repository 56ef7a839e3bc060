"""The small shared module: configuration, rejection, ratio and clipping, the whole loss, and Run. A training loop calls
Run's methods. To read or fork an algorithm, this file is enough. The rest is in core/."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from core.processes import all_reduce, bad_input, catch_signals, fail, rank, say, start_processes

import torch
import torch.distributed as dist

from core import checkpoint, record
from core.config import (MODELS, about, arg, choose_template, default_out, find_check, find_model,  # noqa: F401
                         longest_sequence, parse)
from core.data import TEMPLATES, Problems, fingerprint, load_data, take  # noqa: F401
from core.memory import fit
from core.meter import METRICS, Meter, observe  # noqa: F401
from core.minibatches import split, token_moments  # noqa: F401
from core.policy import UNUSABLE, Policy, settings_of
from core.rewards import REWARDS, compute_rewards, grade, label_problems, reward_names  # noqa: F401
from core.rollout import Batch, Rollouts, generate
from core.sampler import TorchSampler, choose_sampler, new_sampler, sampler_of  # noqa: F401
from core.verify import right, verify, verify_all  # noqa: F401

LossNorm = Literal["token", "sequence", "constant", "all_tokens"]


# ================================================================================================ configuration
@dataclass
class Config:
    # model and problems
    model: str = arg("tiny", "alias (see docs/reference.md), hub id or local folder")
    data: str = arg("numina-math", "training problems: alias, hub id, or local .jsonl, .parquet or .csv")
    template: str = arg("chat", "prompt template: name in common.TEMPLATES, auto (cot or plain) or text with {problem}")
    system: str = arg("", "system prompt, which the chat template puts before the problem")
    limit: int = arg(0, "use the first LIMIT training problems only (0: all)", least=0)
    check: str = arg("", "FILE.py: its check(response, problem) -> score replaces the built-in grading")
    # size of the run
    steps: int = arg(300, "training steps; each samples, verifies and updates", least=1)
    prompts_per_step: int = arg(1024, "prompts in a step, all processes together", least=1)
    samples_per_prompt: int = arg(4, "responses per prompt", least=1)
    updates_per_step: int = arg(2, "optimizer updates per step, each on an equal share of the prompts", least=1)
    max_prompt_tokens: int = arg(1024, "longest prompt; problems with a longer one are dropped and counted", least=1)
    max_new_tokens: int = arg(4096, "most tokens in a response; a longer one is cut off (metric: `truncated`)", least=1)
    temperature: float = arg(1.0, "temperature of sampling, and of the trainer's logprobs", above=0)
    seed: int = arg(0, "seed of the data order and of every response's random stream", least=0)
    # reward
    reward: str = arg("ground_truth", "what is rewarded: names in common.REWARDS, combined with & (and) and ! (not)")
    votes: int = arg(64, "responses that vote on a label, for the rewards majority_fixed and incorrect", least=1)
    # update
    lr: float = arg(1e-6, "AdamW learning rate", above=0)
    max_grad_norm: float = arg(1.0, "clip the gradient to this norm", above=0)
    loss_norm: LossNorm = arg(
        "token", "what divides a token's loss. token: kept tokens. sequence: kept responses x tokens of this response. "
        "constant: kept responses x MAX_NEW_TOKENS. all_tokens: all tokens; rejected responses have advantage 0")
    kl_coef: float = arg(0.0, "weight of the KL penalty to the initial policy in the loss", least=0)
    kl_loss: Literal["k3", "k2"] = arg("k3", "estimator of the KL penalty, see kl_k3 and kl_k2")
    reference: bool = arg(False, "keep the initial policy to log kl, even with kl_coef 0")
    entropy_coef: float = arg(0.0, "weight of the entropy bonus in the loss", least=0)
    tis_cap: float = arg(2.0, "cap of the importance weight pi_trainer / pi_sampler (0: off)", least=0)
    # memory and processes
    tokens_per_micro: int = arg(0, "most tokens in a micro-batch of one device (0: auto; on CPUs 16384)", least=0)
    shard_size: int = arg(0, "processes that share one copy of weights and optimizer (0: all of the run)", least=0)
    recompute: int = arg(-1, "GPUs: recompute every RECOMPUTE-th block to save memory (0: none, -1: auto)", least=-1)
    offload: bool = arg(False, "keep master weights and optimizer on the CPU: less GPU memory, slower updates")
    compile: bool = arg(True, "on GPUs, torch.compile the transformer's blocks")
    # sampler
    sampler: Literal["auto", "hf", "vllm"] = arg("auto", "hf: plain torch; auto: vllm if installed and there is a GPU")
    tp: int = arg(1, "vllm: processes that share an engine, for a model larger than one GPU", least=1)
    vllm_memory: float = arg(0, "vllm: share of a GPU for weights and KV cache (0: what is free)", least=0, most=1)
    request_seeds: bool = arg(False, "vllm: a random stream for each response")
    # evaluation, checkpoints, logs
    eval_data: str = arg("", "test problems: tiny-test, math500, ... or what --data takes (empty: none)")
    eval_problems: int = arg(200, "problems of an evaluation", least=1)
    eval_every: int = arg(0, "steps between evaluations (0: before and after training only)", least=0)
    save_every: int = arg(0, "steps between checkpoints (0: at the end only)", least=0)
    keep: int = arg(0, "keep the newest KEEP checkpoints and delete older ones (0: keep all)", least=0)
    out: str = arg("", "output folder (default: out/ALGORITHM-MODEL-sSEED)")
    show: bool = arg(True, "write show.html at the end: which tokens became more likely, which less")
    resume: bool = arg(False, "continue from the newest complete checkpoint in the output folder")
    tensorboard: bool = arg(False, "log to TensorBoard as well (needs the tensorboard package)")
    wandb: bool = arg(False, "log to Weights & Biases as well (needs the wandb package)")


# ==================================================================================================== rejection
def all_correct(rewards):
    """rewards [P, n] -> [P] bool: prompts with right responses only. right() decides what is right."""
    return right(rewards).all(1)


def all_wrong(rewards):
    """rewards [P, n] -> [P] bool: prompts with wrong responses only."""
    return ~right(rewards).any(1)


def mixed(rewards, most=None):
    """rewards [P, n] -> [P] bool: prompts with unequal rewards. most: only the first `most` such prompts."""
    differ = rewards.amax(1) > rewards.amin(1)
    return differ if most is None else differ & (differ.cumsum(0) <= most)


# ==================================================================================== ratio, clipping, the loss
def clipped_loss(new, old, adv, cfg):
    """PPO's clipped surrogate, per token [T]: -min(s A, clip(s, 1 - low, 1 + high) A) with s = exp(new - old).

    --clip false: -s A.
    --dual_clip c: where A < 0, the loss is at most -c A, so that no token dominates (arXiv 1912.09729)."""
    ratio = torch.exp(new - old)
    if not cfg.clip:
        return -ratio * adv
    surrogate = torch.minimum(ratio * adv, ratio.clamp(1 - cfg.clip_low, 1 + cfg.clip_high) * adv)
    if getattr(cfg, "dual_clip", 0):
        surrogate = torch.where(adv < 0, torch.maximum(surrogate, cfg.dual_clip * adv), surrogate)
    return -surrogate


def sum_by(group, x):
    """Sums of x [T] over the tokens of each group, [G]. group [T]: the group of each token, 0..G-1."""
    return x.new_zeros(int(group.max()) + 1).index_add(0, group, x)


def kl_k2(logprob, ref):
    """Schulman's k2 estimate of KL(policy || reference), per token: d^2 / 2 with d = ref - logprob.

    On the policy's samples, the mean gradient of k2 is the gradient of KL(policy || reference)."""
    return (ref - logprob).clamp(-10, 10) ** 2 / 2


def kl_k3(logprob, ref):
    """Schulman's k3 estimate of KL(policy || reference), per token: e^d - d - 1 >= 0 with d = ref - logprob.

    On the policy's samples, the mean of k3 is the KL, but its mean gradient is that of KL(reference || policy)."""
    d = (ref - logprob).clamp(-10, 10)
    return d.expm1() - d


def full_loss(new, entropy, tokens, token_loss, cfg):
    """The whole loss of each token [T]. An update minimises the sum of weight x full_loss over all tokens."""
    loss = token_loss(new, tokens, cfg)
    if cfg.tis_cap:
        # The sampler's logprobs differ a little even for the same model: corrected here. token_loss sees updates only.
        weight = (tokens.old - tokens.sampler).exp().clamp(max=cfg.tis_cap)
        loss = loss * torch.where(tokens.on_policy, weight, 1)
    if cfg.kl_coef:
        loss = loss + cfg.kl_coef * (kl_k2 if cfg.kl_loss == "k2" else kl_k3)(new, tokens.ref)
    if cfg.entropy_coef:
        loss = loss - cfg.entropy_coef * entropy
    return loss


# ========================================================================================================== run
class Run:
    """A training run. The training loop calls its methods.

      cfg           the configuration
      config        config.json: cfg as a dict, and facts that are not on the command line
      check         check(response, problem) -> score, which replaces the built-in grading; or None
      device        "cuda" or "cpu"
      folder        the output folder
      tokenizer     transformers' own
      problems      the training problems, see data.Problems; a loop may replace them
      tests         problems of the evaluations
      policy        the model that is trained
      reference     the initial policy, if it is needed, else None
      sampler       writes the responses, see core/sampler.py. Until steps() starts it, this is only its class
      checkpointed  saved and resumed: {name: dict, or object with state_dict and load_state_dict}. A fork may add more
      state         {step: steps done, drawn: problems drawn, sampled: those not dropped, data: the data's fingerprint}
      meter         the numbers of the step, see core/meter.py
      lr            the learning rate of the next update; a loop may set it
      generator     torch.Generator for a step's random choices, the same on every rank"""

    def __init__(self, cfg, check=None):
        self.device = start_processes()  # first: before this, a rank that fails alone would leave the others waiting
        cfg.out = cfg.out or default_out(cfg)
        self.cfg, self.check, self.lr, self.folder = cfg, check or find_check(cfg.check), cfg.lr, Path(cfg.out)
        checkpoint.check_trackers(cfg)
        source, model_config, self.tokenizer = find_model(cfg.model, "model")
        unusual, cfg.template = about(cfg), choose_template(cfg.template, self.tokenizer)
        self.config = vars(cfg) | dict(about=unusual)
        if rank() == 0:
            checkpoint.check_folder(self.folder, self.config)
        with bad_input():
            reward_names(cfg.reward)
            self.sampler = choose_sampler(cfg)
        longest = longest_sequence(model_config, self.device == "cuda" and self.sampler is not TorchSampler)
        if cfg.max_prompt_tokens + cfg.max_new_tokens > longest:
            fail(f"--max_prompt_tokens {cfg.max_prompt_tokens} + --max_new_tokens {cfg.max_new_tokens} exceed the "
                 f"context of {cfg.model}, {longest} tokens; lower one of them")
        self.state = dict(step=0, drawn=0, sampled=0, data=None)
        with bad_input():
            self.problems = Problems(cfg.data, self.tokenizer, cfg, graded := self.check is None)
            self.state["data"] = fingerprint(self.problems) if rank() == 0 else None
            # Read some problems now, so that a broken file fails before the training.
            first = self.problems.first(cfg.limit or 1000, within=None if cfg.limit else 1000)
            self.problems = first if cfg.limit else self.problems
            tests = cfg.eval_data and load_data(cfg.eval_data, self.tokenizer, cfg, cfg.eval_problems, graded, "test")
            self.tests = tests or []
        self.policy = self.new_model(source, lr=cfg.lr)
        self.reference = self.new_model() if cfg.reference or cfg.kl_coef else None
        self.checkpointed = dict(trainer=self.policy)

    def new_model(self, source=None, kind=Policy, lr=None, flag="model", offload=False):
        """A model with the policy's settings. lr None: a frozen model, such as a reference. kind: its class, such as
        PPO's critic. source: folder or hub id, by default the policy's. flag: for error messages."""
        cfg = self.cfg
        with bad_input(f"--{flag} {getattr(cfg, flag)}: ", UNUSABLE):
            return kind(source or self.policy.lm.name_or_path, self.device, lr=lr, vocab=len(self.tokenizer),
                        **settings_of(cfg, self.device, offload))

    @property
    def metrics(self) -> dict:
        """This step's row of metrics.jsonl, {name: number or None}. A loop may add more."""
        return self.meter.metrics

    # -------------------------------------------------------------------------------------------- the loop's verbs
    def steps(self):
        """Yield the number of each remaining step, and show a progress bar.

        Before the first: start the sampler, open the output folder or resume, vote on labels if needed, evaluate.
        After each: write the metrics; evaluate and save if due. After the last: final/, curves.png and show.html. A
        signal (Ctrl-C, SIGTERM) ends the run after its step, with a checkpoint."""
        cfg, state, names = self.cfg, self.state, set(self.checkpointed)
        checkpoint.check(self.checkpointed)
        models = self.checkpointed | dict(reference=self.reference)
        self.config["about"] |= fit(cfg, models, self.sampler is not TorchSampler)
        self.sampler = new_sampler(self.sampler, self.policy, self.tokenizer)  # last: vLLM takes all free memory
        found = checkpoint.load(self.folder, self.checkpointed) if cfg.resume else {}
        if rank() == 0:
            checkpoint.open_folder(self.folder, self.config, found, state["data"])
        state |= found
        self.meter = Meter(cfg.steps, state["step"])
        trackers = checkpoint.trackers(cfg) if rank() == 0 else []
        record.introduction(self)
        asked, evaluated, stop = catch_signals(), None, False
        if reward_names(cfg.reward) & {"majority_fixed", "incorrect"}:
            self.sampler.sync(self.policy)
            with bad_input():
                self.problems = label_problems(self.problems, cfg, self.folder / "labels.jsonl", state["step"] > 0,
                                               self.sampler, self.tokenizer, self.check)
        if state["step"] == 0 and self.tests:
            evaluated = record.evaluate(self)
        while state["step"] < cfg.steps and not stop:
            state["step"] += 1
            self.generator = self.meter.start(state["step"], cfg.seed)
            yield state["step"]
            if late := sorted(self.checkpointed.keys() - names):
                fail(f"run.checkpointed[{late[0]!r}]: it has to be there before run.steps(), which loads it")
            if not self.meter.logged:
                fail(f"step {state['step']}: the loop did not call run.log(), which completes the metrics")
            last = state["step"] == cfg.steps
            if self.tests and (last or cfg.eval_every and state["step"] % cfg.eval_every == 0):
                evaluated = record.evaluate(self)
            record.write_row(self, trackers)
            self.meter.show()
            stop = bool(all_reduce(torch.tensor(len(asked)), dist.ReduceOp.MAX))  # any rank may have got the signal
            if last or stop or cfg.save_every and state["step"] % cfg.save_every == 0:
                folder = self.folder / f"step_{state['step']:06d}"
                checkpoint.save(folder, self.policy, self.tokenizer, self.checkpointed, state)
                if rank() == 0:
                    checkpoint.prune(self.folder, state["step"], cfg.keep)
        self.meter.bar.close()
        if state["step"] < cfg.steps:
            return say(f"stopped after step {state['step']}, which is saved; the same command with --resume continues")
        checkpoint.save(self.folder / "final", self.policy, self.tokenizer)
        if rank() == 0:
            record.conclusion(self, evaluated)

    def sync(self):
        """Push the policy's weights to the sampler."""
        self.sampler.sync(self.policy)
        self.meter.lap("time_sync")

    def sample(self, problems=None, temperature=None, sampler=None) -> Rollouts:
        """Sample responses to `problems`, by default the next problems of the data. Every rank gets every response.
        With another temperature or sampler, the responses are not on-policy."""
        cfg, state, source = self.cfg, self.state, sampler or self.sampler
        if problems is None:
            before = state["drawn"]
            with bad_input():  # a broken row
                problems, state["drawn"] = take(self.problems, before, cfg.prompts_per_step, cfg.seed)
            self.metrics["dropped"] += state["drawn"] - before - len(problems)
        if self.sampler.stale:
            self.sync()
        source.wake()
        how = cfg.temperature if temperature is None else temperature
        rollouts = generate(source, problems, cfg.samples_per_prompt, cfg.seed, cfg.max_new_tokens, how,
                            first=state["sampled"])
        state["sampled"] += len(problems)
        if sampler:
            sampler.rest()
        if sampler or how != cfg.temperature:
            rollouts.on_policy[:] = False
        self.meter.lap("time_sample")
        return rollouts

    def reward(self, rollouts: Rollouts) -> torch.Tensor:
        """Grade the responses: set rollouts.correct [P, n], whatever --reward is, and return rewards [P, n]."""
        grade(rollouts, self.tokenizer, self.check)
        rewards = compute_rewards(self.cfg.reward, rollouts)
        if rollouts.labels:
            self.metrics["agreement"] = (rewards == rollouts.correct).float().mean().item()
        self.meter.lap("time_verify")
        return rewards

    def prepare(self, rollouts: Rollouts, rows):
        """Before a step's updates: put the sampler to sleep. If it is exact, its logprobs serve as log pi_old."""
        if rollouts.step != self.state["step"]:
            self.sampler.sleep()
            rollouts.prepare(self.state["step"], self.sampler.exact, record.choose_rows(rollouts))
        if self.meter.updates and not rollouts.old.known[rows].all():
            fail(f"step {self.state['step']}: log pi_old of these responses was not computed before the policy moved; "
                 "call run.old_logprobs(rollouts) before the first update")

    def old_logprobs(self, rollouts: Rollouts):
        """For all responses, compute tokens.old and tokens.entropy with the current policy, and tokens.ref with the
        reference, if any. Call this if you need them before the updates. Returns the tokens."""
        self.prepare(rollouts, slice(None))
        rollouts.old.fill(self.policy, range(len(rollouts.responses)))
        rollouts.tokens.old, rollouts.tokens.entropy = rollouts.old.values
        if self.reference:
            rollouts.ref.fill(self.reference, range(len(rollouts.responses)))
            rollouts.tokens.ref = rollouts.ref.values[0]
        self.meter.lap("time_train")
        return rollouts.tokens

    def minibatches(self, rollouts: Rollouts, adv, keep, together=False, order=None, whole=False) -> list[Batch]:
        """The kept responses as one Batch per update. adv: [P, n], or [N] per token. keep: [P, n] bool.

        An update without a response to learn from is omitted (see skipped_updates). together: the kept responses to a
        prompt stay in one micro-batch. order: the updates take the prompts in this order. whole: keep responses with
        advantage 0, for a critic. In a step's first update the policy is still pi_old, so that update
        computes log pi_old. For later updates, one pass here computes it."""
        self.settle(None)
        with bad_input():  # values of a wrong shape
            parts = split(rollouts, adv, keep, self.cfg, together, order, whole)
        filled = [(rows, units) for rows, units in parts if len(rows)]
        used = [row for rows, _ in filled for row in rows]
        self.prepare(rollouts, used)
        late = used[len(filled[0][0]) :] if filled else []
        rollouts.old.fill(self.policy, [*late, *rollouts.measured])
        if self.reference:
            rollouts.ref.fill(self.reference, [*(used if self.cfg.kl_coef else []), *rollouts.measured])
        batches = [rollouts.select(rows, units, ref=bool(self.cfg.kl_coef)) for rows, units in filled]
        if batches and "old" not in batches[0].values:
            self.meter.waiting = rollouts, batches[0], filled[0][0]
        rollouts.keep, self.metrics["kept"] = keep, keep.float().mean().item()
        self.metrics["skipped_updates"] += len(parts) - len(filled)
        self.meter.kept_tokens += int(rollouts.lengths[keep].sum())
        self.meter.lap("time_train")
        return batches

    def settle(self, batch):
        """The next update is that of `batch`. If another batch still waits for log pi_old, compute it now."""
        if self.meter.waiting and self.meter.waiting[1] is not batch:
            rollouts, other, rows = self.meter.waiting
            rollouts.old.fill(self.policy, rows)
            other.values |= rollouts.select(rows).values
            self.meter.waiting = None

    def update(self, batch: Batch, token_loss):
        """One optimizer step on the sum over tokens of weight x full_loss.

        token_loss(new, tokens, cfg) -> [T], for the T tokens of a micro-batch. All in `tokens` are [T]: old, adv,
        entropy (of the old policy), sampler (its logprobs), on_policy, ref (with --kl_coef), weight, response (0..B-1
        in the micro-batch; a response is never split), position (in the response), and what the algorithm added."""
        cfg = self.cfg
        if not (batch.values["adv"].any() or cfg.kl_coef or cfg.entropy_coef):  # adv may be all 0 (critic)
            self.metrics["skipped_updates"] += 1
            return
        self.settle(batch)

        def objective(new, entropy, tokens):
            if self.meter.waiting:  # the policy is still the one that sampled
                tokens.old, tokens.entropy = new.detach(), entropy.detach()
            return full_loss(new, entropy, tokens, observe(token_loss), cfg)

        result = self.policy.update(batch, objective, cfg.max_grad_norm, bool(cfg.entropy_coef), self.lr)
        if self.meter.waiting:
            rollouts, _, rows = self.meter.waiting
            rollouts.old.learn(rows, result["seen"][:2])
            batch.values |= dict(zip(("old", "entropy"), result["seen"]))  # the batch may be used again
            self.meter.waiting = None
        self.meter.lap("time_train")
        self.meter.update(batch, **result)

    def log(self, rollouts: Rollouts, rewards: torch.Tensor):
        """Complete the metrics of the step, and write some of its responses to samples.jsonl."""
        if rollouts.step != self.state["step"]:  # minibatches() was not called
            self.old_logprobs(rollouts)
        record.record(self, rollouts, rewards)
        self.meter.lap("time_train")
        at = rollouts.batch.token_index(rollouts.measured)
        (old, entropy), ref = rollouts.old.values[:, at], rollouts.ref.values[0, at]
        if not self.sampler.exact:
            self.meter.gap = (old - rollouts.tokens.sampler[at]).abs()[rollouts.tokens.on_policy[at]]
        kl = kl_k3(old, ref).mean().item() if self.reference else None
        differ = bool(mixed(rewards).any()) or rollouts.n == 1 and rewards.amin() < rewards.amax()
        self.meter.finish(differ, **rollouts.stats(), reward=rewards.mean().item(), lr=self.lr, kl=kl,
                          entropy=entropy.mean().item(), tokens_per_second=int(rollouts.lengths.sum()))
