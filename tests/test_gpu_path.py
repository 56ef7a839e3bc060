"""What a GPU has and a CPU has not: engines that sleep and that take a share of the memory, copies of the state. Shown
by the calls, by numbers that don't change, and where it runs on a CPU by vLLM itself."""

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

import bench
import common
import ppo
import raft
import core.checkpoint as checkpoint
import core.head as head
import core.policy as policies
from core.memory import ASLEEP, choose, count, engine_share, fit, training_memory
from core.policy import Policy
from core.processes import start_processes
from core.rollout import Batch, generate
from core.sampler import TorchSampler
from core.vllm_sampler import VLLMSampler
from test_compile import CudaPack
from torch.distributed._tools.mem_tracker import MemTracker
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Qwen2Config, Qwen2ForCausalLM

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "models/tiny")


# ------------------------------------------------------------------------------------------------ vLLM
@pytest.fixture
def calls(monkeypatch):
    """What the samplers of a run are asked to do, in order."""
    seen = []

    def watch(name, method):
        def record(self, *args, **how):
            seen.append((name, self))
            return method(self, *args, **how)

        monkeypatch.setattr(TorchSampler, name, record)

    for name in ("sync", "sample", "sleep", "rest", "wake"):
        watch(name, getattr(TorchSampler, name))
    return seen


def apart(folder, call: str, *launcher):
    """Call a function of this file in a process of its own, or with a launcher in several."""
    script = folder / "script.py"
    paths = [str(ROOT), str(ROOT / "tests")]
    script.write_text(f"import sys\nsys.path[:0] = {paths}\nimport test_gpu_path\ntest_gpu_path.{call}\n")
    done = subprocess.run([sys.executable, *launcher, script], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-2000:]


def bench_with_vllm(folder):
    """The tokenizer knows 261 ids, the model 1,000: the engine has to know before it starts. vLLM leaves torch one
    thread, which --offload's optimizer would feel."""
    bench.ARCHS["tiny"] = (64, 1, 2, 2, 128, 1000, False)
    flags = "--arch tiny --sampler vllm --prompts 3 --samples 2 --new_tokens 40 --updates 1 --steps 1".split()
    torch.set_num_threads(3)
    made = bench.Bench(common.parse(bench.Options, "", flags), folder)
    assert torch.get_num_threads() == 3
    assert isinstance(made.sampler, VLLMSampler) and made.sampler.vocab == 1000 and made.policy.vocab is None
    made.step(0, {})
    made.sampler.sync(made.policy)
    rollouts = generate(made.sampler, made.problems, 2, 0, 40, 1.0)
    ids = np.concatenate(rollouts.batch.responses)
    assert len(ids) == 3 * 2 * 40 and ids.max() > 300
    trainer = made.policy.logprobs(rollouts.batch)[0]
    assert (trainer - rollouts.tokens.sampler).abs().max() < 1e-4


@pytest.mark.slow
@needs_vllm
def test_an_engine_for_the_whole_vocabulary_of_random_weights_and_all_threads(tmp_path):
    apart(tmp_path, f"bench_with_vllm({str(tmp_path)!r})")


def test_a_teacher_rests_while_the_policy_trains(train, tmp_path, calls):
    assert train(tmp_path / "out", "--teacher", TINY, "--steps", 2, "--eval_data", "", module=raft) == 0
    teacher = calls[0][1]
    assert [name for name, sampler in calls if sampler is teacher] == ["sync", "rest"] + ["wake", "sample", "rest"] * 2


def test_an_engine_that_rests_keeps_its_weights(monkeypatch):
    """Level 1, on the host: no push is needed. torch's cached blocks go before each part of the engine comes."""
    sampler, engine = VLLMSampler.__new__(VLLMSampler), mock.Mock()
    sampler.llm, sampler.cuda, sampler.asleep = engine, True, False
    monkeypatch.setattr(torch.cuda, "empty_cache", engine.empty_cache)
    sampler.wake()
    assert not engine.mock_calls
    sampler.rest()
    sampler.rest()
    sampler.wake()
    wake = lambda part: mock.call.wake_up(tags=[part])
    empty = mock.call.empty_cache()
    assert engine.mock_calls == [mock.call.sleep(level=1), empty, wake("weights"), empty, wake("kv_cache")]
    assert not sampler.asleep


