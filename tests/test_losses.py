"""The pieces that the algorithms share: which prompts are mixed, the clipped ratio, sums by group, the KL estimate."""

import math
from types import SimpleNamespace

import pytest
import torch

import common
import grpo
import iterative_dpo
import raft
from core import meter

CLIP = SimpleNamespace(clip=True, clip_low=0.2, clip_high=0.2, dual_clip=0.0)
DUAL = SimpleNamespace(clip=True, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
FREE = SimpleNamespace(clip=False, clip_low=0.2, clip_high=0.2, dual_clip=0.0)
HIGHER = SimpleNamespace(clip=True, clip_low=0.1, clip_high=0.28, dual_clip=0.0)


# ------------------------------------------------------------------------------------------------ rejection
def test_all_correct_all_wrong_and_mixed():
    """Mixed means that the rewards differ, whatever they are: 0.2 and 0.7 can be compared, -1 and -1 can't. Right is
    what is above a half, for all: with a graded check 0.2 is wrong and 0.7 is right."""
    rewards = torch.tensor([[0.0, 0], [0, 1], [1, 1], [0.2, 0.7], [-1, -1]])
    assert common.all_correct(rewards).tolist() == [False, False, True, False, False]
    assert common.all_wrong(rewards).tolist() == [True, False, False, False, True]
    assert common.mixed(rewards).tolist() == [False, True, False, True, False]
    assert common.mixed(rewards, 1).tolist() == [False, True, False, False, False]
    assert raft.advantages(rewards, None)[1].tolist() == (rewards > 0.5).tolist()
    chosen, rejected = iterative_dpo.pairs(rewards, torch.Generator())
    assert (chosen.tolist(), rejected.tolist()) == ([3, 7], [2, 6])


# ------------------------------------------------------------------------------------------------ the clipped ratio
def loss_and_gradient(ratio, adv, cfg):
    """Loss and d(loss)/d(new) of one token. Where nothing binds the loss is -s A and so is its derivative."""
    new = torch.tensor([ratio], dtype=torch.float64).log().requires_grad_()
    loss = common.clipped_loss(new, torch.zeros(1, dtype=torch.float64), torch.tensor([adv], dtype=torch.float64), cfg)
    loss.sum().backward()
    return loss.item(), new.grad.item()


@pytest.mark.parametrize("ratio, adv, loss, gradient", [
    (1.0, 2.0, -2.0, -2.0),
    (1.1, 2.0, -2.2, -2.2),  # inside the band
    (1.5, 2.0, -2.4, 0.0),  # raised enough: clipped at 1.2
    (0.5, 2.0, -1.0, -1.0),  # a good token that fell is pulled back: min takes the unclipped side
    (1.1, -2.0, 2.2, 2.2),
    (0.5, -2.0, 1.6, 0.0),  # lowered enough: clipped at 0.8
    (1.5, -2.0, 3.0, 3.0),  # a bad token that rose is pushed down, without bound
    (1.5, 0.0, 0.0, 0.0),
])
def test_clipped_loss_by_hand(ratio, adv, loss, gradient):
    assert loss_and_gradient(ratio, adv, CLIP) == pytest.approx((loss, gradient))


@pytest.mark.parametrize("ratio, adv, loss, gradient", [
    (2.9, -2.0, 5.8, 5.8),  # below the third bound
    (5.0, -2.0, 6.0, 0.0),  # at most 3 x |A|, and no gradient there
    (0.5, -2.0, 1.6, 0.0),  # the lower clip as before
    (5.0, 2.0, -2.4, 0.0),  # positive advantages are as before
    (0.1, 2.0, -0.2, -0.2),
])
def test_dual_clip_by_hand(ratio, adv, loss, gradient):
    assert loss_and_gradient(ratio, adv, DUAL) == pytest.approx((loss, gradient))


@pytest.mark.parametrize("ratio", [0.1, 0.9, 1.0, 1.5, 7.0])
@pytest.mark.parametrize("adv", [-2.0, 3.0])
def test_without_clip_the_loss_is_minus_ratio_times_advantage(ratio, adv):
    assert loss_and_gradient(ratio, adv, FREE) == pytest.approx((-ratio * adv, -ratio * adv))


def reference_loss(new, old, adv, cfg) -> float:
    """One token, in Python's own floats and as the papers print it."""
    ratio = 2.718281828459045 ** (new - old)
    if not cfg.clip:
        return -ratio * adv
    clipped = min(max(ratio, 1 - cfg.clip_low), 1 + cfg.clip_high)
    value = min(ratio * adv, clipped * adv)
    if cfg.dual_clip and adv < 0:
        value = max(value, cfg.dual_clip * adv)
    return -value


@pytest.mark.parametrize("cfg", [CLIP, DUAL, FREE, HIGHER], ids=["clip", "dual", "free", "clip-higher"])
def test_clipped_loss_against_an_independent_one(cfg):
    random = torch.Generator().manual_seed(0)
    old = -3 * torch.rand(500, generator=random, dtype=torch.float64)
    new = (old + 0.6 * torch.randn(500, generator=random, dtype=torch.float64)).requires_grad_()
    adv = torch.randn(500, generator=random, dtype=torch.float64)
    loss = common.clipped_loss(new, old, adv, cfg)
    expected = [reference_loss(*token, cfg) for token in zip(new.tolist(), old.tolist(), adv.tolist())]
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)

    loss.sum().backward()
    ratio = (new.detach() - old).exp()
    binds = ((adv > 0) & (ratio > 1 + cfg.clip_high)) | ((adv < 0) & (ratio < 1 - cfg.clip_low))
    if cfg.dual_clip:
        binds |= (adv < 0) & (ratio > cfg.dual_clip)
    binds &= torch.tensor(cfg.clip)
    assert binds.sum() > 50 or not cfg.clip
    assert torch.equal(new.grad == 0, binds)  # exactly there and nowhere else
    assert torch.allclose(new.grad[~binds], (-ratio * adv)[~binds], atol=1e-6)


