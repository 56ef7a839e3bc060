"""The real vLLM on a CPU: its logprobs are the trainer's, its weights follow the trainer's, and whole runs with it.

One engine serves most tests, because a start takes seconds. Where vLLM is not installed, only the tests of what a user
is then told run. What needs a GPU (sleeping, too little memory) is checked by the calls that it comes down to.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import common
import grpo
import core.sampler as samplers
from core.policy import Policy
from core.rollout import Batch
from core.sampler import TorchSampler, VLLMSampler, choose_sampler
from transformers import AutoConfig, AutoModelForCausalLM

END = 260  # the tiny model's end token
SMALL = "--sampler vllm --prompts_per_step 5 --max_new_tokens 32 --eval_problems 6 --lr 3e-4 --reference false".split()
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="module")
def engine(policy):
    return VLLMSampler(policy, {END}, longest=512)


@pytest.fixture
def sampler(engine, policy):
    """The engine with the policy's weights; a test that changes them leaves no trace."""
    before = {name: x.clone() for name, x in policy.weights()}
    engine.sync(policy)
    yield engine
    with torch.no_grad():
        for name, x in policy.weights():
            x.copy_(before[name])


@pytest.fixture(scope="module")
def torch_sampler(policy):
    sampler = TorchSampler(policy, {END})
    sampler.sync(policy)
    return sampler


def sample(sampler, prompts, n=4, numbers=None, seed=0, new=24, temperature=1.0):
    """The flat list of responses (ids, logprobs, entropies, finished)."""
    numbers = list(range(len(prompts))) if numbers is None else numbers
    return sampler.sample(prompts, n, numbers, seed, new, temperature, quiet=True)


def mismatch(policy, prompts, responses) -> torch.Tensor:
    """|trainer - sampler| of every token's logprob."""
    ids, logprobs = zip(*[x[:2] for x in responses])
    n = len(responses) // len(prompts)
    trainer = policy.logprobs(Batch([p for p in prompts for _ in range(n)], list(ids)))[0]
    return (trainer - torch.from_numpy(np.concatenate(logprobs))).abs()


# ------------------------------------------------------------------------------------------------ the same distribution
@needs_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_the_trainers(sampler, policy, prompts, monkeypatch, temperature):
    """Those of the distribution that was sampled from: at the temperature."""
    monkeypatch.setattr(policy, "temperature", temperature)
    responses = sample(sampler, prompts, n=16, temperature=temperature)
    assert len(responses) == 16 * len(prompts)
    assert mismatch(policy, prompts, responses).max() < 1e-4
    monkeypatch.setattr(policy, "temperature", 1.7 - temperature)
    assert mismatch(policy, prompts, responses).mean() > 0.01


@needs_vllm
def test_entropies_are_left_to_the_trainer(sampler, prompts):
    for ids, logprobs, entropies, _ in sample(sampler, prompts):
        assert len(ids) == len(logprobs) == len(entropies) and np.isnan(entropies).all()
    assert not sampler.exact  # so old_logprobs() computes them


@needs_vllm
def test_first_tokens_are_as_frequent_as_the_model_says(sampler, policy, prompts):
    """Chi-square over the tokens expected at least 5 times in 8,000 draws (the rest counted together). With k degrees
    of freedom its mean is k and its variance 2 k; five deviations above is beyond chance."""
    draws = 8000
    every = Batch([prompts[0]] * 261, [np.array([token]) for token in range(261)])
    probability = policy.logprobs(every)[0].double().exp().numpy()
    counts = np.bincount([x[0][0] for x in sample(sampler, prompts[:1], n=draws, new=1)], minlength=261)
    common = draws * probability >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(probability[common], probability[~common].sum()) * draws
    free = common.sum()
    assert free > 3
    assert ((observed - expected) ** 2 / expected).sum() < free + 5 * np.sqrt(2 * free)


@needs_vllm
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_both_samplers_write_the_same_responses(sampler, torch_sampler, prompts, temperature):
    """Two-sample chi-square, 2,000 draws each, over the beginnings of 8 tokens that occurred at least 10 times in both
    together (the rest counted together)."""
    draws = 2000
    texts = [[x[0].tobytes() for x in sample(s, prompts[1:2], draws, new=8, temperature=temperature)]
             for s in (sampler, torch_sampler)]  # fmt: skip
    kinds = {text: i for i, text in enumerate({*texts[0], *texts[1]})}
    a, b = (np.bincount([kinds[text] for text in part], minlength=len(kinds)) for part in texts)
    often = a + b >= 10
    a, b = (np.append(x[often], x[~often].sum()) for x in (a, b))
    free = often.sum()
    assert free > 5
    assert ((a - b) ** 2 / np.maximum(a + b, 1)).sum() < free + 5 * np.sqrt(2 * free)


