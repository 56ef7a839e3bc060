"""Samplers write responses to prompts. There are two, plain torch here and vLLM in vllm_sampler.py. Both have this
interface:

    sync(policy)    copy the policy's weights: before the first sample(), and whenever the weights have changed
    sample(...)     token ids in, token ids out, with the logprob of each sampled token at the sampling temperature
    sleep()         free GPU memory while the policy trains
    rest(), wake()  the same for a model that never changes, such as a teacher
    stale           True before the first sync(), and after a sleep() that freed the weights. Then call sync() first.
    exact           True if these logprobs equal the trainer's. Then the trainer does not compute them again.

The torch sampler writes all responses together, one token of each per pass through the model.
Shared tokens are computed and cached once: the start that all prompts share, and each prompt for all of its responses.
Query heads with the same key head share one matrix product, so their keys and values are never copied.
A token is drawn by the inverse CDF of one uniform number: first a block of the vocabulary, then a token in the block.
Ended responses are dropped.
"""

import copy
import functools
import importlib.util
import math
from collections import defaultdict

import numpy as np
import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from core.config import end_tokens, find_model
from core.packing import refuse_attention, shared_start
from core.head import logits_of
from core.linear import quicken
from core.processes import bad_input, fail, progress, say
from core.streams import streams, uniforms
from core.vllm_sampler import VLLMSampler


