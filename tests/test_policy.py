"""policy.py: packing changes nothing, micro-batches and ranks change nothing, and memory stays within its knobs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import TORCHRUN, cpu_seconds, output_of
from transformers import (AutoModelForCausalLM, GenerationConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config,
                          Qwen2ForCausalLM)

import core.packing as packing
import core.policy as policy_module
from core.packing import Pack
from core.minibatches import plan
from core.policy import Policy
from core.minibatches import token_weights
from core.rollout import Batch

TINY = str(Path(__file__).parents[1] / "models/tiny")
ROUNDING = 2e-6  # in fp32, of a whole gradient, relative: 3e-7 were measured with AVX2, AVX-512 and plain code
SIZE = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=97)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random models: Qwen2 with tied embeddings, and Llama with grouped-query attention and a head of its own."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    qwen2 = Qwen2ForCausalLM(Qwen2Config(**SIZE, num_key_value_heads=4, tie_word_embeddings=True))
    qwen2.save_pretrained(root / "qwen2")
    llama = LlamaForCausalLM(LlamaConfig(**SIZE, num_key_value_heads=2, tie_word_embeddings=False))
    llama.save_pretrained(root / "llama")
    return {"qwen2": str(root / "qwen2"), "llama": str(root / "llama"), "tiny": TINY}


def some_batch(rows=12, vocab=97, seed=0, longest=40):
    rng = np.random.default_rng(seed)
    ids = lambda low, high: rng.integers(3, vocab, rng.integers(low, high))
    batch = Batch([ids(2, 15) for _ in range(rows)], [ids(1, longest) for _ in range(rows)])
    count = int(batch.ends[-1])
    batch.values = dict(adv=torch.from_numpy(rng.normal(size=count)).float(), old=torch.full((count,), -4.0))
    return batch


def surrogate(new, entropy, tokens):
    """A clipped policy-gradient loss, so that the gradient depends on old and adv as in training."""
    ratio = (new - tokens.old).exp()
    return -torch.minimum(ratio * tokens.adv, ratio.clamp(0.8, 1.2) * tokens.adv)


def gradients(folder, batch, tokens_per_micro, norm="token", **how):
    """The gradient of one update, by parameter name."""
    lengths = [len(r) for r in batch.responses]
    batch.values["weight"] = token_weights(lengths, norm, max_new_tokens=64)
    policy = Policy(folder, "cpu", lr=1e-3, tokens_per_micro=tokens_per_micro, **how)
    found = {}

    def step():
        for name, p in policy.lm.named_parameters():
            grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
            found[name] = grad.clone()

    policy.optimizer.step = step
    policy.update(batch, surrogate, max_grad_norm=1e9)
    return found


def torchrun(script, ranks) -> str:
    """What a script prints that so many processes run, none of which may fail."""
    return output_of(*TORCHRUN[:-1], ranks, script)


def distance(a, b):
    """|a - b| / |b| over all parameters."""
    norm = lambda xs: torch.stack([x.double().norm() for x in xs]).norm()
    return (norm([a[n] - b[n] for n in b]) / norm(b.values())).item()


# ------------------------------------------------------------------------------------------------ packing
@pytest.mark.parametrize("name", ["qwen2", "llama", "tiny"])
def test_packed_logprobs_and_gradient_equal_each_sequence_alone(folders, name):
    batch = some_batch(rows=9)
    policy = Policy(folders[name], "cpu", lr=1e-3, temperature=0.7, tokens_per_micro=10**6)
    alone = AutoModelForCausalLM.from_pretrained(folders[name], dtype=torch.float32, attn_implementation="eager")
    expected, entropies = [], []
    for prompt, response in zip(batch.prompts, batch.responses):
        logits = alone(torch.tensor(np.concatenate([prompt, response]))[None]).logits[0] / 0.7
        logp = logits[len(prompt) - 1 : -1].log_softmax(-1)  # the token after position p is predicted at p
        expected.append(logp.gather(1, torch.tensor(response)[:, None])[:, 0])
        entropies.append(-(logp.exp() * logp).sum(-1))
    logprobs, entropy = policy.logprobs(batch)
    torch.testing.assert_close(logprobs, torch.cat(expected).detach(), atol=1e-4, rtol=0)  # of tokens at -20 nats
    torch.testing.assert_close(entropy, torch.cat(entropies).detach(), atol=6e-5, rtol=0)

    (torch.cat(expected) * batch.values["adv"]).sum().backward()
    batch.values["weight"] = torch.ones_like(batch.values["adv"])
    found = {}
    policy.optimizer.step = lambda: found.update({n: p.grad.clone() for n, p in policy.lm.named_parameters()})
    policy.update(batch, lambda new, entropy, tokens: new * tokens.adv, max_grad_norm=1e9)
    assert distance(found, {n: p.grad for n, p in alone.named_parameters()}) < 1e-5


def varlen_of_torch_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None,
                         window_size=(-1, -1)):
    """What the documentation says of the CUDA kernel, one sequence at a time."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32 and cu_seq_q.tolist() == cu_seq_k.tolist()
    ends, heads = cu_seq_q.tolist(), query.shape[1] // key.shape[1]
    assert ends[0] == 0 and ends[-1] == len(query) == len(key) == len(value)
    assert max_q == max_k == np.diff(ends).max() and window_size == (-1, 0)
    assert all(x.dim() == 3 and x.stride(-1) == 1 for x in (query, key, value))
    out = []
    for i, j in zip(ends, ends[1:]):
        q, k, v = query[i:j], key[i:j].repeat_interleave(heads, 1), value[i:j].repeat_interleave(heads, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        scores = scores.masked_fill(torch.ones(j - i, j - i).triu(1).bool(), float("-inf"))
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v))
    return torch.cat(out)