@needs_vllm
def test_lengths_and_truncation_mean_the_same(sampler, torch_sampler, prompts):
    """Means over 1,000 responses agree within five standard errors of a difference, of length and of truncation."""
    both = [[(len(x[0]), x[3]) for x in sample(s, prompts, n=200, new=32)] for s in (sampler, torch_sampler)]
    a, b = (np.array(x, dtype=float) for x in both)
    error = np.sqrt((a.var(0) + b.var(0)) / len(a))
    assert 0.05 < b[:, 1].mean() < 0.95
    assert (abs(a.mean(0) - b.mean(0)) < 5 * error).all()


@needs_vllm
def test_the_end_token_belongs_to_a_finished_response_and_to_no_other(sampler, prompts):
    responses = sample(sampler, prompts, n=16, new=32)
    finished, cut = ([x[0] for x in responses if x[3] == end] for end in (True, False))
    assert finished and cut
    assert all(ids[-1] == END and list(ids).count(END) == 1 and len(ids) <= 32 for ids in finished)
    assert all(END not in ids and len(ids) == 32 for ids in cut)


@needs_vllm
def test_an_end_token_in_the_last_place_is_an_end(sampler, prompts):
    """A response that ends exactly at the limit is finished, not truncated."""
    length = min(len(x[0]) for x in sample(sampler, prompts[4:], n=16, new=32) if x[3])
    last = [x for x in sample(sampler, prompts[4:], n=64, new=length) if len(x[0]) == length]
    assert any(x[3] and x[0][-1] == END for x in last) and not all(x[3] for x in last)


@needs_vllm
def test_a_response_may_fill_the_longest_sequence(sampler, policy, prompts):
    room = 512 - len(prompts[0])
    responses = sample(sampler, prompts[:1], n=2, new=room)
    assert all(x[3] or len(x[0]) == room for x in responses)


@needs_vllm
def test_ids_beyond_the_tokenizer_are_never_sampled(tiny_path, prompts):
    """Here those from the end token on are said not to exist: nothing can end, and the other tokens share its mass."""
    policy = Policy(tiny_path, "cpu", vocab=END)
    sampler = VLLMSampler(policy, {END, 10**9}, longest=64)
    sampler.sync(policy)
    responses = sample(sampler, prompts, n=16, new=32)
    assert max(x[0].max() for x in responses) < END and not any(x[3] for x in responses)
    assert mismatch(policy, prompts, responses).max() < 1e-4


