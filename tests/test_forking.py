"""What a copy of an algorithm may use of the run, beyond what the six do: its own values of tokens, old logprobs,
rollouts that are not from the policy, a learning rate that changes, state of its own in checkpoints, an order of the
prompts.

Whole copies, README's among them, and what is said to slips in them are in test_forks.py."""

import contextlib
import importlib.util
import math
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ROOT, assert_same_run, error_line, metrics, output_of, read

import common
import grpo
import iterative_dpo
import raft
from conftest import FEW
from core import data, record
from core.minibatches import split
from core.rollout import Rollouts


# ------------------------------------------------------------------------------------------------ helpers
@pytest.fixture
def open_run(small, tmp_path):
    """open_run(flags...): a run of GRPO or another module in its first step, for a test that is the loop itself."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with contextlib.ExitStack() as stack:

        def make(*flags, module=grpo, **how):
            argv = [*small, *FEW, "--steps", "99", "--out", str(tmp_path / "run"), *map(str, flags)]
            run = common.Run(common.parse(module.Config, "doc", argv), **how)
            steps = run.steps()
            stack.callback(steps.close)
            next(steps)
            run.again = steps
            return run

        yield make
    for number, handler in handlers.items():
        signal.signal(number, handler)


def sampled(run, **how) -> Rollouts:
    """Graded rollouts of the next problems, with old logprobs."""
    rollouts = run.sample(**how)
    run.reward(rollouts)
    run.old_logprobs(rollouts)
    return rollouts


def everything(rollouts, adv=1.0):
    """This advantage for all responses, all of which are kept."""
    shape = rollouts.lengths.shape
    return torch.full(shape, adv), torch.ones(shape, dtype=torch.bool)


def one_batch(run, rollouts, *how, **more):
    run.cfg.updates_per_step = 1
    (batch,) = run.minibatches(rollouts, *(how or everything(rollouts)), **more)
    return batch


def row_of(run, rollouts) -> dict:
    """The row of metrics.jsonl that log() has completed."""
    run.log(rollouts, torch.zeros(rollouts.lengths.shape))
    record.write_row(run)
    return read(run.folder / "metrics.jsonl")[-1]


# ------------------------------------------------------------------------------------------------ values of tokens
def test_what_token_loss_is_given(open_run):
    """In micro-batches of two or three responses; `mine` is the fork's own: the number of the response in the batch."""
    run, seen = open_run("--tokens_per_micro", 120, "--reference", "true"), []
    rollouts = sampled(run)
    number = torch.arange(28)
    rollouts.tokens.mine = rollouts.per_token(number)
    adv = number.view(7, 4) + 1.0

    def token_loss(new, tokens, cfg):
        seen.append((new.detach(), tokens))
        return -new * tokens.adv

    run.update(one_batch(run, rollouts, adv, torch.ones(7, 4, dtype=torch.bool)), token_loss)
    assert len(seen) > 5
    lengths, starts = rollouts.lengths.flatten(), rollouts.batch.starts
    for new, tokens in seen:
        mine = tokens.mine[tokens.position == 0]  # the responses of this micro-batch, in its order
        assert tokens.response.tolist() == np.repeat(np.arange(len(mine)), lengths[mine]).tolist()  # none is parted
        assert tokens.position.tolist() == [i for k in lengths[mine] for i in range(k)]
        at = torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in mine])
        for name in ("old", "ref", "sampler", "entropy", "mine", "weight"):
            assert torch.equal(getattr(tokens, name), getattr(rollouts.tokens, name)[at]), name
        assert tokens.adv.tolist() == (tokens.mine + 1).tolist()
        assert tokens.on_policy.all()
        assert torch.allclose(new, tokens.old, atol=1e-4)  # nothing is updated yet, so this is the policy that sampled
    assert sorted(torch.cat([tokens.mine[tokens.position == 0] for _, tokens in seen]).tolist()) == number.tolist()
    assert torch.allclose(rollouts.tokens.weight, torch.tensor(1 / int(lengths.sum())))


