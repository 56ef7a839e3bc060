"""Samplers write responses to prompts. There are two with the same interface, plain torch here and vLLM in
vllm_sampler.py:

    sync(policy)    take over the policy's weights: before the first sample(), and whenever the weights have changed
    sample(...)     token ids in, token ids out, with the logprob of each sampled token at the sampling temperature
    sleep()         give GPU memory back while the policy trains
    rest(), wake()  the same for a model that stays as it is, a teacher
    asleep          True after a sleep() that took effect: sync() has to come before the next sample()
    exact           True if those logprobs are the trainer's own, so that no second pass is needed to compute them
"""

import copy
import functools
import importlib.util
import math

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from core.config import bad_input
from core.packing import refuse_attention
from core.policy import logits_of
from core.processes import say


# ------------------------------------------------------------------------------------------------ random streams
def mix(x: np.ndarray) -> np.ndarray:
    """A well-mixed hash of each number, uint64 -> uint64 of the same shape: splitmix64 (Steele, Lea and Flood 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def streams(seed: int, numbers: list[int], n: int) -> np.ndarray:
    """The key of each response's random stream, uint64 [P * n], the n of a prompt together: a hash of the seed, the
    number of the prompt in the run, numbers [P], and the index of the response among the n of its prompt."""
    prompt_keys = mix(mix(np.array([seed], np.uint64)) + np.array(numbers, np.uint64))
    return mix(prompt_keys[:, None] + np.arange(n, dtype=np.uint64)).ravel()


def uniforms(keys: np.ndarray, t: int) -> np.ndarray:
    """Draw number t of each stream, uniform in [0, 1): keys uint64 [R] -> float64 [R]."""
    return (mix(keys + np.uint64(t)) >> np.uint64(11)) * 2.0**-53  # 53 bits, the precision of a float64


# ------------------------------------------------------------------------------------------------ plain torch
def cached_attention(module, query, key, value, attention_mask, scaling=None, cache=None, sliding_window=None,
                     softcap=None, s_aux=None, **kwargs):  # fmt: skip
    """Attention from new tokens to all tokens in a KV cache, to which the new ones are added first.

    query [R, heads, new, D]; key, value [R, KV heads, new, D]; returns [R, new, heads, D] and no weights. The cache has
    each layer's [keys, values] by its index; "end", the tokens in them so far; "mask", what new tokens may see.
    Raises ValueError for what it can't compute."""
    start, end = cache["end"], cache["end"] + key.shape[2]
    refuse_attention(softcap, s_aux, end, sliding_window)
    if module.layer_idx in cache:
        keys, values = cache[module.layer_idx]
        keys[:, :, start:end], values[:, :, start:end] = key, value
    else:  # the prompts: _decode makes room for the responses behind them
        keys, values = cache[module.layer_idx] = [key, value]
    keys, values, mask = keys[:, :, :end], values[:, :, :end], cache["mask"][..., :end]
    grouped_heads = query.shape[1] != keys.shape[1]
    if query.shape[2] == 1 and not grouped_heads and not query.is_cuda:  # plain products are faster here
        out = ((query * scaling) @ keys.mT + mask).softmax(-1) @ values
    else:
        out = F.scaled_dot_product_attention(query, keys, values, mask, scale=scaling, enable_gqa=grouped_heads)
    return out.transpose(1, 2), None


AttentionInterface.register("cached", cached_attention)
AttentionMaskInterface.register("cached", lambda *args, **kwargs: None)  # transformers need not build a mask