@needs_vllm
@pytest.mark.parametrize("kind", ["llama", "olmo2"])
def test_other_architectures(tmp_path, kind):
    """Grouped heads, and a vocabulary that is larger than the tokenizer's. Llama: tied, frequencies scaled. OLMo-2: an
    own head; vLLM runs transformers' class, and must leave that class as it was, which is the trainer's too."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=kind == "llama", eos_token_id=END,
        pad_token_id=None, bos_token_id=None,
    )  # fmt: skip
    if kind == "llama":
        config.rope_parameters = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0,
                                      high_freq_factor=4.0, original_max_position_embeddings=128)  # fmt: skip
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


# ------------------------------------------------------------------------------------------------ weights
@needs_vllm
@pytest.mark.parametrize("name, at", [
    ("model.embed_tokens.weight", (17, 5)),  # the digit 2; tied, so it is in the head as well
    ("model.layers.0.self_attn.q_proj.weight", (3, 7)),
    ("model.layers.1.self_attn.v_proj.bias", (5,)),
    ("model.layers.2.mlp.down_proj.weight", (9, 11)),
    ("model.norm.weight", (2,)),
])  # fmt: skip
def test_one_changed_weight_follows_with_the_sync_and_not_before(sampler, policy, prompts, name, at):
    assert policy.lm.config.tie_word_embeddings
    with torch.no_grad():
        dict(policy.weights())[name][at] += 3
    stale = mismatch(policy, prompts, sample(sampler, prompts))
    sampler.sync(policy)
    fresh = mismatch(policy, prompts, sample(sampler, prompts))
    assert stale.max() > 1e-2
    assert fresh.max() < 1e-4


@needs_vllm
def test_the_prefix_cache_does_not_outlive_the_weights(sampler, policy, prompts):
    """The prompt is longer than a block of the cache, 128 tokens; at the second time it would be taken from there."""
    long = [np.concatenate([prompts[0]] * 25)[:400]]
    assert mismatch(policy, long, sample(sampler, long)).max() < 1e-4
    with torch.no_grad():
        dict(policy.weights())["model.layers.0.self_attn.v_proj.weight"].mul_(1.5)
    sampler.sync(policy)
    assert mismatch(policy, long, sample(sampler, long)).max() < 1e-4


@needs_vllm
def test_weights_are_pushed_one_by_one(sampler, policy):
    """A 7B model gathered whole beside its shards would not fit. vLLM joins up to three tensors into one (q, k, v) and
    keeps the embedding to the end, because it pads it."""
    alive, most = weakref.WeakSet(), []

    def weights():
        for name, tensor in policy.weights():
            tensor = tensor.clone()
            alive.add(tensor)
            most.append(len(alive))
            yield name, tensor

    sampler.sync(SimpleNamespace(weights=weights, lm=policy.lm, dtype=policy.dtype))
    assert len(most) == 38 and max(most) <= 10


# ------------------------------------------------------------------------------------------------ random numbers
def ids_of(responses) -> list:
    return [x[0].tolist() for x in responses]


@needs_vllm
def test_seed_and_prompt_number_key_the_engines_stream(sampler, prompts):
    """So two engines, which have different prompts, draw differently, and so does the next step."""
    first = ids_of(sample(sampler, prompts))
    assert ids_of(sample(sampler, prompts)) == first
    assert ids_of(sample(sampler, prompts, seed=1)) != first
    assert ids_of(sample(sampler, prompts, numbers=[5, 6, 7, 8, 9])) != first


@needs_vllm
def test_a_stream_for_each_response(sampler, prompts, monkeypatch):
    """With --request_seeds a response does not depend on the others in the batch."""
    monkeypatch.setattr(sampler, "request_seeds", True)
    together = ids_of(sample(sampler, prompts))
    assert ids_of(sample(sampler, prompts[2:3], numbers=[2])) == together[8:12]
    assert ids_of(sample(sampler, prompts[::-1], numbers=[4, 3, 2, 1, 0]))[-4:] == together[:4]
    assert ids_of(sample(sampler, prompts[:1], seed=1)) != together[:4]
    assert ids_of(sample(sampler, prompts[:1], numbers=[1])) != together[:4]


@needs_vllm
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
def test_no_prompts_no_responses(sampler):
    assert sample(sampler, []) == []


# ------------------------------------------------------------------------------------------------ runs
@pytest.fixture
def train(problems_file):
    """train(out, flags...) runs grpo.py in this process; its exit status."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def run(out, *flags) -> int:
        data = ["--data", str(problems_file), "--eval_data", str(problems_file)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [grpo.__file__, "--out", str(out), *SMALL, *data, *map(str, flags)])
            patch.setattr("plot.draw", lambda *args: None)
            patch.setattr(common, "start_processes", lambda: "cpu")  # vLLM has started a group, of this process alone
            try:
                grpo.main()
                return 0
            except SystemExit as stop:
                return stop.code or 0

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def metrics(out) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_sound(rows, steps):
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert row["mismatch"] <= row["mismatch_max"] < 1e-4
        assert 0 < row["entropy"] < 5.6 and 0 < row["length"] <= 32  # ln 261 = 5.56


@needs_vllm
def test_one_process(train, tmp_path, capsys):
    assert train(tmp_path / "run", "--steps", 3) == 0
    rows = metrics(tmp_path / "run")
    assert_sound(rows[1:], 3)
    assert all(0 <= row["eval_accuracy"] <= 1 for row in (rows[0], rows[3]))
    out = capsys.readouterr().out
    assert out.count("sampler: vLLM") == 1 and "stale" not in out


@needs_vllm
def test_without_the_sync_there_is_an_alarm(train, tmp_path, capsys, monkeypatch):
    """The engine keeps the weights that it was given first, while the trainer's move on."""
    sync, calls = VLLMSampler.sync, []

    def once(self, policy):
        calls.append(1)
        if len(calls) == 1:
            sync(self, policy)

    monkeypatch.setattr(VLLMSampler, "sync", once)
    assert train(tmp_path / "run", "--steps", 3, "--lr", 0.01, "--eval_data", "") == 0
    first, *later = metrics(tmp_path / "run")
    assert first["mismatch"] < 1e-4 and all(row["mismatch"] > 0.05 for row in later)
    assert capsys.readouterr().out.count("stale weights?") == 2


def start(*command):
    """Output of a process of its own, as a user starts one; it has to succeed."""
    env = dict(os.environ, OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]


