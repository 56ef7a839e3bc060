"""GRPO: group relative policy optimisation. A response is judged against the other responses to its own prompt.

    J = E[ sum over tokens of weight x min(s A, clip(s, 1 - low, 1 + high) A) ],   s = pi(token) / pi_old(token)
    A = (r - mean(r)) / (std(r) + 1e-6) over the n responses to a prompt, the same for all tokens of a response
    weight = 1 / (tokens of the kept responses in an update); --loss_norm has others

How it differs from its neighbours:
  - raft_pp.py keeps the correct responses only (A = 1). GRPO also pushes the wrong ones down.
  - reinforce_rej.py drops prompts that are all right or all wrong, and uses r = +1/-1 without mean and std. Here those
    prompts drop out by themselves, because their A is 0.
  - ppo.py learns a critic to judge a token. Here the group's mean is the baseline.
  - Dr. GRPO is --std false --loss_norm constant; DAPO is --clip_high 0.28 --dynamic_sampling.

    python grpo.py                                                           laptop: the built-in model, 2 minutes
    python grpo.py --model qwen2.5-math-1.5b                                 one GPU
    torchrun --nproc-per-node 8 grpo.py --model qwen2.5-math-7b              eight GPUs

The printed loss says little: at ratio 1 it is minus the mean advantage of the kept tokens, near 0. Its gradient is not.
Watch reward, accuracy and entropy.

Source: DeepSeekMath, arXiv 2402.03300, eq. 3; as compared in arXiv 2504.11343, section 2. Dr. GRPO: arXiv 2503.20783.
DAPO: arXiv 2503.14476.
"""

from dataclasses import dataclass

import common
import torch


@dataclass
class Config(common.Config):
    std: bool = common.arg(True, "divide the advantage by the group's standard deviation (false: Dr. GRPO)")
    clip_low: float = common.arg(0.2, "clip the ratio below 1 - CLIP_LOW", least=0)
    clip_high: float = common.arg(0.2, "clip the ratio above 1 + CLIP_HIGH (DAPO: 0.28)", least=0)
    clip: bool = common.arg(True, "false: importance ratio without clipping, for the ablation")
    dual_clip: float = common.arg(0.0, "where A < 0, keep the surrogate above DUAL_CLIP x A (0: off)", least=0)
    dynamic_sampling: bool = common.arg(False, "sample on until prompts_per_step prompts are mixed (DAPO)")


def needs_more(rewards, cfg):
    """True while fewer than prompts_per_step prompts are mixed. Gives up at ten times that many prompts."""
    few = common.mixed(rewards).sum() < cfg.prompts_per_step
    return cfg.dynamic_sampling and bool(few) and len(rewards) < 10 * cfg.prompts_per_step


def advantages(rewards, cfg):
    """rewards [P, n] -> (adv [P, n], keep [P, n]). Standard deviations are Bessel's.

    keep is all True: a response with advantage 0 adds no gradient but counts as kept tokens."""
    adv = rewards - rewards.mean(1, keepdim=True)
    if cfg.std:
        adv = adv / (rewards.std(1, keepdim=True) + 1e-6)
    adv = adv * common.mixed(rewards)[:, None]  # if they are equal: their mean can be off, which a std of 0 blows up
    keep = torch.ones_like(rewards, dtype=torch.bool)
    if cfg.dynamic_sampling:
        keep &= common.mixed(rewards, cfg.prompts_per_step)[:, None]
    return adv, keep


def token_loss(new, tokens, cfg):
    """new [T], the policy's logprobs, and the tokens' values tokens.old, tokens.adv, ... [T] -> loss [T]."""
    return common.clipped_loss(new, tokens.old, tokens.adv, cfg)


def main():
    cfg = common.parse(Config, __doc__)
    if cfg.samples_per_prompt < 2:
        common.fail("--samples_per_prompt 1: the responses to a prompt are compared with each other; give 2 or more")
    run = common.Run(cfg)
    for _ in run.steps():
        run.sync()
        rollouts = run.sample()
        rewards = run.reward(rollouts)
        while needs_more(rewards, cfg):
            rollouts = rollouts + run.sample()
            rewards = run.reward(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        adv, keep = advantages(rewards, cfg)
        # ---------------------------------------------------------------------------------------------------
        for batch in run.minibatches(rollouts, adv, keep):
            run.update(batch, token_loss)
        run.log(rollouts, rewards)


if __name__ == "__main__":
    main()
