"""Samplers: one class per engine, behind one interface.

    sync(policy)    take over the policy's weights
    sample(...)     token ids in, token ids out, with the logprob of every sampled token at the sampling temperature
    sleep()         give memory back while the policy trains; sync() wakes it
    rest(), wake()  the same for a model that stays as it is, a teacher
    exact           whether those logprobs are the trainer's own, so that no second pass is needed to compute them
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
from core.plan import engine_share
from core.processes import all_reduce, rank, say, world


def mix(x: np.ndarray) -> np.ndarray:
    """splitmix64: a well-mixed uint64 for each uint64 counter."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def streams(seed: int, numbers: list[int], n: int) -> np.ndarray:
    """The random stream (a uint64 key) of each response [P * n]: a hash of seed, number of its prompt, and sample."""
    prompts = mix(mix(np.array([seed], np.uint64)) + np.array(numbers, np.uint64))
    return mix(prompts[:, None] + np.arange(n, dtype=np.uint64)).ravel()


def uniforms(keys: np.ndarray, t: int) -> np.ndarray:
    """Number t of the uniforms in [0, 1) of each stream, keys uint64 [R]."""
    return (mix(keys + np.uint64(t)) >> np.uint64(11)) * 2.0**-53


def cached_attention(module, query, key, value, attention_mask, scaling=None, cache=None, **kwargs):
    """Attention of the newest tokens of R rows, query [R, H, new, D], over the KV cache that they are added to."""
    end = cache["end"] + key.shape[2]
    k, v = cache.setdefault(module.layer_idx, [key, value])
    if k is not key:
        k[:, :, cache["end"] : end], v[:, :, cache["end"] : end] = key, value
    k, v, mask = k[:, :, :end], v[:, :, :end], cache["mask"][..., :end]
    if query.shape[2] == 1 and query.shape[1] == k.shape[1] and not query.is_cuda:  # plain products are quicker here
        out = ((query * scaling) @ k.mT + mask).softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(query, k, v, mask, scale=scaling, enable_gqa=query.shape[1] != k.shape[1])
    return out.transpose(1, 2), None


AttentionInterface.register("cached", cached_attention)
AttentionMaskInterface.register("cached", lambda *args, **kwargs: None)


def nucleus(p: torch.Tensor, top_p: float) -> torch.Tensor:
    """p [R, V] without the tokens outside the smallest set of likeliest ones that holds top_p (0: only the likeliest);
    not renormalised."""
    mass, order = torch.sort(p, dim=-1, descending=True, stable=True)
    kept = mass.cumsum(-1) - mass < max(top_p, 1e-9)
    return torch.zeros_like(p).scatter(-1, order, mass * kept)


