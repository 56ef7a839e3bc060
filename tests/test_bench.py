"""bench.py: what it counts, that each phase is timed alone, and that an architecture needs no download."""

import json
import sys

import numpy as np
import pytest

import bench
import common
from core.policy import Policy

SMALL = "--prompts 4 --samples 4 --new_tokens 16 --updates 2 --steps 2".split()


@pytest.fixture
def run_bench(monkeypatch, capsys):
    """run_bench(flags...): the figures that it prints as JSON."""
    monkeypatch.setattr(bench, "matmul_rate", lambda: 1e9)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["bench.py", *SMALL, *flags])
        bench.main()
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return run


@pytest.fixture
def new_bench(tmp_path):
    """new_bench(flags...): a Bench."""
    return lambda *flags: bench.Bench(common.parse(bench.Options, "", [*SMALL, *flags]), str(tmp_path))


@pytest.fixture
def passes(monkeypatch):
    """How many responses each pass has had, as (name, number), in order."""
    seen = []
    for name in ("logprobs", "update"):
        method = getattr(Policy, name)
        record = lambda self, batch, *args, name=name, method=method, **how: (
            seen.append((name, len(batch.responses))) or method(self, batch, *args, **how))
        monkeypatch.setattr(Policy, name, record)
    return seen


def test_flops_by_hand(tiny_path):
    """tiny: 3 blocks of 4 x 128 x 128 (attention) + 3 x 128 x 384 (MLP) weights, a tied table of 261 x 128. A prompt of
    2 tokens and a response of 3: every token passes the blocks, those of the response the head; attention is 2 x layers
    x hidden x length squared."""
    lm = Policy(tiny_path, "cpu").lm
    body, head = 3 * (4 * 128 * 128 + 3 * 128 * 384), lm.config.vocab_size * 128
    assert bench.forward_flops(lm, [2], 3) == 2 * body * 5 + 2 * head * 3 + 2 * 3 * 128 * 25
    assert bench.forward_flops(lm, [2, 2], 3) == 2 * bench.forward_flops(lm, [2], 3)


def test_a_whole_step(run_bench):
    result = run_bench()
    assert result["tokens"] == 4 * 4 * 16 and result["ranks"] == 1 and result["steps"] == 2
    assert {"step", "sample", "update"} <= set(result) and "logprobs" not in result  # an exact sampler has given them
    for name in ("step", "sample", "update"):
        phase = result[name]
        assert 0 < phase["fastest"] <= phase["seconds"] <= phase["slowest"] and phase["utilisation"] > 0
    assert result["step"]["seconds"] > result["sample"]["seconds"]
    assert result["floor"] > 0 and result["peak_gib"] > 0.1


def test_a_step_has_the_passes_of_training(new_bench, passes):
    """The first update needs no logprobs from before. Those of the second one have to be computed, unless the sampler
    is exact."""
    made, seconds = new_bench(), {}
    made.step(0, seconds)
    assert [name for name, _ in passes] == ["update", "update"]
    assert set(seconds) == {"sync", "sample", "update", "logprobs"}
    passes.clear()
    made.sampler.exact = False
    made.step(1, seconds)
    assert [name for name, _ in passes] == ["logprobs", "update", "update"]
    assert passes[0][1] == passes[2][1]  # responses


def test_a_reference_has_a_pass_over_all(run_bench, passes):
    result = run_bench("--kl_coef", "0.1")
    assert result["logprobs"]["utilisation"] > 0
    assert passes == 3 * [("logprobs", 16), ("update", 8), ("update", 8)]


@pytest.mark.parametrize("phase, expected", [
    ("sample", []), ("sync", []), ("logprobs", [("logprobs", 16)]), ("update", 2 * [("update", 8)]),
])
def test_a_phase_alone(run_bench, passes, phase, expected):
    result = run_bench("--arch", "tiny", "--phase", phase)
    assert set(bench.PHASES) & set(result) == {phase} and "step" not in result
    assert result["model"] == "tiny" and passes == 3 * expected


def test_the_whole_vocabulary_of_an_architecture_is_worked_with(monkeypatch, new_bench):
    """The byte tokenizer knows 261 ids of the 151,936. No token ends a response."""
    monkeypatch.setitem(bench.ARCHS, "tiny", (32, 1, 2, 2, 64, 1000, False))
    made = new_bench("--arch", "tiny")
    assert made.policy.lm.lm_head.weight.shape == (1000, 32) and made.policy.vocab is None
    made.sampler.sync(made.policy)
    ids = np.concatenate(common.generate(made.sampler, made.problems, 4, 0, 16, 1.0).batch.responses)
    assert len(ids) == 4 * 4 * 16 and ids.max() > 300


def test_a_model_has_the_micro_batches_that_suit_it_and_an_architecture_those_that_fit(monkeypatch):
    made = []
    monkeypatch.setattr(bench, "Bench", lambda cfg, folder: made.append(cfg) or sys.exit(7))
    for flags in ([], ["--arch", "tiny"], ["--arch=tiny", "--tokens_per_micro", "99"]):
        monkeypatch.setattr(sys, "argv", ["bench.py", *flags])
        with pytest.raises(SystemExit):
            bench.main()
    assert [cfg.tokens_per_micro for cfg in made] == [4096, 0, 99]  # 0: what fits


def test_the_rate_of_a_product_is_measured():
    assert bench.matmul_rate(size=64) > 1e6


@pytest.mark.parametrize("flags, says", [
    (["--samples", "1"], "--samples 1"), (["--model", "nowhere"], "--model nowhere"),
    (["--prompts", "0"], "--prompts 0"), (["--phase", "all-of-it"], "--phase"), (["--prompt", "3"], "--prompts"),
    (["--new_tokens", "100000"], "--new_tokens 100000"), (["--arch", "tiny", "--shard_size", "3"], "--shard_size 3"),
])
def test_bad_input_is_one_line(monkeypatch, capsys, flags, says):
    monkeypatch.setattr(sys, "argv", ["bench.py", *flags])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]
