"""What both samplers promise, plain torch and vLLM, in one set of tests; then what each promises beyond that.

One vLLM engine serves most tests, because a start takes seconds. Where vLLM is not installed, its tests are skipped."""

import functools
import gc
import importlib
import importlib.util
import os
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import same_draws
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from core.policy import Policy
from core.rollout import Batch
from core.sampler import TorchSampler, draw, nucleus
from core.streams import mix, streams
from core.vllm_sampler import VLLMSampler

END = 260  # the tiny model's end token
# What torch 2.13 compiles for vLLM without vector units is not valid C++.
plain_code = os.environ.get("ATEN_CPU_CAPABILITY") == "default"
needs_vllm = pytest.mark.skipif(plain_code or importlib.util.find_spec("vllm") is None, reason="vLLM can't run here")
KINDS = ["torch", pytest.param("vllm", marks=needs_vllm)]


def new_sampler(kind, policy, ends=(END,), longest=512):
    """A sampler of this kind with the policy's weights."""
    make = TorchSampler if kind == "torch" else functools.partial(VLLMSampler, longest=longest)
    sampler = make(policy, set(ends))
    sampler.sync(policy)
    return sampler


@pytest.fixture(scope="module", autouse=True)
def draws_at_a_border():
    """What is multiplied together decides how it is rounded, but not what is drawn in these tests."""
    with same_draws():
        yield


@pytest.fixture(scope="module")
def torch_sampler(policy):
    return new_sampler("torch", policy)


@pytest.fixture(scope="module")
def engine(policy):
    """A vLLM engine, which leaves its process as it was: the other tests in it know nothing of process groups."""
    yield new_sampler("vllm", policy)
    VLLMSampler.engines.clear()
    gc.collect()
    if dist.is_initialized():
        importlib.import_module("vllm.distributed.parallel_state").cleanup_dist_env_and_memory()


@pytest.fixture
def unchanged(policy):
    """The policy; a test that changes its weights leaves no trace."""
    before = {name: x.clone() for name, x in policy.weights()}
    yield policy
    with torch.no_grad():
        for name, x in policy.weights():
            x.copy_(before[name])


@pytest.fixture
def vllm_sampler(engine, unchanged):
    engine.sync(unchanged)
    return engine


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def sampler(kind, unchanged, request):
    """Each of the two samplers in turn."""
    sampler = request.getfixturevalue(f"{kind}_sampler")
    sampler.sync(unchanged)
    return sampler


def sample(sampler, prompts, n=4, numbers=None, seed=0, new=24, temperature=1.0, **how):
    """The flat list of responses (ids, logprobs, entropies, finished), all n of a prompt together."""
    numbers = list(range(len(prompts))) if numbers is None else numbers
    return sampler.sample(prompts, n, numbers, seed, new, temperature, quiet=True, **how)


def trainers(policy, prompts, responses) -> tuple[torch.Tensor, torch.Tensor]:
    """Logprobs and entropies of all response tokens by the trainer."""
    n = len(responses) // len(prompts)
    return policy.logprobs(Batch([p for p in prompts for _ in range(n)], [x[0] for x in responses]))


def mismatch(policy, prompts, responses) -> torch.Tensor:
    """|trainer - sampler| of every token's logprob."""
    logprobs = torch.from_numpy(np.concatenate([x[1] for x in responses]))
    return (trainers(policy, prompts, responses)[0] - logprobs).abs()


def agree(policy, prompts, responses) -> bool:
    """Whether the sampler's logprobs are the trainer's, to rounding in fp32: most of them to 1e-6 nats, those of very
    unlikely tokens to 6e-5."""
    gap = mismatch(policy, prompts, responses)
    return gap.mean() < 5e-6 and gap.max() < 4e-4


def same(a, b):
    """Whether two responses are the same tokens with the same logprobs (to rounding) and the same end."""
    return np.array_equal(a[0], b[0]) and np.allclose(a[1], b[1], atol=1e-5) and a[3] == b[3]


def all_same(a, b):
    return all(same(x, y) for x, y in zip(a, b, strict=True))