def test_old_logprobs_ref_and_entropy_are_there_before_the_algorithm(open_run):
    run = open_run("--reference", "true")
    rollouts = sampled(run)
    logprobs, entropy = run.policy.logprobs(rollouts.batch)
    assert torch.allclose(rollouts.tokens.old, logprobs, atol=1e-4)
    assert torch.allclose(rollouts.tokens.entropy, entropy, atol=1e-4)
    assert torch.allclose(rollouts.tokens.ref, logprobs, atol=1e-4)  # in the first step the policy is the reference


def test_an_inexact_sampler_gets_the_trainers_values(open_run, monkeypatch):
    """Here one that has no entropies and whose logprobs are 0.1 too low, as vLLM's may be on a GPU."""
    run = open_run()
    monkeypatch.setattr(run.sampler, "exact", False)
    rollouts = run.sample()
    rollouts.tokens.sampler -= 0.1
    rollouts.entropies[:] = math.nan
    run.reward(rollouts)
    run.old_logprobs(rollouts)
    logprobs, entropy = run.policy.logprobs(rollouts.batch)
    assert torch.equal(rollouts.tokens.old, logprobs) and torch.equal(rollouts.tokens.entropy, entropy)
    assert row_of(run, rollouts)["mismatch"] == pytest.approx(0.1, abs=1e-4)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("name, words", [("old", ""), ("entropy", ""), ("ref", ", with --reference true,")])
def test_what_is_read_before_it_is_computed_is_one_line(open_run, monkeypatch, capsys, name, words, exact):
    """With either sampler alike; so a fork that was tried with one of them works with the other."""
    run = open_run()
    monkeypatch.setattr(run.sampler, "exact", exact)
    rollouts = run.sample()
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        getattr(rollouts.tokens, name)
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"error: tokens.{name} is not computed yet; call run.old_logprobs(rollouts){words} before you read it\n")
    with pytest.raises(AttributeError, match="tokens has no 'mine'; it has sampler"):
        print(rollouts.tokens.mine)
    assert name == "ref" or len(getattr(run.old_logprobs(rollouts), name)) == rollouts.lengths.sum()


def test_more_responses_after_an_update_are_refused(open_run, monkeypatch, capsys):
    """The policy has moved: what it was for them is not known any more. Unless all were asked for in time."""
    run = open_run()
    monkeypatch.setattr(run.sampler, "exact", False)
    for asked in (True, False):
        rollouts = run.sample()
        run.reward(rollouts)
        adv, keep = everything(rollouts)
        half = keep & (torch.arange(7) < 3)[:, None]
        if asked:
            run.old_logprobs(rollouts)
        run.update(one_batch(run, rollouts, adv, half), grpo.token_loss)
        assert len(run.minibatches(rollouts, adv, half)) == 1
        if asked:
            assert len(run.minibatches(rollouts, adv, keep)) == 1
            run.log(rollouts, torch.zeros(7, 4))
            next(run.again)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run.minibatches(rollouts, adv, keep)
    assert stop.value.code == 2
    assert error_line(capsys) == (
        "error: step 2: log pi_old of these responses was not computed before the policy moved; call "
        "run.old_logprobs(rollouts) before the first update")


def rows_of(batch, rollouts) -> list[int]:
    """Which rows of the rollouts a part of their batch is."""
    return np.unique(np.searchsorted(rollouts.batch.starts, batch.index.numpy(), side="right") - 1).tolist()


@pytest.fixture
def passes(monkeypatch):
    """The batches of the passes of the policy without a gradient."""
    found, logprobs = [], common.Policy.logprobs
    monkeypatch.setattr(common.Policy, "logprobs", lambda self, batch: (found.append(batch), logprobs(self, batch))[1])
    return found


# Prompts 0, 2, 4 and 5 are mixed. In the order of sampling, the first update has the prompts 0 to 3.
REWARDS = torch.tensor([[int(x) for x in word] for word in "1000 0000 1110 1111 0010 1011 0000".split()])


