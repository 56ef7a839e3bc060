"""Helpers of the tests that train: what a run left behind, and whether two runs are the same."""

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
CLOCKS = ("time_sample", "time_verify", "time_train", "time_sync", "tokens_per_second")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


# ------------------------------------------------------------------------------------------------ processes
def start(*command, **variables):
    """A process of its own, as a user starts one; stdout and stderr in one pipe."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(list(map(str, command)), env=os.environ | variables, **pipes)


def output_of(*command, timeout=1200, **variables) -> str:
    """What a process prints, which has to succeed. Two starts of torchrun at the same time can pick the same free port:
    only then it is started once more."""
    for _ in range(2):
        process = start(*command, **variables)
        text = process.communicate(timeout=timeout)[0]
        if process.returncode == 0 or "EADDRINUSE" not in text:
            break
    assert process.returncode == 0, text[-5000:]
    return text


def cpu_seconds(work) -> float:
    """What work() costs: the fastest of three, in seconds of this process, so that a busy machine does not count."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


# ------------------------------------------------------------------------------------------------ what a run left
def not_a_number(text):
    raise AssertionError(f"{text} in a metrics file")


def read(file) -> list[dict]:
    """The rows of a .jsonl file, none of which may hold a NaN."""
    return [json.loads(line, parse_constant=not_a_number) for line in Path(file).read_text().splitlines()]


def metrics(out) -> list[dict]:
    """The rows of metrics.jsonl without what the clock says."""
    return [{k: x for k, x in row.items() if k not in CLOCKS} for row in read(Path(out) / "metrics.jsonl")]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def initial_weights(tiny_path):
    return {name: x.float() for name, x in weights(tiny_path).items()}


def same_weights(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def write(file: Path, rows) -> Path:
    """Rows as a .jsonl file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


# ------------------------------------------------------------------------------------------------ the same draws
def draw_as_before(draw, before: dict, logits, u, top_p=1.0):
    """core.sampler.draw, but a draw at the border of two tokens falls to the side on which it fell before.

    before: {u: token}, all draws so far, to which new ones are added. A u belongs to one place of one response.
    The border: u is within 1e-5 of where the CDF steps from one token to the next, so that rounding decides.
    A draw that differs for any other reason, such as other weights, stays as it is."""
    token, logprob, entropy = draw(logits, u, top_p)  # draw() subtracts each row's maximum from the logits in place
    if top_p < 1:
        return token, logprob, entropy
    wanted = torch.tensor([before.setdefault(x, t) for x, t in zip(u[:, 0].tolist(), token.tolist())])
    wanted = wanted.clamp(max=logits.shape[1] - 1)  # it may be that of a model with more tokens
    p = logits.double().softmax(-1)
    pick = lambda values, index: values.gather(1, index[:, None])[:, 0]
    above = pick(p.cumsum(-1), wanted)
    below = above - pick(p, wanted)
    chosen = torch.where((u[:, 0] > below - 1e-5) & (u[:, 0] < above + 1e-5), wanted, token)
    return chosen, logprob + (pick(logits, chosen) - pick(logits, token)), entropy


@contextlib.contextmanager
def same_draws(file=None):
    """Rounding does not change what is drawn in here. The first run with this file writes its draws to it, later runs
    follow them; without a file the draws are remembered as long as the context lasts.

    A run of the tests draws 5,000 tokens. One draw at a border, and the response is another one: all that follows then
    differs, and not by rounding."""
    import core.sampler

    known = file is not None and Path(file).exists()
    before = torch.load(file) if known else {}
    with mock.patch("core.sampler.draw", functools.partial(draw_as_before, core.sampler.draw, before)):
        yield
    if file is not None and not known:
        torch.save(before, file)


# ------------------------------------------------------------------------------------------------ comparisons
def assert_same_run(a, b, step):
    """Bit for bit: metrics, samples, final weights, and every file of this step's checkpoint, optimizer included."""
    assert metrics(a) == metrics(b)
    assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()
    assert (a / "final/model.safetensors").read_bytes() == (b / "final/model.safetensors").read_bytes()
    one, other = files(a / f"step_{step:06d}"), files(b / f"step_{step:06d}")
    assert one.keys() == other.keys() and any("trainer/" in name for name in one)
    for name in one:
        if name.endswith(".pt"):  # a fork's own state: pickle may write the same values in two ways
            states = [torch.load(io.BytesIO(x[name]), weights_only=False) for x in (one, other)]
            assert repr(states[0]) == repr(states[1]), name
        elif not name.endswith(".metadata"):  # which has a time in it
            assert one[name] == other[name], name


def assert_near(a, b, tolerance=1e-4):
    """The same metrics to 1e-4, a maximum, which hangs on one token, to 3e-4; and the same rollouts: their words, and
    to 1e-3 their numbers."""
    one, other = metrics(a), metrics(b)
    assert len(one) == len(other)
    for x, y in zip(one, other):
        assert x.keys() == y.keys()
        for name in x:
            most = tolerance * (3 if name.endswith("_max") else 1)
            near = x[name] == y[name] or abs(x[name] - y[name]) <= most * max(1, abs(y[name]))
            assert near, f"{name} of step {x['step']}: {x[name]} and {y[name]}"
    for x, y in zip(read(a / "samples.jsonl"), read(b / "samples.jsonl"), strict=True):
        for name in x.keys() | y.keys():
            numbers = name in ("advantage", "weight", "old", "new", "entropy")
            assert x[name] == (pytest.approx(y[name], rel=1e-3, abs=1e-3) if numbers else y[name]), name


def error_line(capsys) -> str:
    """What stood on stderr, which must be one line beside the warnings of libraries and the states of the bar."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Warning:" not in line]
    lines = [line for line in lines if "error:" in line or not line.startswith(("  ", "training:"))]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def refused(train, tmp_path, capsys, *flags, **how) -> str:
    """The one line that a run is refused with, before it has made a folder."""
    assert train(tmp_path / "run", *flags, **how) == 2
    assert not (tmp_path / "run").exists()
    return error_line(capsys)


# ------------------------------------------------------------------------------------------------ rollouts
def toy_rollouts(lengths, n):
    """Rollouts of the token 3 alone, with responses of these lengths, n to a problem."""
    from core.rollout import Rollouts

    responses = [(np.array([3] * k), np.full(k, -1.0, "f4"), np.full(k, 0.5, "f4"), True) for k in lengths]
    problems = [dict(prompt=np.array([1, 2]), text="", answer="1") for _ in range(len(lengths) // n)]
    return Rollouts(problems, responses)
