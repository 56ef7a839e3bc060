"""GRPO: group relative policy optimisation. A response is judged against the other responses to its own prompt.

    J = E[ sum over tokens of weight x min(s A, clip(s, 1 - low, 1 + high) A) ],   s = pi(token) / pi_old(token)
    A = (r - mean(r)) / (std(r) + 1e-6) over the n responses to a prompt, the same for all tokens of a response

How it differs from its neighbours:
  - raft_pp.py keeps the correct responses only (A = 1); GRPO also pushes the wrong ones down
  - reinforce_rej.py drops prompts that are all right or all wrong and uses r = +1/-1 as it is, without mean and std;
    here those prompts drop out by themselves, because their A is 0
  - ppo.py learns a critic to judge a token; here the group's mean is the baseline
  - Dr. GRPO is --std false --loss_norm constant; DAPO is --clip_high 0.28 --dynamic_sampling

    python grpo.py                                                           laptop: the built-in model, 2 minutes
    python grpo.py --model qwen2.5-math-1.5b                                 one GPU
    torchrun --nproc-per-node 8 grpo.py --model qwen2.5-math-7b              eight GPUs

Source: DeepSeekMath, arXiv 2402.03300, eq. 3; as compared in arXiv 2504.11343, section 2. Dr. GRPO: arXiv 2503.20783.
DAPO: arXiv 2503.14476.
"""

from dataclasses import dataclass

import common  # first: it says how torch's threads are to wait
import torch


@dataclass
class Config(common.Config):
    std: bool = common.arg(True, "divide the advantage by the group's standard deviation (false: Dr. GRPO)")
    clip_low: float = common.arg(0.2, "clip the ratio below 1 - CLIP_LOW")
    clip_high: float = common.arg(0.2, "clip the ratio above 1 + CLIP_HIGH (DAPO: 0.28)")
    clip: bool = common.arg(True, "false: importance ratio without clipping, for the ablation")
    dual_clip: float = common.arg(0.0, "for negative advantages, bound the surrogate by DUAL_CLIP x advantage (0: off)")
    dynamic_sampling: bool = common.arg(False, "sample on until prompts_per_step prompts are mixed (DAPO)")


def mixed(rewards):
    """[P] bool: prompts whose responses differ in reward [P, n]; only these can be compared."""
    return rewards.amax(1) > rewards.amin(1)


def advantages(rewards, cfg):
    """Advantage of each response and which to keep, both [P, n], from rewards [P, n]. The std is Bessel's (n - 1).

    All are kept: a response with advantage 0 counts in the normalisation. With dynamic sampling, those of the first
    prompts_per_step mixed prompts are."""
    adv = rewards - rewards.mean(1, keepdim=True)
    if cfg.std:
        adv = adv / (rewards.std(1, keepdim=True) + 1e-6)
    adv = adv * mixed(rewards)[:, None]  # exactly 0 where the rewards are equal, also if their mean is rounded
    keep = torch.ones_like(rewards, dtype=torch.bool)
    if cfg.dynamic_sampling:
        first = mixed(rewards) & (mixed(rewards).cumsum(0) <= cfg.prompts_per_step)
        keep &= first[:, None]
    return adv, keep


def token_loss(new, old, adv, cfg):
    """Per-token loss [T] from logprobs of the policy (new), of the policy that sampled (old), and advantages [T]."""
    return common.clipped_loss(new, old, adv, cfg)


def main():
    cfg = common.parse(Config, __doc__)
    if cfg.samples_per_prompt < 2:
        common.fail("--samples_per_prompt 1: GRPO compares a prompt's responses with each other; give 2 or more")
    run = common.Run(cfg)
    for _ in run.steps():
        run.sync()
        rollouts = run.sample()
        rewards = run.verify(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        while cfg.dynamic_sampling and mixed(rewards).sum() < cfg.prompts_per_step > 0.1 * len(rewards):
            rollouts = run.sample(more=rollouts)  # at most ten times the prompts of a step
            rewards = run.verify(rollouts)
        adv, keep = advantages(rewards, cfg)
        # ---------------------------------------------------------------------------------------------------
        run.old_logprobs(rollouts)
        for batch in run.minibatches(rollouts, adv, keep):
            # The printed loss does not tell how well this learns: at ratio 1 it is minus the mean advantage of the kept
            # tokens, hence near 0. Its gradient is not. Watch reward, accuracy and entropy instead.
            run.update(batch, token_loss)
        run.log(rollouts, rewards)
        run.evaluate()
        run.save()
    run.finish()


if __name__ == "__main__":
    main()
