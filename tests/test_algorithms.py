"""The six algorithms: advantages and losses by hand and against independent ones, identities between the methods, and
what keeps the files comparable: the same loop in the same order, small diffs, a first screen."""

import ast
import difflib
import math
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import toy_rollouts

import common
import grpo
import iterative_dpo
import ppo
import raft
import raft_pp
import reinforce_rej
from core.minibatches import split
from core.rollout import Batch

ROOT = Path(__file__).parents[1]
ALL = [raft, raft_pp, reinforce_rej, grpo, iterative_dpo, ppo]
NAMES = [module.__name__ for module in ALL]
FOUR = ["raft", "raft_pp", "reinforce_rej", "grpo"]
REJ = reinforce_rej.Config()
PLAIN = replace(REJ, reject="none")
DPO = iterative_dpo.Config()


def tokens(old, adv, **more):
    """The tokens of a micro-batch, as far as a token_loss looks at them."""
    return SimpleNamespace(old=old, adv=adv, **more)


# Four prompts, four responses each: one right, all right, all wrong, three right.
REWARDS = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 1, 1]])


def kept_prompts(keep):
    assert (keep.all(1) == keep.any(1)).all()
    return keep.any(1).tolist()


# ------------------------------------------------------------------------------------------------ raft, raft++
@pytest.mark.parametrize("module", [raft, raft_pp])
def test_raft_keeps_the_correct_responses(module):
    adv, keep = module.advantages(REWARDS, module.Config())
    assert adv.tolist() == [[1.0] * 4] * 4
    assert keep.dtype == torch.bool and keep.tolist() == (REWARDS == 1).tolist()


def gradient(token_loss, new, old, adv, cfg):
    new = new.clone().requires_grad_()
    token_loss(new, tokens(old, adv), cfg).sum().backward()
    return new.grad


def test_raft_and_raft_pp_have_the_same_gradient_in_the_first_update():
    """The ratio is 1 there, and d(-s)/d(new) = -s = -1 = d(-new)/d(new), in every bit."""
    logprobs, adv = -torch.rand(50) * 9, torch.ones(50)
    one = gradient(raft.token_loss, logprobs, logprobs, adv, raft.Config())
    other = gradient(raft_pp.token_loss, logprobs, logprobs, adv, raft_pp.Config())
    assert one.tolist() == other.tolist() == [-1.0] * 50


def test_raft_pp_stops_where_the_ratio_is_clipped_and_raft_does_not():
    old = torch.zeros(3)
    new = torch.tensor([0.5, 1.1, 1.3]).log()  # the second update: ratios away from 1
    adv = torch.ones(3)
    assert gradient(raft_pp.token_loss, new, old, adv, raft_pp.Config()).tolist() == pytest.approx([-0.5, -1.1, 0])
    free = replace(raft_pp.Config(), clip=False)
    assert gradient(raft_pp.token_loss, new, old, adv, free).tolist() == pytest.approx([-0.5, -1.1, -1.3])
    higher = replace(raft_pp.Config(), clip_high=0.4)
    assert gradient(raft_pp.token_loss, new, old, adv, higher).tolist() == pytest.approx([-0.5, -1.1, -1.3])
    assert gradient(raft.token_loss, new, old, adv, raft.Config()).tolist() == [-1, -1, -1]


def test_raft_loss_is_the_surprise():
    assert raft.token_loss(torch.tensor([-0.5, -3.0]), tokens(None, torch.ones(2)), None).tolist() == [0.5, 3.0]


# ------------------------------------------------------------------------------------------------ reinforce-rej
@pytest.mark.parametrize("reject, kept", [
    ("none", [True, True, True, True]), ("correct", [True, False, True, True]),
    ("wrong", [True, True, False, True]), ("both", [True, False, False, True]),
])
def test_which_prompts_are_rejected(reject, kept):
    assert kept_prompts(reinforce_rej.advantages(REWARDS, replace(REJ, reject=reject))[1]) == kept


def test_the_default_is_the_papers_method():
    adv, keep = reinforce_rej.advantages(REWARDS, REJ)
    assert kept_prompts(keep) == [True, False, False, True]
    assert adv[keep].tolist() == [1, -1, -1, -1, -1, 1, 1, 1]