def clipped(new, adv, cfg, token_loss=grpo.token_loss) -> list[bool]:
    """Which tokens a loss clips, where all old logprobs are 0."""
    new = new.clone().requires_grad_()
    tokens = SimpleNamespace(old=torch.zeros(len(new)), adv=adv)
    meter.observe(token_loss)(new, tokens, cfg)
    return tokens.clipped.tolist()


def test_the_clip_stops_what_has_moved_far_enough_and_nothing_else():
    """A negative advantage that has driven a token under 0.8, and a positive one that has driven one over 1.2: these
    tokens have no gradient. Of the four outside of the band that is one each."""
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5, 0.9, 1.1, 1.0, 1.0])
    adv = torch.tensor([-1.0, 1, 1, -1, -1, 1, 1, -1])
    assert clipped(ratio.log(), adv, CLIP) == [True, False, True, False, False, False, False, False]
    assert clipped(ratio.log(), adv, FREE) == [False] * 8


def test_both_bounds_of_the_clip():
    new = torch.tensor([0.85, 1.25, 0.7, 1.4]).log()
    adv = torch.tensor([-1.0, 1, -1, 1])
    assert clipped(new, adv, HIGHER) == [True, False, True, True]


def test_the_dual_clip_stops_tokens_too():
    assert clipped(torch.tensor([2.9, 3.1]).log(), torch.tensor([-1.0, -1]), DUAL) == [False, True]


def test_a_token_without_an_advantage_is_not_clipped():
    assert clipped(torch.tensor([9.0, 9.0]), torch.tensor([0.0, 1]), CLIP) == [False, True]


def test_a_loss_without_a_clip_clips_nothing():
    assert clipped(torch.tensor([-9.0, 9.0]), torch.tensor([-1.0, 1]), CLIP, raft.token_loss) == [False, False]


def test_a_loss_that_ignores_the_policy_is_all_clip():
    constant = lambda new, tokens, cfg: tokens.adv + 0 * new.detach().requires_grad_()
    assert clipped(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 0]), CLIP, constant) == [True, False]


