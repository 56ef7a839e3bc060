"""What an audit against verl, OpenRLHF and TRL found: each test states the number or the rule that the others share."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import common
import grpo
import iterative_dpo
import ppo
import raft
import raft_pp
import reinforce_rej
from core.minibatches import split
from core.rollout import Rollouts
from core.sampler import TorchSampler

RPP = replace(reinforce_rej.Config(), reject="none", baseline="batch", normalize="batch")


# ------------------------------------------------------------------------------------------------ Reinforce++
def test_reinforce_pp_whitens_over_tokens():
    """39 right answers of 600 tokens, 61 wrong ones of 1,000. Over tokens: mean (23,400 - 61,000) / 84,400 = -0.4455,
    std sqrt(1 - 0.4455^2) = 0.8953. Over responses it would be +1.26 and -0.79."""
    rewards = torch.tensor([1.0] * 39 + [0.0] * 61).view(25, 4)
    lengths = torch.where(rewards > 0, 600, 1000)
    adv, keep = reinforce_rej.advantages(rewards, RPP, lengths)
    assert keep.all()
    assert adv[rewards > 0].unique().tolist() == pytest.approx([1.6145], abs=1e-3)
    assert adv[rewards == 0].unique().tolist() == pytest.approx([-0.6193], abs=1e-3)
    tokens = adv.flatten().repeat_interleave(lengths.flatten()).double()
    assert tokens.mean().item() == pytest.approx(0, abs=1e-6) and tokens.std().item() == pytest.approx(1, abs=1e-5)


def test_without_lengths_each_response_counts_once():
    rewards = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 1]])
    one, _ = reinforce_rej.advantages(rewards, RPP)
    other, _ = reinforce_rej.advantages(rewards, RPP, torch.full((2, 4), 7))
    signs = 2 * rewards - 1
    assert torch.allclose(one, (signs - signs.mean()) / (signs.std() + 1e-6))
    assert torch.allclose(one, other, rtol=0.1), "equal lengths: only Bessel's correction differs"


def test_rejected_responses_are_not_in_the_batch_statistics():
    rewards = torch.tensor([[1.0, 0], [1, 1]])
    cfg = replace(RPP, reject="both", normalize="none")
    adv, keep = reinforce_rej.advantages(rewards, cfg, torch.tensor([[10, 30], [500, 500]]))
    assert keep.tolist() == [[True, True], [False, False]]
    assert adv[0].tolist() == [1.5, -0.5], "mean over 40 tokens: (10 - 30) / 40 = -1/2"


# ------------------------------------------------------------------------------------------------ PPO
def test_whitening_does_not_blow_up_rounding():
    x = torch.tensor([1.0, 1.0 + 1e-6, 1.0 - 1e-6, 1.0])
    assert ppo.whiten(x).abs().max() < 0.05
    assert ppo.whiten(torch.tensor([1.0, 2, 3])).tolist() == pytest.approx([-1, 0, 1], abs=1e-6)
    assert ppo.whiten(torch.full((4,), 0.3)).tolist() == [0, 0, 0, 0]


def test_the_critic_learns_also_when_every_advantage_is_0(train, tmp_path, monkeypatch):
    """All are right in the first step: the critic says 0, which is wrong by 1; the policy has nothing to learn."""
    monkeypatch.setattr("core.rewards.verify_all", lambda pairs: [True] * len(pairs))
    losses = []
    real = ppo.update_critic

    def update_critic(*args):
        losses.append(real(*args))
        return losses[-1]

    flags = ["--prompts_per_step", 4, "--steps", 2, "--eval_data", "", "--updates_per_step", 1]
    assert train(tmp_path / "run", *flags, module=ppo, update_critic=update_critic) == 0
    assert losses[0] == pytest.approx(0.5), "half of (0 - 1) squared"
    assert len(losses) == 2 and losses[1] < losses[0]


# ------------------------------------------------------------------------------------------------ DPO
def test_dpo_shuffles_each_epoch_and_repeats_with_the_seed(train, tmp_path):
    orders = []

    class Run(common.Run):
        def minibatches(self, *args, order=None, **how):
            orders.append(order)
            return super().minibatches(*args, order=order, **how)

    flags = ["--prompts_per_step", 7, "--steps", 1, "--eval_data", "", "--updates_per_step", 2, "--epochs", 3]
    for seed in (0, 0, 1):
        shim = SimpleNamespace(**{**vars(common), "Run": Run})
        assert train(tmp_path / "run", *flags, "--seed", seed, module=iterative_dpo, common=shim) == 0
    assert all(sorted(order) == list(range(7)) for order in orders) and len(orders) == 9
    assert len({tuple(order) for order in orders[:3]}) == 3
    assert orders[:3] == orders[3:6] != orders[6:]


# ------------------------------------------------------------------------------------------------ normalisation
def some_rollouts(lengths, n):
    responses = [(np.arange(k), np.full(k, -1.0), np.full(k, 0.5), True) for k in lengths]
    problems = [dict(prompt=np.array([1]), text="", answer="") for _ in range(len(lengths) // n)]
    return Rollouts(problems, responses)


def weights_of(module, rewards, lengths, norm):
    """Sum of the weights of each prompt's tokens in one update, and the advantages."""
    cfg = replace(module.Config(), loss_norm=norm, updates_per_step=1)
    rollouts = some_rollouts(lengths, rewards.shape[1])
    adv, keep = module.advantages(rewards, cfg)
    ((rows, _),) = split(rollouts, adv, keep, cfg)
    tokens = rollouts.tokens
    sums = [tokens.weight[rollouts.batch.token_index([i])].sum().item() for i in range(len(lengths))]
    return sums, rows.tolist()