@pytest.fixture
def gpu_engine(policy, monkeypatch):
    """VLLMSampler on a GPU, over a stand-in for vLLM. asked: how the engine was started. calls: what it was told."""
    calls, asked = mock.Mock(), {}

    def LLM(*model, **how):
        asked.update(how)
        calls.llm_engine.engine_core._finalizer = calls.finalizer
        return calls

    monkeypatch.setattr(VLLMSampler, "load", classmethod(lambda cls: (LLM, None, "0.32.0")))
    monkeypatch.setattr(VLLMSampler, "_share", lambda self, policy: 0.5)
    monkeypatch.setattr(VLLMSampler, "engines", [])
    monkeypatch.setattr("atexit.register", calls.at_exit)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    on_gpu = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, vocab=261, lm=policy.lm)
    return SimpleNamespace(sampler=VLLMSampler(on_gpu, {260}, longest=100), asked=asked, calls=calls)


def test_an_engine_on_a_gpu_takes_many_sequences_and_sleeps_from_its_start(gpu_engine):
    """So the first push, like each later one, has its room before the KV cache is there."""
    assert gpu_engine.asked["max_num_seqs"] == 1024  # vLLM's default is 256 on an A100
    assert gpu_engine.asked["gpu_memory_utilization"] == 0.5 and gpu_engine.asked["enable_sleep_mode"]
    assert gpu_engine.asked["hf_overrides"].get("head_dtype") == ("float32" if head.FP32 else None)
    assert gpu_engine.calls.sleep.mock_calls == [mock.call(level=2)]
    assert gpu_engine.sampler.asleep and gpu_engine.sampler.stale


def test_at_exit_a_sleeping_engine_is_woken_before_it_ends(gpu_engine):
    """vLLM would release memory that sleep has released already. And its own exit comes too late: see processes.py."""
    (end,) = [call.args[0] for call in gpu_engine.calls.at_exit.mock_calls]
    gpu_engine.calls.reset_mock()
    end()
    wake = lambda part: mock.call.wake_up(tags=[part])
    assert gpu_engine.calls.mock_calls == [wake("weights"), wake("kv_cache"), mock.call.finalizer()]


def test_an_engine_that_can_not_be_woken_at_exit_leaves_at_once(gpu_engine, monkeypatch):
    """The process has failed already, for lack of memory. vLLM's own exit would fail again, at length."""
    (end,) = [call.args[0] for call in gpu_engine.calls.at_exit.mock_calls]
    gpu_engine.calls.wake_up.side_effect = torch.OutOfMemoryError
    monkeypatch.setattr("os._exit", left := mock.Mock(side_effect=SystemExit))
    with pytest.raises(SystemExit):
        end()
    assert left.mock_calls == [mock.call(1)] and not gpu_engine.calls.finalizer.called


def test_on_a_gpu_older_engines_are_refused(monkeypatch):
    vllm = SimpleNamespace(__version__="0.28.1", LLM=1, SamplingParams=2)
    monkeypatch.setitem(sys.modules, "vllm", vllm)
    assert VLLMSampler.load() == (1, 2, "0.28.1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="0.28.1 is outside the tested range, 0.32 to 0.32"):
        VLLMSampler.load()


def test_the_head_in_fp32_by_hand(monkeypatch):
    """The product of bf16 numbers, which torch.mm gives in fp32 on a GPU alone; gradients as bf16 has them."""
    monkeypatch.setattr(torch, "mm", lambda a, b, out_dtype: a.to(out_dtype) @ b.to(out_dtype))
    x, w = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)).bfloat16().requires_grad_() for n in (5, 7))
    logits = head.Product.apply(x, w)
    assert logits.dtype == torch.float32 and torch.equal(logits, x.float() @ w.float().T)
    found = torch.autograd.grad(logits.pow(2).sum(), [x, w])
    exact = torch.autograd.grad((x.float() @ w.float().T).pow(2).sum(), [x, w])
    for one, other in zip(found, exact):
        assert one.dtype == torch.bfloat16 and (one - other).norm() < 0.02 * other.norm()


