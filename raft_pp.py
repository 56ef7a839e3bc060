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

import common  # first: it says how torch's threads are to wait
import torch


@dataclass
class Config(common.Config):
    clip_low: float = common.arg(0.2, "clip the ratio below 1 - CLIP_LOW (binds on negative advantages: never here)")
    clip_high: float = common.arg(0.2, "clip the ratio above 1 + CLIP_HIGH (clip higher: 0.28)")
    clip: bool = common.arg(True, "false: importance ratio without clipping, for the ablation")


def advantages(rewards, cfg):
    """Advantage of each response and which to keep, both [P, n], from rewards [P, n]: 1, and the correct ones."""
    return torch.ones_like(rewards), rewards > 0


def token_loss(new, old, adv, cfg):
    """Per-token loss [T] from logprobs of the policy (new), of the policy that sampled (old), and advantages [T]."""
    return common.clipped_loss(new, old, adv, cfg)


def main():
    cfg = common.parse(Config, __doc__)
    run = common.Run(cfg)
    for _ in run.steps():
        run.sync()
        rollouts = run.sample()
        rewards = run.verify(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        adv, keep = advantages(rewards, cfg)
        # ---------------------------------------------------------------------------------------------------
        run.old_logprobs(rollouts)
        for batch in run.minibatches(rollouts, adv, keep):
            # The printed loss stays near -1 however well this learns: it is minus the mean ratio, which is 1 in the
            # first update of a step. Its gradient is that of the likelihood. Watch reward, accuracy and entropy.
            run.update(batch, token_loss)
        run.log(rollouts, rewards)
        run.evaluate()
        run.save()
    run.finish()


if __name__ == "__main__":
    main()