def ids_of(responses) -> list:
    return [x[0].tolist() for x in responses]


# ------------------------------------------------------------------------------------------------ both
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers_at_the_temperature(sampler, policy, prompts, monkeypatch, temperature):
    """Those of the distribution that was sampled from, which is how old logprobs come for free, or nearly so."""
    monkeypatch.setattr(policy, "temperature", temperature)
    responses = sample(sampler, prompts, n=16, temperature=temperature)
    assert len(responses) == 16 * len(prompts)
    assert agree(policy, prompts, responses)
    monkeypatch.setattr(policy, "temperature", 1.7 - temperature)
    assert mismatch(policy, prompts, responses).mean() > 0.01


def test_first_tokens_are_as_frequent_as_the_model_says(sampler, policy, prompts):
    """Chi-square over the tokens expected at least 5 times in 8,000 draws (the rest counted together). With k degrees
    of freedom its mean is k and its variance 2 k; five deviations above is beyond chance."""
    draws = 8000
    every = Batch([prompts[0]] * 261, [np.array([token]) for token in range(261)])
    probability = policy.logprobs(every)[0].double().exp().numpy()
    assert probability.sum() == pytest.approx(1, abs=1e-4)
    counts = np.bincount([x[0][0] for x in sample(sampler, prompts[:1], n=draws, new=1)], minlength=261)
    common = draws * probability >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probability[common], probability[~common].sum()) * draws
    free = common.sum()
    assert free > 3
    assert ((observed - expected) ** 2 / expected).sum() < free + 5 * np.sqrt(2 * free)


def test_the_end_token_belongs_to_a_finished_response_and_to_no_other(sampler, prompts):
    responses = sample(sampler, prompts, n=16, new=32)
    finished, cut = ([x for x in responses if x[3] == end] for end in (True, False))
    assert finished and cut
    for ids, logprobs, entropies, _ in finished:
        assert ids[-1] == END and list(ids).count(END) == 1
        assert len(ids) == len(logprobs) == len(entropies) <= 32
    assert all(END not in ids and len(ids) == 32 for ids, *_ in cut)


def test_an_end_token_in_the_last_place_is_an_end(sampler, prompts):
    """A response that ends exactly at the limit is finished, not truncated."""
    length = min(len(x[0]) for x in sample(sampler, prompts[4:], n=16, new=32) if x[3])
    last = [x for x in sample(sampler, prompts[4:], n=64, new=length) if len(x[0]) == length]
    assert any(x[3] and x[0][-1] == END for x in last) and not all(x[3] for x in last)
    assert not any(x[3] and len(x[0]) == length for x in sample(sampler, prompts[4:], n=64, new=length - 1))


def test_greedy_takes_the_likeliest_token_and_n_times_the_same(sampler, policy, prompts):
    responses = sample(sampler, prompts, n=2, new=8, temperature=0.0)
    assert ids_of(responses[::2]) == ids_of(responses[1::2])
    first = Batch([prompts[0]] * 261, [np.array([token]) for token in range(261)])
    assert responses[0][0][0] == policy.logprobs(first)[0].argmax()


def test_ids_beyond_the_tokenizer_are_never_sampled(sampler, kind, tiny_path, prompts):
    """Models round their vocabulary up; ids that the tokenizer lacks must exist neither for sampler nor trainer. Here
    the end token is one of them, so nothing can end; with plain torch all ids from 52 (the digit 4) on, which are among
    this model's most likely ones. (vLLM refuses prompts with such ids.)"""
    vocab = dict(torch=52, vllm=END)[kind]
    policy = Policy(tiny_path, "cpu", vocab=vocab)
    responses = sample(new_sampler(kind, policy, (END, 10**9), longest=64), prompts, n=16, new=32)
    assert max(x[0].max() for x in responses) < vocab and not any(x[3] for x in responses)
    assert agree(policy, prompts, responses)