# ------------------------------------------------------------------------------------------------ memory for vLLM
B7, TABLE = 7_615_616_512, 152064 * 3584  # Qwen2.5-7B


@pytest.mark.parametrize("free, total, tp, share", [
    (78, 80, 1, 0.837),  # alone on the GPU: 0.9 x 78 - 3.27 of 80, where 3.27 GB are three tables for a push
    (141 - 1 - 91.4, 141, 1, 0.287),  # beside the trainer: 12 bytes per parameter are taken
    (80 - 1 - 11.4, 80, 1, 0.720),  # beside an eighth of it
    (20, 80, 2, 0.184),  # half of the weights
])
def test_the_share_of_an_engine_by_hand(free, total, tp, share):
    found = engine_share(int(free * 1e9), int(total * 1e9), B7, TABLE, tp)
    assert found == pytest.approx(share, abs=2e-3) and found * total < free


@pytest.mark.parametrize("free, tp", [(15, 1), (20, 1), (9, 2)])
def test_an_engine_that_does_not_fit_is_refused(free, tp):
    with pytest.raises(ValueError, match=f"leaves {free}.0 of a GPU's 80.0 GB.*--tp .now {tp}."):
        engine_share(free * 10**9, 80 * 10**9, B7, TABLE, tp)


def test_the_engine_is_asked_for_what_is_free(policy, monkeypatch):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * 10**9, 20 * 10**9))
    sampler = VLLMSampler.__new__(VLLMSampler)
    sampler.tp = 1
    assert sampler._share(policy) == pytest.approx(0.45, abs=2e-3)


def test_the_critic_is_there_before_the_engine_takes_its_share(train, tmp_path, monkeypatch):
    critics = []
    load = ppo.Critic.load

    def start(*args):
        assert len(critics) == 1
        raise SystemExit(7)

    monkeypatch.setattr(ppo.Critic, "load", lambda *args, **how: critics.append(load(*args, **how)) or critics[0])
    monkeypatch.setattr(common, "new_sampler", start)
    assert train(tmp_path / "out", module=ppo) == 7
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------ memory for updates
def qwen_7b():
    return bench.architecture("7b")


@pytest.mark.parametrize("room, given, chosen", [
    (600e9, {}, (16384, 0)),
    (100e9, {}, (8192, 0)),  # no recomputation comes first, then the largest micro-batch
    (50e9, {}, (4096, 0)),
    (30e9, {}, (4096, 4)),  # every fourth block is computed again
    (15e9, {}, (8192, 1)),
    (11e9, {}, (4096, 1)),
    (1e9, {}, (4096, 1)),  # nothing fits: the smallest
    (100e9, dict(recompute=1), (16384, 1)),  # what is given stays
    (600e9, dict(tokens=2048, recompute=2), (2048, 2)),
    (40e9, dict(tokens=16384), (16384, 1)),
])
def test_as_little_recomputation_as_fits_then_as_many_tokens(room, given, chosen):
    tokens, recompute, needed = choose(qwen_7b(), 8, room, 1000, **given)
    assert (tokens, recompute) == chosen
    parts = training_memory(qwen_7b(), 8, max(tokens, 1000), recompute=recompute)
    assert needed == pytest.approx(parts["peak"] - 12 / 8 * B7)
    assert (needed <= room) == (room > 1e9)


