"""Samplers write responses to prompts. There are two, plain torch and vLLM, with the same interface:

    sync(policy)    take over the policy's weights: before the first sample(), and whenever the weights have changed
    sample(...)     token ids in, token ids out, with the logprob of each sampled token at the sampling temperature
    sleep()         give GPU memory back while the policy trains
    asleep          True after a sleep() that took effect: sync() has to come before the next sample()
    exact           True if those logprobs are the trainer's own, so that no second pass is needed to compute them
"""

import atexit
import copy
import functools
import importlib.util
import math
import os
import re
import warnings

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM

from core.config import bad_input
from core.packing import refuse_attention
from core.policy import logits_of
from core.processes import rank, say, world


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
    refuse_attention(softcap, s_aux)
    start, end = cache["end"], cache["end"] + key.shape[2]
    if sliding_window and end > sliding_window:
        raise ValueError(f"sequences of {end} tokens exceed this model's attention window {sliding_window}")
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


# ------------------------------------------------------------------------------------------------ vLLM
class LateBar(tqdm):
    """A progress bar that stays hidden for the first `delay` seconds, although vLLM forces it to refresh."""

    def refresh(self, *args, **kwargs):
        if self.format_dict["elapsed"] > self.delay:
            super().refresh(*args, **kwargs)


