"""--compile: what CUDA computes, block by block, over a stand-in for its kernel: equal gradients, few graphs."""

import functools

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.attention.varlen as varlen
from torch._dynamo.utils import counters

import core.policy as policies
from core.packing import Pack
from core.policy import Policy
from core.rollout import Batch
from transformers import LlamaConfig, LlamaForCausalLM

SHAPES = [(1, 40), (1, 60), (9, 30), (3, 10), (6, 50)]  # responses, and the longest of them: 1 to 4 micro-batches each


def parts(q, k, v, ends):
    """Of each sequence: its place, and q, k, v [H, T, D] with the key heads repeated."""
    heads, ends = q.shape[1] // k.shape[1], ends.tolist()
    for i, j in zip(ends, ends[1:]):
        k_, v_ = (x[i:j].repeat_interleave(heads, 1).transpose(0, 1) for x in (k, v))
        yield slice(i, j), q[i:j].transpose(0, 1), k_, v_


def probabilities(q, k, scale):
    hidden = torch.ones(q.shape[1], q.shape[1]).triu(1).bool()
    return (scale * q @ k.mT).masked_fill(hidden, -torch.inf).softmax(-1)


@varlen._varlen_attn.register_kernel("cpu")
def forward(q, k, v, ends, _, longest, __, is_causal=False, scale=None, *rest):
    assert is_causal and longest == ends.diff().max() and ends[-1] == len(q)
    out = torch.cat([(probabilities(a, b, scale) @ c).transpose(0, 1) for _, a, b, c in parts(q, k, v, ends)])
    return out, q.new_zeros(q.shape[1], q.shape[0]), torch.zeros(2, dtype=torch.uint64)


@varlen._varlen_attn_backward.register_kernel("cpu")
def backward(grad, q, k, v, out, lse, ends, _, longest, __, is_causal, state, scale=None, *rest):
    dq, dk, dv = (torch.zeros_like(x) for x in (q, k, v))
    one_head = lambda x: x.transpose(0, 1).unflatten(1, (k.shape[1], -1)).sum(2)
    for at, a, b, c in parts(q, k, v, ends):
        p, g = probabilities(a, b, scale), grad[at].transpose(0, 1)
        scores = scale * p * (g @ c.mT - (g @ c.mT * p).sum(-1, keepdim=True))
        dq[at], dk[at], dv[at] = (scores @ b).transpose(0, 1), one_head(scores.mT @ a), one_head(p.mT @ g)
    return dq, dk, dv


class CudaPack(Pack):
    """A row as CUDA gets it: on a CPU the prompts of these batches stand in it once a response too."""

    def __init__(self, *how):
        super().__init__(*how, whole=True)


@pytest.fixture
def cuda_path(monkeypatch):
    """CUDA's packs and recomputed blocks on a CPU. The operators are torch's own, with its autograd and its shapes for
    tracing; the kernels in them are the two above."""
    monkeypatch.setattr(policies, "Pack", CudaPack)
    place = Policy.place

    def recomputed(self, *how):
        self.lm.gradient_checkpointing_enable(dict(use_reentrant=False))
        place(self, *how)

    monkeypatch.setattr(Policy, "place", recomputed)
    backend = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(torch.nn.Module, "compile", backend)
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama of two blocks, with two query heads per key head."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                         num_key_value_heads=2, vocab_size=97)
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def batches():
    for seed, (rows, longest) in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        prompts = [rng.integers(3, 97, n) for n in rng.integers(2, 15, rows)]
        batch = Batch(prompts, [rng.integers(3, 97, n) for n in rng.integers(1, longest, rows)])
        adv = torch.from_numpy(rng.normal(size=int(batch.ends[-1]))).float()
        batch.values = dict(adv=adv, weight=torch.full_like(adv, 1 / len(adv)))
        yield batch


def gradients(folder, compile) -> list[torch.Tensor]:
    """Of one update on each batch, after a pass for the logprobs by the policy and by a reference."""
    policy = Policy(folder, "cpu", lr=1e-3, tokens_per_micro=150, compile=compile)
    reference = Policy(folder, "cpu", tokens_per_micro=150, compile=compile)
    whole = lambda x: x.full_tensor() if hasattr(x, "full_tensor") else x
    found = []
    flat = lambda *args: found.append(torch.cat([whole(p.grad).flatten() for p in policy.parameters()]))
    policy.optimizer.step = flat
    for batch in batches():
        torch.testing.assert_close(policy.logprobs(batch), reference.logprobs(batch), rtol=0, atol=1e-5)
        policy.update(batch, lambda new, entropy, tokens: new * tokens.adv, max_grad_norm=1e9)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_compiled_blocks_have_the_same_gradient_and_few_graphs(folder, cuda_path, sharded):
    """Lengths, numbers of sequences and gradient modes change from pass to pass, and blocks are computed twice."""
    if sharded:  # FSDP2 around compiled blocks, as a lone GPU has it
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        plain, compiled = gradients(folder, False), gradients(folder, True)
    finally:
        if sharded:
            dist.destroy_process_group()
    for a, b in zip(compiled, plain, strict=True):
        assert (a - b).norm() <= 1e-6 * b.norm()
    assert 0 < counters["stats"]["unique_graphs"] <= 6 and not counters["graph_break"]