# ------------------------------------------------------------------------------------------------ the KV cache
class Cache:
    """Keys and values of all layers. Shared tokens are cached once. All queries to the same keys share one product:
    those of several responses, and of several heads with one key head.

      shared   for each layer a list of parts (keys, values, bias). First the start that all prompts share: keys and
               values [1, K, C, D]. Then the rest of each prompt: [P, K, W, D], padded on the right. Its bias
               [P, 1, 1, W] hides the padding.
      own      for each layer (keys, values) of the responses' tokens, [R, K, steps, D]

    There are P prompts, n responses to each, and K key heads. R responses are still being written.
    slots [R] says which ones: slot i * n + j is response j to prompt i."""

    def __init__(self, prompts: int, n: int, steps: int, device):
        self.shared, self.own = defaultdict(list), {}
        self.n, self.steps, self.slots = n, steps, torch.arange(prompts * n, device=device)
        self.bias = self.length = None  # bias of the prompts in read(); number of tokens in `own`

    def tokens(self, layer) -> int:
        """How many tokens a new token can see, itself included."""
        return sum(keys.shape[2] for keys, *_ in self.shared[layer]) + (self.length or 0) + 1

    def read(self, layer, query, key, value, scale):
        """Add prompts to the cache and compute their attention: query [P, heads, W, D] -> [P, heads, W, D]."""
        keys, values, new = key, value, key.shape[2]
        for k, v, _ in self.shared[layer]:
            keys, values = (torch.cat([x.expand(len(key), -1, -1, -1), y], 2) for x, y in ((k, keys), (v, values)))
        start = keys.shape[2] - new
        mask = torch.ones(new, start + new, dtype=torch.bool, device=key.device).tril(start) if start else None
        self.shared[layer].append((key.contiguous(), value.contiguous(), self.bias))
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, keys, values, mask, is_causal=not start, scale=scale,
                                              enable_gqa=grouped)

    def write(self, layer, query, key, value, scale):
        """Add one new token per response and compute its attention: query [R, heads, 1, D] -> [R, heads, 1, D]."""
        rows, heads, _, size = key.shape
        if layer not in self.own:
            self.own[layer] = [key.new_empty(rows, heads, self.steps, size) for _ in range(2)]
        keys, values = self.own[layer]
        keys[:, :, self.length], values[:, :, self.length] = key[:, :, 0], value[:, :, 0]
        keys, values = keys[:, :, : self.length + 1], values[:, :, : self.length + 1]
        q, shared = (query * scale).view(rows, heads, -1, size), self.shared[layer]
        # One softmax over the scores in all parts.
        scores = [self.each(self.joint(q, len(k)) @ k.mT + bias, rows) for k, _, bias in shared] + [q @ keys.mT]
        weights = torch.cat(scores, -1).softmax(-1, dtype=torch.float32).to(q.dtype)
        *parts, own = weights.split([x.shape[-1] for x in scores], -1)
        out = own @ values
        for w, (_, v, _) in zip(parts, shared):
            out += self.each(self.joint(w, len(v)) @ v, rows)
        return out.view(query.shape)

    def joint(self, x, groups: int):
        """[R, K, G, D] -> [groups, K, all rows of a group x G, D]: the queries to the same keys, side by side.
        If there are several groups, ended rows stay in as zeros."""
        if groups > 1 and len(x) < groups * self.n:
            x = x.new_zeros(groups * self.n, *x.shape[1:]).index_copy_(0, self.slots, x)
        return x.unflatten(0, (groups, -1)).transpose(1, 2).flatten(2, 3)

    def each(self, x, rows: int):
        """The inverse of joint() for `rows` rows."""
        every = rows if len(x) == 1 else len(x) * self.n
        x = x.unflatten(2, (every // len(x), -1)).transpose(1, 2).flatten(0, 1)
        return x if every == rows else x[self.slots]

    def keep(self, alive):
        """Keep the responses where alive [R] is True, and drop prompts without responses."""
        prompts, index = torch.unique(self.slots[alive] // self.n, return_inverse=True)
        self.slots = index * self.n + self.slots[alive] % self.n
        for layer, (*first, last) in self.shared.items():
            self.shared[layer] = [*first, tuple(x[prompts] for x in last)]
            self.own[layer] = [x[alive] for x in self.own[layer]]


def cached_attention(module, query, key, value, attention_mask, scaling=None, cache=None, sliding_window=None,
                     softcap=None, s_aux=None, **kwargs):
    """Add new tokens to a Cache, and compute their attention to all tokens in it. query [R, heads, new, D], key and
    value [R, KV heads, new, D] -> ([R, new, heads, D], None). transformers calls this in every layer.
    Raises ValueError if it can't compute a model's attention."""
    refuse_attention(softcap, s_aux, cache.tokens(module.layer_idx) + key.shape[2] - 1, sliding_window)
    attend = cache.read if cache.length is None else cache.write
    return attend(module.layer_idx, query, key, value, scaling).transpose(1, 2), None


AttentionInterface.register("cached", cached_attention)
AttentionMaskInterface.register("cached", lambda *args, **kwargs: None)  # no mask is needed


# ------------------------------------------------------------------------------------------------ drawing a token
def nucleus(p: torch.Tensor, top_p: float) -> torch.Tensor:
    """Probabilities p [R, V] -> [R, V], with 0 for every token outside the nucleus. They are not renormalised.
    Nucleus: the fewest most likely tokens with a sum of at least top_p (0: only the first). arXiv 1904.09751."""
    mass, order = torch.sort(p, dim=-1, descending=True, stable=True)
    mass_before = mass.cumsum(-1) - mass
    kept = mass_before < max(top_p, 1e-9)
    return torch.zeros_like(p).scatter(-1, order, mass * kept)


def search(mass: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The inverse CDF of each row: mass [R, M], not normalised, and u [R, 1] in [0, 1), float64 -> (entry, rest).
    entry [R, 1], int64: the cumulative sum reaches the point u * sum here. rest [R, 1]: how far into it, 0..1."""
    cdf = mass.cumsum(-1, dtype=torch.float64)
    point = u.clamp(max=1 - 2**-52) * cdf[:, -1:]
    entry = torch.searchsorted(cdf, point, right=True)
    own = mass.gather(1, entry).double()
    return entry, (point - cdf.gather(1, entry) + own) / own


def draw(logits: torch.Tensor, u: torch.Tensor, top_p: float = 1.0):
    """Logits [R, V] in fp32 and uniform numbers u [R, 1] in float64 -> a token per row, its logprob, and the entropy of
    the row in nats, each [R]. Overwrites the logits. The inverse CDF first finds a block of tokens, then the token in
    it, because float64 sums over the whole vocabulary would be slow."""
    rows, vocab = logits.shape
    width = 2 ** (vocab.bit_length() // 2)
    p = logits.new_empty(rows, math.ceil(vocab / width) * width)
    p[:, vocab:] = 0
    logits -= logits.amax(-1, keepdim=True)
    torch.exp(logits, out=p[:, :vocab])
    blocks = p.view(rows, -1, width)
    mass = blocks.sum(-1)
    total = mass.sum(-1)
    entropy = total.log() - torch.linalg.vecdot(p[:, :vocab], logits) / total
    if top_p < 1:
        p[:, :vocab] = nucleus(p[:, :vocab] / total[:, None], top_p)
        mass = blocks.sum(-1)
    block, u = search(mass, u)
    place, _ = search(blocks.gather(1, block[:, :, None].expand(-1, -1, width))[:, 0], u)
    token = block * width + place
    return token[:, 0], logits.gather(1, token)[:, 0] - total.log(), entropy


# ------------------------------------------------------------------------------------------------ plain torch
class TorchSampler:
    """Decoding in plain torch with a KV cache, for machines without vLLM. It has its own copy of the model, and sync()
    copies the policy's weights into it.

    Every response has its own random stream, with one uniform number per token. So its batch and the number of
    processes make no difference. `exact` is True in fp32: there the logprobs equal the trainer's.
    eos: ids of the tokens that end a response. cache_tokens: the most tokens in the KV cache."""

    stale = True

    def __init__(self, policy, eos: set[int], cache_tokens: int = 2**17):
        config = copy.deepcopy(policy.lm.config)  # a copy: from_config writes the attention's name into it
        self.lm = AutoModelForCausalLM.from_config(config, dtype=policy.dtype, attn_implementation="cached").eval()
        self.lm.to(policy.device)
        if policy.device.type == "cpu":
            quicken(self.lm)
        self.exact = policy.dtype == torch.float32
        self.vocab, self.cache_tokens, self.chunk_logits = policy.vocab, cache_tokens, policy.chunk_logits
        self.eos = torch.tensor(sorted(eos), device=policy.device)

    @torch.no_grad()
    def sync(self, policy):
        """Copy the policy's weights, tensor by tensor."""
        mine = dict(self.lm.named_parameters())
        for name, tensor in policy.weights():
            mine[name].copy_(tensor)
        self.stale = False

    def sleep(self):
        """Does nothing: the copy of the model stays where it is."""

    rest = wake = sleep

    def sample(self, prompts, n, numbers, seed, max_new_tokens, temperature, quiet=False, top_p=1.0):
        """Sample n responses to each of P prompts (arrays of token ids), at most max_new_tokens long. The random
        streams depend on the seed and on the prompts' numbers in the run, numbers [P]. Temperature 0 is greedy.

        Returns a list of P * n tuples (ids, logprobs, entropies in nats, finished), the n of a prompt together.
        ids include the end token. finished: the response ends with an end token. Logprobs and entropies are those of
        the whole distribution at this temperature, before top_p."""
        longest = max(map(len, prompts), default=0) + n * max_new_tokens
        size = max(1, self.cache_tokens // longest)  # prompts that fit into the cache together
        responses = []
        with progress(len(prompts) * n * max_new_tokens, "sampling", quiet) as done:
            for i in range(0, len(prompts), size):
                keys = streams(seed, numbers[i : i + size], n)
                responses += self._decode(prompts[i : i + size], n, keys, max_new_tokens, temperature, top_p, done)
        return responses

    def _draw(self, hidden, u, temperature, top_p):
        """draw() from hidden states [R, hidden], a few rows at a time to keep the logits small."""
        parts, size = [], max(1, self.chunk_logits // self.lm.config.vocab_size)
        for x, y in zip(hidden.split(size), u.split(size)):
            logits = logits_of(self.lm, x)[:, : self.vocab].float()
            parts.append(draw(logits if temperature in (0, 1) else logits / temperature, y, top_p))
        return map(torch.cat, zip(*parts))

    @torch.inference_mode()
    def _decode(self, prompts, n, keys, steps, temperature, top_p, done):
        """sample() for prompts that fit into the cache together. keys: uint64 [P * n]. At most `steps` new tokens.
        Each pass tells done() how many tokens are finished. A response that ends finishes all of its `steps` tokens."""
        device, cache = self.eos.device, Cache(len(prompts), n, steps, self.eos.device)
        send = lambda x: torch.from_numpy(x).to(device)

        def states(ids, positions):
            """Add new tokens, ids [R, new], to the cache. Returns their hidden states [R, new, hidden]."""
            return self.lm.base_model(input_ids=ids, position_ids=positions, cache=cache, use_cache=False)[0]

        # Prefill: first the start that all prompts share, if any. Then the rest of each prompt, padded on the right.
        lengths = np.array([len(prompt) for prompt in prompts])
        width, common = lengths.max(), shared_start(prompts)
        ids = np.stack([np.pad(prompt, (0, width - len(prompt))) for prompt in prompts])
        ids, columns = send(ids), torch.arange(width, device=device)
        cache.bias = torch.zeros((), dtype=self.lm.dtype, device=device)
        if common:
            states(ids[:1, :common], columns[None, :common])
        lengths = send(lengths)
        pads = columns[common:] >= lengths[:, None]
        cache.bias = cache.bias.expand(pads.shape).masked_fill(pads, -math.inf)[:, None, None]
        hidden = states(ids[:, common:], columns[None, common:])[torch.arange(len(ids)), lengths - 1 - common]
        # Decode: from here on there is one row per response. rows[r] is the response in row r of the cache.
        # Rows of ended responses are dropped.
        hidden, start = (x.repeat_interleave(n, 0) for x in (hidden, lengths))
        rows = torch.arange(len(keys), device=device)
        tokens = torch.zeros(len(rows), steps, dtype=torch.long, device=device)
        logprobs, entropies = torch.zeros(2, len(rows), steps, device=device)
        lengths = torch.full_like(rows, steps)
        share, expected = top_p if temperature else 0.0, len(rows) * steps  # greedy: only the most likely token
        for t in range(steps):
            u = send(uniforms(keys, t))[rows, None]
            token, logprobs[rows, t], entropies[rows, t] = self._draw(hidden, u, temperature, share)
            tokens[rows, t] = token
            ended = torch.isin(token, self.eos) & (lengths[rows] == steps)
            lengths[rows[ended]] = t + 1
            alive = lengths[rows] == steps
            left = int(alive.sum()) * (steps - t - 1)  # tokens that may still come
            done(expected - left)
            expected = left
            if not left:
                break
            if t % 4 == 3 and alive.float().mean() < 0.9:  # drop ended rows, but not often: it copies the cache
                rows, start, token = (x[alive] for x in (rows, start, token))
                cache.keep(alive)
            cache.length = t
            hidden = states(token[:, None], (start + t)[:, None])[:, 0]
        finished = torch.isin(tokens.gather(1, lengths[:, None] - 1)[:, 0], self.eos).tolist()
        tokens, logprobs, entropies = (x.cpu().numpy() for x in (tokens, logprobs, entropies))
        return [(tokens[i, :length], logprobs[i, :length], entropies[i, :length], finished[i])
                for i, length in enumerate(lengths.tolist())]


def choose_sampler(cfg):
    """The sampler that --sampler names, as a function (policy, eos) -> sampler. auto: vLLM if it is installed and there
    is a GPU, else plain torch. This function and the returned one raise ValueError, one line."""
    name, gpu = cfg.sampler, torch.cuda.is_available()
    if name == "auto":
        name = "vllm" if gpu and importlib.util.find_spec("vllm") else "hf"
        if gpu and name == "hf":
            say("WARNING: vLLM is missing, so sampling on this GPU will be slow: pip install -r requirements.txt")
    if name == "hf":
        return TorchSampler
    VLLMSampler.load()  # report a bad installation before the policy is loaded
    return functools.partial(VLLMSampler, longest=cfg.max_prompt_tokens + cfg.max_new_tokens, tp=cfg.tp,
                             memory=cfg.vllm_memory, request_seeds=cfg.request_seeds)


def new_sampler(kind, policy, tokenizer):
    """A sampler for the policy. kind: from choose_sampler(). It stops at the end tokens of the tokenizer and of the
    model's generation config."""
    with bad_input():
        return kind(policy, end_tokens(policy.lm.generation_config, tokenizer))


def sampler_of(run, model: str, flag: str):
    """A sampler of another model, such as a teacher. flag: the flag that names it. fail() if its tokens differ."""
    source, _, tokenizer = find_model(model, flag)
    if tokenizer.get_vocab() != run.tokenizer.get_vocab():
        fail(f"--{flag} {model}: its tokens differ from those of {run.cfg.model}; use a model of the same family")
    # A process can have one vLLM engine. The policy's evaluations get the torch sampler, before vLLM takes its memory.
    own = new_sampler(TorchSampler, run.policy, run.tokenizer)
    weights = run.new_model(source, flag=flag, offload=True)  # used once
    sampler = new_sampler(run.sampler, weights, tokenizer)
    sampler.sync(weights)
    sampler.rest()
    run.sampler = lambda policy, eos: own
    return sampler