class VLLMSampler:
    """vLLM's engine inside this process; made for GPUs, but it runs on a CPU too. Only this class touches vLLM.

    Each process has its own engine, or `tp` processes share one, for a model larger than a GPU; torchrun starts them.
    vLLM gives no entropies: they are NaN until the trainer's pass fills them in. longest: most tokens of a prompt and
    its response together. memory: share of a GPU's memory that the engine takes while it is awake. request_seeds: see
    sample(). Raises ValueError, one line, if vLLM can't be used or can't start."""

    exact = asleep = False
    engines = []  # keeps every engine alive until the process ends, see __init__
    oldest, newest = (0, 25), (0, 32)  # the versions of vLLM that the tests have run with

    @classmethod
    def load(cls):
        """Import vLLM: its classes LLM and SamplingParams, and its version. Raises ValueError, one line, if vLLM is
        missing, broken or outside the tested versions."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine has to live in this process
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, on a CPU; on a GPU `memory` decides
        warnings.filterwarnings("ignore", module=r"vllm|torch\.distributed")
        try:
            import vllm

            version = tuple(map(int, re.findall(r"\d+", vllm.__version__)[:2]))
            if not cls.oldest <= version <= cls.newest:
                raise ImportError("version {} is outside the tested range, {}.{} to {}.{}".format(
                    vllm.__version__, *cls.oldest, *cls.newest))  # fmt: skip
            from vllm import LLM, SamplingParams
        except (ImportError, AttributeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"no usable vllm: {reason}; pip install -r requirements.txt, or --sampler hf") from None
        return LLM, SamplingParams, vllm.__version__

    def __init__(self, policy, eos: set[int], longest: int, tp=1, memory=0.5, request_seeds=False):
        LLM, self.sampling_params, self.version = self.load()
        if world() % tp:
            raise ValueError(f"--tp {tp}: it has to divide the number of processes, {world()}; start more by torchrun")
        self.cuda, self.tp, self.request_seeds = policy.device.type == "cuda", tp, request_seeds
        self.group = dist.new_subgroups(tp)[0] if tp > 1 else None
        # Ids that the tokenizer lacks must never be sampled, so the engine's model gets a vocabulary without them.
        size = policy.lm.config.vocab_size
        self.vocab = min(policy.vocab or size, size)
        self.eos = sorted(token for token in eos if token < self.vocab)
        # vLLM replaces torch.set_num_threads on CPUs, and patches a model class of transformers if it has no version of
        # its own and runs that class. Both are restored after the start.
        set_num_threads, model_class = torch.set_num_threads, type(policy.lm.base_model)
        model_init = model_class.__init__
        try:
            self.llm = LLM(
                policy.lm.name_or_path, load_format="dummy", skip_tokenizer_init=True, generation_config="vllm",
                hf_overrides=dict(vocab_size=self.vocab), dtype=policy.dtype, max_model_len=longest,
                logprobs_mode="processed_logprobs",  # at the sampling temperature, as the trainer's
                distributed_executor_backend="external_launcher" if "RANK" in os.environ else None,
                tensor_parallel_size=tp, gpu_memory_utilization=memory, enable_sleep_mode=self.cuda,
                enforce_eager=not self.cuda)  # fmt: skip
        except (ValueError, torch.OutOfMemoryError) as error:
            reason = " ".join(str(error).split())[:500]
            raise ValueError(f"vLLM could not start: {reason} (flags: --vllm_memory {memory}, --tp {tp}, "
                             f"--max_new_tokens, or --sampler hf)") from None  # fmt: skip
        finally:
            torch.set_num_threads = set_num_threads
            if model_class.__init__ is not model_init:
                model_class.__init__ = model_init
                del model_class.__call__
        # An engine that ends destroys all process groups, the trainer's too: it has to live as long as the process.
        self.engines.append(self.llm)
        if hasattr(self.llm.llm_engine.engine_core, "_finalizer"):
            atexit.unregister(dist.destroy_process_group)
        say(f"sampler: vLLM {self.version}, {world() // tp} engine(s) of {tp} process(es)")

    def _weights(self, policy):
        """The policy's weights as (name, tensor), as a checkpoint has them. A table that embedding and head share comes
        under both names, because vLLM may keep two copies of it."""
        ends = policy.lm.get_input_embeddings(), policy.lm.get_output_embeddings()
        tables = [f"{name}.weight" for name, module in policy.lm.named_modules() if module in ends]
        for name, tensor in policy.weights():
            tensor = tensor.to(policy.dtype)
            names = tables if name in tables and policy.lm.config.tie_word_embeddings else [name]
            yield from [(each, tensor[: self.vocab] if name in tables else tensor) for each in names]

    def sync(self, policy):
        """Push the policy's weights, tensor by tensor. On a GPU this also wakes the engine, in the order that needs the
        least memory: the trainer's cached blocks go, room for the weights, the weights, room for the KV cache."""
        if self.asleep:
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=["weights"])
        # Without weights_iterator vLLM would read the model's files again, and sample from the base model ever after.
        self.llm.collective_rpc("reload_weights", kwargs=dict(weights_iterator=self._weights(policy)))
        if self.asleep:
            self.llm.wake_up(tags=["kv_cache"])
        self.asleep = False
        self.llm.reset_prefix_cache()  # it holds keys and values of the old weights

    def sleep(self):
        """Give the engine's GPU memory back, weights and KV cache; sync() has to come before the next sample()."""
        if self.cuda and not self.asleep:
            self.llm.sleep(level=2)
            self.asleep = True

    def sample(self, prompts, n, numbers, seed, max_new_tokens, temperature, quiet=False, top_p=1.0):
        """As TorchSampler.sample, with three differences. The entropies are NaN. Logprobs are those of the tokens that
        top_p leaves. An engine draws all its responses from one stream, keyed by the seed and the number of its first
        prompt, so that responses depend on how many engines there are; with request_seeds each response has its own
        stream, which makes decoding slower."""
        requests, first = list(zip(prompts, numbers)), 0
        if self.tp > 1:  # the processes that share an engine submit the same requests; `first` is this process's first
            parts = [None] * self.tp
            dist.all_gather_object(parts, requests, group=self.group)
            first = sum(map(len, parts[: rank() % self.tp]))
            requests = sum(parts, [])
        if not requests:
            return []
        keys = (streams(seed, [number for _, number in requests], 1) >> np.uint64(2)).tolist()  # fit a signed int64
        copies = 1 if temperature else n  # greedy responses are all the same: vLLM writes one, which is then repeated
        params = [self.sampling_params(
            n=n // copies, temperature=temperature, top_p=top_p, top_k=0, max_tokens=max_new_tokens,
            stop_token_ids=self.eos, ignore_eos=True, logprobs=0, flat_logprobs=True, detokenize=False,
            seed=key if self.request_seeds else None) for key in keys]  # fmt: skip
        inputs = [dict(prompt_token_ids=prompt.tolist()) for prompt, _ in requests]
        # The engine draws from torch's generators, but the algorithms' draws must stay the same on all ranks.
        with torch.random.fork_rng([torch.cuda.current_device()] if self.cuda else []):
            torch.manual_seed(keys[0])
            np.random.seed(keys[0] % 2**32)
            bar = functools.partial(LateBar, delay=5, leave=False)
            outputs = self.llm.generate(inputs, params, use_tqdm=not quiet and bar)
        responses = []
        for request in outputs[first : first + len(prompts)]:
            for answer in request.outputs * copies:
                ids, logprobs = np.array(answer.token_ids), np.array(answer.logprobs.logprobs, dtype=np.float32)
                responses.append((ids, logprobs, np.full_like(logprobs, np.nan), int(ids[-1]) in self.eos))
        return responses


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
    VLLMSampler.load()  # a bad installation is reported now, not after the policy has been loaded
    return functools.partial(VLLMSampler, longest=cfg.max_prompt_tokens + cfg.max_new_tokens, tp=cfg.tp,
                             memory=cfg.vllm_memory, request_seeds=cfg.request_seeds)  # fmt: skip


def new_sampler(kind, policy, tokenizer):
    """A sampler for the policy; kind: what choose_sampler() returned. It stops at the end tokens that the model's
    generation config names, and at the tokenizer's."""
    ends = np.atleast_1d(policy.lm.generation_config.eos_token_id or tokenizer.eos_token_id)
    with bad_input():
        return kind(policy, {tokenizer.eos_token_id, *ends.tolist()})