def test_rewards_of_0_and_1_are_turned_into_plus_and_minus_1():
    """Taken as they are, a wrong response would have no gradient, and the method would be RAFT++ without the prompts
    that are all right: this is what the released code does."""
    adv, _ = reinforce_rej.advantages(REWARDS[:1], REJ)
    new = torch.zeros(4, requires_grad=True)
    reinforce_rej.token_loss(new, tokens(torch.zeros(4), adv[0]), REJ).sum().backward()
    assert new.grad.tolist() == [-1, 1, 1, 1]  # the wrong ones go down
    raw = torch.zeros(4, requires_grad=True)
    reinforce_rej.token_loss(raw, tokens(torch.zeros(4), REWARDS[0]), REJ).sum().backward()
    assert raw.grad.tolist() == [-1, 0, 0, 0]


# One right of four: rewards 1, -1, -1, -1; mean -1/2. Bessel's std is 1. The mean of the three others: of the right one
# -1, of a wrong one (1 - 1 - 1)/3 = -1/3. Three right: the mirror image.
@pytest.mark.parametrize("flags, one_right", [
    (dict(baseline="group"), [1.5, -0.5, -0.5, -0.5]),
    (dict(baseline="leave_one_out"), [2, -2 / 3, -2 / 3, -2 / 3]),
    (dict(baseline="group", normalize="group"), [1.5, -0.5, -0.5, -0.5]),
    (dict(normalize="group"), [1, -1, -1, -1]),
])
def test_variants_by_hand(flags, one_right):
    adv, _ = reinforce_rej.advantages(REWARDS, replace(PLAIN, **flags))
    assert adv[0].tolist() == pytest.approx(one_right, abs=2e-6)
    assert adv[3].tolist() == pytest.approx([-one_right[0]] + [-x for x in one_right[1:]], abs=2e-6)


def test_two_right_of_four_divided_by_their_std():
    """Variant 6 of the paper: 1 / sqrt(4/3) = 0.866, not centred."""
    adv, _ = reinforce_rej.advantages(torch.tensor([[1.0, 1, 0, 0]]), replace(REJ, normalize="group"))
    assert adv[0].tolist() == pytest.approx([0.866025, 0.866025, -0.866025, -0.866025], abs=2e-6)


def test_the_batch_is_what_is_kept():
    """Kept with --reject both: +1 four times and -1 four times; mean 0, Bessel's std sqrt(8/7)."""
    adv, keep = reinforce_rej.advantages(REWARDS, replace(REJ, baseline="batch", normalize="batch"))
    assert adv[keep].abs().tolist() == pytest.approx([math.sqrt(7 / 8)] * 8, abs=2e-6)
    adv, keep = reinforce_rej.advantages(REWARDS[:3], replace(REJ, reject="wrong", baseline="batch"))
    assert adv[keep].tolist() == [0.75, -1.25, -1.25, -1.25, 0.75, 0.75, 0.75, 0.75]  # five of eight: mean 1/4