class TorchSampler:
    """Plain torch decoding with a KV cache, for machines without vLLM, on a copy of the model that sync() refreshes.

    Every response draws from a random stream of its own, one uniform a token, inverse CDF: a rollout depends neither on
    the batch that it is decoded in nor on the number of processes. In fp32 its logprobs are the trainer's: `exact`."""

    asleep = False

    def __init__(self, policy, eos: set[int], cache_tokens: int = 2**17):
        config = copy.deepcopy(policy.lm.config)  # the model's attention function is kept in it
        self.lm = AutoModelForCausalLM.from_config(config, dtype=policy.dtype, attn_implementation="cached").eval()
        self.lm.to(policy.device)
        self.exact, self.vocab, self.cache_tokens = policy.dtype == torch.float32, policy.vocab, cache_tokens
        self.eos = torch.tensor(sorted(eos), device=policy.device)

    @torch.no_grad()
    def sync(self, policy):
        """Take over the policy's weights, tensor by tensor."""
        mine = dict(self.lm.named_parameters())
        for name, tensor in policy.weights():
            mine[name].copy_(tensor)

    def sleep(self):
        """Nothing to give back: the copy of the model stays."""

    rest = wake = sleep

    def sample(self, prompts, n, numbers, seed, max_new_tokens, temperature, quiet=False, top_p=1.0):
        """n responses to each prompt (token ids); `numbers`, the prompts' places in the run, key the random streams.
        Returns per response (ids with the end token, logprobs, entropies, finished), all n of a prompt together.
        Temperature 0: greedy. Logprobs and entropies are those of the whole distribution, whatever top_p cuts off."""
        size = max(1, self.cache_tokens // (n * (max(map(len, prompts), default=0) + max_new_tokens)))
        out = []
        for i in tqdm(range(0, len(prompts), size), desc="sampling", delay=5, leave=False, disable=quiet):
            keys = streams(seed, numbers[i : i + size], n)
            out += self._decode(prompts[i : i + size], n, keys, max_new_tokens, temperature, top_p)
        return out

    @torch.inference_mode()
    def _decode(self, prompts, n, keys, steps, temperature, top_p):
        device, width = self.eos.device, max(map(len, prompts))
        # Prefill: each prompt once, padded on the left. A pad sees itself, or its softmax would be NaN; nobody sees it.
        ids = torch.from_numpy(np.stack([np.pad(p, (width - len(p), 0)) for p in prompts])).to(device)
        pads = torch.tensor([[width - len(p)] for p in prompts], device=device)
        at = torch.arange(width + steps, device=device)
        seen, past = at >= pads, at[:width, None] >= at[:width]
        cache = dict(end=0, mask=(seen[:, None, :width] & past | torch.eye(width, device=device).bool())[:, None])
        forward = lambda ids, at: self.lm.base_model(  # noqa: E731
            input_ids=ids, position_ids=at, cache=cache, use_cache=False)[0][:, -1]  # fmt: skip
        hidden = forward(ids, (at[:width] - pads).clamp(min=0)).repeat_interleave(n, 0)
        # Decode: n rows a prompt, and room for the new tokens.
        pads, seen = pads.repeat_interleave(n, 0), seen.repeat_interleave(n, 0)
        for layer in range(self.lm.config.num_hidden_layers):
            cache[layer] = [F.pad(x.repeat_interleave(n, 0), (0, 0, 0, steps)) for x in cache[layer]]
        cache["mask"] = torch.where(seen, 0.0, -math.inf).to(hidden.dtype)[:, None, None]
        rows = torch.arange(len(keys), device=device)  # which response a row of the cache belongs to
        tokens = torch.zeros(len(rows), steps, dtype=torch.long, device=device)
        values = torch.zeros(len(rows), steps, 2, device=device)  # logprob and entropy
        lengths = torch.full_like(rows, steps)
        for t in range(steps):
            logits = self.lm.get_output_embeddings()(hidden)[:, : self.vocab].float()
            logp = (logits / (temperature or 1)).log_softmax(-1)
            p = logp.exp()
            drawn = p if temperature and top_p == 1 else nucleus(p, top_p if temperature else 0.0)
            cdf = drawn.cumsum(-1, dtype=torch.float64)
            u = torch.from_numpy(uniforms(keys, t)).to(device)[rows, None]
            token = torch.searchsorted(cdf, u * cdf[:, -1:], right=True).clamp(max=logp.shape[1] - 1)
            tokens[rows, t] = token[:, 0]
            values[rows, t] = torch.cat([logp.gather(1, token), -(p * logp).sum(-1, keepdim=True)], 1)
            ended = torch.isin(token[:, 0], self.eos) & (lengths[rows] == steps)
            lengths[rows[ended]] = t + 1
            alive = lengths[rows] == steps
            if t + 1 == steps or not alive.any():
                break
            if t % 8 == 7 and alive.float().mean() < 0.8:  # let go of the rows that have ended
                rows, pads, token, cache["mask"] = (x[alive] for x in (rows, pads, token, cache["mask"]))
                for layer in range(self.lm.config.num_hidden_layers):
                    cache[layer] = [x[alive] for x in cache[layer]]
            cache["end"] = width + t
            hidden = forward(token, width + t - pads)
        finished = torch.isin(tokens.gather(1, lengths[:, None] - 1)[:, 0], self.eos).tolist()
        tokens, values = tokens.cpu().numpy(), values.cpu().numpy()
        return [(tokens[i, :k], *values[i, :k].T, finished[i]) for i, k in enumerate(lengths.tolist())]


class LateBar(tqdm):
    """A progress bar that keeps to its `delay` although vLLM refreshes it by force."""

    def refresh(self, *args, **kwargs):
        if self.format_dict["elapsed"] > self.delay:
            super().refresh(*args, **kwargs)


class VLLMSampler:
    """vLLM's engine inside this process: for GPUs, though it runs on a CPU too. All that touches vLLM is in this class.

    Each process has an engine, or the `tp` processes of a group share one, for a model larger than a GPU: torchrun is
    the launcher. vLLM has no entropies, so they are NaN until the trainer's pass puts in its own. longest: tokens of
    prompt and response. memory: share of a GPU that the engine takes while it is awake (0: what the models that are
    there leave, see engine_share). request_seeds: see sample()."""

    exact, engines = False, []
    oldest, newest = (0, 25), (0, 32)  # the versions of vLLM that the tests have run with

    @classmethod
    def load(cls):
        """Import vLLM. Raises ValueError, one line, if it is missing, broken or outside the tested versions."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine is to live in this process
        for name, value in dict(LOGGING_LEVEL="ERROR", NO_USAGE_STATS=1, CPU_OMP_THREADS_BIND="nobind",
                                CPU_KVCACHE_SPACE=1).items():  # GiB; on a GPU `memory` decides  # fmt: skip
            os.environ.setdefault(f"VLLM_{name}", str(value))
        warnings.filterwarnings("ignore", module=r"vllm|torch\.distributed")
        try:
            import vllm

            if not cls.oldest <= tuple(map(int, re.findall(r"\d+", vllm.__version__)[:2])) <= cls.newest:
                raise ImportError("version {} is outside the tested range, {}.{} to {}.{}".format(
                    vllm.__version__, *cls.oldest, *cls.newest))  # fmt: skip
            from vllm import LLM, SamplingParams
        except (ImportError, AttributeError, OSError) as error:
            lines = " ".join(str(error).split())
            raise ValueError(f"no usable vllm: {lines}; pip install -r requirements.txt, or --sampler hf") from None
        return LLM, SamplingParams, vllm.__version__

    def __init__(self, policy, eos: set[int], longest: int, tp=1, memory=0.0, request_seeds=False):
        LLM, self.params, self.version = self.load()
        if world() % tp:
            raise ValueError(f"--tp {tp}: it has to divide the number of processes, {world()}; start more by torchrun")
        self.cuda, self.asleep, self.tp, self.request_seeds = policy.device.type == "cuda", False, tp, request_seeds
        self.group = dist.new_subgroups(tp)[0] if tp > 1 else None
        size = policy.lm.config.vocab_size  # ids beyond the tokenizer's can't be sampled: this model ends before them
        self.vocab = min(policy.vocab or size, size)
        self.eos = sorted(token for token in eos if token < self.vocab)
        memory = memory or (self._share(policy) if self.cuda else 0.5)
        threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
        model = type(policy.lm.base_model)
        start = model.__init__
        try:
            self.llm = LLM(
                policy.lm.name_or_path, load_format="dummy", skip_tokenizer_init=True, generation_config="vllm",
                hf_overrides=dict(vocab_size=self.vocab), dtype=policy.dtype, max_model_len=longest,
                logprobs_mode="processed_logprobs",  # at the temperature, as the trainer's
                distributed_executor_backend="external_launcher" if "RANK" in os.environ else None,
                tensor_parallel_size=tp, gpu_memory_utilization=memory, enable_sleep_mode=self.cuda,
                enforce_eager=not self.cuda,
            )  # fmt: skip
        except (ValueError, torch.OutOfMemoryError) as error:
            lines = " ".join(str(error).split())[:500]
            raise ValueError(f"vLLM could not start: {lines} (flags: --vllm_memory {memory}, --tp {tp}, "
                             f"--max_new_tokens, or --sampler hf)") from None  # fmt: skip
        finally:  # vLLM sets one thread, or on CPUs replaces the function; the trainer's offloaded optimizer needs all
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(threads)
            # It patches classes of transformers that it has no own version of.
            if model.__init__ is not start:
                model.__init__ = start
                del model.__call__
        # A dying engine takes all process groups along, the trainer's too: it lives to the end, which is then its job.
        self.engines.append(self.llm)
        if hasattr(self.llm.llm_engine.engine_core, "_finalizer"):
            atexit.unregister(dist.destroy_process_group)
        say(f"sampler: vLLM {self.version}, {world() // tp} engine(s) of {tp} process(es)")

    def _share(self, policy) -> float:
        """The smallest engine_share of all GPUs."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        parameters, table = sum(p.numel() for p in policy.lm.parameters()), policy.lm.get_input_embeddings().weight
        share = engine_share(free, total, parameters, table.numel(), self.tp)
        return all_reduce(torch.tensor(share, dtype=torch.float64), dist.ReduceOp.MIN).item()

    def _weights(self, policy):
        """The policy's weights as a checkpoint has them; a tied table under both of its names, because vLLM may keep
        the head as a module of its own."""
        ends = policy.lm.get_input_embeddings(), policy.lm.get_output_embeddings()
        tables = [f"{name}.weight" for name, module in policy.lm.named_modules() if module in ends]
        for name, tensor in policy.weights():
            names = tables if name in tables and policy.lm.config.tie_word_embeddings else [name]
            yield from [(name, tensor[: self.vocab] if name in tables else tensor) for name in names]

    def sync(self, policy):
        """Push the policy's weights, tensor by tensor. On a GPU this also wakes the engine, in the order that spares
        memory: room for the weights, the weights, room for the KV cache."""
        self.wake(["weights"])
        # Never without the iterator: it would read the model's files again, and sample from the base model for good.
        self.llm.collective_rpc("reload_weights", kwargs=dict(weights_iterator=self._weights(policy)))
        self.wake(["kv_cache"])
        self.llm.reset_prefix_cache()  # it holds keys and values of the old weights

    def sleep(self, level: int = 2):
        """Give the engine's GPU memory back, weights and KV cache; sync() has to come before the next sample()."""
        if self.cuda and not self.asleep:
            self.llm.sleep(level=level)
            self.asleep = True

    def rest(self):
        """Sleep with the weights on the host; wake() has to come before the next sample()."""
        self.sleep(level=1)

    def wake(self, parts=("weights", "kv_cache")):
        """The end of rest(): memory for these parts of a sleeping engine, one after the other. torch's cached blocks go
        first, because the engine can't use them."""
        for part in parts if self.asleep else ():
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=[part])
            self.asleep = part != "kv_cache"

    def sample(self, prompts, n, numbers, seed, max_new_tokens, temperature, quiet=False, top_p=1.0):
        """As TorchSampler.sample, but the entropies are NaN, logprobs are those of what top_p leaves, and an engine
        draws from one stream, keyed by seed and the number of its first prompt, so that responses depend on how many
        engines there are. With request_seeds each response has a stream of its own, which slows decoding."""
        requests, first = list(zip(prompts, numbers)), 0
        if self.tp > 1:  # the processes of an engine submit the same requests
            parts = [None] * self.tp
            dist.all_gather_object(parts, requests, group=self.group)
            requests, first = sum(parts, []), sum(map(len, parts[: rank() % self.tp]))
        if not requests:
            return []
        keys = (streams(seed, [number for _, number in requests], 1) >> np.uint64(2)).tolist()
        once = n if temperature else 1  # of greedy responses it gives one, which is all of them
        params = [self.params(n=once, temperature=temperature, top_p=top_p, top_k=0, max_tokens=max_new_tokens,
                              stop_token_ids=self.eos, ignore_eos=True, logprobs=0, flat_logprobs=True,
                              detokenize=False, seed=key if self.request_seeds else None) for key in keys]  # fmt: skip
        tokens = [dict(prompt_token_ids=prompt.tolist()) for prompt, _ in requests]
        # The engine draws from this process' generators; the algorithms' draws, the same on all ranks, must not notice.
        with torch.random.fork_rng([torch.cuda.current_device()] if self.cuda else []):
            torch.manual_seed(keys[0])
            np.random.seed(keys[0] % 2**32)
            bar = functools.partial(LateBar, delay=5, leave=False)
            outputs = self.llm.generate(tokens, params, use_tqdm=not quiet and bar)
        out = []
        outputs = [request.outputs * (n // once) for request in outputs[first : first + len(prompts)]]
        for answer in (x for answers in outputs for x in answers):
            ids, logprobs = np.array(answer.token_ids), np.array(answer.logprobs.logprobs, dtype=np.float32)
            out.append((ids, logprobs, np.full(len(ids), np.nan, np.float32), int(ids[-1]) in self.eos))
        return out


def choose_sampler(cfg):
    """What --sampler asks for, a function (policy, eos) -> sampler. Raises ValueError, as does that function: one line.
    auto: vLLM if it is installed and there is a GPU, else plain torch."""
    name, gpu = cfg.sampler, torch.cuda.is_available()
    if name == "auto":
        name = "vllm" if gpu and importlib.util.find_spec("vllm") else "hf"
        if gpu and name == "hf":
            say("WARNING: sampling on this GPU will be slow, for vLLM is missing: pip install -r requirements.txt")
    if name == "hf":
        return TorchSampler
    VLLMSampler.load()
    return functools.partial(VLLMSampler, longest=cfg.max_prompt_tokens + cfg.max_new_tokens, tp=cfg.tp,
                             memory=cfg.vllm_memory, request_seeds=cfg.request_seeds)  # fmt: skip


def new_sampler(kind, policy, tokenizer):
    """A sampler of this kind, see choose_sampler, that stops at the end tokens of model and tokenizer."""
    ends = np.atleast_1d(policy.lm.generation_config.eos_token_id or tokenizer.eos_token_id)
    with bad_input():
        return kind(policy, {tokenizer.eos_token_id, *ends.tolist()})