@needs_vllm
def test_a_run_continues(train, tmp_path):
    """From a checkpoint, its weights in the engine; not bit for bit, because sums depend on an engine's batches."""
    out = tmp_path / "run"
    assert train(out, "--steps", 3, "--save_every", 2, "--lr", 0.01, "--eval_data", "") == 0
    before = metrics(out)
    shutil.rmtree(out / "step_000003")
    assert train(out, "--steps", 4, "--lr", 0.01, "--eval_data", "", "--resume") == 0
    assert_sound(metrics(out), 4)
    assert metrics(out)[:2] == before[:2]


@pytest.fixture(scope="module")
def two_engines(problems_file, tmp_path_factory):
    """A run of two processes with an engine each."""
    out = tmp_path_factory.mktemp("two") / "run"
    flags = [grpo.__file__, "--out", out, *SMALL, "--data", problems_file, "--eval_data", ""]
    text = start(*TORCHRUN, *flags, "--steps", 3)
    assert text.count("sampler: vLLM") == 1
    return out, flags


@needs_vllm
@pytest.mark.slow
def test_two_processes(two_engines):
    assert_sound(metrics(two_engines[0]), 3)


@needs_vllm
@pytest.mark.slow
def test_two_processes_share_an_engine(two_engines):
    """Tensor parallel: the shards come from the same push. Five prompts: the two have different numbers of them. The
    run goes on from the checkpoint of two engines."""
    out, flags = two_engines
    text = start(*TORCHRUN, *flags, "--steps", 5, "--tp", 2, "--resume")
    assert text.count("1 engine(s) of 2 process(es)") == 1
    assert_sound(metrics(out), 5)


# ------------------------------------------------------------------------------------------------ what a user is told
def refused(train, tmp_path, capsys, *flags) -> str:
    assert train(tmp_path / "run", *flags) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def test_vllm_is_missing(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    line = refused(train, tmp_path, capsys)
    assert "requirements.txt" in line and "--sampler hf" in line


@pytest.mark.parametrize("version", ["0.18.1", "0.24.9", "0.33.0", "1.0", "dev"])
def test_a_version_outside_the_tested_range(train, tmp_path, capsys, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))
    line = refused(train, tmp_path, capsys)
    assert version in line and "0.25 to 0.32" in line


def test_a_gpu_that_is_too_small(train, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise ValueError("Free memory on device cuda:0 (3.1/23.6 GiB) is less than desired\nGPU memory utilization.")

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.32.0", LLM=full, SamplingParams=None))
    line = refused(train, tmp_path, capsys)
    assert "3.1/23.6 GiB" in line and "--vllm_memory 0.5" in line


@needs_vllm
def test_processes_that_do_not_make_whole_groups(train, tmp_path, capsys):
    assert "--tp 3" in refused(train, tmp_path, capsys, "--tp", 3)


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("installed", [False, True])
def test_auto_takes_vllm_on_a_gpu(monkeypatch, capsys, gpu, installed):
    spec = SimpleNamespace() if installed else None
    monkeypatch.setattr(samplers.importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(VLLMSampler, "load", lambda: None)
    chosen = choose_sampler(common.Config())
    assert getattr(chosen, "func", chosen) is (VLLMSampler if gpu and installed else TorchSampler)
    assert ("pip install" in capsys.readouterr().out) == (gpu and not installed)


# ------------------------------------------------------------------------------------------------ GPU
class Recorder:
    """Writes down the calls of its methods."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, *args, *kwargs.items()))


def test_the_order_of_waking(policy, monkeypatch):
    """Memory for the KV cache only when the weights are there; a prefix cache never outlives the weights. Level 2: the
    weights are discarded, since the next sync brings others."""
    sampler, engine = VLLMSampler.__new__(VLLMSampler), Recorder()
    sampler.llm, sampler.cuda, sampler.asleep = engine, True, False
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: engine.calls.append(("empty_cache",)))
    sampler.sync(policy)
    assert [call[0] for call in engine.calls] == ["collective_rpc", "reset_prefix_cache"]
    engine.calls.clear()
    sampler.sleep()
    sampler.sleep()
    sampler.sync(policy)
    sampler.sleep()
    wake = lambda what: ("wake_up", ("tags", [what]))
    assert [call[:2] for call in engine.calls] == [
        ("sleep", ("level", 2)), ("empty_cache",), wake("weights"), ("collective_rpc", "reload_weights"),
        ("empty_cache",), wake("kv_cache"), ("reset_prefix_cache",), ("sleep", ("level", 2))]  # fmt: skip
