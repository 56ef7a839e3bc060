"""RAFT++: RAFT with importance ratio and clip. Learn from the correct responses alone, in small steps.

    J = E[ sum over tokens of the correct responses of weight x min(s, clip(s, 1 - low, 1 + high)) ]

    s = pi(token) / pi_old(token); weight = 1 / (tokens of the kept responses in an update); --loss_norm has others

How it differs from its neighbours:
  - raft.py maximises log pi: no ratio, no clip. With one update per step (s = 1) the two have the same gradient.
  - grpo.py also learns from the wrong responses. It weighs a response by how rare its success is.
  - reinforce_rej.py has reward -1 for the wrong responses, and drops prompts that are all right or all wrong.
  - Ratio without clip is --clip false; clip higher is --clip_high 0.28.

    python raft_pp.py                                                        laptop: the built-in model, 2 minutes
    python raft_pp.py --model qwen2.5-math-1.5b                              one GPU
    torchrun --nproc-per-node 8 raft_pp.py --model qwen2.5-math-7b           eight GPUs

The printed loss is minus the mean ratio, so it stays near -1 however well this learns. Its gradient is that of the
likelihood. Watch reward, accuracy and entropy.

Source: arXiv 2504.11343, eq. 6; the clipped ratio is that of PPO, arXiv 1707.06347, eq. 7.
"""

from dataclasses import dataclass

import common
import torch


@dataclass
class Config(common.Config):
    clip_low: float = common.arg(0.2, "clip the ratio below 1 - CLIP_LOW (never binds: A is 1)", least=0)
    clip_high: float = common.arg(0.2, "clip the ratio above 1 + CLIP_HIGH (clip higher: 0.28)", least=0)
    clip: bool = common.arg(True, "false: importance ratio without clipping, for the ablation")


def advantages(rewards, cfg):
    """rewards [P, n] -> (adv [P, n], keep [P, n]). Advantage 1, keep the correct responses."""
    return torch.ones_like(rewards), common.right(rewards)


def token_loss(new, tokens, cfg):
    """new [T], the policy's logprobs, and the tokens' values tokens.old, tokens.adv, ... [T] -> loss [T]."""
    return common.clipped_loss(new, tokens.old, tokens.adv, cfg)


def main():
    cfg = common.parse(Config, __doc__)
    run = common.Run(cfg)
    for _ in run.steps():
        run.sync()
        rollouts = run.sample()
        rewards = run.reward(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        adv, keep = advantages(rewards, cfg)
        # ---------------------------------------------------------------------------------------------------
        for batch in run.minibatches(rollouts, adv, keep):
            run.update(batch, token_loss)
        run.log(rollouts, rewards)


if __name__ == "__main__":
    main()