@pytest.mark.parametrize("name, at", [
    ("model.embed_tokens.weight", (17, 5)),  # the digit 2; tied, so it is in the head as well
    ("model.layers.0.self_attn.q_proj.weight", (3, 7)),
    ("model.layers.1.self_attn.v_proj.bias", (5,)),
    ("model.layers.2.mlp.down_proj.weight", (9, 11)),
    ("model.norm.weight", (2,)),
])
def test_one_changed_weight_follows_with_the_sync_and_not_before(sampler, policy, prompts, name, at):
    assert policy.lm.config.tie_word_embeddings
    with torch.no_grad():
        dict(policy.weights())[name][at] += 3
    assert mismatch(policy, prompts, sample(sampler, prompts)).max() > 1e-2
    sampler.sync(policy)
    assert agree(policy, prompts, sample(sampler, prompts))


def test_seed_and_prompt_number_key_the_random_numbers(sampler, prompts):
    """So the next step draws differently, and so do two engines, which have different prompts."""
    first = ids_of(sample(sampler, prompts))
    assert ids_of(sample(sampler, prompts)) == first
    assert ids_of(sample(sampler, prompts, seed=1)) != first
    assert ids_of(sample(sampler, prompts, numbers=[5, 6, 7, 8, 9])) != first


def test_no_prompts_no_responses(sampler):
    """As on a rank without a share of the evaluation's problems."""
    assert sample(sampler, []) == []


def test_the_process_keeps_its_random_state_and_its_threads(sampler, prompts):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    sample(sampler, prompts)
    assert torch.equal(torch.get_rng_state(), state)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


@needs_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_both_write_the_same_responses(vllm_sampler, torch_sampler, prompts, temperature):
    """Two-sample chi-square, 2,000 draws each, over the beginnings of 8 tokens that occurred at least 10 times in both
    together (the rest counted together)."""
    draws = 2000
    texts = [[x[0].tobytes() for x in sample(s, prompts[1:2], draws, new=8, temperature=temperature)]
             for s in (vllm_sampler, torch_sampler)]
    kinds = {text: i for i, text in enumerate({*texts[0], *texts[1]})}
    a, b = (np.bincount([kinds[text] for text in part], minlength=len(kinds)) for part in texts)
    often = a + b >= 10
    a, b = (np.append(x[often], x[~often].sum()) for x in (a, b))
    free = often.sum()
    assert free > 5
    assert ((a - b) ** 2 / np.maximum(a + b, 1)).sum() < free + 5 * np.sqrt(2 * free)


@needs_vllm
def test_lengths_and_truncation_mean_the_same(vllm_sampler, torch_sampler, prompts):
    """Means over 1,000 responses agree within five standard errors of a difference, of length and of truncation."""
    both = [[(len(x[0]), x[3]) for x in sample(s, prompts, n=200, new=32)] for s in (vllm_sampler, torch_sampler)]
    a, b = (np.array(x, dtype=float) for x in both)
    error = np.sqrt((a.var(0) + b.var(0)) / len(a))
    assert 0.05 < b[:, 1].mean() < 0.95
    assert (abs(a.mean(0) - b.mean(0)) < 5 * error).all()


# ------------------------------------------------------------------------------------------------ torch alone
@pytest.fixture(scope="module")
def together(torch_sampler, policy, prompts):
    torch_sampler.sync(policy)
    return sample(torch_sampler, prompts)


@pytest.fixture
def own(torch_sampler, policy, together):
    torch_sampler.sync(policy)
    return torch_sampler


def test_a_response_does_not_depend_on_the_batch(own, prompts, together):
    for i, prompt in enumerate(prompts):
        assert all_same(sample(own, [prompt], numbers=[i]), together[4 * i : 4 * i + 4])


def test_a_response_does_not_depend_on_the_order(own, prompts, together):
    turned = sample(own, prompts[::-1], numbers=[4, 3, 2, 1, 0])
    assert all(all_same(turned[16 - 4 * i : 20 - 4 * i], together[4 * i : 4 * i + 4]) for i in range(5))


@pytest.mark.parametrize("cache_tokens", [1, 200, 600])
def test_a_response_does_not_depend_on_the_memory(policy, prompts, together, cache_tokens):
    """The cache's size decides how many prompts are decoded at a time: here one, two, three of the five."""
    little = TorchSampler(policy, {END}, cache_tokens=cache_tokens)
    little.sync(policy)
    assert all_same(sample(little, prompts), together)