def test_all_tokens_divides_by_what_was_rejected_too():
    """Prompt 1 mixed (2 + 4 tokens), prompt 2 all right (6 + 8). Reinforce-Rej keeps 6 of 20 tokens."""
    rewards, lengths = torch.tensor([[1.0, 0], [1, 1]]), [2, 4, 6, 8]
    kept, rows = weights_of(reinforce_rej, rewards, lengths, "token")
    assert kept == pytest.approx([2 / 6, 4 / 6, 0, 0]) and rows == [0, 1]
    every, rows = weights_of(reinforce_rej, rewards, lengths, "all_tokens")
    assert every == pytest.approx([2 / 20, 4 / 20, 6 / 20, 8 / 20]) and rows == [0, 1]
    silent, rows = weights_of(grpo, rewards, lengths, "token")
    assert silent == pytest.approx(every) and rows == [0, 1], "so the two methods then differ in their advantages alone"


@pytest.mark.parametrize("module", [raft, raft_pp])
def test_a_rejected_response_in_the_batch_has_no_gradient_of_its_own(module):
    new = torch.zeros(2, requires_grad=True)
    tokens = SimpleNamespace(old=torch.zeros(2), adv=torch.tensor([1.0, 0.0]))
    module.token_loss(new, tokens, module.Config()).sum().backward()
    assert new.grad.tolist() == [-1, 0]


def test_with_all_tokens_the_kl_term_also_sees_rejected_responses():
    cfg = replace(raft.Config(), loss_norm="all_tokens", updates_per_step=1, kl_coef=0.1)
    rollouts = some_rollouts([2, 4], 2)
    adv, keep = raft.advantages(torch.tensor([[1.0, 0.0]]), cfg)
    ((rows, _),) = split(rollouts, adv, keep, cfg)
    assert rows.tolist() == [0, 1] and rollouts.tokens.adv.tolist() == [1, 1, 0, 0, 0, 0]


# ------------------------------------------------------------------------------------------------ KL in the loss
def test_the_gradients_of_k2_and_k3():
    """Over a policy p with reference r, both exact: the mean of k2's gradient under p is that of KL(p || r), the mean
    of k3's that of KL(r || p)."""
    logits = torch.tensor([0.3, -0.2, 1.0, 0.0], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64).log()
    grad = lambda loss: torch.autograd.grad(loss, logits)[0]
    logp = logits.log_softmax(0)
    p = logp.exp()
    reverse = grad((p * (logp - ref)).sum())
    forward = grad((ref.exp() * (ref - logits.log_softmax(0))).sum())
    for estimator, expected in ((common.kl_k2, reverse), (common.kl_k3, forward)):
        logp = logits.log_softmax(0)
        sampled = grad((logp.exp().detach() * estimator(logp, ref)).sum())
        assert torch.allclose(sampled, expected, atol=1e-12)
    assert not torch.allclose(forward, reverse, atol=1e-2)