def measured_by_hand() -> list[int]:
    """In a first step with 28 responses: those of the prompt in the middle, which are recorded, and one by chance."""
    return sorted({12, 13, 14, 15, int(np.random.default_rng(1).permutation(28)[0])})


def test_grpos_pass_has_the_rows_of_later_updates_and_the_measured_ones(open_run, monkeypatch, passes):
    """No row of the first update, and none without an advantage."""
    run = open_run()
    monkeypatch.setattr(run.sampler, "exact", False)
    rollouts = run.sample()
    run.reward(rollouts)
    batches = run.minibatches(rollouts, *grpo.advantages(REWARDS.float(), run.cfg))
    assert [rows_of(batch, rollouts) for batch in batches] == [[0, 1, 2, 3, 8, 9, 10, 11], list(range(16, 24))]
    assert [rows_of(batch, rollouts) for batch in passes] == [sorted({*range(16, 24), *measured_by_hand()})]
    for batch in batches:
        run.update(batch, grpo.token_loss)
    assert len(passes) == 1
    assert rollouts.measured.tolist() == measured_by_hand()
    known = {*range(16, 24), *measured_by_hand(), 0, 1, 2, 3, 8, 9, 10, 11}  # the first update has seen its own
    assert np.flatnonzero(rollouts.old.known).tolist() == sorted(known)


def test_two_epochs_of_dpo_have_one_pass_over_later_updates_and_the_measured_rows(open_run, monkeypatch, passes):
    """The second epoch's updates are other ones, but of the same pairs, whose old logprobs are known by then."""
    run = open_run("--samples_per_prompt", 4, module=iterative_dpo)
    monkeypatch.setattr(run.sampler, "exact", False)
    rollouts = run.sample()
    run.reward(rollouts)
    chosen, rejected = iterative_dpo.pairs(REWARDS.float(), run.generator)
    pair, adv = torch.zeros(28, dtype=torch.long), torch.zeros(28)
    pair[chosen] = pair[rejected] = torch.arange(4)
    adv[chosen], adv[rejected] = 1, -1
    rollouts.tokens.pair, keep = rollouts.per_token(pair), (adv != 0).view(7, 4)
    pairs = dict(zip((0, 2, 4, 5), zip(chosen.tolist(), rejected.tolist())))  # of each mixed prompt
    before = run.policy.logprobs(rollouts.batch)[0]
    passes.clear()
    for order in ([6, 5, 4, 3, 2, 1, 0], [0, 5, 2, 4, 1, 3, 6]):
        batches = run.minibatches(rollouts, adv.view(7, 4), keep, together=True, order=order)
        mixed = [i for i in order if i in pairs]
        assert [rows_of(batch, rollouts) for batch in batches] == [
            sorted([*pairs[i], *pairs[j]]) for i, j in (mixed[:2], mixed[2:])]
        for batch in batches:
            run.update(batch, iterative_dpo.token_loss)
    assert [rows_of(batch, rollouts) for batch in passes] == [sorted({*pairs[2], *pairs[0], *measured_by_hand()})]
    for batch in batches:  # of the second epoch
        assert torch.allclose(batch.values["old"], before[batch.index], atol=1e-5)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_in_any_order_of_the_batches_old_is_the_policy_before_the_first_update(open_run, monkeypatch, order):
    """As old_logprobs() gives it at once, of the same responses."""
    run, seen = open_run("--lr", 1e-2, "--updates_per_step", 3), []
    monkeypatch.setattr(run.sampler, "exact", False)
    rollouts = run.sample()
    run.reward(rollouts)
    at_once = run.old_logprobs(Rollouts(rollouts.problems, rollouts.responses))
    rollouts.tokens.place = torch.arange(len(at_once.old))

    def token_loss(new, tokens, cfg):
        seen.append((tokens.place, torch.stack([tokens.old, tokens.entropy, new.detach()])))
        return grpo.token_loss(new, tokens, cfg)

    batches = run.minibatches(rollouts, *everything(rollouts))
    for i in order:
        run.update(batches[i], token_loss)
    place, values = torch.cat([x for x, _ in seen]), torch.cat([x for _, x in seen], 1)
    assert place.sort().values.tolist() == list(range(len(at_once.old)))
    assert torch.allclose(values[0], at_once.old[place], atol=1e-5)
    assert torch.allclose(values[1], at_once.entropy[place], atol=1e-5)
    last = len(batches[order[2]].index)
    assert (values[2, -last:] - at_once.old[place[-last:]]).abs().max() > 0.1, "by then the policy has moved"