def test_the_full_loss_by_hand():
    """Three tokens of GRPO. The engine gave them logprobs 0.5 lower, so that e^0.5 is the importance weight; the second
    token is off-policy, and the cap of 1.5 binds. KL and entropy are added as they are."""
    new, old = torch.tensor([0.1, 0.0, 0.0]), torch.tensor([0.0, 0.0, 0.0])
    tokens = SimpleNamespace(old=old, adv=torch.tensor([1.0, 1, -2]), sampler=old - 0.5, ref=torch.tensor([0.1, 0, 1]),
                             on_policy=torch.tensor([True, False, True]))
    how = dict(vars(CLIP), tis_cap=2.0, kl_coef=0.0, kl_loss="k3", entropy_coef=0.0)
    loss = lambda **changes: common.full_loss(new, torch.tensor([3.0, 2, 1]), tokens, grpo.token_loss,
                                              SimpleNamespace(**how | changes)).tolist()
    e = math.exp(0.5)
    assert loss() == pytest.approx([-math.exp(0.1) * e, -1, 2 * e])
    assert loss(tis_cap=1.5) == pytest.approx([-math.exp(0.1) * 1.5, -1, 3])
    plain = [-math.exp(0.1), -1, 2]
    assert loss(tis_cap=0) == pytest.approx(plain)
    assert loss(tis_cap=0, kl_coef=0.5) == pytest.approx([plain[0], plain[1], plain[2] + 0.5 * (math.e - 2)])
    assert loss(tis_cap=0, kl_coef=0.5, kl_loss="k2") == pytest.approx([plain[0], plain[1], plain[2] + 0.25])
    assert loss(tis_cap=0, entropy_coef=0.1) == pytest.approx([plain[0] - 0.3, plain[1] - 0.2, plain[2] - 0.1])


# ------------------------------------------------------------------------------------------------ sums by group
def test_sum_by_hand():
    """Three responses, of 2, 3 and 1 tokens."""
    group = torch.tensor([0, 0, 1, 1, 1, 2])
    assert common.sum_by(group, torch.tensor([1.0, 2, 3, 4, 5, 6])).tolist() == [3, 12, 6]
    assert common.sum_by(torch.tensor([1, 0, 1]), torch.tensor([1.0, 2, 4])).tolist() == [2, 5]  # in any order
    assert common.sum_by(torch.tensor([2]), torch.tensor([1.5])).tolist() == [0, 0, 1.5]  # a group may be empty


def test_the_gradient_of_a_sum_reaches_each_of_its_tokens():
    """d(s_0^2 + 3 s_1) / dx: 2 s_0 = 6 for the two tokens of the first group, 3 for that of the second."""
    x = torch.tensor([1.0, 2, 5], requires_grad=True)
    sums = common.sum_by(torch.tensor([0, 0, 1]), x)
    (sums[0] ** 2 + 3 * sums[1]).backward()
    assert x.grad.tolist() == [6, 6, 3]


# ------------------------------------------------------------------------------------------------ KL
def test_kl_k3_by_hand():
    """d = ref - logprob. d = 0: 0; d = ln 2: 2 - 0.693147 - 1; d = -ln 2: 1/2 + 0.693147 - 1; beyond 10: cut at 10."""
    ref = torch.tensor([0.0, 0.693147, -0.693147, 50.0])
    kl = common.kl_k3(torch.zeros(4), ref)
    assert kl[:3].tolist() == pytest.approx([0, 0.306853, 0.193147], abs=1e-6)
    assert kl[3].item() == pytest.approx(22026.46579 - 11, rel=1e-6)


def test_kl_k3_is_never_negative_and_its_gradient_pulls_towards_the_reference():
    logprob = torch.linspace(-8, 0, 1001, dtype=torch.float64).requires_grad_()
    kl = common.kl_k3(logprob, torch.full_like(logprob, -4))
    assert (kl >= 0).all() and kl.argmin() == 500
    kl.sum().backward()
    assert (logprob.grad[:500] < 0).all() and (logprob.grad[501:] > 0).all()


def test_rounding_makes_no_kl_negative():
    """e^d - d - 1 printed -7e-10 in the first step, where policy and reference differ by rounding alone."""
    d = torch.logspace(-12, 0.5, 100_001)
    for sign in (1, -1):
        assert (common.kl_k3(torch.zeros_like(d), sign * d) >= 0).all()
    assert common.kl_k3(torch.zeros(1), torch.tensor([1e-4])).item() == pytest.approx(5e-9, rel=1e-2)


def test_kl_k3_has_the_mean_of_the_exact_kl():
    """Summed over a distribution p: sum p (r/p - log(r/p) - 1) = 1 + KL(p || r) - 1."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    r = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    exact = 0.5 * 0.9162907 + 0.3 * 0.4054651 + 0.2 * -1.0986123  # 0.3600624
    assert (p * common.kl_k3(p.log(), r.log())).sum().item() == pytest.approx(exact, abs=1e-6)


def test_the_metric_names_are_those_that_every_algorithm_shares():
    assert common.METRICS == (
        "step reward accuracy all_correct all_wrong kept loss entropy kl clip_low clip_high ratio_max grad_norm lr "
        "mismatch mismatch_max length truncated boxed verify_timeouts skipped_updates dropped time_sample time_verify "
        "time_train time_sync tokens_per_second eval_accuracy").split()