@pytest.mark.parametrize("n", [1, 2, 9])
def test_a_response_does_not_depend_on_how_many_others_there_are(own, prompts, together, n):
    others, shared = sample(own, prompts, n=n), min(n, 4)
    assert all(all_same(others[n * i : n * i + shared], together[4 * i : 4 * i + shared]) for i in range(5))


def test_a_longer_limit_continues_the_same_response(own, prompts):
    short, long = sample(own, prompts, new=8), sample(own, prompts, new=24)
    assert all(np.array_equal(a[0], b[0][:8]) for a, b in zip(short, long, strict=True))


def test_seed_prompt_number_and_sample_key_the_stream(own, prompts):
    """The same prompt three times, as in three epochs: its responses are drawn afresh, and so under another seed."""

    def texts(numbers, seed=0):
        flat = ids_of(sample(own, [prompts[3]] * 3, 4, numbers, seed))
        return [flat[0:4], flat[4:8], flat[8:12]]

    first = texts([0, 1, 2])
    assert first[0] != first[1] != first[2] and first[0][0] != first[0][1]
    assert texts([0, 1, 2]) == first and texts([2, 1, 0]) == first[::-1]
    assert not any(a == b for a, b in zip(texts([3, 4, 5]), first))
    assert not any(a == b for a, b in zip(texts([0, 1, 2], seed=1), first))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_entropies_are_the_policys(own, policy, prompts, monkeypatch, temperature):
    """The sampler's KV cache and the policy's packed forward pass compute the same numbers: one pass is enough."""
    monkeypatch.setattr(policy, "temperature", temperature)
    responses = sample(own, prompts, temperature=temperature)
    exact = trainers(policy, prompts, responses)[1]
    assert own.exact and torch.allclose(torch.from_numpy(np.concatenate([x[2] for x in responses])), exact, atol=1e-5)
    assert exact.min() >= -1e-6 and exact.max() > 0.1


def test_a_lower_temperature_is_surer(own, prompts):
    mean = lambda t: np.concatenate([x[2] for x in sample(own, prompts, 16, temperature=t)]).mean()
    assert mean(0.5) < 0.7 * mean(1.0)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """A random model whose query heads share key heads in threes, with a tenth of its 97 tokens as end tokens."""
    torch.manual_seed(0)
    size = dict(hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6, vocab_size=97)
    folder = tmp_path_factory.mktemp("grouped")
    LlamaForCausalLM(LlamaConfig(**size, num_key_value_heads=2, initializer_range=0.2)).save_pretrained(folder)
    policy = Policy(folder, "cpu")
    return policy, new_sampler("torch", policy, ends=range(10))


@pytest.mark.parametrize("begin", [0, 15, 16, 40])
def test_what_prompts_share_is_computed_once_and_changes_nothing(grouped, begin):
    """Prompts of unequal lengths that begin with the same tokens; their responses end one by one, those of some prompts
    all of them, and the rest goes on without them."""
    policy, sampler = grouped
    rng = np.random.default_rng(0)
    start = rng.integers(10, 97, begin)
    prompts = [np.concatenate([start, rng.integers(10, 97, n)]) for n in (1, 7, 3, 12, 2)]
    together = sample(sampler, prompts, n=6, new=40)
    assert len({len(x[0]) for x in together}) > 8 and sum(x[3] for x in together) > 20
    assert mismatch(policy, prompts, together).max() < 1e-5
    for i, prompt in enumerate(prompts):
        assert all_same(sample(sampler, [prompt], n=6, numbers=[i], new=40), together[6 * i : 6 * i + 6])