def test_an_update_that_sees_old_logprobs_itself_hands_them_on(open_run, monkeypatch):
    """Two epochs, as in PPO and DPO: in the second one, old is what the policy was before the first update."""
    run = open_run("--lr", 1e-2)
    monkeypatch.setattr(run.sampler, "exact", False)
    rollouts = run.sample()
    run.reward(rollouts)
    before = run.policy.logprobs(rollouts.batch)[0]
    for epoch in range(2):
        for batch in run.minibatches(rollouts, *everything(rollouts)):
            run.update(batch, grpo.token_loss)
            if epoch:
                assert torch.allclose(batch.values["old"], before[batch.index], atol=1e-4)
    assert (run.policy.logprobs(rollouts.batch)[0] - before).abs().max() > 0.1


@pytest.mark.parametrize("exact", [True, False])
def test_a_batch_can_be_used_twice(open_run, monkeypatch, exact):
    """Two epochs over the same batches. `ref` is there too, because it enters the loss."""
    run, seen = open_run("--lr", 1e-2, "--kl_coef", 0.1), []
    monkeypatch.setattr(run.sampler, "exact", exact)
    rollouts = run.sample()
    run.reward(rollouts)
    before = run.policy.logprobs(rollouts.batch)[0]
    rollouts.tokens.place = torch.arange(len(before))

    def token_loss(new, tokens, cfg):
        seen.append((tokens.place, tokens.old, tokens.ref))
        return grpo.token_loss(new, tokens, cfg)

    batches = run.minibatches(rollouts, *everything(rollouts))
    for batch in [*batches, *batches]:
        run.update(batch, token_loss)
    place, old, ref = (torch.cat(x) for x in zip(*seen))
    assert place.sort().values.tolist() == np.repeat(np.arange(len(before)), 2).tolist()
    assert torch.allclose(old, before[place], atol=1e-5) and torch.allclose(ref, before[place], atol=1e-5)


def test_old_logprobs_after_an_update_are_refused(open_run, monkeypatch, capsys):
    """They would be those of another policy. The same for log() of rollouts that were in no update."""
    run = open_run()
    monkeypatch.setattr(run.sampler, "exact", False)
    rollouts, other = run.sample(), run.sample()
    run.reward(rollouts), run.reward(other)
    adv, keep = everything(rollouts)
    run.update(one_batch(run, rollouts, adv, keep & (torch.arange(7) < 3)[:, None]), grpo.token_loss)
    for late in (lambda: run.old_logprobs(rollouts), lambda: run.log(other, torch.zeros(7, 4))):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            late()
        assert stop.value.code == 2 and "before the policy moved" in error_line(capsys)


