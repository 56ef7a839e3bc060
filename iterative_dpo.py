"""Iterative DPO: preference pairs from the verifier. Per mixed prompt, one right response against one wrong one.

    J = E[ log sigmoid(beta (log pi(a+)/pi_ref(a+) - log pi(a-)/pi_ref(a-))) ],   one pair (a+, a-) per mixed prompt

How it differs from its neighbours:
  - A step, or iteration, samples once for many prompts, then trains on the pairs for several epochs (off-policy).
  - The reference is the policy at the start of the iteration. Its logprobs are `old`: no second model is needed.
  - The loss is per pair of responses, not per token. Its sigmoid limits how far the policy moves; in grpo.py the clip
    does that.
  - One correct and one wrong response per mixed prompt are used. reinforce_rej.py uses them all.
  - Label smoothing e adds a little of the swapped pair's loss: -(1 - e) log sigmoid(x) - e log sigmoid(-x).

    python iterative_dpo.py                                                  laptop: the built-in model, 2 minutes
    python iterative_dpo.py --model qwen2.5-math-1.5b                        one GPU
    torchrun --nproc-per-node 8 iterative_dpo.py --model qwen2.5-math-7b     eight GPUs

In each iteration the loss starts at log 2 = 0.69, because policy and reference are still equal. Then it falls. The
printed loss is the mean over the epochs. It does not fall from iteration to iteration.

Source: DPO, arXiv 2305.18290, eq. 7; iterated with verified rewards as in RLHFlow's Online-DPO-R1, the baseline of
arXiv 2504.11343. Label smoothing: conservative DPO. RLHFlow's learning rate decays by a cosine; ours is constant.
"""

from dataclasses import dataclass

import common
import torch
import torch.nn.functional as F


@dataclass
class Config(common.Config):
    steps: int = common.arg(9, "iterations; each samples, verifies and trains on the pairs", least=1)
    prompts_per_step: int = common.arg(20_000, "prompts sampled in an iteration, over all processes", least=1)
    samples_per_prompt: int = common.arg(8, "responses per prompt; two of them form a pair", least=1)
    updates_per_step: int = common.arg(100, "optimizer updates in an epoch, on equal shares of the pairs", least=1)
    epochs: int = common.arg(2, "passes over the pairs of an iteration", least=1)
    lr: float = common.arg(5e-7, "AdamW learning rate, constant", above=0)
    beta: float = common.arg(0.1, "scale of the log-ratios: larger keeps the policy closer to the reference", above=0)
    label_smoothing: float = common.arg(0.1, "assumed share of pairs labelled wrongly", least=0, most=0.5)
    loss_norm: common.LossNorm = common.arg("sequence", "sequence: mean over pairs. Others: long pairs weigh more")
    tis_cap: float = common.arg(0.0, "0: no importance weight, because pairs may be of any policy", least=0)

    together = 2  # responses that share a micro-batch: for the memory plan
    on_tiny = dict(steps=9, prompts_per_step=256, updates_per_step=8, lr=3e-5, eval_every=1)


def pairs(rewards, generator):
    """rewards [P, n] -> (chosen [M], rejected [M]): rows of the P x n responses, one pair per mixed prompt.

    Chosen: the highest reward. Rejected: the lowest. A mixed prompt has a right and a wrong response."""
    luck = 1 + torch.rand(rewards.shape, generator=generator)  # among equals, argmax takes a random one
    best, worst = rewards.amax(1, keepdim=True), rewards.amin(1, keepdim=True)
    first = torch.arange(len(rewards)) * rewards.shape[1]
    chosen = first + ((rewards == best) * luck).argmax(1)
    rejected = first + ((rewards == worst) * luck).argmax(1)
    mixed = ~common.all_correct(rewards) & ~common.all_wrong(rewards)
    return chosen[mixed], rejected[mixed]


def pair_loss(chosen_logratio, rejected_logratio, cfg):
    """log pi/pi_ref of the two responses of each pair, summed over tokens, both [M] -> loss [M]."""
    margin = cfg.beta * (chosen_logratio - rejected_logratio)
    return -(1 - cfg.label_smoothing) * F.logsigmoid(margin) - cfg.label_smoothing * F.logsigmoid(-margin)


def token_loss(new, tokens, cfg):
    """new [T], the policy's logprobs -> loss [T]: each token gets the whole loss of its pair, see tokens.pair.

    tokens.adv is 1 in the chosen response and -1 in the rejected one. tokens.old are the reference's logprobs, in every
    epoch. Weights are 1 / (2 M x response length), so the weighted sum is the mean over the M pairs."""
    logratio = new - tokens.old
    chosen = common.sum_by(tokens.pair, logratio * (tokens.adv > 0))
    rejected = common.sum_by(tokens.pair, logratio * (tokens.adv < 0))
    return pair_loss(chosen, rejected, cfg)[tokens.pair]


def main():
    cfg = common.parse(Config, __doc__)
    if cfg.samples_per_prompt < 2:
        common.fail("--samples_per_prompt 1: DPO compares a prompt's responses with each other; give 2 or more")
    run = common.Run(cfg)
    for _ in run.steps():
        run.sync()
        rollouts = run.sample()
        rewards = run.reward(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        chosen, rejected = pairs(rewards, run.generator)
        pair, adv = torch.zeros(rewards.numel(), dtype=torch.long), torch.zeros(rewards.numel())
        pair[chosen] = pair[rejected] = torch.arange(len(chosen))  # both responses have the number of their pair
        adv[chosen], adv[rejected] = 1, -1  # up, down; 0 elsewhere
        rollouts.tokens.pair = rollouts.per_token(pair)
        adv = adv.view_as(rewards)
        keep = adv != 0
        # ---------------------------------------------------------------------------------------------------
        for _ in range(cfg.epochs):
            order = torch.randperm(len(rewards), generator=run.generator).tolist()
            for batch in run.minibatches(rollouts, adv, keep, together=True, order=order):
                run.update(batch, token_loss)
        run.log(rollouts, rewards)


if __name__ == "__main__":
    main()
