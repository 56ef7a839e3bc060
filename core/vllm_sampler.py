"""vLLM's engine as a sampler, see sampler.py. Only this file uses vLLM."""

import atexit
import functools
import os
import re
import sys
import warnings

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from core import head
from core.memory import engine_share
from core.processes import all_reduce, bar_style, rank, say, world
from core.streams import streams


class LateBar(tqdm):
    """A progress bar that is hidden for the first `delay` seconds, even when vLLM refreshes it."""

    def refresh(self, *args, **kwargs):
        if self.format_dict["elapsed"] > self.delay:
            super().refresh(*args, **kwargs)


class VLLMSampler:
    """vLLM's engine inside this process. It is made for GPUs, but it runs on a CPU too.

    Each process has its own engine, or `tp` processes share one, if the model is larger than a GPU.
    vLLM returns no entropies: they are NaN until the trainer's pass fills them in.
    longest: most tokens of a prompt and its response together. memory: the engine's share of a GPU's memory while it
    is awake (0: as much as the trainer leaves, see engine_share). request_seeds: see sample().
    Raises ValueError, one line, if vLLM can't be used or can't start."""

    exact, asleep, stale = False, False, True
    engines = []  # keeps all alive: an engine that ends destroys all process groups
    oldest, newest = (0, 25), (0, 32)  # the versions of vLLM that the tests have run with
    oldest_on_gpu = (0, 32)  # before it, an engine does not count the memory of its CUDA graphs

    @classmethod
    def load(cls):
        """Import vLLM. Returns its classes LLM and SamplingParams, and its version. Raises ValueError, one line, if
        vLLM is missing or broken, or if its version is not tested."""
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine must run in this process
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB, on a CPU; on a GPU `memory` decides
        warnings.filterwarnings("ignore", module=r"vllm|torch\.distributed")
        try:
            import vllm

            version = tuple(map(int, re.findall(r"\d+", vllm.__version__)[:2]))
            oldest = cls.oldest_on_gpu if torch.cuda.is_available() else cls.oldest
            if not oldest <= version <= cls.newest:
                raise ImportError("version {} is outside the tested range, {}.{} to {}.{}".format(
                    vllm.__version__, *oldest, *cls.newest))
            from vllm import LLM, SamplingParams
        except (ImportError, AttributeError, OSError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"no usable vllm: {reason}; pip install -r requirements.txt, or --sampler hf") from None
        return LLM, SamplingParams, vllm.__version__

    def __init__(self, policy, eos: set[int], longest: int, tp=1, memory=0.0, request_seeds=False):
        LLM, self.sampling_params, self.version = self.load()
        if world() % tp:
            raise ValueError(f"--tp {tp}: must divide the number of processes, {world()}; start more with torchrun")
        self.cuda, self.tp, self.request_seeds = policy.device.type == "cuda", tp, request_seeds
        self.group = dist.new_subgroups(tp)[0] if tp > 1 else None
        # Never sample ids that the tokenizer lacks: the engine's model has a smaller vocabulary, without them.
        size = policy.lm.config.vocab_size
        self.vocab = min(policy.vocab or size, size)
        self.eos = sorted(token for token in eos if token < self.vocab)
        memory = memory or (self._share(policy) if self.cuda else 0.5)
        # vLLM changes global state; all of it is restored after the start. It sets one thread, or on CPUs replaces
        # torch.set_num_threads, but an offloaded optimizer needs all threads. And if it has no version of a model, it
        # runs the one of transformers and patches its class.
        threads, set_num_threads = torch.get_num_threads(), torch.set_num_threads
        model_class = type(policy.lm.base_model)
        model_init = model_class.__init__
        precision = dict(head_dtype="float32") if self.cuda and head.FP32 else {}  # as in the trainer
        try:
            self.llm = LLM(
                policy.lm.name_or_path, load_format="dummy", skip_tokenizer_init=True, generation_config="vllm",
                hf_overrides=dict(vocab_size=self.vocab) | precision, dtype=policy.dtype, max_model_len=longest,
                logprobs_mode="processed_logprobs",  # at the sampling temperature, like the trainer's
                distributed_executor_backend="external_launcher" if "RANK" in os.environ else None,
                tensor_parallel_size=tp, gpu_memory_utilization=memory, enable_sleep_mode=self.cuda,
                max_num_seqs=1024 if self.cuda else None,  # sequences at a time; vLLM's default for an A100 is 256
                enforce_eager=not self.cuda)
        except (ValueError, torch.OutOfMemoryError) as error:
            reason = " ".join(str(error).split())[:500]
            raise ValueError(f"vLLM could not start: {reason} (flags: --vllm_memory {memory}, --tp {tp}, "
                             f"--max_new_tokens, or --sampler hf)") from None
        finally:
            torch.set_num_threads = set_num_threads
            torch.set_num_threads(threads)
            if model_class.__init__ is not model_init:
                model_class.__init__ = model_init
                del model_class.__call__
        self.engines.append(self)
        if hasattr(self.llm.llm_engine.engine_core, "_finalizer"):
            atexit.unregister(dist.destroy_process_group)
            atexit.register(self.end_engines)  # the last to be registered is the first to run
        say(f"sampler: vLLM {self.version}, {world() // tp} engine(s) of {tp} process(es)")
        self.sleep()  # so that the first push does not need its room beside the KV cache

    @classmethod
    def end_engines(cls):
        """At exit, end the engines ourselves: with them, vLLM destroys all process groups, the trainer's too.

        Wake them first, because vLLM would release memory that sleep() has released before: errors, even SIGABRT."""
        for sampler in cls.engines:
            try:
                sampler.wake()
                sampler.llm.llm_engine.engine_core._finalizer()
            except Exception:  # no memory: this process has failed already
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(1)

    def _share(self, policy) -> float:
        """The smallest engine_share() of all GPUs."""
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        parameters, table = sum(p.numel() for p in policy.lm.parameters()), policy.lm.get_input_embeddings().weight
        share = engine_share(free, total, parameters, table.numel(), self.tp)
        return all_reduce(torch.tensor(share, dtype=torch.float64), dist.ReduceOp.MIN).item()

    def _weights(self, policy):
        """The policy's weights as pairs (name, tensor), with the names of a checkpoint. If embedding and head share a
        table, it is there under both names, because vLLM may keep two copies of it."""
        ends = policy.lm.get_input_embeddings(), policy.lm.get_output_embeddings()
        tables = [f"{name}.weight" for name, module in policy.lm.named_modules() if module in ends]
        for name, tensor in policy.weights():
            names = tables if name in tables and policy.lm.config.tie_word_embeddings else [name]
            yield from [(each, tensor[: self.vocab] if name in tables else tensor) for each in names]

    def sync(self, policy):
        """Copy the policy's weights to the engine, tensor by tensor. On a GPU this also wakes it. The order needs the
        least memory: first room for the weights, then the weights, then room for the KV cache."""
        self.wake(["weights"])
        # Without weights_iterator, vLLM would read the model's files again, and always sample from the base model.
        self.llm.collective_rpc("reload_weights", kwargs=dict(weights_iterator=self._weights(policy)))
        self.wake(["kv_cache"])
        self.llm.reset_prefix_cache()  # its keys and values are from the old weights
        self.stale = False

    def sleep(self, level: int = 2):
        """Free the engine's GPU memory, weights and KV cache. Call sync() before the next sample()."""
        if self.cuda and not self.asleep:
            self.llm.sleep(level=level)
            self.asleep, self.stale = True, level == 2

    def rest(self):
        """Sleep with the weights in the host's memory. Call wake() before the next sample()."""
        self.sleep(level=1)

    def wake(self, parts=("weights", "kv_cache")):
        """End rest(): allocate these parts of a sleeping engine again, one after the other. Before each part torch
        frees its cached blocks, because the engine can't use them."""
        for part in parts if self.asleep else ():
            torch.cuda.empty_cache()
            self.llm.wake_up(tags=[part])
            self.asleep = part != "kv_cache"

    @property
    def phantom(self) -> int:
        """Bytes that torch's statistics of a GPU still count, although the sleeping engine has freed them."""
        if not self.asleep:
            return 0
        from vllm.device_allocator.cumem import CuMemAllocator

        return CuMemAllocator.get_instance().get_current_usage()

    def sample(self, prompts, n, numbers, seed, max_new_tokens, temperature, quiet=False, top_p=1.0):
        """Like TorchSampler.sample, with three differences. Entropies are NaN. Logprobs are normalised over the tokens
        that top_p leaves. An engine draws all its responses from one stream, whose key is the seed and the number of
        its first prompt, so the number of engines changes the responses. With request_seeds each response has its
        own stream. Kernels still round differently in batches of other sizes."""
        requests, first = list(zip(prompts, numbers)), 0
        if self.tp > 1:  # processes that share an engine all submit the same requests; `first` is this process's first
            parts = [None] * self.tp
            dist.all_gather_object(parts, requests, group=self.group)
            first = sum(map(len, parts[: rank() % self.tp]))
            requests = sum(parts, [])
        if not requests:
            return []
        keys = (streams(seed, [number for _, number in requests], 1) >> np.uint64(2)).tolist()  # fit a signed int64
        copies = 1 if temperature else n  # greedy responses are all the same: sample one, repeat it
        params = [self.sampling_params(
            n=n // copies, temperature=temperature, top_p=top_p, top_k=0, max_tokens=max_new_tokens,
            stop_token_ids=self.eos, ignore_eos=True, logprobs=0, flat_logprobs=True, detokenize=False,
            seed=key if self.request_seeds else None) for key in keys]
        inputs = [dict(prompt_token_ids=prompt.tolist()) for prompt, _ in requests]
        # The engine uses torch's generators. Restore them after it: the algorithms must draw the same on all ranks.
        with torch.random.fork_rng([torch.cuda.current_device()] if self.cuda else []):
            torch.manual_seed(keys[0])
            np.random.seed(keys[0] % 2**32)
            bar = functools.partial(LateBar, **bar_style())  # vLLM divides by the bar's elapsed time
            outputs = self.llm.generate(inputs, params, use_tqdm=not quiet and bar)
        responses = []
        for request in outputs[first : first + len(prompts)]:
            for answer in request.outputs * copies:
                ids, logprobs = np.array(answer.token_ids), np.array(answer.logprobs.logprobs, dtype=np.float32)
                responses.append((ids, logprobs, np.full_like(logprobs, np.nan), int(ids[-1]) in self.eos))
        return responses
