"""The pieces that the algorithms share: which prompts are mixed, the clipped ratio, sums by group, the KL estimate."""

from types import SimpleNamespace

import pytest
import torch

import common

CLIP = SimpleNamespace(clip=True, clip_low=0.2, clip_high=0.2, dual_clip=0.0)
DUAL = SimpleNamespace(clip=True, clip_low=0.2, clip_high=0.2, dual_clip=3.0)
FREE = SimpleNamespace(clip=False, clip_low=0.2, clip_high=0.2, dual_clip=0.0)
HIGHER = SimpleNamespace(clip=True, clip_low=0.1, clip_high=0.28, dual_clip=0.0)


# ------------------------------------------------------------------------------------------------ rejection
def test_all_correct_all_wrong_and_mixed():
    """Mixed means that the rewards differ, whatever they are: 0.2 and 0.7 can be compared, -1 and -1 can't."""
    rewards = torch.tensor([[0.0, 0], [0, 1], [1, 1], [0.2, 0.7], [-1, -1]])
    assert common.all_correct(rewards).tolist() == [False, False, True, True, False]
    assert common.all_wrong(rewards).tolist() == [True, False, False, False, True]
    assert common.mixed(rewards).tolist() == [False, True, False, True, False]


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
])  # fmt: skip
def test_clipped_loss_by_hand(ratio, adv, loss, gradient):
    assert loss_and_gradient(ratio, adv, CLIP) == pytest.approx((loss, gradient))


@pytest.mark.parametrize("ratio, adv, loss, gradient", [
    (2.9, -2.0, 5.8, 5.8),  # below the third bound
    (5.0, -2.0, 6.0, 0.0),  # at most 3 x |A|, and no gradient there
    (0.5, -2.0, 1.6, 0.0),  # the lower clip as before
    (5.0, 2.0, -2.4, 0.0),  # positive advantages are as before
    (0.1, 2.0, -0.2, -0.2),
])  # fmt: skip
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


def test_clip_counts_as_ppo_does():
    """clip_low counts tokens that a negative advantage drove under 0.8, clip_high those that a positive one drove over
    1.2: the tokens without gradient, not all outside of the band. Of the four outside here one each is counted."""
    ratio = torch.tensor([0.5, 0.5, 1.5, 1.5, 0.9, 1.1, 1.0, 1.0])
    adv = torch.tensor([-1.0, 1, 1, -1, -1, 1, 1, -1])
    counts = common.clip_counts(ratio.log(), torch.zeros(8), adv, CLIP)
    assert (int(counts["clip_low"]), int(counts["clip_high"])) == (1, 1)


def test_clip_counts_use_both_bounds():
    new = torch.tensor([0.85, 1.25, 0.7, 1.4]).log()
    adv = torch.tensor([-1.0, 1, -1, 1])
    counts = common.clip_counts(new, torch.zeros(4), adv, HIGHER)
    assert (int(counts["clip_low"]), int(counts["clip_high"])) == (2, 1)


def test_an_algorithm_without_a_clip_counts_nothing():
    counts = common.clip_counts(torch.tensor([-9.0, 9.0]), torch.zeros(2), torch.tensor([-1.0, 1]), SimpleNamespace())
    assert (int(counts["clip_low"]), int(counts["clip_high"])) == (0, 0)


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
        "time_train time_sync tokens_per_second eval_accuracy").split()  # fmt: skip
