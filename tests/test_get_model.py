"""get_model.py: pieces and names; and two real models, Qwen2.5-Coder-0.5B-Instruct and Gemma 3 270M, if they are here.

The models are looked for in models/, then in the environment. `python tests/get_model.py NAME` gets one."""

import subprocess
import sys
from pathlib import Path

import get_model
import numpy as np
import pytest
import torch
from conftest import ROOT, TESTS
from transformers import AutoModelForCausalLM

from core.config import MODELS, choose_template, find_model
from core.data import encode
from core.policy import Policy
from core.rollout import Batch
from core.sampler import TorchSampler

QWEN, GEMMA = "qwen2.5-coder-0.5b-instruct", "gemma-3-270m"


def test_pieces_are_joined_in_the_order_of_their_numbers(tmp_path):
    pieces = [tmp_path / f"p{number}-v2.gguf.part{number:02}" for number in range(12)]
    for number, piece in enumerate(pieces):
        piece.write_bytes(bytes([number]) * (number + 1))
    get_model.join(pieces[::-1], tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == b"".join(piece.read_bytes() for piece in pieces)


@pytest.mark.parametrize("numbers", [[], [2, 3], [0, 2], [1, 2, 4], [1, 1, 2]])
def test_a_missing_piece_is_noticed(tmp_path, numbers):
    with pytest.raises(SystemExit, match="pieces"):
        get_model.join([tmp_path / str(i) / f"part{number:02}.bin" for i, number in enumerate(numbers)], tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("words, said", [
    (["gemma3-270m"], "did you mean gemma-3-270m?"), (["qwen2.5-0.5b"], f"did you mean {QWEN}?"),
    (["xyz"], f"give one of smollm2-135m-instruct, {QWEN}, {GEMMA}"), ([], "give one of"),
    ([GEMMA, "folder", "more"], "give one of"),
])
def test_a_name_it_does_not_know_is_one_line(words, said):
    done = subprocess.run([sys.executable, TESTS / "get_model.py", *words], capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and said in line


def test_every_name_is_an_alias():
    assert get_model.SOURCES.keys() <= MODELS.keys()


# ------------------------------------------------------------------------------------------------ the real models
@pytest.fixture(scope="module", params=[QWEN, GEMMA])
def real(request):
    """(name, policy, its sampler, tokenizer, transformers' model)."""
    name = request.param
    places = [ROOT / "models" / name, Path(sys.prefix) / name]
    folder = next((str(place) for place in places if place.is_dir()), None)
    if not folder:
        pytest.skip(f"no {name} here; python tests/get_model.py {name}")
    _, config, tokenizer = find_model(folder, "model")
    policy = Policy(folder, "cpu", vocab=len(tokenizer), tokens_per_micro=1024)
    sampler = TorchSampler(policy, {tokenizer.eos_token_id})
    sampler.sync(policy)
    return name, policy, sampler, tokenizer, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def prompt(name, tokenizer, question, template="") -> np.ndarray:
    template = choose_template(template or MODELS[name][1]["template"], tokenizer)
    return np.array(encode(question, template, tokenizer)["prompt"])


@pytest.mark.slow
def test_sampler_and_trainer_have_the_logprobs_of_transformers(real):
    name, policy, sampler, tokenizer, alone = real
    prompts = [prompt(name, tokenizer, text) for text in ("What is 14 + 9?", "Solve $x^2 = 49$ for $x > 0$.")]
    sampled = sampler.sample(prompts, 2, [0, 1], 0, 24, 1.0, quiet=True)
    batch = Batch([prompts[0], prompts[0], prompts[1], prompts[1]], [ids for ids, *_ in sampled])
    logprobs, _ = policy.logprobs(batch)
    for row, (ids, from_sampler, *_) in enumerate(sampled):
        start = len(batch.prompts[row])
        whole = torch.from_numpy(np.concatenate([batch.prompts[row], ids]))[None]
        with torch.no_grad():
            expected = alone(whole).logits[0, start - 1 : -1].log_softmax(-1)
        expected = expected.gather(1, torch.from_numpy(ids)[:, None])[:, 0]
        ours = logprobs[batch.token_index([row])]
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.as_tensor(from_sampler), expected, atol=4e-4, rtol=0)


@pytest.mark.slow
def test_greedy_answers(real):
    """Qwen answers in its chat template. Gemma, a base model, has none, and its prompts begin with <bos>."""
    name, _, sampler, tokenizer, _ = real
    asked = ("What is 14 + 9?", "chat") if name == QWEN else ("The capital of France is the city of", "none")
    ids = prompt(name, tokenizer, *asked)
    ((response, *_),) = sampler.sample([ids], 1, [0], 0, 24, 0.0, quiet=True)
    assert ("23" if name == QWEN else "Paris") in tokenizer.decode(response)
    assert bool(tokenizer.chat_template) == (name == QWEN)
    assert (ids[0] == tokenizer.bos_token_id) == (name == GEMMA)