def test_kl_loss_chooses_the_estimator(train, tmp_path):
    def loss(kind):
        flags = ["--prompts_per_step", 5, "--steps", 2, "--eval_data", "", "--kl_coef", 5, "--kl_loss", kind]
        assert train(tmp_path / kind, *flags) == 0
        return (tmp_path / kind / "metrics.jsonl").read_text().splitlines()[-1]

    assert loss("k2") != loss("k3")


# ------------------------------------------------------------------------------------------------ old logprobs
@pytest.fixture
def inexact(monkeypatch):
    """The torch sampler, said to be inexact and without entropies, as vLLM is; and how many rows each pass has had."""
    passes, sample, logprobs = [], TorchSampler.sample, common.Policy.logprobs

    def sample_without_entropies(self, *args, **how):
        return [(ids, p, np.full_like(p, np.nan), end) for ids, p, _, end in sample(self, *args, **how)]

    def counted(self, batch):
        passes.append(len(batch.responses))
        return logprobs(self, batch)

    real = TorchSampler.__init__

    def init(self, *args, **how):
        real(self, *args, **how)
        self.exact = False

    monkeypatch.setattr(TorchSampler, "__init__", init)
    monkeypatch.setattr(TorchSampler, "sample", sample_without_entropies)
    monkeypatch.setattr(common.Policy, "logprobs", counted)
    return passes


def loop(**changes):
    """common, with these methods of Run changed."""
    return SimpleNamespace(**{**vars(common), "Run": type("Run", (common.Run,), changes)})


@pytest.mark.parametrize("updates", [1, 2])
def test_old_logprobs_are_computed_for_later_updates_and_a_sample_alone(train, tmp_path, monkeypatch, inexact, updates):
    """An algorithm that asks for them before the updates gets the whole pass. The updates are the same."""
    from test_runs import metrics

    monkeypatch.setattr("core.record.samples", lambda *args: [])  # which makes a pass of its own
    flags = ["--prompts_per_step", 6, "--steps", 2, "--eval_data", "", "--updates_per_step", updates]
    later, batches = [], common.Run.minibatches

    def counted(run, rollouts, adv, keep):
        found = batches(run, rollouts, adv, keep)
        rows = {row for batch in found[1:] for row in rows_of(rollouts, batch)}
        later.append(len(rows | set(rollouts.measured.tolist())))
        return found

    assert train(tmp_path / "late", *flags, common=loop(minibatches=counted)) == 0
    late, passes = metrics(tmp_path / "late"), list(inexact)
    assert passes == later and all(rows < 24 for rows in passes)
    inexact.clear()

    def all_first(run, rollouts, adv, keep):
        tokens = run.old_logprobs(rollouts)
        assert tokens.old.isfinite().all() and tokens.entropy.isfinite().all()
        return batches(run, rollouts, adv, keep)

    assert train(tmp_path / "early", *flags, common=loop(minibatches=all_first)) == 0
    assert inexact == [24, 24], "the whole batch"
    for one, other in zip(late, metrics(tmp_path / "early"), strict=True):
        assert one.keys() == other.keys() and one["mismatch"] < 1e-5 and math.isfinite(one["entropy"])
        for name in one:
            assert one[name] == other[name] or one[name] == pytest.approx(other[name], rel=2e-5, abs=2e-5), name


def rows_of(rollouts, batch) -> list[int]:
    """Which rows of the rollouts a part of their batch is."""
    return np.searchsorted(rollouts.batch.starts, batch.index.numpy()[batch.starts], side="right") - 1


def test_batches_can_be_used_in_any_order(train, tmp_path, inexact):
    """The update that comes first moves the policy; the old logprobs of the other batch are those from before."""
    batches, seen = common.Run.minibatches, []

    def reverse(run, rollouts, adv, keep):
        copy = Rollouts(rollouts.problems, rollouts.responses)
        copy.prepare(1, False, [])
        copy.old.fill(run.policy, range(len(rollouts.responses)))
        found = batches(run, rollouts, adv, keep)[::-1]
        seen.extend((batch, copy.old.values[0, batch.index]) for batch in found)
        return found

    flags = ["--prompts_per_step", 8, "--steps", 1, "--eval_data", "", "--updates_per_step", 2]
    assert train(tmp_path / "run", *flags, common=loop(minibatches=reverse)) == 0
    assert len(seen) == 2
    for batch, old in seen:
        assert torch.allclose(batch.values["old"], old, atol=1e-5)