def test_a_micro_batch_is_never_smaller_than_what_has_to_stay_together():
    """Two responses of 5,000 tokens are 10,000, whatever --tokens_per_micro says: then larger ones cost nothing."""
    assert choose(qwen_7b(), 8, 100e9, 1000)[:2] == (8192, 0)
    assert choose(qwen_7b(), 8, 100e9, 10_000)[2] == choose(qwen_7b(), 8, 100e9, 10_000, tokens=4096)[2]


def test_a_run_sets_what_fits_and_says_so(policy, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30e9, 80e9))
    cfg = common.parse(common.Config, "", ["--max_new_tokens=64", "--tokens_per_micro=0"])
    models = [mock.Mock(lm=policy.lm, shards=1), mock.Mock()]
    items = dict(trainer=models[0], buffer={}, critic=models[1])
    assert fit(cfg, items, engine=True) == {}  # no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert fit(cfg, items, engine=True) == dict(memory=dict(tokens_per_micro=16384, recompute=0))
    for model in models:
        assert model.tokens_per_micro == 16384 and model.recompute.call_args.args == (0,)
    text = capsys.readouterr().out
    assert "micro-batches of 16384 tokens, no block is computed again" in text and "of 24 free of 80" in text
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4e9 + ASLEEP + 1e6, 80e9))
    assert fit(cfg, items, engine=True) == dict(memory=dict(tokens_per_micro=4096, recompute=1))
    assert "WARNING: this update may not fit" in capsys.readouterr().out
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30e9, 80e9))
    fit(cfg, items, engine=False)  # the torch sampler has a copy of the model, 1.3 MB
    assert "of 26 free of 80" in capsys.readouterr().out


def test_every_trained_model_gets_what_fits_before_the_engine_starts(train, tmp_path, monkeypatch):
    """PPO's critic, too; the choice is noted in config.json, where it is no setting that --resume could miss."""
    order = []

    def fake(cfg, items, engine):
        order.append(list(items))
        return dict(memory=dict(tokens_per_micro=4096, recompute=0))

    def start(*args):
        order.append("engine")
        raise SystemExit(7)

    monkeypatch.setattr(common, "fit", fake)
    monkeypatch.setattr(common, "new_sampler", start)
    monkeypatch.setattr(common.Run, "device", property(lambda self: "cuda", lambda *device: None), raising=False)
    monkeypatch.setattr(common.Run, "new_model", new_model := mock.Mock(side_effect=[mock.Mock(spec=Policy)] * 2))
    assert train(tmp_path / "out", module=ppo) == 7
    assert new_model.call_count == 2 and order == [["trainer", "critic", "reference"], "engine"]
    assert "tokens_per_micro" not in checkpoint.MEANING and "about" in checkpoint.MAY_DIFFER


# ------------------------------------------------------------------------------------------------ GPUs of no use
@pytest.fixture
def gpu_host(monkeypatch):
    """A machine with an NVIDIA GPU and a torch for CUDA 13, as far as files and torch's answers tell."""
    files = {"/dev/nvidia0": "", "/proc/driver/nvidia/version":
             "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 01:15:15 UTC 2023"}
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(Path, "exists", lambda self: str(self) in files)
    monkeypatch.setattr(Path, "read_text", lambda self: files[str(self)])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return files