@pytest.mark.parametrize("vocab", [1, 3, 16, 261, 5000])
def test_draw_is_the_inverse_cdf(vocab):
    """The token is that of a search over the whole vocabulary in float64, except where u is within rounding of a step
    of the CDF; logprob and entropy are those of the softmax."""
    rng = np.random.default_rng(vocab)
    logits = torch.from_numpy(rng.normal(0, 4, (200, vocab))).float()
    u = torch.from_numpy(rng.random((200, 1)))
    p = logits.double().softmax(-1)
    cdf = p.cumsum(-1)
    expected = torch.searchsorted(cdf, u, right=True).clamp(max=vocab - 1)
    token, logprob, entropy = draw(logits.clone(), u)
    near = (cdf - u).abs().amin(1) < 1e-6
    assert near.float().mean() < 0.1 and torch.equal(token[~near], expected[~near, 0])
    torch.testing.assert_close(logprob, p.log().gather(1, token[:, None])[:, 0].float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(p).entropy().float(), atol=1e-5, rtol=1e-4)


def test_draw_never_takes_a_token_without_probability():
    """Not at either end of the unit interval either, nor outside the nucleus."""
    logits = torch.full((4, 300), -1e9)
    logits[:, [7, 100, 290]] = torch.tensor([1.0, 2.0, 0.0])
    u = torch.tensor([[0.0], [2.0**-53], [1 - 2.0**-53], [0.5]], dtype=torch.float64)
    assert draw(logits.clone(), u)[0].tolist() == [7, 7, 290, 100]
    assert draw(logits.clone(), u, top_p=0.9)[0].tolist() == [7, 7, 100, 100]
    assert draw(logits.clone(), u, top_p=0.0)[0].tolist() == [100] * 4


def test_nucleus_keeps_the_smallest_set_of_likeliest_tokens():
    p = torch.tensor([[0.1, 0.5, 0.3, 0.1], [0.25, 0.25, 0.25, 0.25]])
    torch.testing.assert_close(nucleus(p, 0.7)[0], torch.tensor([0, 0.5, 0.3, 0]))
    torch.testing.assert_close(nucleus(p, 0.0), torch.tensor([[0, 0.5, 0, 0], [0.25, 0, 0, 0]]))
    torch.testing.assert_close(nucleus(p, 0.5)[1], torch.tensor([0.25, 0.25, 0, 0]))


# ------------------------------------------------------------------------------------------------ vLLM alone
@needs_vllm
def test_entropies_are_left_to_the_trainer(vllm_sampler, prompts):
    for ids, logprobs, entropies, _ in sample(vllm_sampler, prompts):
        assert len(ids) == len(logprobs) == len(entropies) and np.isnan(entropies).all()
    assert not vllm_sampler.exact  # so old_logprobs() computes them


@needs_vllm
def test_a_response_may_fill_the_longest_sequence(vllm_sampler, policy, prompts):
    room = 512 - len(prompts[0])
    responses = sample(vllm_sampler, prompts[:1], n=2, new=room)
    assert all(x[3] or len(x[0]) == room for x in responses)


