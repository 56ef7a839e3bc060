"""PPO: proximal policy optimisation. A critic learns what a response is worth at each token, and judges the next one.

    J = E[ sum over tokens of weight x min(s A_t, clip(s, 1 - low, 1 + high) A_t) ],   s = pi(token) / pi_old(token)
    A_t = sum over l of (gamma lam)^l delta_(t+l),   delta_t = r_t + gamma V_(t+1) - V_t    (GAE), then whitened
    weight = 1 / (tokens of the kept responses in an update); --loss_norm has others

How it differs from its neighbours:
  - grpo.py judges a response against the others to its prompt. Here the baseline is the critic's value. So one response
    per prompt is enough, and each token has its own advantage.
  - The price is a second model: the critic is a copy of the policy's backbone with a scalar head and its own optimizer.
  - reinforce_rej.py needs no baseline at all: it drops the prompts that teach nothing.
  - The reward r_t is the verifier's, on a response's last token. gamma = lam = 1 makes A = return - value.

    python ppo.py                                                            laptop: the built-in model, 3 minutes
    python ppo.py --model qwen2.5-math-1.5b                                  one GPU
    torchrun --nproc-per-node 8 ppo.py --model qwen2.5-math-7b               eight GPUs

The printed loss says little: at ratio 1 it is minus the mean advantage, and whitened advantages average 0. Watch
reward, accuracy and value_loss.

Source: PPO, arXiv 1707.06347, eq. 7 and 9; GAE, arXiv 1506.02438, eq. 16. Value clipping and whitening as in the code
that goes with arXiv 2504.11343.
"""

import math
from dataclasses import dataclass

import common
import torch
from transformers import AutoModel


@dataclass
class Config(common.Config):
    gamma: float = common.arg(1.0, "discount of a reward per token", least=0, most=1)
    lam: float = common.arg(1.0, "lambda of GAE: 1 = return minus value, 0 = temporal difference", least=0, most=1)
    critic_lr: float = common.arg(0.0, "AdamW learning rate of the critic (0: ten times LR)", least=0)
    value_clip: float = common.arg(0.5, "a value may move this far from what it was when sampled (0: no clip)", least=0)
    epochs: int = common.arg(1, "passes over the rollouts of a step", least=1)
    clip_low: float = common.arg(0.2, "clip the ratio below 1 - CLIP_LOW", least=0)
    clip_high: float = common.arg(0.2, "clip the ratio above 1 + CLIP_HIGH (clip higher: 0.28)", least=0)
    clip: bool = common.arg(True, "false: importance ratio without clipping, for the ablation")
    dual_clip: float = common.arg(0.0, "where A < 0, keep the surrogate above DUAL_CLIP x A (0: off)", least=0)


class Critic(common.Policy):
    """The policy's backbone with a scalar head, 0 at the start: forward returns the value before each response token
    in place of its logprob (and zeros in place of the entropy)."""

    def load(self, model, config, **how):
        backbone = super().load(model, config, AutoModel, **how)
        backbone.value = torch.nn.Linear(config.hidden_size, 1, device=backbone.device)
        torch.nn.init.zeros_(backbone.value.weight)
        torch.nn.init.zeros_(backbone.value.bias)
        return backbone

    def head_parameters(self):
        return list(self.lm.value.parameters())

    def head(self, hidden, targets, entropy_grad):
        values = self.lm.value(hidden).float().sum(-1)  # of one number; FSDP warns of a view such as [:, 0]
        return values, torch.zeros_like(values)


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation (GAE): all [B, T] -> (advantages [B, T], returns [B, T]).

    rewards: after each token. values: before each token. mask: 1 on a response's tokens, 0 behind its end."""
    adv, following, value = torch.zeros_like(values), torch.zeros(len(values)), torch.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * value - values[:, t]
        following = (delta + gamma * lam * following) * mask[:, t]
        value = values[:, t] * mask[:, t]
        adv[:, t] = following
    return adv, (adv + values) * mask


def whiten(x):
    """x [N] -> x with mean 0 and standard deviation 1 (Bessel's). All 0 if the values are equal."""
    return (x - x.mean()) * torch.rsqrt(x.var() + 1e-8) if len(x.unique()) > 1 else torch.zeros_like(x)


def token_loss(new, tokens, cfg):
    """new [T], the policy's logprobs, and the tokens' values tokens.old, tokens.adv, ... [T] -> loss [T]."""
    return common.clipped_loss(new, tokens.old, tokens.adv, cfg)


def value_loss(new, old, returns, cfg):
    """new, old, returns [T] -> loss [T] of the critic: half the squared error of its value, new.

    old: its value when the response was sampled. If the value clipped to old +- value_clip has a larger loss, that
    one counts."""
    clipped = old + (new - old).clamp(-cfg.value_clip, cfg.value_clip) if cfg.value_clip else new
    return 0.5 * torch.maximum((new - returns) ** 2, (clipped - returns) ** 2)


def judge(rollouts, rewards, critic, cfg):
    """Advantages [N] of all response tokens, whitened. Adds tokens.value, the critic's values, and tokens.returns."""
    lengths = rollouts.lengths.flatten()
    mask = torch.arange(int(lengths.max())) < lengths[:, None]  # [B, T]: one row per response, padded to the longest
    values = torch.zeros(mask.shape).masked_scatter(mask, critic.logprobs(rollouts.batch)[0])
    token_rewards = torch.zeros(mask.shape).scatter(1, lengths[:, None] - 1, rewards.reshape(-1, 1))
    adv, returns = gae(token_rewards, values, mask.float(), cfg.gamma, cfg.lam)
    rollouts.tokens.value, rollouts.tokens.returns = values[mask], returns[mask]
    return whiten(adv[mask])


def update_critic(critic, batch, cfg, step):
    """One optimizer step on the values, with the weights of the policy's loss. Returns the loss."""
    objective = lambda new, entropy, tokens: value_loss(new, tokens.value, tokens.returns, cfg)
    stats = critic.update(batch, objective, cfg.max_grad_norm)
    if not math.isfinite(stats["grad_norm"]):
        common.say(f"warning: step {step}: the critic's gradient norm is {stats['grad_norm']}; its update skipped")
    return stats["loss"]


def main():
    cfg = common.parse(Config, __doc__)
    run = common.Run(cfg)
    critic = run.checkpointed["critic"] = run.new_model(kind=Critic, lr=cfg.critic_lr or 10 * cfg.lr)
    for step in run.steps():
        run.sync()
        rollouts = run.sample()
        rewards = run.reward(rollouts)
        # --- the algorithm ---------------------------------------------------------------------------------
        adv = judge(rollouts, rewards, critic, cfg)
        keep = torch.ones_like(rewards, dtype=torch.bool)
        # ---------------------------------------------------------------------------------------------------
        for _ in range(cfg.epochs):
            for batch in run.minibatches(rollouts, adv, keep, whole=True):  # the critic learns from all responses
                run.metrics["value_loss"] = update_critic(critic, batch, cfg, step)
                run.update(batch, token_loss)
        run.log(rollouts, rewards)


if __name__ == "__main__":
    main()
