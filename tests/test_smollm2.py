"""A real pretrained model, SmolLM2-135M-Instruct: sampler, trainer and a run, held against transformers.

The model is looked for in models/, then in the environment, where get_model.py puts it; skipped without it."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TESTS
from helpers import metrics
from transformers import AutoModelForCausalLM, AutoTokenizer

from core.data import load_data
from core.policy import Policy
from core.rewards import examine
from core.rollout import Batch
from core.sampler import TorchSampler

pytestmark = pytest.mark.slow
NAME = "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def folder() -> str:
    places = [ROOT / "models" / NAME, Path(sys.prefix) / NAME]
    if not any(place.is_dir() for place in places):
        made = subprocess.run([sys.executable, TESTS / "get_model.py", NAME, places[1]], capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"SmolLM2 can't be had: {made.stderr.strip().splitlines()[-1]}")
    return str(next(place for place in places if place.is_dir()))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def problems(tokenizer):
    return load_data("easy-test", tokenizer, SimpleNamespace(template="easy", max_prompt_tokens=256), 32)


@pytest.fixture(scope="module")
def policy(folder, tokenizer):
    return Policy(folder, "cpu", vocab=len(tokenizer), tokens_per_micro=2048)


@pytest.fixture(scope="module")
def sampler(policy, tokenizer):
    sampler = TorchSampler(policy, {tokenizer.eos_token_id})
    sampler.sync(policy)
    return sampler


@pytest.fixture(scope="module")
def alone(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def rollouts(sampler, tokenizer, problems):
    return examine(sampler, tokenizer, problems, 4, 0, SimpleNamespace(max_new_tokens=32, temperature=1.0))


def test_there_is_room_to_learn(rollouts):
    """Right now and then, which the examples in the template do; mostly wrong; some problems have both."""
    right = rollouts.correct
    assert 0.03 < right.mean() < 0.35 and rollouts.boxed.mean() > 0.4
    assert ((right.amax(1) > 0) & (right.amin(1) < 1)).float().mean() > 0.15


def test_the_sampler_the_trainer_and_transformers_agree(rollouts, policy, alone):
    """All prompts begin with the same examples, which sampler and trainer compute once. They agree to rounding in fp32:
    the more terms of the 49,152 in a softmax go into one sum, the larger it is, 1e-5 on average with AVX2."""
    logprobs, entropy = policy.logprobs(rollouts.batch)
    gap = (rollouts.tokens.sampler - logprobs).abs()
    assert gap.mean() < 1e-4 and gap.max() < 4e-4
    torch.testing.assert_close(rollouts.entropies, entropy, atol=6e-4, rtol=0)
    batch: Batch = rollouts.batch
    for row in (0, 5, 70):
        prompt, response = batch.prompts[row], batch.responses[row]
        ids = torch.from_numpy(np.concatenate([prompt, response]))[None]
        with torch.no_grad():
            expected = alone(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = expected.gather(1, torch.from_numpy(response)[:, None])[:, 0]
        torch.testing.assert_close(logprobs[batch.token_index([row])], expected, atol=2e-4, rtol=0)


def test_greedy_responses_are_those_of_generate(sampler, alone, problems, tokenizer):
    prompts = [problem["prompt"] for problem in problems[:4]]
    responses = sampler.sample(prompts, 1, range(4), 0, 20, 0.0, quiet=True)
    for prompt, (ids, *_) in zip(prompts, responses):
        expected = alone.generate(torch.from_numpy(prompt)[None], do_sample=False, max_new_tokens=20)
        assert ids.tolist() == expected[0, len(prompt) :].tolist()


FLAGS = "--data easy --template easy --prompts_per_step 6 --samples_per_prompt 8 --max_new_tokens 24 --lr 1e-5".split()


def test_a_run_learns_and_is_saved(train, folder, tmp_path):
    out = tmp_path / "run"
    flags = [*FLAGS, "--model", folder, "--steps", 2, "--eval_data", "", "--tokens_per_micro", 700]
    assert train(out, base=list(map(str, flags))) == 0
    first, second = metrics(out)
    assert first["mismatch_max"] < 4e-4 and first["grad_norm"] > 0 and second["step"] == 2
    both = folder, out / "final"
    before, after = (AutoModelForCausalLM.from_pretrained(x, dtype="float32").state_dict() for x in both)
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    turns = [dict(role="user", content="1+1")]
    texts = [AutoTokenizer.from_pretrained(x).apply_chat_template(turns, tokenize=False) for x in both]
    assert texts[0] == texts[1] and "<|im_start|>user\n1+1<|im_end|>" in texts[0]


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
def test_a_run_with_vllm(folder, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, ROOT / "grpo.py", *FLAGS, "--model", folder, "--steps", "2", "--eval_data", ""]
    command += ["--sampler", "vllm", "--max_prompt_tokens", "256", "--tokens_per_micro", "1024", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert all(row["mismatch"] < 1e-4 and row["grad_norm"] > 0 for row in metrics(out))