@needs_vllm
@pytest.mark.parametrize("kind", ["llama", "olmo2"])
def test_other_architectures(engine, tmp_path, kind):
    """Grouped heads, and a vocabulary that is larger than the tokenizer's. Llama: tied, frequencies scaled. OLMo-2: an
    own head; vLLM runs transformers' class, and must leave that class as it was, which is the trainer's too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=kind == "llama", eos_token_id=END,
        pad_token_id=None, bos_token_id=None,
    )
    if kind == "llama":
        config.rope_parameters = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0,
                                      high_freq_factor=4.0, original_max_position_embeddings=128)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "a")
    policy = Policy(tmp_path / "a", "cpu", vocab=261)
    sampler = VLLMSampler(policy, {END}, longest=128)
    prompts = [np.arange(5, 25), np.arange(40, 47)]
    for factor in (3, 1.1):
        with torch.no_grad():
            for parameter in policy.lm.parameters():
                parameter.mul_(factor if parameter.dim() > 1 else 1)
        sampler.sync(policy)
        assert mismatch(policy, prompts, sample(sampler, prompts, n=8)).max() < 1e-4
    policy.save_pretrained(tmp_path / "b")
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(policy.weights(), Policy(tmp_path / "b", "cpu").weights()))


@needs_vllm
def test_the_prefix_cache_does_not_outlive_the_weights(vllm_sampler, policy, prompts):
    """The prompt is longer than a block of the cache, 128 tokens; at the second time it would be taken from there."""
    long = [np.concatenate([prompts[0]] * 25)[:400]]
    assert mismatch(policy, long, sample(vllm_sampler, long)).max() < 1e-4
    with torch.no_grad():
        dict(policy.weights())["model.layers.0.self_attn.v_proj.weight"].mul_(1.5)
    vllm_sampler.sync(policy)
    assert mismatch(policy, long, sample(vllm_sampler, long)).max() < 1e-4


@needs_vllm
def test_weights_are_pushed_one_by_one(vllm_sampler, policy):
    """A 7B model gathered whole beside its shards would not fit. vLLM joins up to three tensors into one (q, k, v) and
    keeps the embedding to the end, because it pads it."""
    alive, most = weakref.WeakSet(), []

    def weights():
        for name, tensor in policy.weights():
            tensor = tensor.clone()
            alive.add(tensor)
            most.append(len(alive))
            yield name, tensor

    vllm_sampler.sync(SimpleNamespace(weights=weights, lm=policy.lm, dtype=policy.dtype))
    assert len(most) == 38 and max(most) <= 10


@needs_vllm
def test_a_stream_for_each_response(vllm_sampler, prompts, monkeypatch):
    """With --request_seeds a response does not depend on the others in the batch."""
    monkeypatch.setattr(vllm_sampler, "request_seeds", True)
    together = ids_of(sample(vllm_sampler, prompts))
    assert ids_of(sample(vllm_sampler, prompts[2:3], numbers=[2])) == together[8:12]
    assert ids_of(sample(vllm_sampler, prompts[::-1], numbers=[4, 3, 2, 1, 0]))[-4:] == together[:4]
    assert ids_of(sample(vllm_sampler, prompts[:1], seed=1)) != together[:4]
    assert ids_of(sample(vllm_sampler, prompts[:1], numbers=[1])) != together[:4]


# ------------------------------------------------------------------------------------------------ random streams
def uniforms(seed, numbers, n, tokens):
    """The uniforms [P * n, tokens] that responses draw, as the sampler makes them: one hash a token."""
    keys = streams(seed, numbers, n)
    return (mix(keys[:, None] + np.arange(tokens, dtype=np.uint64)) >> np.uint64(11)) * 2.0**-53


def test_no_two_responses_share_a_uniform():
    x = uniforms(0, list(range(50)), 8, 100)
    assert len(np.unique(x)) == x.size == 40_000
    assert len(np.unique(np.concatenate([x.ravel(), uniforms(1, list(range(50)), 8, 100).ravel()]))) == 80_000


def test_streams_depend_on_seed_number_and_sample_alone():
    keys = streams(3, [10, 11, 12], 4).reshape(3, 4)
    assert np.array_equal(streams(3, [12], 2), keys[2, :2])
    assert len({*keys.ravel(), *streams(4, [10, 11, 12], 4)}) == 24


def test_uniforms_are_uniform_and_independent():
    """40,000 of them: mean 1/2, variance 1/12, and no correlation from token to token, response to response, prompt to
    prompt (the standard error of a correlation is 1/200)."""
    x = uniforms(7, list(range(100)), 8, 50)
    assert 0 <= x.min() and x.max() < 1
    assert x.mean() == pytest.approx(1 / 2, abs=0.006)
    assert x.var() == pytest.approx(1 / 12, abs=0.002)
    counts = np.histogram(x, 20, (0, 1))[0]
    assert ((counts - 2000) ** 2 / 2000).sum() < 19 + 5 * np.sqrt(38)
    for a, b in ((x[:, 1:], x[:, :-1]), (x[1:], x[:-1]), (x[8:], x[:-8])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.025


def test_mix_is_splitmix64():
    """The first outputs of Steele, Lea and Flood's generator from seed 0 (its counter steps by the golden gamma)."""
    gamma = 0x9E3779B97F4A7C15
    counters = np.array([0, gamma, 2 * gamma % 2**64], dtype=np.uint64)
    assert [hex(x) for x in mix(counters)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]