def test_the_clip_fractions_of_a_hard_mask_by_hand(open_run):
    """A mask in place of a clip: a token whose ratio has left [0.98, 1.01] is not learned from, whatever its advantage.
    Counted are such tokens with an advantage, as shares of the kept tokens of all updates. The first token of each
    response has none here, and the last prompt is rejected. Two epochs of two updates: the first is at ratio 1."""
    run, seen = open_run("--lr", 1e-3), []
    rollouts = sampled(run)
    first = torch.cat([torch.arange(k) == 0 for k in rollouts.lengths.flatten()])
    sign = torch.tensor([1, 1, -1, -1, 1, -1, 1.0])[:, None].expand(7, 4)
    keep = (torch.arange(7) < 6)[:, None].expand(7, 4)

    def mask(new, tokens, cfg):
        ratio = (new - tokens.old).exp()
        seen.extend(zip((new - tokens.old).tolist(), tokens.adv.tolist()))
        return torch.where((ratio > 0.98) & (ratio < 1.01), -ratio * tokens.adv, 0)

    for _ in range(2):
        for batch in run.minibatches(rollouts, rollouts.per_token(sign) * ~first, keep):
            run.update(batch, mask)
    low = sum(adv < 0 and not 0.98 < math.exp(moved) < 1.01 for moved, adv in seen)
    high = sum(adv > 0 and not 0.98 < math.exp(moved) < 1.01 for moved, adv in seen)
    kept = 2 * int(rollouts.lengths[:6].sum())
    assert len(seen) == kept and low > 20 and high > 20
    assert sum(adv == 0 and not 0.98 < math.exp(moved) < 1.01 for moved, adv in seen) > 0  # which do not count
    row = row_of(run, rollouts)
    assert (row["clip_low"] * kept, row["clip_high"] * kept) == pytest.approx((low, high), abs=1e-6)
    assert [int(clipped.sum()) for _, clipped in run.meter.passes][0] == 0


def test_a_metric_of_ones_own(open_run):
    """A tensor of one number counts as a number."""
    run = open_run()
    run.metrics["temperature"], run.metrics["share"] = 0.7, torch.tensor(0.25)
    row = row_of(run, sampled(run))
    assert (row["temperature"], row["share"]) == (0.7, 0.25)


# ------------------------------------------------------------------------------------------------ other rollouts
def test_other_problems_leave_the_data_cursor_alone_but_draw_new_random_numbers(open_run):
    run = open_run()
    first = run.sample()
    assert run.state["drawn"] == 7
    same = [run.sample(problems=first.problems[:2]) for _ in range(2)]
    assert run.state["drawn"] == 7 and run.state["sampled"] == 7 + 2 + 2
    texts = [[tuple(x) for x in rollouts.batch.responses[:8]] for rollouts in (first, *same)]
    assert texts[0] != texts[1] != texts[2] != texts[0]
    assert len(np.unique(np.concatenate([x.keys for x in (first, *same)]))) == 28 + 8 + 8
    following = data.draw(run.problems, 7, 7, run.cfg.seed)
    assert [p["text"] for p in run.sample().problems] == [p["text"] for p in following] and run.state["drawn"] == 14


def test_another_temperature_is_off_policy(open_run):
    run = open_run()
    assert run.sample().on_policy.all() and run.sample(temperature=1.0).on_policy.all()
    cold = run.sample(temperature=0.3)
    assert not cold.on_policy.any()
    hot = run.sample(temperature=1.5)
    assert cold.entropies.mean() < hot.entropies.mean()


def test_old_logprobs_of_rollouts_at_another_temperature_are_the_policys_at_its_own(open_run):
    """The sampler's own are at 0.5, which would count as mismatch."""
    run = open_run()
    on, off = run.sample(), run.sample(temperature=0.5)
    both = on + off
    run.reward(both)
    run.old_logprobs(both)
    off_tokens, exact = both.per_token(~both.on_policy), run.policy.logprobs(both.batch)[0]
    assert off_tokens.sum() == off.lengths.sum() and torch.allclose(both.tokens.old, exact, atol=1e-4)
    assert (off.tokens.sampler - both.tokens.old[off_tokens]).abs().mean() > 0.02
    run.update(one_batch(run, both), grpo.token_loss)
    assert 0 < len(run.meter.gap) <= on.lengths.sum() and run.meter.gap.max() < 1e-4


