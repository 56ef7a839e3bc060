"""RAFT: reward-ranked fine-tuning. Sample, keep the correct responses, and maximise their likelihood.

    J = E[ sum over tokens of the correct responses of weight x log pi(token) ]

How it differs from its neighbours:
  - raft_pp.py puts the clipped importance ratio in place of log pi, so that the later updates of a step stay close to
    the policy that sampled; the first update of a step is the same in both
  - reinforce_rej.py and grpo.py also learn from the wrong responses, which they push down
  - iterative_dpo.py sets one correct against one wrong response; here nothing is compared
  - distillation is --teacher MODEL: the teacher samples, its correct responses are learned

    python raft.py                                                           laptop: the built-in model, 2 minutes
    python raft.py --model qwen2.5-math-1.5b                                 one GPU
    torchrun --nproc-per-node 8 raft.py --model qwen2.5-math-7b              eight GPUs

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
    """Advantage of each response and which to keep, both [P, n], from rewards [P, n]: 1, and the correct ones."""
    return torch.ones_like(rewards), rewards > 0


def token_loss(new, tokens, cfg):
    """Per-token loss [T] from the policy's logprobs (new [T]): maximum likelihood."""
    return -tokens.adv * new


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
            # The printed loss is the mean negative logprob of the correct responses, their surprise: it does fall as
            # the policy sharpens. Watch reward, accuracy and entropy all the same: falling entropy is the price.
            run.update(batch, token_loss)
        run.evaluate()
        run.log(rollouts, rewards)
        run.save()
    run.finish()


if __name__ == "__main__":
    main()