def refused(capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        start_processes()
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.endswith("train on the CPU on purpose: CUDA_VISIBLE_DEVICES=")
    return line


def test_a_driver_that_is_too_old_is_one_line_and_no_run_on_the_cpu(gpu_host, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: warnings.warn("Error 802: not initialized", stacklevel=1))
    assert "its driver is 535.104.05, needed is 580 or newer" in (line := refused(capsys)) and "Error 802" in line
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert ", CUDA_VISIBLE_DEVICES=7; mend that" in refused(capsys)
    del gpu_host["/proc/driver/nvidia/version"]
    assert "its driver is unknown" in refused(capsys)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_gpu_that_is_hidden_on_purpose_is_not_missed(gpu_host, monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert start_processes() == "cpu"


def test_a_gpu_without_bf16_is_one_line(gpu_host, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda number: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    assert "Tesla T4 has compute capability 7.5" in refused(capsys)
    for number, said in (("2", 1), ("3", 0)):  # of the processes without a GPU the first one speaks
        monkeypatch.setenv("RANK", number)
        monkeypatch.setenv("LOCAL_RANK", number)
        with pytest.raises(SystemExit):
            start_processes()
        assert capsys.readouterr().err.count("start at most --nproc-per-node 2") == said


# ------------------------------------------------------------------------------------------------ copies of the state
def gradient(**how) -> torch.Tensor:
    """The gradient [parameters] of one update on three micro-batches."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 40, 9)
    batch = Batch([rng.integers(3, 250, 6) for _ in lengths], [rng.integers(3, 250, n) for n in lengths])
    adv = torch.from_numpy(rng.normal(size=lengths.sum())).float()
    batch.values = dict(adv=adv, weight=torch.full_like(adv, 1 / len(adv)))
    policy, found = Policy(TINY, "cpu", vocab=261, lr=1e-3, **how), []
    whole = lambda x: x.full_tensor() if hasattr(x, "full_tensor") else x
    policy.optimizer.step = lambda: found.extend(whole(p.grad).flatten() for p in policy.parameters())
    policy.update(batch, lambda new, entropy, tokens: new * tokens.adv, max_grad_norm=1e9)
    return torch.cat(found)


def copies(folder):
    """In one of two processes: each has a copy of the state, and gradients meet after the last micro-batch alone."""
    from core.processes import rank, start_processes

    start_processes()
    sync = FSDPModule.set_requires_gradient_sync
    with mock.patch.object(FSDPModule, "set_requires_gradient_sync", autospec=True, side_effect=sync) as called:
        found = gradient(shard_size=1, tokens_per_micro=60)
    last = [call.args[1] for call in called.call_args_list]
    assert last == [False] * (len(last) - 1) + [True] and len(last) >= 2
    on_the_cpu = lambda: CPUOffloadPolicy(pin_memory=False)
    with mock.patch("core.policy.OffloadPolicy", on_the_cpu):  # --offload's, which Policy takes on CUDA alone
        assert torch.equal(gradient(shard_size=1, tokens_per_micro=60), found)
    policy = Policy(TINY, "cpu", vocab=261)
    policy.logprobs(Batch([np.array([5, 6])], [np.array([7, 8])]))
    names = {name for name, parameter in policy.named_parameters() if not isinstance(parameter, DTensor)}
    assert not names, f"still gathered after a pass without gradient: {names}"
    if rank() == 0:
        torch.save(found, f"{folder}/found.pt")


@pytest.mark.slow
def test_copies_of_the_state_exchange_one_sum_of_gradients(tmp_path):
    launcher = "-m torch.distributed.run --standalone --nproc-per-node 2".split()
    apart(tmp_path, f"copies({str(tmp_path)!r})", *launcher)
    found, expected = torch.load(tmp_path / "found.pt"), gradient()
    assert (found - expected).norm() < 2e-6 * expected.norm()


# ------------------------------------------------------------------------------------------------ bench.py --plan
class HalfPolicy(Policy):
    """Random weights, bf16 compute and recomputed blocks, as on CUDA."""

    dtype = property(lambda self: torch.bfloat16, lambda self, value: None)

    def load(self, model, config, **how):
        return Qwen2ForCausalLM._from_config(config, **how)

    def place(self, full, device):
        if self.every:
            self.lm.gradient_checkpointing_enable(dict(use_reentrant=False), every_n_layers=self.every)


PEAKS = [  # where the peak is, the model's sizes, tokens of a micro-batch, logits of a chunk, --recompute
    ("in a block", dict(intermediate_size=1024, vocab_size=512), 1024, 2**18, 1),
    ("in many blocks", dict(num_hidden_layers=4, tie_word_embeddings=True), 768, 2**16, 1),
    ("in the head", dict(vocab_size=8192), 512, 2**20, 1),
    ("at the end", dict(vocab_size=16384, num_key_value_heads=1), 256, 2**17, 1),
    ("in blocks that keep all", dict(num_hidden_layers=8), 512, 2**18, 0),
    ("in every second block", dict(num_hidden_layers=8), 512, 2**18, 2),
    ("in three of four blocks", dict(num_hidden_layers=8), 512, 2**18, 4),
]


def simulate(folder):
    """Rank 0 of four, whose collectives do nothing; torch's MemTracker counts the bytes of real, small tensors."""
    policies.Pack = CudaPack
    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    for moment, sizes, tokens, chunk, every in PEAKS:
        config, peak = simulated_peak(folder, sizes, tokens, chunk, every)
        computed = training_memory(config, 4, tokens, recompute=every, chunk=chunk)["peak"]
        assert computed == pytest.approx(peak, rel=0.1), (moment, computed / peak)


def simulated_peak(folder, sizes, tokens, chunk, every):
    """The config of a model, and the bytes that one update of it takes."""
    small = dict(hidden_size=256, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                 intermediate_size=512, vocab_size=512, tie_word_embeddings=False)
    config = Qwen2Config(**small | sizes)
    config.save_pretrained(folder)
    prompts = [np.full(16, 5) for _ in range(tokens // 16)]  # on four ranks
    batch = Batch(prompts, [np.full(48, 7) for _ in prompts])
    one = torch.ones(int(batch.ends[-1]))
    batch.values = dict(adv=one, weight=one)
    HalfPolicy.every = every
    policy = HalfPolicy(folder, "cpu", lr=1e-3, tokens_per_micro=tokens)
    policy.chunk_logits = chunk
    assert count(config)[0] == sum(p.numel() for p in policy.parameters())
    tracker = MemTracker()
    tracker.track_external(policy, policy.optimizer)
    with tracker:
        policy.update(batch, lambda new, entropy, tokens: new * tokens.adv)
    return config, tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]


@pytest.mark.slow
def test_the_computed_memory_is_that_of_a_simulation(tmp_path):
    apart(tmp_path, f"simulate({str(tmp_path)!r})")


def test_the_memory_of_a_7b_before_renting(monkeypatch, capsys):
    """The figures of a simulation of the real size, by FakeTensorMode: 135, 29 and 15 GB."""
    for gpus, peak in ((1, 135), (8, 29), (64, 15)):
        given = ["--tokens_per_micro", "16384", "--recompute", "1"]
        monkeypatch.setattr(sys, "argv", ["bench.py", "--arch", "7b", "--plan", str(gpus), *given])
        bench.main()
        lines = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines() if line.startswith("  "))
        assert float(lines["peak"]) == pytest.approx(peak, abs=1)
        assert float(lines["optimizer"]) == pytest.approx(8 * 7.616 / gpus, abs=0.1)


def test_what_is_left_for_vllm(monkeypatch, capsys):
    def says(*flags):
        monkeypatch.setattr(sys, "argv", ["bench.py", *flags])
        bench.main()
        return capsys.readouterr().out

    assert "GPU of 80 GB: too small" in says("--arch", "7b", "--plan", "1")
    assert says("--arch", "7b", "--plan", "8").splitlines()[2:4] == [
        "  tokens_per_micro     8192    16384", "  recompute               0        0"]
    assert "GPU of 80 GB: vLLM with --tp 1" in says("--arch", "7b", "--plan", "1", "--offload", "true")
    assert "GPU of 80 GB: vLLM with --tp 1" in says("--arch", "7b", "--plan", "8")
    assert "GPU of 141 GB: vLLM with --tp 2" in says("--arch", "32b", "--plan", "8")