@pytest.mark.parametrize("source", ["temperature", "replay"])
def test_off_policy_rollouts_touch_neither_mismatch_nor_the_importance_weight(open_run, monkeypatch, source):
    """An engine whose logprobs are ln 1.5 too low: the truncated importance weight of its tokens is 1.5, so a loss of 1
    for each token is 1.5 on average; but 1 for those that are not on-policy."""
    run = open_run()
    monkeypatch.setattr(run.sampler, "exact", False)
    on = run.sample()
    if source == "replay":  # right answers of an earlier step, say
        off = Rollouts(on.problems[:3], on.responses[:12], on_policy=torch.zeros(3, 4, dtype=torch.bool))
    else:
        off = run.sample(temperature=0.5)
    both = on + off
    both.tokens.sampler -= math.log(1.5)
    run.reward(both)
    run.old_logprobs(both)
    run.update(one_batch(run, both), lambda new, tokens, cfg: torch.ones_like(new) + 0 * new)
    share = float(on.lengths.sum() / both.lengths.sum())
    row = row_of(run, both)
    assert row["loss"] == pytest.approx(1.5 * share + 1 - share, rel=1e-4)
    assert row["mismatch"] == pytest.approx(math.log(1.5), abs=1e-4) == row["mismatch_max"]


def test_rollouts_of_a_teacher_alone_have_no_mismatch(train, tmp_path):
    flags = ["--steps", 1, "--updates_per_step", 1, "--teacher", "tiny-badcode"]
    assert train(tmp_path / "run", *FEW, *flags, module=raft) == 0
    (row,) = metrics(tmp_path / "run")
    assert row["mismatch"] is None and row["grad_norm"] > 0 and row["ratio_max"] == pytest.approx(1, abs=1e-4)


# ------------------------------------------------------------------------------------------------ order and together
def test_minibatches_in_an_order_of_ones_own(open_run):
    """The hardest first, say; each prompt is in the update that the order says."""
    run = open_run()
    rollouts = sampled(run)
    order = [6, 5, 4, 3, 2, 1, 0]
    one, two = run.minibatches(rollouts, *everything(rollouts), order=order)
    texts = lambda batch: [tuple(x) for x in batch.responses]
    every = texts(rollouts.batch)
    assert texts(one) == sum((every[4 * i : 4 * i + 4] for i in order[:4]), [])
    assert texts(two) == sum((every[4 * i : 4 * i + 4] for i in order[4:]), [])


def group_loss(new, tokens, cfg):
    """A loss that needs all responses to a prompt at once: the square of the mean log-ratio of the prompt's tokens."""
    ones = torch.ones_like(new)
    mean = common.sum_by(tokens.group, (new - tokens.old) * tokens.adv) / common.sum_by(tokens.group, ones).clamp(min=1)
    return (mean - 0.5)[tokens.group] ** 2


def test_together_the_responses_of_a_prompt_are_never_parted(tiny_path):
    """So the gradient is the same in micro-batches of any size; without it, it is not."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 20, (15,), generator=generator).tolist()
    ids = [torch.randint(5, 90, (k,), generator=generator).numpy() for k in lengths]
    problems = [dict(prompt=torch.randint(5, 90, (4,), generator=generator).numpy()) for _ in range(5)]
    keep = torch.rand(5, 3, generator=generator) < 0.8
    adv = torch.randn(5, 3, generator=generator)

    def gradient(tokens_per_micro, together):
        rollouts = Rollouts(problems, [(x, np.zeros(len(x)), np.zeros(len(x)), True) for x in ids])
        rollouts.tokens.old = torch.full((sum(lengths),), -4.0)
        rollouts.tokens.group = rollouts.per_token(torch.arange(5)[:, None].expand(5, 3))
        cfg = replace(grpo.Config(), updates_per_step=1)
        (part,) = split(rollouts, adv, keep, cfg, together=together)
        batch = rollouts.batch.select(*part)
        policy = common.Policy(tiny_path, "cpu", lr=1e-3, tokens_per_micro=tokens_per_micro)
        policy.optimizer.zero_grad = lambda: None
        policy.update(batch, lambda new, entropy, tokens: group_loss(new, tokens, cfg), 1e9)
        return torch.cat([p.grad.flatten() for p in policy.parameters()])

    whole = gradient(10_000, True)
    for tokens in (1, 50):
        assert (gradient(tokens, True) - whole).norm() / whole.norm() < 1e-5
    assert (gradient(1, False) - whole).norm() / whole.norm() > 0.1


# ------------------------------------------------------------------------------------------------ whole forks
EDITS = {
    "for _ in run.steps():": "for step in run.steps():\n        run.lr = cfg.lr / step",
    "    run = common.Run(cfg)":
        "    run = common.Run(cfg)\n    memory, notes = Memory(), {}\n"
        "    run.checkpointed.update(memory=memory, notes=notes)",
    "        # --- the algorithm":
        "        memory.add(rollouts)\n        notes['rewards'] = [*notes.get('rewards', []), rewards.mean().item()]\n"
        "        run.metrics['remembered'] = memory.sum.sum()\n        # --- the algorithm",
    "def main():": '''class Memory:
    """State of the fork's own, to the last bit."""

    def __init__(self):
        self.sum, self.draws = torch.zeros(3, dtype=torch.float64), []

    def add(self, rollouts):
        self.sum += rollouts.tokens.sampler.double().mean() / 3
        self.draws.append(torch.rand(()).item())

    def state_dict(self):
        return dict(sum=self.sum, draws=self.draws)

    def load_state_dict(self, state):
        self.sum, self.draws = state["sum"], state["draws"]


