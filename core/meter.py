"""The meter of a run. It collects the numbers of a step for metrics.jsonl, and moves the progress bar."""

import math
import shutil
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from core.processes import fail, rank, say

METRICS = ("step reward accuracy all_correct all_wrong kept loss entropy kl clip_low clip_high ratio_max grad_norm lr "
           "mismatch mismatch_max length truncated boxed verify_timeouts skipped_updates dropped time_sample "
           "time_verify time_train time_sync tokens_per_second eval_accuracy").split()
TIMES = ("time_sample", "time_verify", "time_train", "time_sync")


def observe(token_loss):
    """The same token_loss, with two additions: the shape of its result is checked, and tokens.clipped [T] is set.

    A token is clipped if it has an advantage but a gradient of exactly 0. This works for any kind of clip."""

    def watch(new, tokens, cfg):
        loss = token_loss(new, tokens, cfg)
        if getattr(loss, "shape", None) != new.shape:
            got = list(loss.shape) if torch.is_tensor(loss) else type(loss).__name__
            fail(f"token_loss returned {got}; it needs {list(new.shape)}, one value per token")
        (grad,) = torch.autograd.grad(loss.sum(), new, retain_graph=True, allow_unused=True)
        tokens.clipped = (tokens.adv != 0) & (torch.zeros_like(new) if grad is None else grad).eq(0)
        return loss

    return watch


class Meter:
    """The numbers of a run and of its present step.

      metrics   the step's row of metrics.jsonl, {name: number or None}
      updates   how many updates the step has tried
      passes    for each update that succeeded: (places of its tokens in the batch, which of them were clipped)
      gap       |trainer's - sampler's logprob| of on-policy tokens, from which `mismatch` is computed
      waiting   (rollouts, batch, rows) of a batch that gets its old logprobs in its own update, or None"""

    def __init__(self, steps: int, done: int):
        self.steps, self.done, self.began = steps, done, time.perf_counter()
        self.failures = self.idle = 0  # in succession: updates without a finite gradient; steps that learned nothing
        self.bar = tqdm(total=steps, initial=done, dynamic_ncols=True, disable=rank() > 0 or not sys.stderr.isatty(),
                        bar_format="training {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}")

    def start(self, step: int, seed: int) -> torch.Generator:
        """Forget the last step, and seed the random draws of this one. So a resumed run draws the same."""
        self.metrics = dict.fromkeys(METRICS) | dict(step=step, skipped_updates=0, dropped=0)
        self.updates, self.kept_tokens, self.passes, self.stats = 0, 0, [], []
        self.gap, self.waiting, self.logged = torch.zeros(0), None, False
        self.clock = time.perf_counter()
        seed = int(np.random.SeedSequence([seed, step]).generate_state(1)[0])  # torch needs 32 bits
        torch.manual_seed(seed)
        return torch.Generator().manual_seed(seed)

    def lap(self, name: str):
        """Add the seconds since the last lap to this metric."""
        last, self.clock = self.clock, time.perf_counter()
        self.metrics[name] = (self.metrics[name] or 0) + self.clock - last

    def update(self, batch, loss: float, grad_norm: float, seen: torch.Tensor):
        """Count an update of the policy. seen: see Policy.update()."""
        m, (new, _, clipped) = self.metrics, seen
        if self.updates == 0:
            self.gap = (new - batch.values["sampler"]).abs()[batch.values["on_policy"]]
        self.updates += 1
        if not math.isfinite(grad_norm):
            self.failures, m["skipped_updates"] = self.failures + 1, m["skipped_updates"] + 1
            say(f"warning: step {m['step']}: the gradient norm is {grad_norm}; update skipped")
            if self.failures == 10:
                fail(f"step {m['step']}: ten updates in a row without a finite gradient; lower --lr, then --resume")
            return
        self.failures = 0
        moved = new - batch.values.get("old", new)
        self.passes.append((batch.index, clipped.bool()))
        down = batch.values["adv"] < 0
        low, high = (clipped * down).sum().item(), (clipped * ~down).sum().item()
        self.stats.append(dict(loss=loss, grad_norm=grad_norm, ratio_max=moved.exp().max().item(), clip_low=low,
                               clip_high=high))

    def finish(self, differ: bool, **numbers):
        """Complete the step's row, with these numbers. differ: the rewards differ, so the step can learn."""
        m, step = self.metrics, self.metrics["step"]
        for name in self.stats[0] if self.stats else ():
            values = [stats[name] for stats in self.stats]
            m[name] = max(values) if name == "ratio_max" else sum(values)
            m[name] /= dict(loss=len(values), grad_norm=len(values), ratio_max=1).get(name, self.kept_tokens)
        if len(self.gap):
            m.update(mismatch=self.gap.mean().item(), mismatch_max=self.gap.max().item())
        m.update(numbers)
        m["tokens_per_second"] /= sum(m[name] or 0 for name in TIMES)
        self.logged = True
        if not (m["mismatch"] or 0) <= 0.05:  # also when it is not a number
            say(f"warning: step {step}: sampler and trainer differ by {m['mismatch']:.3f} nats: stale weights?")
        self.idle = self.idle + 1 if differ and not self.updates else 0
        if self.idle:
            say(f"warning: step {step}: rewards differ, but every kept advantage is 0: nothing was learned")
        if self.idle == 10:
            fail(f"step {step}: ten steps in a row in which nothing was learned; look at advantages and rejection")

    def show(self):
        """Move the bar, with as many metrics as there is room for. Without a terminal, print a line."""
        m, step = self.metrics, self.metrics["step"]
        shown = [name for name in ("loss", "reward", "accuracy", "entropy", "kl", "length") if m[name] is not None]
        words = [f"{name} {m[name]:.3g}" for name in shown if name != "loss"]
        room = shutil.get_terminal_size().columns - len(f"training {self.steps}/{self.steps} |     | 0:00:00 left")
        self.bar.set_postfix_str(", ".join(words[: sum(np.cumsum([len(word) + 2 for word in words]) <= room)]))
        self.bar.update()
        if not (sys.stdout.isatty() and sys.stderr.isatty()):
            left = (time.perf_counter() - self.began) / (step - self.done) * (self.steps - step)
            words, seconds = "  ".join(f"{name} {m[name]:.4g}" for name in shown), sum(m[name] or 0 for name in TIMES)
            say(f"step {step}/{self.steps}  {words}  {seconds:.1f} s  {tqdm.format_interval(left)} left")
