"""RAFT++: RAFT with importance ratio and clip. Learn from the correct responses alone, in small steps.

    J = E[ sum over tokens of the correct responses of weight x min(s, clip(s, 1 - low, 1 + high)) ],
    s = pi(token) / pi_old(token)

How it differs from its neighbours:
  - raft.py maximises log pi: no ratio, no clip; with one update a step (s = 1) the two have the same gradient
  - grpo.py also learns from the wrong responses, and weighs a response by how rare its success is
  - reinforce_rej.py has reward -1 for the wrong responses, and drops prompts that are all right or all wrong
  - ratio without clip is --clip false; clip higher is --clip_high 0.28

    python raft_pp.py                                                        laptop: the built-in model, 2 minutes
    python raft_pp.py --model qwen2.5-math-1.5b                              one GPU
    torchrun --nproc-per-node 8 raft_pp.py --model qwen2.5-math-7b           eight GPUs

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
    """Advantage of each response and which to keep, both [P, n], from rewards [P, n]: 1, and the correct ones."""
    return torch.ones_like(rewards), rewards > 0


def token_loss(new, tokens, cfg):
    """Per-token loss [T] from the policy's logprobs (new [T]) and the tokens' values (tokens.old, tokens.adv, ...)."""
    return common.clipped_loss(new, tokens.old, tokens.adv, cfg)


def main():
    cfg = common.parse(Config, __doc__)
    run = common.Run(cfg)
    run.begin()
    for _ in run.steps():
        run.sync()
        rollouts = run.sample()
        rewards = run.reward(rollouts)
        run.old_logprobs(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        adv, keep = advantages(rewards, cfg)
        # ---------------------------------------------------------------------------------------------------
        for batch in run.minibatches(rollouts, adv, keep):
            # It minimises the sum over tokens of weight x (min(pi_old / pi_sampler, tis_cap) x token_loss
            #                                              + kl_coef x KL to the reference - entropy_coef x entropy).
            # The printed loss stays near -1 however well this learns: it is minus the mean ratio, which is 1 in the
            # first update of a step. Its gradient is that of the likelihood. Watch reward, accuracy and entropy.
            run.update(batch, token_loss)
        run.evaluate()
        run.log(rollouts, rewards)
        run.save()
    run.finish()


if __name__ == "__main__":
    main()