def varlen_of_torch_2_13(query, key, value, *args, enable_gqa=False, **how):
    assert enable_gqa or query.shape[1] == key.shape[1]
    return varlen_of_torch_2_11(query, key, value, *args, **how)


@pytest.mark.parametrize("kernel, recompute", [
    (varlen_of_torch_2_11, 1), (varlen_of_torch_2_13, 1), (varlen_of_torch_2_13, 2)])
@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_the_layout_for_the_cuda_kernel_gives_the_same_gradient(folders, name, kernel, recompute, monkeypatch):
    """What CUDA computes but for its kernel: a stand-in for that, a copy of the prompt for each response, and blocks
    that are computed again in the backward pass."""
    batch = some_batch()
    batch.prompts = [batch.prompts[i // 4] for i in range(12)]
    expected, built = gradients(folders[name], batch, 10**6), []

    class CudaPack(Pack):
        def __init__(self, batch, rows, device):
            super().__init__(batch, rows, device, whole=True)
            built.append(self)

    monkeypatch.setattr(policy_module, "Pack", CudaPack)
    monkeypatch.setattr(packing.varlen, "varlen_attn", called := mock.create_autospec(kernel, side_effect=kernel))
    monkeypatch.setattr(packing, "GROUPED", packing.grouped_heads(kernel))
    how = dict(gradient_checkpointing_kwargs=dict(use_reentrant=False), every_n_layers=recompute)
    monkeypatch.setattr(Policy, "place", lambda self, *args: self.lm.gradient_checkpointing_enable(**how))
    assert distance(gradients(folders[name], batch, 150), expected) < ROUNDING
    micros = len(built) - 1  # the first pack is the probe's, which is not recomputed
    assert called.call_count == 2 + (2 + 2 // recompute) * micros > 6  # of 2 layers, all or one computed twice
    assert built[0].ids.shape[1] == built[0].cu_seqlens[-1]


def test_responses_that_share_a_prompt_equal_responses_with_copies_of_it(folders):
    """On the CPU a prompt is computed once for all of its responses (the same array); the gradient must not notice."""
    copied = some_batch(rows=12)
    copied.prompts = [copied.prompts[i // 5].copy() for i in range(12)]  # 5 + 5 + 2 responses
    shared = Batch([copied.prompts[5 * (i // 5)] for i in range(12)], copied.responses, dict(copied.values))
    assert Pack(shared, list(range(12)), "cpu").ids.shape[1] < Pack(copied, list(range(12)), "cpu").ids.shape[1]
    for name in ("qwen2", "llama"):
        for budget in (10**6, 150):
            found, expected = gradients(folders[name], shared, budget), gradients(folders[name], copied, 10**6)
            assert distance(found, expected) < ROUNDING


@pytest.mark.parametrize("name", ["qwen2", "llama"])
def test_prompts_that_begin_alike_equal_prompts_of_their_own(folders, name, monkeypatch):
    """The examples in a template stand in the row once for all prompts; neither logprobs nor the gradient notice."""
    batch, begin = some_batch(rows=12), np.arange(3, 33)
    prompts = [np.concatenate([begin, batch.prompts[i]]) for i in range(4)]
    batch.prompts = [prompts[i // 3] for i in range(12)]
    short = Pack(batch, list(range(12)), "cpu")
    policy = Policy(folders[name], "cpu")
    logprobs, gradient = policy.logprobs(batch), gradients(folders[name], batch, 10**6)
    parted = gradients(folders[name], batch, 100)
    monkeypatch.setattr(packing, "shared_start", lambda prompts: 0)
    assert Pack(batch, list(range(12)), "cpu").ids.shape[1] == short.ids.shape[1] + 3 * len(begin)
    torch.testing.assert_close(policy.logprobs(batch), logprobs, atol=1e-5, rtol=1e-5)
    expected = gradients(folders[name], batch, 10**6)
    assert distance(gradient, expected) < ROUNDING and distance(parted, expected) < ROUNDING


def test_responses_to_a_prompt_stay_together_while_they_fit(folders, monkeypatch):
    """Micro-batches of 60 tokens: prompts of 20 tokens, four responses of 10 each, fill one each."""
    rows, prompts = [], [np.arange(3, 23) + i for i in range(3)]
    batch = Batch([prompts[i // 4] for i in range(12)], [np.arange(5, 15)] * 12)
    pack = mock.Mock(side_effect=lambda batch, chosen, device: rows.append(chosen) or Pack(batch, chosen, device))
    policy = Policy(folders["qwen2"], "cpu", tokens_per_micro=60)
    monkeypatch.setattr(policy_module, "Pack", pack)
    policy.logprobs(batch)
    assert sorted(rows) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    rows.clear()
    policy.tokens_per_micro = 45
    policy.logprobs(batch)
    assert sorted(map(len, rows)) == [2] * 6 and all(a // 4 == b // 4 for a, b in rows)


def test_the_end_token_is_trained_and_a_prompt_token_never_is():
    """Raising the probability of every response token must raise the end token's, and leave the prompt's alone, even
    though the prompt here is made of the very tokens of the response, end token included."""
    end = 5
    batch = Batch([np.array([7, end, 8, 9])], [np.array([8, 9, end])], dict(weight=torch.ones(3)))
    policy = Policy(TINY, "cpu", lr=1e-3)
    seen = []
    policy.update(batch, lambda new, entropy, tokens: seen.append(new.detach().clone()) or -new)
    assert seen[0].shape == (3,)  # 3 response tokens, end token included; 4 prompt tokens have no logprob at all
    after = policy.logprobs(batch)[0]
    assert (after > seen[0]).all()
    prompt_only = Batch([np.array([7])], [np.array([end, 8, 9])])
    before = Policy(TINY, "cpu").logprobs(prompt_only)[0]
    assert not torch.allclose(before, policy.logprobs(prompt_only)[0])  # the weights did move, through the response


def test_ids_beyond_the_tokenizer_have_no_probability(folders):
    batch = some_batch(vocab=50)
    policy = Policy(folders["qwen2"], "cpu", vocab=50)
    alone = AutoModelForCausalLM.from_pretrained(folders["qwen2"], dtype=torch.float32)
    prompt, response = batch.prompts[0], batch.responses[0]
    logits = alone(torch.tensor(np.concatenate([prompt, response]))[None]).logits[0, len(prompt) - 1 : -1, :50]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
    torch.testing.assert_close(policy.logprobs(batch)[0][: len(response)], expected.detach(), atol=1e-5, rtol=0)


def test_chunked_logprobs_equal_unchunked(folders):
    batch = some_batch()
    policy = Policy(folders["llama"], "cpu", lr=1e-3)
    whole = policy.logprobs(batch)[0]
    policy.chunk_logits = 97 * 7  # seven tokens at a time, the last chunk shorter
    torch.testing.assert_close(policy.logprobs(batch)[0], whole, atol=5e-6, rtol=0)
    chunked = Policy(folders["llama"], "cpu", lr=1e-3)
    chunked.chunk_logits = 97 * 7
    batch.values["weight"] = token_weights([len(r) for r in batch.responses], "token", 64)
    norms = [p.update(batch, surrogate)["grad_norm"] for p in (chunked, Policy(folders["llama"], "cpu", lr=1e-3))]
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_the_heads_gradient_is_summed_over_chunks_in_fp32(folders, monkeypatch):
    """In bf16, 64 chunks of which each adds about as much as the others: a bf16 sum would lose the small parts of later
    ones. Against the gradient in fp32 of the same bf16 weights, what is left is the error of single products."""
    torch.manual_seed(0)
    hidden, targets = torch.randn(512, 32), torch.randint(0, 97, (512,))
    policy = Policy(folders["llama"], "cpu", lr=1e-3)

    def gradient(dtype, size):
        weight = policy.lm.lm_head.weight
        weight.data, weight.grad = weight.data.bfloat16().to(dtype), None
        x = hidden.bfloat16().to(dtype).requires_grad_()
        out = (policy_module.Chunks.apply(policy.head, size, targets, False, x, *policy.head_parameters())
               if size else policy.head(x, targets, False))
        (-out[0].float()).mean().backward()
        return weight.grad.double(), x.grad.double()

    exact, exact_x = gradient(torch.float32, 0)
    chunked, chunked_x = gradient(torch.float32, 8)
    far = lambda x, y: (x - y).norm() / y.norm()
    assert far(chunked, exact) < ROUNDING and far(chunked_x, exact_x) < ROUNDING
    ours, _ = gradient(torch.bfloat16, 8)
    weight = policy.lm.lm_head.weight
    naive = torch.zeros_like(weight)
    for x, y in zip(hidden.bfloat16().split(8), targets.split(8)):
        loss = -policy.head(x, y, False)[0].float().sum() / 512
        naive += torch.autograd.grad(loss, weight)[0]  # as autograd adds up
    error = lambda g: ((g.double() - exact).norm() / exact.norm()).item()
    assert error(ours) < 0.6 * error(naive) and error(ours) < 5e-3


# ------------------------------------------------------------------------------------------------ normalisation
@pytest.mark.parametrize("norm", ["token", "sequence", "constant"])
def test_gradient_does_not_depend_on_the_micro_batches(folders, norm):
    batch = some_batch()
    whole = gradients(folders["llama"], batch, 10**6, norm)
    for budget in (1, 64, 150):  # 1: no sequence fits, so each is a micro-batch of its own
        assert distance(gradients(folders["llama"], batch, budget, norm), whole) < ROUNDING


GRADIENTS = """
import sys, torch
sys.path[:0] = [{tests!r}, {root!r}]
from core.processes import rank, start_processes
from test_policy import BATCHES, gradients, some_batch
device = start_processes()
found = [gradients({folder!r}, some_batch(rows), 40, norm, shard_size={shard_size}) for rows, norm in BATCHES]
torch.save(found, {out!r}) if rank() == 0 else None
"""
BATCHES = [(rows, norm) for rows in (3, 12) for norm in ("token", "sequence", "constant")]
SHARDS = """
import resource
import ppo
from core.policy import Policy
from transformers import AutoModel, AutoModelForCausalLM

def refuse(*args, **kwargs):
    raise AssertionError("only rank 0 reads the weights")

read = AutoModelForCausalLM.from_pretrained, AutoModel.from_pretrained
if rank():
    AutoModelForCausalLM.from_pretrained = AutoModel.from_pretrained = refuse
for folder in {folders!r}:
    models = Policy(folder, device, lr=1e-3), ppo.Critic(folder, device, lr=1e-3)
    alone = [one(folder) for one in read]
    for model, reference in zip(models, alone):
        state = dict(reference.named_parameters())
        mine = dict(model.weights())
        assert [x for x in mine if x not in state] == ["value.weight", "value.bias"] * (model is models[1])
        assert all(torch.equal(tensor, state.get(name, torch.zeros_like(tensor))) for name, tensor in mine.items())
        assert len(mine) == len(list(model.parameters())) and len(mine) >= len(state)
        for (name, buffer), (_, other) in zip(model.lm.named_buffers(), reference.named_buffers(), strict=True):
            assert torch.equal(buffer, other), name
    assert models[0].lm.generation_config.eos_token_id == alone[0].generation_config.eos_token_id
del models, alone
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Policy({large!r}, device)
grown = torch.tensor([0.0, 0.0])
grown[rank()] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10
torch.distributed.all_reduce(grown)
print("grown", *grown.tolist()) if rank() == 0 else None
"""


def gradients_of_ranks(script, folder, ranks, shard_size=0, more=""):
    """The gradients that so many ranks compute of BATCHES, and what they print."""
    tests = str(Path(__file__).parent)
    out = str(script.with_suffix(".pt"))
    how = dict(tests=tests, root=str(Path(tests).parent), folder=folder, shard_size=shard_size, out=out)
    script.write_text(GRADIENTS.format(**how) + more)
    text = torchrun(script, ranks)
    return torch.load(out), text


@pytest.fixture(scope="module")
def two_ranks(folders, tmp_path_factory):
    """What two ranks of gloo found out, in one start of torchrun: gradients, what they printed, the MiB of a model."""
    GenerationConfig(eos_token_id=[5, 7]).save_pretrained(folders["llama"])  # which its config.json does not tell
    root = tmp_path_factory.mktemp("ranks")
    shape = dict(hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8, vocab_size=97)
    large = LlamaForCausalLM(LlamaConfig(**shape))
    large.save_pretrained(root / "large")
    more = SHARDS.format(folders=list(folders.values()), large=str(root / "large"))
    found, text = gradients_of_ranks(root / "ranks.py", folders["qwen2"], 2, more=more)
    return found, text, sum(p.numel() for p in large.parameters()) * 4 / 2**20


def assert_as_alone(folder, found):
    for (rows, norm), gradient in zip(BATCHES, found, strict=True):
        assert distance(gradient, gradients(folder, some_batch(rows), 10**6, norm)) < ROUNDING


def test_gradient_does_not_depend_on_the_number_of_ranks(folders, two_ranks):
    """FSDP2 on two ranks against this process, for the three normalisations; 3 rows leave one rank idle once."""
    assert_as_alone(folders["qwen2"], two_ranks[0])


@pytest.mark.slow
def test_two_copies_of_the_state_on_two_ranks_each(folders, tmp_path):
    assert_as_alone(folders["qwen2"], gradients_of_ranks(tmp_path / "ranks.py", folders["qwen2"], 4, shard_size=2)[0])


def test_only_rank_0_reads_the_weights_and_hands_out_the_shards(two_ranks):
    """Policies and critics of two ranks have the folder's weights, buffers and end tokens; a model of 108 MB makes
    rank 1 grow by less than its size, as it never holds more than a shard, 54 MB, and a tensor."""
    _, text, size = two_ranks
    first, second = map(float, re.findall(r"grown (\S+) (\S+)", text)[0])
    assert second < 0.8 * size < first


# ------------------------------------------------------------------------------------------------ plan
def test_plan_by_hand():
    """Lengths 5, 4, 3, 3 with a budget of 8 on one rank: 15 tokens need two micro-batches, 5 + 3 and 4 + 3."""
    assert sorted(map(sorted, (m[0] for m in plan([5, 4, 3, 3], 8, 1)))) == [[0, 3], [1, 2]]


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_plan_uses_each_row_once_within_the_budget_and_equally_often_on_every_rank(ranks):
    lengths = np.random.default_rng(0).integers(1, 90, 50).tolist() + [500]
    micros = plan(lengths, 100, ranks)
    assert all(len(column) == ranks for column in micros)
    assert sorted(i for column in micros for rows in column for i in rows) == list(range(51))
    for rows in (rows for column in micros for rows in column):
        assert sum(lengths[i] for i in rows) <= 100 or rows == [50]
    assert micros == plan(lengths, 100, ranks)


def test_plan_with_fewer_rows_than_ranks_leaves_ranks_idle():
    assert sorted(len(rows) for rows in plan([9, 8], 100, 4)[0]) == [0, 0, 1, 1]


def test_plan_at_scale_is_quick_and_balanced():
    """8,192 heavy-tailed rollouts (mean about 900 tokens, at most 4,096) on 64 ranks. They take about 45 times as long
    as 512; if the time were quadratic, they would take 256 times as long."""
    lengths = np.minimum(np.random.default_rng(0).lognormal(6.4, 0.9, 8192).astype(int) + 20, 4096).tolist()
    few = cpu_seconds(lambda: plan(lengths[:512], 16384, 64))
    assert cpu_seconds(lambda: plan(lengths, 16384, 64)) < 110 * few
    micros = plan(lengths, 16384, 64)
    loads = np.array([[sum(lengths[i] for i in rows) for rows in column] for column in micros])
    assert loads.sum(0).max() <= 1.05 * loads.sum(0).mean()
    assert loads.max() <= 16384


# ------------------------------------------------------------------------------------------------ update
def test_update_is_adamw_on_the_clipped_gradient(folders):
    batch = some_batch()
    batch.values["weight"] = token_weights([len(r) for r in batch.responses], "token", 64)
    policy = Policy(folders["qwen2"], "cpu", lr=1e-2)
    before = {n: p.detach().clone() for n, p in policy.lm.named_parameters()}
    raw = gradients(folders["qwen2"], batch, 10**6)
    norm = policy.update(batch, surrogate, max_grad_norm=0.01)["grad_norm"]
    assert norm == pytest.approx(torch.stack([g.norm() for g in raw.values()]).norm().item(), rel=1e-5)
    for name, p in policy.lm.named_parameters():
        g = raw[name] * (0.01 / norm)
        expected = before[name] * (1 - 1e-2 * 0.01) - 1e-2 * g / (g.abs() + 1e-8)  # the first step of AdamW
        torch.testing.assert_close(p.detach(), expected, atol=2e-4, rtol=1e-3)


def test_a_gradient_that_is_not_finite_changes_nothing(folders):
    batch = some_batch()
    batch.values["weight"] = torch.full_like(batch.values["adv"], float("nan"))
    policy = Policy(folders["qwen2"], "cpu", lr=1e-2)
    before = [p.detach().clone() for p in policy.parameters()]
    assert not np.isfinite(policy.update(batch, surrogate)["grad_norm"])
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters()))


def test_saved_model_is_an_ordinary_folder(folders, tmp_path):
    policy = Policy(folders["qwen2"], "cpu", lr=1e-2)
    policy.save_pretrained(tmp_path)
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path).named_parameters())
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in policy.weights())


# ------------------------------------------------------------------------------------------------ memory
def peak_growth(folder, small, large, tokens_per_micro, vocab):
    """MiB by which the peak memory of a fresh process grows from an update on the small batch to one on the large."""
    code = f"""
import resource, sys, torch
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
from test_policy import Policy, peak, some_batch, surrogate, token_weights
policy = Policy({folder!r}, "cpu", lr=1e-3, tokens_per_micro={tokens_per_micro})
peaks = []
for rows in ({small}, {small}, {large}):
    batch = some_batch(rows, {vocab})
    batch.values["weight"] = token_weights([len(r) for r in batch.responses], "token", 64)
    policy.update(batch, surrogate)
    peaks.append(peak())
print(peaks[2] - peaks[1])
"""
    env = dict(os.environ, MALLOC_MMAP_THRESHOLD_="1048576")  # freed blocks go back: live memory, not fragments, counts
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


def peak():
    """MiB. Not ru_maxrss, which a process inherits from the one that started it: pytest's peak would hide growth."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


@pytest.mark.slow
def test_memory_of_an_update_does_not_grow_with_tokens_times_vocabulary(tmp_path):
    """150,000 tokens of vocabulary: the logits of 100 more responses would take 1.2 GB, once."""
    Qwen2ForCausalLM(Qwen2Config(**SIZE | dict(vocab_size=150_000, num_key_value_heads=4))).save_pretrained(tmp_path)
    assert peak_growth(str(tmp_path), 50, 150, 10**6, 150_000) < 100


@pytest.mark.slow
def test_memory_of_an_update_does_not_grow_with_the_number_of_responses(folders):
    """640 responses fill about twenty micro-batches of 1,000 tokens, 1,280 forty."""
    assert peak_growth(folders["tiny"], 640, 1280, 1000, 97) < 25
