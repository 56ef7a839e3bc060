"""Iterative DPO: preference pairs from the verifier. Per prompt, one best response against one worst.

    J = E[ log sigmoid(beta (log pi(a+)/pi_ref(a+) - log pi(a-)/pi_ref(a-))) ]   over pairs (a+, a-), one a mixed prompt

How it differs from its neighbours:
  - an iteration (a step here) samples many prompts once, then trains on their pairs for several epochs, off-policy;
    the reference is the policy at the start of the iteration, so its logprobs are `old`, and no second model is held
  - the loss is of a pair of whole responses, not of tokens; the sigmoid takes over what the clip does in grpo.py
  - one correct and one wrong response a mixed prompt are used, all others are dropped; reinforce_rej.py uses them all
  - label smoothing e mixes in the loss of the swapped pair: -(1 - e) log sigmoid(x) - e log sigmoid(-x)

    python iterative_dpo.py                                                  laptop: the built-in model, 2 minutes
    python iterative_dpo.py --model qwen2.5-math-1.5b                        one GPU
    torchrun --nproc-per-node 8 iterative_dpo.py --model qwen2.5-math-7b     eight GPUs

Source: DPO, arXiv 2305.18290, eq. 7; iterated with verified rewards as in RLHFlow's Online-DPO-R1, the baseline of
arXiv 2504.11343. Label smoothing: conservative DPO. Theirs decays the learning rate by a cosine; ours is constant.
"""

from dataclasses import dataclass
from typing import Literal

import common  # first: it says how torch's threads are to wait
import torch
import torch.nn.functional as F


@dataclass
class Config(common.Config):
    steps: int = common.arg(9, "iterations; each samples, verifies and trains on the pairs")
    prompts_per_step: int = common.arg(20_000, "prompts sampled in an iteration, over all processes")
    samples_per_prompt: int = common.arg(8, "responses per prompt, of which a pair is taken")
    updates_per_step: int = common.arg(100, "optimizer steps in an epoch, each on an equal share of the pairs")
    epochs: int = common.arg(2, "passes over the pairs of an iteration")
    lr: float = common.arg(5e-7, "AdamW learning rate, constant")
    beta: float = common.arg(0.1, "scale of the log-ratios: larger keeps the policy closer to the reference")
    label_smoothing: float = common.arg(0.1, "share of pairs taken to be labelled the wrong way round, below 0.5")
    loss_norm: Literal["sequence"] = common.arg("sequence", "sequence alone: the mean over pairs")
    tis_cap: float = common.arg(0.0, "0 alone: DPO's pairs need not come from the policy")

    on_tiny = dict(steps=9, prompts_per_step=256, updates_per_step=8, lr=3e-5, eval_every=1)


def pairs(rewards, generator):
    """(chosen, rejected): row indices [M] into the P x n responses of rewards [P, n], one pair a prompt whose rewards
    differ: a response of the highest reward, and one of the lowest; ties are broken by the torch.Generator."""
    chance = 1 + torch.rand(rewards.shape, generator=generator)
    best, worst = rewards.amax(1, keepdim=True), rewards.amin(1, keepdim=True)
    first = torch.arange(len(rewards)) * rewards.shape[1]
    chosen = first + ((rewards == best) * chance).argmax(1)
    rejected = first + ((rewards == worst) * chance).argmax(1)
    mixed = (best > worst)[:, 0]
    return chosen[mixed], rejected[mixed]


def pair_loss(chosen_logratio, rejected_logratio, cfg):
    """Loss [M] of pairs from the log-ratios log pi/pi_ref [M] of their responses, summed over tokens."""
    margin = cfg.beta * (chosen_logratio - rejected_logratio)
    return -(1 - cfg.label_smoothing) * F.logsigmoid(margin) - cfg.label_smoothing * F.logsigmoid(-margin)


def token_loss(new, old, adv, cfg):
    """Per-token loss [T]: that of the token's pair. adv [T] is +i in the chosen and -i in the rejected response of pair
    number i = 1, 2, ...; with weights 1 / (responses x own length) the tokens' losses add up to the mean over pairs."""
    pair, logratio = adv.abs().long(), new - old
    sums = new.new_zeros(2, int(pair.max()) + 1).index_put(((adv < 0).long(), pair), logratio, accumulate=True)
    return pair_loss(sums[0], sums[1], cfg)[pair]


def main():
    cfg = common.parse(Config, __doc__)
    if cfg.samples_per_prompt < 2:
        common.fail("--samples_per_prompt 1: DPO compares a prompt's responses with each other; give 2 or more")
    run = common.Run(cfg)
    for step in run.steps():
        run.sync()
        rollouts = run.sample()
        rewards = run.verify(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        chosen, rejected = pairs(rewards, torch.Generator().manual_seed((cfg.seed << 32) + step))
        adv = torch.zeros(rewards.numel())
        adv[chosen] = torch.arange(1.0, len(chosen) + 1)
        adv[rejected] = -torch.arange(1.0, len(chosen) + 1)
        adv = adv.view_as(rewards)
        keep = adv != 0
        # ---------------------------------------------------------------------------------------------------
        run.old_logprobs(rollouts)
        for batch in run.minibatches(rollouts, adv, keep, together=2, epochs=cfg.epochs):
            # The printed loss starts each iteration at log 2 = 0.69, because the reference is the policy itself, and
            # falls within it: the epochs' mean is printed. It does not fall from iteration to iteration.
            run.update(batch, token_loss)
        run.log(rollouts, rewards)
        run.evaluate()
        run.save()
    run.finish()


if __name__ == "__main__":
    main()
