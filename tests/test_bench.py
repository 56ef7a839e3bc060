"""bench.py: what it counts, that each phase is timed alone, and that an architecture needs no download."""

import json
import sys

import pytest
import torch

import bench
import common

SMALL = "--prompts 4 --samples 4 --new_tokens 16 --updates 2 --steps 2".split()


@pytest.fixture
def run_bench(monkeypatch, capsys):
    """run_bench(flags...): the figures that it prints as JSON."""
    monkeypatch.setattr(common, "Policy", common.Policy)  # which --arch replaces
    monkeypatch.setattr(bench, "matmul_rate", lambda: 1e9)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["bench.py", *SMALL, *flags])
        bench.main()
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return run


def test_flops_by_hand(tiny_path):
    """tiny: 3 blocks of 4 x 128 x 128 (attention) + 3 x 128 x 384 (MLP) weights, a tied table of 261 x 128. A prompt of
    2 tokens and a response of 3: every token passes the blocks, those of the response the head; attention is 2 x layers
    x hidden x length squared."""
    lm = common.Policy(tiny_path, "cpu").lm
    body, head = 3 * (4 * 128 * 128 + 3 * 128 * 384), lm.config.vocab_size * 128
    assert bench.forward_flops(lm, [2], 3) == 2 * body * 5 + 2 * head * 3 + 2 * 3 * 128 * 25
    assert bench.forward_flops(lm, [2, 2], 3) == 2 * bench.forward_flops(lm, [2], 3)


def test_a_whole_step(run_bench):
    result = run_bench()
    assert result["tokens"] == 4 * 4 * 16 and result["ranks"] == 1 and result["steps"] == 2
    assert {"step", "sample", "update"} <= set(result) and "logprobs" not in result  # an exact sampler spares that pass
    for name in ("step", "sample", "update"):
        phase = result[name]
        assert 0 < phase["fastest"] <= phase["seconds"] <= phase["slowest"] and phase["utilisation"] > 0
    assert result["step"]["seconds"] > result["sample"]["seconds"]
    assert result["floor"] > 0 and result["peak_gib"] > 0.1


@pytest.mark.parametrize("phase", ["sample", "logprobs", "update"])
def test_a_phase_alone(run_bench, phase):
    result = run_bench("--arch", "tiny", "--phase", phase)
    assert set(bench.PHASES) & set(result) == {phase} and "step" not in result
    assert result["model"] == "tiny"


def test_the_whole_vocabulary_of_an_architecture_is_worked_with(monkeypatch, tmp_path):
    """The byte tokenizer knows 261 ids of the 151,936."""
    monkeypatch.setattr(common, "Policy", common.Policy)
    monkeypatch.setitem(bench.ARCHS, "tiny", (32, 1, 2, 2, 64, 1000, False))
    cfg = common.parse(bench.Options, "", [*SMALL, "--arch", "tiny"])
    run = bench.open_run(cfg, str(tmp_path))
    assert run.policy.lm.lm_head.weight.shape == (1000, 32)
    run.metrics, run.clock = dict.fromkeys(common.METRICS), 0.0
    ids = torch.cat([torch.from_numpy(ids) for ids in run.sample().batch.responses])
    assert run.policy.vocab is None and len(ids) == 4 * 4 * 16 and ids.max() > 300


@pytest.mark.parametrize("flags, says", [
    (["--samples", "1"], "--samples 1"), (["--model", "nowhere"], "--model nowhere"),
    (["--prompts", "0"], "--prompts 0"), (["--phase", "all-of-it"], "--phase"), (["--prompt", "3"], "--prompts"),
])  # fmt: skip
def test_bad_input_is_one_line(monkeypatch, capsys, flags, says):
    monkeypatch.setattr(sys, "argv", ["bench.py", *flags])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert stop.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0]
