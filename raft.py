"""RAFT: reward-ranked fine-tuning. Sample, keep the correct responses, and maximise their likelihood.

    J = E[ sum over tokens of the correct responses of weight x log pi(token) ]

    weight = 1 / (tokens of the kept responses in an update); --loss_norm has others

How it differs from its neighbours:
  - raft_pp.py has the clipped importance ratio in place of log pi, so that the later updates of a step stay close to
    the policy that sampled. The first update of a step is the same in both.
  - reinforce_rej.py and grpo.py also learn from the wrong responses: they push them down.
  - iterative_dpo.py sets one correct response against a wrong one. Here nothing is compared.
  - Distillation is --teacher MODEL: the teacher samples, and the policy learns its correct responses.

    python raft.py                                                           laptop: the built-in model, 2 minutes
    python raft.py --model qwen2.5-math-1.5b                                 one GPU
    torchrun --nproc-per-node 8 raft.py --model qwen2.5-math-7b              eight GPUs

The printed loss is the mean surprise (negative logprob) of the correct responses. It falls as the policy sharpens.
Watch reward, accuracy and entropy as well: falling entropy is the price.

Source: RAFT, arXiv 2304.06767; as compared in arXiv 2504.11343, eq. 1. Also known as rejection sampling fine-tuning,
expert iteration and (from the base model each time) STaR.
"""

from dataclasses import dataclass

import common
import torch


@dataclass
class Config(common.Config):
    teacher: str = common.arg("", "sample from this model in place of the policy: alias, hub id or local folder")


def advantages(rewards, cfg):
    """rewards [P, n] -> (adv [P, n], keep [P, n]). Advantage 1, keep the correct responses."""
    return torch.ones_like(rewards), common.right(rewards)


def token_loss(new, tokens, cfg):
    """new [T], the policy's logprobs -> loss [T]: minus the log-likelihood."""
    return -tokens.adv * new


def main():
    cfg = common.parse(Config, __doc__)
    run = common.Run(cfg)
    teacher = common.sampler_of(run, cfg.teacher, "teacher") if cfg.teacher else None
    for _ in run.steps():
        run.sync()
        rollouts = run.sample(sampler=teacher)
        rewards = run.reward(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        adv, keep = advantages(rewards, cfg)
        # ---------------------------------------------------------------------------------------------------
        for batch in run.minibatches(rollouts, adv, keep):
            run.update(batch, token_loss)
        run.log(rollouts, rewards)


if __name__ == "__main__":
    main()
