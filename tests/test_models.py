"""Families of models: what transformers computes is the truth. Each family, tiny and random, has the logprobs that
transformers gives it, in the trainer and in the torch sampler; or it is refused when it is opened."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from core.policy import Policy
from core.rollout import Batch
from core.sampler import TorchSampler

SIZE = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=128, bos_token_id=1, eos_token_id=2,
            pad_token_id=0, initializer_range=0.3)
EXACT = {
    "qwen2": {},
    "qwen3": {},
    "llama": {},
    "olmo2": {},
    "mistral": dict(sliding_window=64),
    "phi3": dict(sliding_window=64),
    "gemma3_text": dict(sliding_window=64, query_pre_attn_scalar=8),
    "smollm3": {},
    "granite": dict(logits_scaling=4.0, residual_multiplier=0.5, embedding_multiplier=3.0, attention_multiplier=0.2),
    "cohere": dict(logit_scale=0.25),
    "cohere2": dict(logit_scale=0.25, sliding_window=64),
    "gemma2": dict(attn_logit_softcapping=None, final_logit_softcapping=2.0, query_pre_attn_scalar=8,
                   sliding_window=64),
}
REFUSED = {
    "gemma2": (dict(attn_logit_softcapping=50.0, query_pre_attn_scalar=8, sliding_window=64), "soft caps"),
    "gpt_oss": (dict(num_local_experts=2, num_experts_per_tok=1), "sinks"),
}


def make(kind: str, folder, **more) -> str:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZE | more)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", EXACT)
def test_trainer_and_sampler_compute_what_transformers_does(kind, tmp_path):
    folder = make(kind, tmp_path, **EXACT[kind])
    policy = Policy(folder, "cpu", temperature=0.8)
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, 97, n) for n in (4, 9)]
    sampler = TorchSampler(policy, {2})
    sampler.sync(policy)
    sampled = sampler.sample(prompts, 2, [0, 1], 0, 12, 0.8, quiet=True)
    batch = Batch([prompts[0], prompts[0], prompts[1], prompts[1]], [x[0] for x in sampled])
    alone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    truth = []
    with torch.no_grad():
        for prompt, response in zip(batch.prompts, batch.responses):
            ids = torch.tensor(np.concatenate([prompt, response]))
            logits = alone(ids[None]).logits[0, len(prompt) - 1 : -1] / 0.8
            truth.append(logits.log_softmax(-1).gather(1, ids[len(prompt) :, None])[:, 0])
    truth = torch.cat(truth)
    assert truth.std() > 0.3, "the model has preferences, or any scale of the logits would do"
    torch.testing.assert_close(policy.logprobs(batch)[0], truth, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.from_numpy(np.concatenate([x[1] for x in sampled])), truth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_computed_is_refused(kind, tmp_path):
    more, why = REFUSED[kind]
    with pytest.raises(ValueError, match=why) as error:
        Policy(make(kind, tmp_path, **more), "cpu")
    assert "is not supported" in str(error.value) and "\n" not in str(error.value)


def test_the_probe_finds_what_nobody_thought_of(tmp_path, monkeypatch):
    """A head with a scale of its own, under a name that this code does not know."""
    folder = make("llama", tmp_path)
    real = type(AutoModelForCausalLM.from_pretrained(folder)).forward

    def forward(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaForCausalLM.forward", forward)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not supported: its logprobs would be .* nats off"):
        Policy(folder, "cpu")


def test_a_window_that_sequences_exceed_is_an_error(tmp_path):
    folder = make("mistral", tmp_path, sliding_window=16)
    policy = Policy(folder, "cpu")
    with pytest.raises(ValueError, match="attention window 16"):
        policy.logprobs(Batch([np.arange(3, 12)], [np.arange(3, 12)]))


def test_a_run_that_could_exceed_the_window_is_refused_at_once(tmp_path, tiny_path, tokenizer, train, capsys):
    """Here it would be computed by plain torch, which knows no windows."""
    config = dict(sliding_window=64, max_position_embeddings=2048, vocab_size=300)
    make("mistral", tmp_path / "model", **config)
    tokenizer.save_pretrained(tmp_path / "model")
    flags = ["--model", tmp_path / "model", "--template", "none", "--max_prompt_tokens", 30, "--max_new_tokens"]
    assert train(tmp_path / "run", *flags, 35) == 2
    assert "exceed the context" in (error := capsys.readouterr().err) and "64 tokens" in error