def nucleus(p: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities p [R, V] with 0 for every token outside the nucleus: the smallest set of most likely tokens whose
    probabilities sum to top_p or more (top_p 0: the most likely token alone). Not renormalised. arXiv 1904.09751."""
    mass, order = torch.sort(p, dim=-1, descending=True, stable=True)
    mass_before = mass.cumsum(-1) - mass
    kept = mass_before < max(top_p, 1e-9)
    return torch.zeros_like(p).scatter(-1, order, mass * kept)


class TorchSampler:
    """Decoding in plain torch with a KV cache, for machines without vLLM. It has its own copy of the model, to which
    sync() copies the policy's weights.

    Every response draws from its own random stream, one uniform per token, by the inverse CDF. So a response depends
    neither on its batch nor on the number of processes. In fp32 its logprobs equal the trainer's, then `exact` is True.
    eos: ids of the tokens that end a response. cache_tokens: how many tokens the KV cache may hold."""

    asleep = False

    def __init__(self, policy, eos: set[int], cache_tokens: int = 2**17):
        config = copy.deepcopy(policy.lm.config)  # a copy, because the config holds the name of the attention function
        self.lm = AutoModelForCausalLM.from_config(config, dtype=policy.dtype, attn_implementation="cached").eval()
        self.lm.to(policy.device)
        self.exact = policy.dtype == torch.float32
        self.vocab, self.cache_tokens = policy.vocab, cache_tokens
        self.eos = torch.tensor(sorted(eos), device=policy.device)

    @torch.no_grad()
    def sync(self, policy):
        """Take over the policy's weights, tensor by tensor."""
        mine = dict(self.lm.named_parameters())
        for name, tensor in policy.weights():
            mine[name].copy_(tensor)

    def sleep(self):
        """Does nothing: the copy of the model stays where it is."""

    rest = wake = sleep

    def sample(self, prompts, n, numbers, seed, max_new_tokens, temperature, quiet=False, top_p=1.0):
        """n responses to each of P prompts (arrays of token ids), at most max_new_tokens long. The numbers [P] of the
        prompts in the run and the seed choose the random streams. Temperature 0 is greedy.

        Returns a list of P * n tuples (ids with the end token, logprobs, entropies in nats, finished: whether it ends
        with an end token), the n of a prompt together. Logprobs and entropies are those of the whole distribution at
        this temperature, even where top_p cuts tokens off."""
        longest = max(map(len, prompts), default=0) + max_new_tokens
        size = max(1, self.cache_tokens // (n * longest))  # prompts that fit into the cache together
        responses = []
        for i in tqdm(range(0, len(prompts), size), desc="sampling", delay=5, leave=False, disable=quiet):
            keys = streams(seed, numbers[i : i + size], n)
            responses += self._decode(prompts[i : i + size], n, keys, max_new_tokens, temperature, top_p)
        return responses

    @torch.inference_mode()
    def _decode(self, prompts, n, keys, steps, temperature, top_p):
        """sample() for as many prompts as fit into the cache: keys uint64 [P * n], at most `steps` new tokens."""
        device, width = self.eos.device, max(map(len, prompts))
        layers = range(self.lm.config.num_hidden_layers)

        def last_hidden(ids, positions):
            """The hidden states [R, D] of the last of these new tokens, ids [R, new], which go into the cache."""
            return self.lm.base_model(input_ids=ids, position_ids=positions, cache=cache, use_cache=False)[0][:, -1]

        # Prefill: each prompt once, padded on the left. Nothing sees a pad, except that each pad sees itself: a token
        # that sees nothing at all would have a softmax of NaN.
        ids = torch.from_numpy(np.stack([np.pad(p, (width - len(p), 0)) for p in prompts])).to(device)
        pads = torch.tensor([[width - len(p)] for p in prompts], device=device)
        columns = torch.arange(width + steps, device=device)
        is_token, causal = columns >= pads, columns[:width, None] >= columns[:width]
        itself = torch.eye(width, device=device).bool()
        cache = dict(end=0, mask=(is_token[:, None, :width] & causal | itself)[:, None])
        hidden = last_hidden(ids, (columns[:width] - pads).clamp(min=0))
        # From here on n rows per prompt, with room for the new tokens.
        hidden, pads, is_token = (x.repeat_interleave(n, 0) for x in (hidden, pads, is_token))
        for layer in layers:
            cache[layer] = [F.pad(x.repeat_interleave(n, 0), (0, 0, 0, steps)) for x in cache[layer]]
        cache["mask"] = torch.where(is_token, 0.0, -math.inf).to(hidden.dtype)[:, None, None]
        # Decode. rows[r] is the response that row r of the cache belongs to: rows of ended responses are dropped.
        rows = torch.arange(len(keys), device=device)
        tokens = torch.zeros(len(rows), steps, dtype=torch.long, device=device)
        logprobs, entropies = torch.zeros(2, len(rows), steps, device=device)
        lengths = torch.full_like(rows, steps)
        share = top_p if temperature else 0.0  # greedy: the most likely token alone
        for t in range(steps):
            logits = logits_of(self.lm, hidden)[:, : self.vocab].float()
            logp = (logits / (temperature or 1)).log_softmax(-1)
            p = logp.exp()
            drawn_from = p if share == 1 else nucleus(p, share)
            cdf = drawn_from.cumsum(-1, dtype=torch.float64)
            u = torch.from_numpy(uniforms(keys, t)).to(device)[rows, None]
            token = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp(max=logp.shape[1] - 1)
            tokens[rows, t] = token[:, 0]
            logprobs[rows, t] = logp.gather(1, token)[:, 0]
            entropies[rows, t] = -(p * logp).sum(-1)
            ended = torch.isin(token[:, 0], self.eos) & (lengths[rows] == steps)
            lengths[rows[ended]] = t + 1
            alive = lengths[rows] == steps
            if t + 1 == steps or not alive.any():
                break
            if t % 8 == 7 and alive.float().mean() < 0.8:  # drop ended rows; not at once, because it copies the cache
                rows, pads, token, cache["mask"] = (x[alive] for x in (rows, pads, token, cache["mask"]))
                for layer in layers:
                    cache[layer] = [x[alive] for x in cache[layer]]
            cache["end"] = width + t
            hidden = last_hidden(token, width + t - pads)
        finished = torch.isin(tokens.gather(1, lengths[:, None] - 1)[:, 0], self.eos).tolist()
        tokens, logprobs, entropies = (x.cpu().numpy() for x in (tokens, logprobs, entropies))
        return [(tokens[i, :length], logprobs[i, :length], entropies[i, :length], finished[i])
                for i, length in enumerate(lengths.tolist())]  # fmt: skip


def choose_sampler(cfg):
    """The sampler that --sampler asks for, as a function (policy, eos) -> sampler. Both this function and the one that
    it returns raise ValueError, one line. auto: vLLM if it is installed and there is a GPU, else plain torch."""
    name, gpu = cfg.sampler, torch.cuda.is_available()
    if name == "auto":
        name = "vllm" if gpu and importlib.util.find_spec("vllm") else "hf"
        if gpu and name == "hf":
            say("WARNING: sampling on this GPU will be slow, for vLLM is missing: pip install -r requirements.txt")
    if name == "hf":
        return TorchSampler
    from core.vllm_sampler import VLLMSampler  # here, because that file needs this one

    VLLMSampler.load()  # a bad installation is reported now, not after the policy has been loaded
    return functools.partial(VLLMSampler, longest=cfg.max_prompt_tokens + cfg.max_new_tokens, tp=cfg.tp,
                             memory=cfg.vllm_memory, request_seeds=cfg.request_seeds)  # fmt: skip


def new_sampler(kind, policy, tokenizer):
    """A sampler for the policy; kind: what choose_sampler() returned. It stops at the end tokens that the model's
    generation config names, and at the tokenizer's."""
    ends = np.atleast_1d(policy.lm.generation_config.eos_token_id or tokenizer.eos_token_id)
    with bad_input():
        return kind(policy, {tokenizer.eos_token_id, *ends.tolist()})
