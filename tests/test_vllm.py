"""Whole runs with the real vLLM on a CPU, alone and on two processes, and what a user is told when it can't be used.

Where vLLM is not installed, only the latter run. What needs a GPU (sleeping, too little memory) is checked by the calls
that it comes down to."""

import functools
import gc
import importlib
import importlib.util
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from helpers import TORCHRUN, metrics, output_of, refused

import common
import core.sampler as samplers
import grpo
from core.sampler import TorchSampler, choose_sampler
from core.vllm_sampler import VLLMSampler

SMALL = "--sampler vllm --prompts_per_step 5 --max_new_tokens 32 --eval_problems 6 --lr 3e-4 --reference false".split()
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


# ------------------------------------------------------------------------------------------------ runs
@pytest.fixture(scope="module", autouse=True)
def _leave_the_process_as_it_was():
    """vLLM starts a process group, of this process alone; the tests of other files know nothing of it."""
    yield
    VLLMSampler.engines.clear()
    gc.collect()
    if dist.is_initialized():
        importlib.import_module("vllm.distributed.parallel_state").cleanup_dist_env_and_memory()


@pytest.fixture
def train_with_vllm(train, problems_file, monkeypatch):
    """train_with_vllm(out, flags...) runs grpo.py in this process; its exit status."""
    monkeypatch.setattr(common, "start_processes", lambda: "cpu")  # although vLLM has started a group
    return functools.partial(train, base=[*SMALL, "--data", str(problems_file), "--eval_data", str(problems_file)])


def assert_sound(rows, steps):
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert row["mismatch"] <= row["mismatch_max"] < 1e-4
        assert 0 < row["entropy"] < 5.6 and 0 < row["length"] <= 32  # ln 261 = 5.56


@needs_vllm
def test_one_process(train_with_vllm, tmp_path, capsys):
    assert train_with_vllm(tmp_path / "run", "--steps", 3) == 0
    rows = metrics(tmp_path / "run")
    assert_sound(rows[1:], 3)
    assert all(0 <= row["eval_accuracy"] <= 1 for row in (rows[0], rows[3]))
    out = capsys.readouterr().out
    assert out.count("sampler: vLLM") == 1 and "stale" not in out


@needs_vllm
def test_without_the_sync_there_is_an_alarm(train_with_vllm, tmp_path, capsys, monkeypatch):
    """The engine keeps the weights that it was given first, while the trainer's move on."""
    sync, calls = VLLMSampler.sync, []

    def once(self, policy):
        calls.append(1)
        if len(calls) == 1:
            sync(self, policy)

    monkeypatch.setattr(VLLMSampler, "sync", once)
    assert train_with_vllm(tmp_path / "run", "--steps", 3, "--lr", 0.01, "--eval_data", "") == 0
    first, *later = metrics(tmp_path / "run")
    assert first["mismatch"] < 1e-4 and all(row["mismatch"] > 0.05 for row in later)
    assert capsys.readouterr().out.count("stale weights?") == 2


@pytest.mark.slow
@needs_vllm
def test_a_run_continues(train_with_vllm, tmp_path):
    """From a checkpoint, its weights in the engine; not bit for bit, because sums depend on an engine's batches."""
    out = tmp_path / "run"
    assert train_with_vllm(out, "--steps", 3, "--save_every", 2, "--lr", 0.01, "--eval_data", "") == 0
    before = metrics(out)
    shutil.rmtree(out / "step_000003")
    assert train_with_vllm(out, "--steps", 4, "--lr", 0.01, "--eval_data", "", "--resume") == 0
    assert_sound(metrics(out), 4)
    assert metrics(out)[:2] == before[:2]


@pytest.fixture(scope="module")
def two_engines(problems_file, tmp_path_factory):
    """A run of two processes with an engine each."""
    out = tmp_path_factory.mktemp("two") / "run"
    flags = [grpo.__file__, "--out", out, *SMALL, "--data", problems_file, "--eval_data", ""]
    text = output_of(*TORCHRUN, *flags, "--steps", 3)
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
    text = output_of(*TORCHRUN, *flags, "--steps", 5, "--tp", 2, "--resume")
    assert text.count("1 engine(s) of 2 process(es)") == 1
    assert_sound(metrics(out), 5)


# ------------------------------------------------------------------------------------------------ what a user is told
def test_vllm_is_missing(train_with_vllm, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    line = refused(train_with_vllm, tmp_path, capsys)
    assert "requirements.txt" in line and "--sampler hf" in line


@pytest.mark.parametrize("version", ["0.18.1", "0.24.9", "0.33.0", "1.0", "dev"])
def test_a_version_outside_the_tested_range(train_with_vllm, tmp_path, capsys, monkeypatch, version):
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__=version))
    line = refused(train_with_vllm, tmp_path, capsys)
    assert version in line and "0.25 to 0.32" in line


def test_a_gpu_that_is_too_small(train_with_vllm, tmp_path, capsys, monkeypatch):
    def full(*args, **kwargs):
        raise ValueError("Free memory on device cuda:0 (3.1/23.6 GiB) is less than desired\nGPU memory utilization.")

    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.32.0", LLM=full, SamplingParams=None))
    line = refused(train_with_vllm, tmp_path, capsys)
    assert "3.1/23.6 GiB" in line and "--vllm_memory 0.5" in line


@needs_vllm
def test_processes_that_do_not_make_whole_groups(train_with_vllm, tmp_path, capsys):
    assert "--tp 3" in refused(train_with_vllm, tmp_path, capsys, "--tp", 3)


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
        ("empty_cache",), wake("kv_cache"), ("reset_prefix_cache",), ("sleep", ("level", 2))]