def random_rewards(seed=0, prompts=50, n=4):
    return torch.randint(0, 2, (prompts, n), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("n", [2, 4, 8])
def test_mean_zero_with_the_groups_std_is_grpo(n):
    rewards = random_rewards(n=n)
    ours, _ = reinforce_rej.advantages(rewards, replace(PLAIN, baseline="group", normalize="group"))
    assert torch.allclose(ours, grpo.advantages(rewards, grpo.Config())[0], atol=3e-6)


@pytest.mark.parametrize("n", [2, 4, 8])
def test_rloo_is_n_over_n_minus_1_times_mean_zero(n):
    rewards = random_rewards(n=n)
    rloo, _ = reinforce_rej.advantages(rewards, replace(PLAIN, baseline="leave_one_out"))
    signs = 2 * rewards - 1
    assert torch.allclose(rloo, n / (n - 1) * (signs - signs.mean(1, keepdim=True)), atol=1e-6)


def test_on_mixed_prompts_rejection_changes_nothing():
    rewards = random_rewards()
    rewards = rewards[common.mixed(rewards)]
    for flags in (dict(), dict(baseline="batch", normalize="batch")):
        one = reinforce_rej.advantages(rewards, replace(REJ, reject="both", **flags))
        other = reinforce_rej.advantages(rewards, replace(REJ, reject="none", **flags))
        assert torch.equal(one[0], other[0]) and one[1].all() and other[1].all()


@pytest.mark.parametrize("reward", [0.0, 1.0])
@pytest.mark.parametrize("flags", [dict(normalize="group"), dict(normalize="batch"), dict(baseline="leave_one_out"),
                                   dict(baseline="batch", normalize="batch")])
def test_without_spread_there_is_nothing_to_scale_by(reward, flags):
    adv, keep = reinforce_rej.advantages(torch.full((3, 4), reward), replace(PLAIN, **flags))
    assert keep.all() and adv.tolist() == [[0.0] * 4] * 3


@pytest.mark.parametrize("baseline", ["none", "group", "leave_one_out", "batch"])
@pytest.mark.parametrize("normalize", ["none", "group", "batch"])
@pytest.mark.parametrize("reject", ["none", "correct", "wrong", "both"])
def test_advantages_against_independent_ones(baseline, normalize, reject):
    """One response at a time, in float64."""
    rewards = random_rewards(1)
    adv, keep = reinforce_rej.advantages(rewards, replace(REJ, baseline=baseline, normalize=normalize, reject=reject))
    table = [[2.0 * x - 1 for x in row] for row in rewards.tolist()]
    kept = [not (reject in ("correct", "both") and min(row) == 1 or reject in ("wrong", "both") and max(row) == -1)
            for row in table]
    assert kept_prompts(keep) == kept
    mean = lambda xs: sum(xs) / len(xs)
    std = lambda xs: math.sqrt(sum((x - mean(xs)) ** 2 for x in xs) / (len(xs) - 1))
    everything = [x for row, k in zip(table, kept) if k for x in row]
    base = dict(none=lambda row, j: 0, group=lambda row, j: mean(row), batch=lambda row, j: mean(everything),
                leave_one_out=lambda row, j: mean(row[:j] + row[j + 1 :]))[baseline]
    table = [[x - base(row, j) for j, x in enumerate(row)] for row in table]
    everything = [x for row, k in zip(table, kept) if k for x in row]
    for i, row in enumerate(table):
        if kept[i]:
            scale = dict(none=1, group=std(row), batch=std(everything))[normalize]
            mixed = 0 < sum(rewards[i].tolist()) < 4
            expected = [x / scale if normalize != "group" or mixed else 0 for x in row] if scale else [0] * 4
            assert adv[i].tolist() == pytest.approx(expected, abs=2e-5)


# ------------------------------------------------------------------------------------------------ grpo
GRPO = grpo.Config()
DR_GRPO = replace(GRPO, std=False, loss_norm="constant")


def advantage(rewards, cfg=GRPO):
    return grpo.advantages(torch.tensor([rewards], dtype=torch.float32), cfg)[0][0].tolist()


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


@pytest.mark.parametrize("cfg", [GRPO, DR_GRPO], ids=["grpo", "dr. grpo"])
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


def test_dynamic_sampling_goes_on_until_enough_prompts_are_mixed():
    """Two are wanted. The four sampled hold one; six hold two; and after twenty it gives up."""
    cfg = replace(GRPO, dynamic_sampling=True, prompts_per_step=2)
    rewards = torch.tensor([[0.0, 0], [0, 1], [1, 1], [0, 0]])
    assert grpo.needs_more(rewards, cfg) and not grpo.needs_more(rewards, replace(cfg, dynamic_sampling=False))
    assert not grpo.needs_more(torch.cat([rewards, torch.tensor([[1.0, 0], [0, 0]])]), cfg)
    assert grpo.needs_more(torch.zeros(19, 2), cfg) and not grpo.needs_more(torch.zeros(20, 2), cfg)


def test_dynamic_sampling_keeps_the_first_mixed_prompts():
    """Six prompts were sampled to find two mixed ones; of the three found the last is one too many."""
    rewards = torch.tensor([[0.0, 0], [0, 1], [1, 1], [1, 0], [0, 0], [0, 1]])
    keep = grpo.advantages(rewards, replace(GRPO, dynamic_sampling=True, prompts_per_step=2))[1]
    assert keep.tolist() == [[False] * 2, [True] * 2, [False] * 2, [True] * 2, [False] * 2, [False] * 2]


def test_rewards_are_left_as_they_are():
    rewards = torch.tensor([[1.0, 0, 0, 0]])
    grpo.advantages(rewards, GRPO)
    assert rewards.tolist() == [[1, 0, 0, 0]]


def test_the_loss_at_ratio_1_is_minus_the_advantage_and_so_is_its_gradient():
    """This is why the printed loss is near 0 however well it learns: advantages sum to 0. The gradient does not:
    d(-s A)/d(new) = -s A, one entry a token."""
    logprob = torch.tensor([-0.1, -2.0, -0.5, -7.0])
    adv = torch.tensor([1.5, -0.5, -0.5, -0.5])
    new = logprob.clone().requires_grad_()
    loss = grpo.token_loss(new, tokens(logprob, adv), GRPO)
    assert loss.tolist() == (-adv).tolist()
    assert loss.sum().item() == 0
    loss.sum().backward()
    assert new.grad.tolist() == (-adv).tolist()


def test_clip_higher_leaves_the_lower_bound_alone():
    """DAPO: a ratio of 1.25 is over 1.2 and under 1.28; one of 0.75 is below both lower bounds."""
    old = torch.zeros(2)
    new = torch.tensor([1.25, 0.75]).log()
    adv = torch.tensor([1.0, -1.0])
    assert grpo.token_loss(new, tokens(old, adv), GRPO).tolist() == pytest.approx([-1.2, 0.8])
    assert grpo.token_loss(new, tokens(old, adv), replace(GRPO, clip_high=0.28)).tolist() == pytest.approx([-1.25, 0.8])


# ------------------------------------------------------------------------------------------------ losses
@pytest.mark.parametrize("module", [raft_pp, reinforce_rej, grpo, ppo], ids=lambda module: module.__name__)
def test_token_losses_against_an_independent_one(module):
    """Float64, one token at a time, ratios from 1/20 to 20, with and without the clip and the dual clip."""
    generator = torch.Generator().manual_seed(0)
    old = -torch.rand(300, generator=generator, dtype=torch.float64) * 5
    new = old + (torch.rand(300, generator=generator, dtype=torch.float64) - 0.5) * 6
    adv = torch.randn(300, generator=generator, dtype=torch.float64)
    for flags in (dict(), dict(clip=False), dict(clip_high=0.28), dict(dual_clip=3.0)):
        if all(hasattr(module.Config(), name) for name in flags):
            cfg = replace(module.Config(), **flags)
            expected = []
            for n, o, a in zip(new.tolist(), old.tolist(), adv.tolist()):
                s = math.exp(n - o)
                value = s * a
                if cfg.clip:
                    value = min(value, min(max(s, 1 - cfg.clip_low), 1 + cfg.clip_high) * a)
                    if flags.get("dual_clip") and a < 0:
                        value = max(value, 3.0 * a)
                expected.append(-value)
            losses = module.token_loss(new, tokens(old, adv), cfg)
            assert losses.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


# ------------------------------------------------------------------------------------------------ ppo
def test_gae_with_gamma_and_lambda_1_is_return_minus_value():
    generator = torch.Generator().manual_seed(0)
    values, rewards = torch.randn(3, 5, generator=generator), torch.randn(3, 5, generator=generator)
    lengths = torch.tensor([5, 3, 1])
    mask = (torch.arange(5) < lengths[:, None]).float()
    adv, returns = ppo.gae(rewards, values, mask, 1.0, 1.0)
    for i, n in enumerate(lengths):
        to_come = rewards[i, :n].flip(0).cumsum(0).flip(0)
        assert torch.allclose(returns[i, :n], to_come, atol=1e-6)
        assert torch.allclose(adv[i, :n], to_come - values[i, :n], atol=1e-6)
        assert adv[i, n:].abs().sum() == 0 and returns[i, n:].abs().sum() == 0


def test_gae_by_hand():
    """Two tokens, gamma 0.5, lambda 0.5, values 1 and 2, reward 4 at the end. The second token: 4 - 2 = 2. The first:
    delta = 0 + 0.5 x 2 - 1 = 0, plus 0.25 x 2 = 0.5. Returns are advantage plus value: 1.5 and 4."""
    adv, returns = ppo.gae(torch.tensor([[0.0, 4]]), torch.tensor([[1.0, 2]]), torch.ones(1, 2), 0.5, 0.5)
    assert adv.tolist() == [[0.5, 2.0]] and returns.tolist() == [[1.5, 4.0]]


def test_gae_with_lambda_0_is_one_step():
    adv, _ = ppo.gae(torch.tensor([[0.0, 0, 1]]), torch.tensor([[0.2, 0.5, 0.7]]), torch.ones(1, 3), 0.9, 0.0)
    assert adv[0].tolist() == pytest.approx([0.9 * 0.5 - 0.2, 0.9 * 0.7 - 0.5, 0.3])


def test_gae_against_the_sum_of_its_definition():
    generator = torch.Generator().manual_seed(1)
    values, rewards = (torch.randn(4, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = [7, 4, 1, 6]
    mask = (torch.arange(7) < torch.tensor(lengths)[:, None]).double()
    adv, _ = ppo.gae(rewards, values, mask, 0.97, 0.9)
    for i, n in enumerate(lengths):
        v, r = [*values[i, :n].tolist(), 0.0], rewards[i].tolist()
        deltas = [r[t] + 0.97 * v[t + 1] - v[t] for t in range(n)]
        expected = [sum((0.97 * 0.9) ** k * deltas[t + k] for k in range(n - t)) for t in range(n)]
        assert adv[i, :n].tolist() == pytest.approx(expected, rel=1e-9)


def test_whitening():
    assert ppo.whiten(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])  # Bessel's std
    assert ppo.whiten(torch.tensor([2.0, 2.0])).tolist() == [0, 0]
    assert ppo.whiten(torch.tensor([2.0])).tolist() == [0]


def test_value_loss_by_hand():
    """Value clip 0.5, value 0 when sampled, return 1. Now 0.2: both errors are 0.8. Now 2: the clipped value is 0.5,
    whose error 0.5 is below 1. Now 0.9: clipped 0.5, whose error is the larger, and a constant: no gradient."""
    new = torch.tensor([0.2, 2.0, 0.9], requires_grad=True)
    loss = ppo.value_loss(new, torch.zeros(3), torch.ones(3), ppo.Config())
    assert loss.tolist() == pytest.approx([0.32, 0.5, 0.125])
    loss.sum().backward()
    assert new.grad.tolist() == pytest.approx([-0.8, 1.0, 0.0])
    free = ppo.value_loss(new, torch.zeros(3), torch.ones(3), replace(ppo.Config(), value_clip=0.0))
    assert free.tolist() == pytest.approx([0.32, 0.5, 0.005])


class Knows:
    """A critic whose value before token t of response i is i / 10 + t."""

    def logprobs(self, batch):
        values = [i / 10 + t for i, response in enumerate(batch.responses) for t in range(len(response))]
        return torch.tensor(values), None


def test_the_critic_judges_each_token_of_each_response():
    """Rewards 1 and 0 at the ends of responses of 2 and 3 tokens; gamma = lambda = 1: advantage = reward - value."""
    rollouts = toy_rollouts([2, 3], 1)
    adv = ppo.judge(rollouts, torch.tensor([[1.0], [0.0]]), Knows(), ppo.Config())
    plain = torch.tensor([1.0, 0.0, -0.1, -1.1, -2.1])
    assert torch.allclose(adv, (plain - plain.mean()) / plain.std(), atol=1e-6)
    assert rollouts.tokens.returns.tolist() == pytest.approx([1, 1, 0, 0, 0], abs=1e-6)
    assert rollouts.tokens.value.tolist() == pytest.approx([0, 1, 0.1, 1.1, 2.1])


def test_the_critic_is_the_backbone_with_a_head_of_zeros(tiny_path):
    critic = ppo.Critic(tiny_path, "cpu", lr=1e-3)
    policy = common.Policy(tiny_path, "cpu")
    shared = dict(policy.lm.base_model.named_parameters())
    mine = dict(critic.lm.named_parameters())
    assert {name for name in mine if name not in shared} == {"value.weight", "value.bias"}
    assert all(torch.equal(mine[name], x) for name, x in shared.items())
    rows = [torch.arange(5, 5 + k).numpy() for k in (3, 4)]
    batch = Batch([torch.arange(3).numpy()] * 2, rows)
    assert critic.logprobs(batch)[0].tolist() == [0.0] * 7


def test_the_critic_learns_what_it_is_shown(tiny_path):
    """Return 1 after one prompt and 0 after another: values move to them."""
    critic = ppo.Critic(tiny_path, "cpu", lr=1e-3)
    prompts, rows = [torch.tensor([40, 41]).numpy(), torch.tensor([50, 51]).numpy()], [torch.arange(6).numpy()] * 2
    batch = Batch(prompts, rows, dict(weight=torch.full((12,), 1 / 12), value=torch.zeros(12),
                                      returns=torch.tensor([1.0] * 6 + [0.0] * 6)))
    losses = [ppo.update_critic(critic, batch, replace(ppo.Config(), value_clip=0.0), 1) for _ in range(30)]
    assert losses[0] == pytest.approx(0.25) and losses[-1] < 0.01
    values = critic.logprobs(batch)[0]
    assert values[:6].min() > 0.8 and values[6:].abs().max() < 0.2


# ------------------------------------------------------------------------------------------------ iterative dpo
def test_pairs_are_one_right_and_one_wrong_response_of_each_mixed_prompt():
    chosen, rejected = iterative_dpo.pairs(REWARDS, torch.Generator().manual_seed(0))
    assert len(chosen) == len(rejected) == 2  # two prompts are mixed
    assert chosen[0] == 0 and rejected[1] == 12  # the only right, the only wrong response
    assert rejected[0] in (1, 2, 3) and chosen[1] in (13, 14, 15)


def test_ties_are_broken_at_random_and_evenly():
    rewards = torch.tensor([[1.0, 0, 1, 0]]).repeat(4000, 1)
    chosen, rejected = iterative_dpo.pairs(rewards, torch.Generator().manual_seed(0))
    first = torch.arange(4000) * 4
    assert set((chosen - first).tolist()) == {0, 2} and set((rejected - first).tolist()) == {1, 3}
    assert abs((chosen == first).float().mean() - 0.5) < 0.04  # 5 standard errors
    again = iterative_dpo.pairs(rewards, torch.Generator().manual_seed(0))
    assert torch.equal(again[0], chosen) and torch.equal(again[1], rejected)


def test_without_a_mixed_prompt_there_is_no_pair():
    chosen, rejected = iterative_dpo.pairs(REWARDS[1:3], torch.Generator())
    assert len(chosen) == len(rejected) == 0


def pair_loss_and_gradient(chosen, rejected, cfg):
    ratios = torch.tensor([chosen, rejected], requires_grad=True)
    loss = iterative_dpo.pair_loss(ratios[:1], ratios[1:], cfg)
    loss.sum().backward()
    return loss.item(), ratios.grad.tolist()


def test_dpo_at_the_reference_is_log_2_and_pushes_chosen_up():
    """d loss / d margin = -sigmoid(0) = -1/2, times beta = 0.1."""
    loss, (chosen, rejected) = pair_loss_and_gradient(0.0, 0.0, replace(DPO, label_smoothing=0.0))
    assert loss == pytest.approx(math.log(2))
    assert chosen == pytest.approx(-0.05) and rejected == pytest.approx(0.05)


def test_label_smoothing_of_a_half_has_no_gradient_at_the_reference():
    loss, gradients = pair_loss_and_gradient(0.0, 0.0, replace(DPO, label_smoothing=0.5))
    assert loss == pytest.approx(math.log(2)) and gradients == [0, 0]


@pytest.mark.parametrize("chosen, rejected", [(3.0, -2.0), (-30.0, 25.0), (0.3, 0.1)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_pair_loss_against_an_independent_one(chosen, rejected, smoothing):
    x = 0.1 * (chosen - rejected)
    expected = (1 - smoothing) * math.log(1 + math.exp(-x)) + smoothing * math.log(1 + math.exp(x))
    loss, _ = pair_loss_and_gradient(chosen, rejected, replace(DPO, label_smoothing=smoothing))
    assert loss == pytest.approx(expected)


def test_the_weighted_token_losses_are_the_mean_over_pairs():
    """Two pairs of unequal lengths; the loss of an update is the mean of the pairs' losses, whatever the lengths."""
    rollouts = toy_rollouts([2, 3, 5, 1, 4, 2], 3)
    side = torch.tensor([[1.0, 0, -1], [0, -1, 1]])
    rollouts.tokens.side = rollouts.per_token(side)
    rollouts.tokens.pair = rollouts.per_token(torch.tensor([[0, 9, 0], [9, 1, 1]]))
    (part,) = split(rollouts, side, side != 0, replace(DPO, updates_per_step=1), together=True)
    batch = rollouts.batch.select(*part)
    assert [len(r) for r in batch.responses] == [2, 5, 4, 2] and batch.units == [[0, 1], [2, 3]]
    new = torch.randn(13, generator=torch.Generator().manual_seed(0))
    old = batch.values["sampler"]
    losses = iterative_dpo.token_loss(new, SimpleNamespace(old=old, **batch.values), DPO)
    ratio = new - old
    one = iterative_dpo.pair_loss(ratio[:2].sum(), ratio[2:7].sum(), DPO)
    two = iterative_dpo.pair_loss(ratio[11:].sum(), ratio[7:11].sum(), DPO)
    assert (batch.values["weight"] * losses).sum().item() == pytest.approx(((one + two) / 2).item(), rel=1e-6)


def test_the_loss_of_a_pair_does_not_depend_on_its_number():
    """In a micro-batch some pairs stand alone: numbers 3 and 7 give what 0 and 1 do."""
    new, old = torch.tensor([-1.0, -2, -3, -1]), torch.tensor([-2.0, -1, -1, -2])
    side = torch.tensor([1.0, -1, -1, 1])
    losses = [iterative_dpo.token_loss(new, SimpleNamespace(old=old, adv=side, pair=torch.tensor(pair)), DPO)
              for pair in ([0, 0, 1, 1], [3, 3, 7, 7])]
    assert losses[0].tolist() == losses[1].tolist()
    first = iterative_dpo.pair_loss(torch.tensor([1.0]), torch.tensor([-1.0]), DPO)
    assert losses[0][:2].tolist() == first.tolist() * 2


def test_the_pairs_gradient_does_not_depend_on_micro_batches(tiny_path):
    """A pair is never parted: its loss needs both responses."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 20, (12,), generator=generator)
    rows = [torch.randint(5, 90, (int(k),), generator=generator).numpy() for k in lengths]
    prompts = [torch.randint(5, 90, (4,), generator=generator).numpy() for _ in range(6)]
    per_token = lambda x: x.repeat_interleave(lengths)
    values = dict(pair=per_token(torch.arange(6).repeat_interleave(2)), adv=per_token(torch.tensor([1.0, -1] * 6)),
                  old=torch.full((int(lengths.sum()),), -4.0), weight=per_token(1 / (12 * lengths)))
    batch = Batch([prompts[i // 2] for i in range(12)], rows, values, [[i, i + 1] for i in range(0, 12, 2)])
    gradients = []
    for micro in (1, 50, 10_000):
        policy = common.Policy(tiny_path, "cpu", lr=1e-3, tokens_per_micro=micro)
        policy.optimizer.zero_grad = lambda: None
        policy.update(batch, lambda new, entropy, tokens: iterative_dpo.token_loss(new, tokens, DPO), 1e9)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters()]))
    for other in gradients[1:]:
        assert (other - gradients[0]).norm() / gradients[0].norm() < 1e-5


# ------------------------------------------------------------------------------------------------ n = 1
@pytest.mark.parametrize("module, flags", [
    (grpo, []), (iterative_dpo, []), (reinforce_rej, []), (reinforce_rej, ["--reject", "none", "--baseline", "group"]),
    (reinforce_rej, ["--reject", "none", "--normalize", "group"]),
    (reinforce_rej, ["--reject", "none", "--baseline", "leave_one_out"]),
])
def test_one_response_per_prompt_is_refused_where_responses_are_compared(module, flags, monkeypatch, capsys, tmp_path):
    argv = [f"{module.__name__}.py", "--out", str(tmp_path / "run"), "--samples_per_prompt", "1", *flags]
    monkeypatch.setattr("sys.argv", argv)
    with pytest.raises(SystemExit) as stop:
        module.main()
    text = capsys.readouterr().err
    assert stop.value.code == 2 and text.startswith("error: --samples_per_prompt 1") and text.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------------------------------------------ the files
def source(name):
    return (ROOT / f"{name}.py").read_text()


def body(name) -> list[str]:
    """The lines of an algorithm file but for the module docstring and the fields of Config."""
    tree, lines = ast.parse(source(name)), source(name).splitlines()
    config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Config")
    out = set(range(tree.body[0].lineno, tree.body[0].end_lineno + 1))
    out |= {n for field in config.body for n in range(field.lineno, field.end_lineno + 1)}
    return [line for number, line in enumerate(lines, 1) if number not in out]


@pytest.mark.parametrize("one, other", [(a, b) for i, a in enumerate(FOUR) for b in FOUR[i + 1 :]])
def test_two_files_differ_by_the_algorithm_alone(one, other):
    changes = [line for line in difflib.unified_diff(body(one), body(other), n=0, lineterm="")
               if line[0] in "+-" and not line.startswith(("+++", "---"))]
    assert len(changes) <= 40, "\n".join(changes)


def test_the_readme_shows_the_real_diff(tmp_path):
    """raft.py against raft_pp.py, below their docstrings, without the places that `diff` names."""
    below = [source(name).split('\n"""\n', 1)[1] for name in ("raft", "raft_pp")]
    for name, text in zip("ab", below):
        (tmp_path / name).write_text(text)
    run = subprocess.run(["diff", tmp_path / "a", tmp_path / "b"], capture_output=True, text=True)
    shown = (ROOT / "README.md").read_text().split("```diff\n")[1].split("```")[0]
    assert shown.splitlines() == [line for line in run.stdout.splitlines() if line[0] in "<>-"]


VERBS = "steps sync sample reward minibatches update log".split()


@pytest.mark.parametrize("name", NAMES)
def test_the_loop_has_the_same_verbs_in_the_same_order(name):
    main = next(node for node in ast.parse(source(name)).body if getattr(node, "name", "") == "main")
    calls = [node for node in ast.walk(main) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    calls = [node for node in calls if isinstance(node.func.value, ast.Name) and node.func.value.id == "run"]
    verbs = [node.func.attr for node in sorted(calls, key=lambda node: node.lineno)]
    if name == "grpo":  # dynamic sampling samples again
        assert verbs.count("sample") == verbs.count("reward") == 2
    verbs = [verb for verb in dict.fromkeys(verbs) if verb != "new_model"]  # PPO's critic
    assert verbs == VERBS


@pytest.mark.parametrize("name", NAMES)
def test_the_first_screen(name):
    """A formula, neighbours, three launch lines and a source within 40 lines; the algorithm between banners."""
    text = ast.get_docstring(ast.parse(source(name)))
    assert len(text.splitlines()) <= 40
    for needle in ("J = E[", "How it differs from its neighbours:", f"python {name}.py  ", "Source: ", "arXiv",
                   f"torchrun --nproc-per-node 8 {name}.py --model qwen2.5-math-7b"):
        assert needle in text, needle
    assert sum(other in text for other in NAMES if other != name) >= 2
    assert source(name).count("# --- the algorithm ---") == 1


@pytest.mark.parametrize("module", ALL, ids=NAMES)
def test_the_contract_of_names(module):
    assert issubclass(module.Config, common.Config)
    assert module.token_loss.__code__.co_varnames[:3] == ("new", "tokens", "cfg")
    if module.__name__ in FOUR:
        assert module.advantages.__code__.co_varnames[:2] == ("rewards", "cfg")