def main():''',
}


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """A copy of grpo.py, far from it, with a schedule for the learning rate and state of its own."""
    text = (ROOT / "grpo.py").read_text()
    for old, new in EDITS.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    file = tmp_path_factory.mktemp("elsewhere") / "mine.py"
    file.write_text(text)
    spec = importlib.util.spec_from_file_location("mine", file)
    module = sys.modules["mine"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rates(optimizer_of):
    return [group["lr"] for group in optimizer_of.optimizer.param_groups]


def test_a_schedule_and_own_state_survive_a_resume(train, fork, tmp_path, monkeypatch):
    """Straight on, and stopped after the second of four steps: the same to the last bit, own state included."""
    flags, used = [*FEW, "--save_every", 1], []
    update = common.Policy.update
    spy = lambda policy, *args, **how: (update(policy, *args, **how), used.append(rates(policy)))[0]
    monkeypatch.setattr(common.Policy, "update", spy)
    assert train(tmp_path / "one", *flags, "--steps", 4, module=fork) == 0
    assert train(tmp_path / "two", *flags, "--steps", 2, module=fork) == 0
    assert train(tmp_path / "two", *flags, "--steps", 4, "--resume", module=fork) == 0
    assert_same_run(tmp_path / "two", tmp_path / "one", 4)
    rows = metrics(tmp_path / "one")
    assert [row["lr"] for row in rows] == [1e-4, 1e-4 / 2, 1e-4 / 3, 1e-4 / 4]
    assert sorted({rate for one in used for rate in one}) == pytest.approx([1e-4 / step for step in (4, 3, 2, 1)])
    state, notes = (torch.load(tmp_path / f"two/step_000004/{name}.pt") for name in ("memory", "notes"))
    assert len(state["draws"]) == len(set(state["draws"])) == 4
    assert state["sum"].sum().item() == rows[-1]["remembered"]
    assert notes["rewards"] == pytest.approx([row["reward"] for row in rows])


@pytest.mark.slow
def test_the_option_fork(fork, problems_file, tmp_path):
    """Five tests on the script alone, from a working directory of its own; more flags may follow its name."""
    command = [sys.executable, "-m", "pytest", "-v", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    text = output_of(*command, "--fork", f"{fork.__file__} --data {problems_file} --seed 3", PYTHONPATH="")
    passed = [line.split("::")[1].split("[")[0] for line in text.splitlines() if " PASSED" in line]
    assert "5 passed" in text and "[mine]" in text and len(passed) == len(set(passed)) == 5
    words = ("resumed", "micro_batches", "two_processes", "unknown_flag", "missing_data")
    assert all(sum(word in name for name in passed) == 1 for word in words)


@pytest.mark.slow
def test_the_option_fork_without_such_a_file(tmp_path):
    command = [sys.executable, "-m", "pytest", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    with pytest.raises(AssertionError, match="--fork nowhere.py: there is no file"):
        output_of(*command, "--fork", "nowhere.py")
