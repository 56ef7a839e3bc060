"""Reinforce-Rej: policy gradient with reward +1/-1 on the prompts that are neither all right nor all wrong.

    J = E[ sum over tokens of weight x min(s A, clip(s, 1 - low, 1 + high) A) ],   s = pi(token) / pi_old(token)
    A = 2 r - 1: no mean, no std. Prompts whose n responses are all right or all wrong are dropped.
    weight = 1 / (tokens of the kept responses in an update); --loss_norm has others

How it differs from its neighbours:
  - raft_pp.py keeps the correct responses only. Here the wrong ones are pushed down. (In the released code they are
    not: there r is 0 or 1.)
  - grpo.py subtracts the group's mean and divides by its std. That silences such prompts too.
  - ppo.py learns a critic instead of having a rule for which prompts to drop.
  - Relatives are flags. Reinforce is --reject none. The variants of the paper are --reject correct|wrong, --baseline
    group and --normalize group. RLOO is --reject none --baseline leave_one_out. Reinforce++ is --reject none
    --baseline batch --normalize batch.

    python reinforce_rej.py                                                  laptop: the built-in model, 2 minutes
    python reinforce_rej.py --model qwen2.5-math-1.5b                        one GPU
    torchrun --nproc-per-node 8 reinforce_rej.py --model qwen2.5-math-7b     eight GPUs

The printed loss says little: at ratio 1 it is minus the mean advantage of the kept tokens, near 0. Its gradient is not.
Watch reward, accuracy and entropy.

Source: arXiv 2504.11343, eq. 5 and figure 4. RLOO: arXiv 2402.14740. Reinforce++: arXiv 2501.03262.
"""

from dataclasses import dataclass
from typing import Literal

import common
import torch


@dataclass
class Config(common.Config):
    reject: Literal["none", "correct", "wrong", "both"] = common.arg(
        "both", "drop prompts whose responses are all correct, all wrong, or both kinds"
    )
    baseline: Literal["none", "group", "leave_one_out", "batch"] = common.arg(
        "none", "subtract the mean over the prompt's responses, over its other responses, or over all kept tokens"
    )
    normalize: Literal["none", "group", "batch"] = common.arg(
        "none", "divide by the standard deviation over the prompt's responses, or over all kept tokens"
    )
    clip_low: float = common.arg(0.2, "clip the ratio below 1 - CLIP_LOW", least=0)
    clip_high: float = common.arg(0.2, "clip the ratio above 1 + CLIP_HIGH (clip higher: 0.28)", least=0)
    clip: bool = common.arg(True, "false: importance ratio without clipping, for the ablation")
    dual_clip: float = common.arg(0.0, "where A < 0, keep the surrogate above DUAL_CLIP x A (0: off)", least=0)


def advantages(rewards, cfg, lengths=None):
    """rewards [P, n] -> (adv [P, n], keep [P, n]). Standard deviations are Bessel's.

    lengths [P, n]: mean and std over the batch are over its tokens. Where all values are equal, the advantage is 0."""
    keep = torch.ones_like(rewards, dtype=torch.bool)
    if cfg.reject in ("correct", "both"):
        keep[common.all_correct(rewards)] = False
    if cfg.reject in ("wrong", "both"):
        keep[common.all_wrong(rewards)] = False
    adv = 2 * rewards - 1
    if cfg.baseline == "group":
        adv = adv - adv.mean(1, keepdim=True)
    elif cfg.baseline == "leave_one_out":
        adv = adv - (adv.sum(1, keepdim=True) - adv) / (rewards.shape[1] - 1)
    elif cfg.baseline == "batch":
        adv = adv - common.token_moments(adv, keep, lengths)[0]
    if cfg.normalize == "group":
        adv = adv / (adv.std(1, keepdim=True) + 1e-6) * common.mixed(rewards)[:, None]
    elif cfg.normalize == "batch":
        adv = adv / (common.token_moments(adv, keep, lengths)[1] + 1e-6)
    return adv, keep


def token_loss(new, tokens, cfg):
    """new [T], the policy's logprobs, and the tokens' values tokens.old, tokens.adv, ... [T] -> loss [T]."""
    return common.clipped_loss(new, tokens.old, tokens.adv, cfg)


def main():
    cfg = common.parse(Config, __doc__)
    compares = {cfg.reject, cfg.baseline, cfg.normalize} & {"both", "group", "leave_one_out"}
    if cfg.samples_per_prompt < 2 and compares:
        common.fail("--samples_per_prompt 1: the responses to a prompt are compared with each other; give 2 or more")
    run = common.Run(cfg)
    for _ in run.steps():
        run.sync()
        rollouts = run.sample()
        rewards = run.reward(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        adv, keep = advantages(rewards, cfg, rollouts.lengths)
        # ---------------------------------------------------------------------------------------------------
        for batch in run.minibatches(rollouts, adv, keep):
            run.update(batch, token_loss)
        run.log(rollouts, rewards)


if __name__ == "__main__":
    main()
