"""The algorithm itself: advantages worked by hand, which responses are kept, and the gradient of its loss."""

from dataclasses import replace

import pytest
import torch

import grpo

CFG = grpo.Config()
DR_GRPO = replace(CFG, std=False, loss_norm="constant")


def advantage(rewards, cfg=CFG):
    return grpo.advantages(torch.tensor([rewards], dtype=torch.float32), cfg)[0][0].tolist()


# ------------------------------------------------------------------------------------------------ advantages
# n = 4, rewards -1 and +1, Bessel's std. One right: mean -1/2, deviations 3/2 and -1/2 (x 3), their squares sum to
# 9/4 + 3/4 = 3, over n - 1 = 3 the variance is 1. Two right: mean 0, squares sum to 4, std sqrt(4/3) = 1.1547.
WORKED = [
    pytest.param([1, -1, -1, -1], [1.5, -0.5, -0.5, -0.5], id="one right"),
    pytest.param([-1, 1, 1, -1], [-0.866025, 0.866025, 0.866025, -0.866025], id="two right"),
    pytest.param([1, 1, -1, 1], [0.5, 0.5, -1.5, 0.5], id="three right"),
]


@pytest.mark.parametrize("rewards, expected", WORKED)
def test_advantages_of_four_responses(rewards, expected):
    assert advantage(rewards) == pytest.approx(expected, abs=3e-6)  # the 1e-6 beside the std moves the sixth digit


@pytest.mark.parametrize("rewards, expected", WORKED)
def test_rewards_of_0_and_1_give_the_same_advantages(rewards, expected):
    assert advantage([(r + 1) / 2 for r in rewards]) == pytest.approx(expected, abs=6e-6)


def test_the_std_is_bessels():
    """Two responses, one right: deviations 1/2 and -1/2. Bessel's std is sqrt(1/2), the population's would be 1/2."""
    assert advantage([1, 0]) == pytest.approx([0.707107, -0.707107], abs=3e-6)


@pytest.mark.parametrize("cfg", [CFG, DR_GRPO], ids=["grpo", "dr. grpo"])
@pytest.mark.parametrize("reward", [0.0, 1.0, -1.0])
@pytest.mark.parametrize("n", [2, 3, 4, 7, 64])
def test_all_right_and_all_wrong_are_exactly_0(cfg, reward, n):
    """Exactly: the smallest rest of a rounded mean, divided by 1e-6, would be an advantage to be learned from."""
    assert advantage([reward] * n, cfg) == [0.0] * n


def test_without_std_the_advantage_is_the_distance_from_the_mean():
    assert advantage([1, 0, 0, 0], DR_GRPO) == [0.75, -0.25, -0.25, -0.25]


def test_each_prompt_is_judged_by_its_own_responses():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 1, 1, 1]])
    adv, keep = grpo.advantages(rewards, DR_GRPO)
    assert adv.tolist() == [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0], [-0.75, 0.25, 0.25, 0.25]]
    assert keep.dtype == torch.bool and keep.shape == (3, 4) and keep.all()


def test_mixed():
    rewards = torch.tensor([[0.0, 0], [0, 1], [1, 1], [1, 0]])
    assert grpo.mixed(rewards).tolist() == [False, True, False, True]


def test_dynamic_sampling_keeps_the_first_mixed_prompts():
    """Six prompts were sampled to find two mixed ones; of the three found the last is one too many."""
    rewards = torch.tensor([[0.0, 0], [0, 1], [1, 1], [1, 0], [0, 0], [0, 1]])
    keep = grpo.advantages(rewards, replace(CFG, dynamic_sampling=True, prompts_per_step=2))[1]
    assert keep.tolist() == [[False] * 2, [True] * 2, [False] * 2, [True] * 2, [False] * 2, [False] * 2]


def test_rewards_are_left_as_they_are():
    rewards = torch.tensor([[1.0, 0, 0, 0]])
    grpo.advantages(rewards, CFG)
    assert rewards.tolist() == [[1, 0, 0, 0]]


# ------------------------------------------------------------------------------------------------ loss
def test_the_loss_at_ratio_1_is_minus_the_advantage_and_so_is_its_gradient():
    """This is why the printed loss is near 0 however well it learns: advantages sum to 0. The gradient does not:
    d(-s A)/d(new) = -s A, one entry a token."""
    logprob = torch.tensor([-0.1, -2.0, -0.5, -7.0])
    adv = torch.tensor([1.5, -0.5, -0.5, -0.5])
    new = logprob.clone().requires_grad_()
    loss = grpo.token_loss(new, logprob, adv, CFG)
    assert loss.tolist() == (-adv).tolist()
    assert loss.sum().item() == 0
    loss.sum().backward()
    assert new.grad.tolist() == (-adv).tolist()


def test_clip_higher_leaves_the_lower_bound_alone():
    """DAPO: a ratio of 1.25 is over 1.2 and under 1.28; one of 0.75 is below both lower bounds."""
    old = torch.zeros(2)
    new = torch.tensor([1.25, 0.75]).log()
    adv = torch.tensor([1.0, -1.0])
    assert grpo.token_loss(new, old, adv, CFG).tolist() == pytest.approx([-1.2, 0.8])
    assert grpo.token_loss(new, old, adv, replace(CFG, clip_high=0.28)).tolist() == pytest.approx([-1.25, 0.8])
