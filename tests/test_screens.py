"""What people see while something takes long: the bars on a terminal of 80 or 120 columns, lines in a pipe, and the
names in the first words."""

import os
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from transformers.utils import logging

import common
import grpo
import iterative_dpo
import raft_pp
import reinforce_rej
from core import hub, processes, record
from core.meter import Meter
from core.processes import bar_style, progress, with_bar
from core.sampler import TorchSampler
from core.vllm_sampler import LateBar


@pytest.fixture
def terminal(monkeypatch):
    """terminal(columns): from now on stdout and stderr are a terminal of this width."""

    def start(columns):
        monkeypatch.setenv("COLUMNS", str(columns))
        for stream in (sys.stdout, sys.stderr):
            monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (columns, 40))

    return start


@pytest.fixture
def at_once(monkeypatch):
    """Bars and lines come without delay."""
    plain = processes.bar_style
    at_once = dict(delay=0, mininterval=0)
    monkeypatch.setattr(processes, "bar_style", lambda delay=0: plain(delay) | at_once)


# ------------------------------------------------------------------------------------------------ what takes long
def test_a_bar_on_a_terminal_says_how_much_time_is_left(terminal, at_once, capsys):
    terminal(80)
    with progress(1000, "sampling") as done:
        done(250)
        done(750)
    states = capsys.readouterr().err.split("\r")
    assert any(state.startswith("sampling  25 % |") and state.rstrip().endswith(" left") for state in states)
    assert any(state.startswith("sampling 100 % |") and "00:00 left" in state for state in states)
    assert max(map(len, states)) <= 80


def test_in_a_pipe_there_are_lines(at_once, capsys):
    with progress(1000, "sampling") as done:
        done(250)
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("sampling: 25 %, 00:0") and lines[-1].endswith(" left")
    assert not any("\r" in line or "|" in line for line in lines)


def test_in_a_pipe_the_first_line_comes_after_half_a_minute(capsys):
    style = bar_style()
    assert (style["delay"], style["mininterval"]) == (30, 30)
    with progress(10, "sampling") as done:
        done(10)
    assert list(with_bar("abc", "grading")) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_what_is_done_within_with_bar_moves_its_bar(monkeypatch):
    """An evaluation: three chunks of 40, 40 and 20 responses, the first of which an earlier command has done. Half of
    the second one's tokens are 20 responses."""
    seen = []
    monkeypatch.setattr(processes.tqdm, "update", lambda bar, n: (seen.append(n), setattr(bar, "n", bar.n + n)))
    for item in with_bar("abc", "easy", sizes=[40, 40, 20], done=1):
        if item == "b":
            with progress(5000, "sampling") as done:
                done(2500)
            with progress(5000, "hidden", quiet=True) as done:  # another rank's
                pass
    assert seen == [20, 20, 20]  # half of b; the rest of b; c as a whole
    assert not processes.outer


def test_the_samplers_bar_moves_with_tokens_and_ends_at_100_percent(policy, prompts, monkeypatch):
    """A response that ends early brings at once all that it could have had. Here two caches are needed."""
    sampler, steps = TorchSampler(policy, {260}, cache_tokens=800), []
    sampler.sync(policy)

    class Counted:
        __enter__ = lambda self: steps.append
        __exit__ = lambda self, *error: None

    totals = []
    monkeypatch.setattr("core.sampler.progress", lambda total, *more: (totals.append(total), Counted())[1])
    responses = sampler.sample(prompts, 4, range(len(prompts)), 0, 48, 1.0)
    assert totals == [len(prompts) * 4 * 48] == [sum(steps)]
    assert min(steps) >= 0 and len(steps) > 48 > min(len(ids) for ids, *_ in responses)


def test_vllms_bar_writes_lines_in_a_pipe(monkeypatch, capsys):
    """vLLM makes the bar itself, with these arguments, and forces it to refresh."""
    bar = LateBar(total=10, desc="Processed prompts", dynamic_ncols=True, postfix="a long text", **bar_style())
    bar.update(5)
    bar.refresh()
    assert capsys.readouterr().err == ""
    bar.delay = -1  # as if half a minute had passed
    bar.refresh()
    bar.close()
    assert re.fullmatch(r"Processed prompts: 50 %, 00:00 left\n", capsys.readouterr().err)


# ------------------------------------------------------------------------------------------------ downloads
@pytest.mark.parametrize("rank, shown", [("0", True), ("1", False)])
def test_downloads_show_their_bars_on_rank_0_alone_and_loading_shows_none(monkeypatch, rank, shown):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "")
    hub.show_downloads()
    assert are_progress_bars_disabled() == (not shown)
    assert (os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] == "1") == (not shown)
    assert not logging.is_progress_bar_enabled()
    monkeypatch.setenv("RANK", "0")
    hub.show_downloads()


def test_in_a_pipe_one_line_announces_a_download(monkeypatch, capsys, terminal, tiny_path):
    hub.announce_download(tiny_path)
    assert capsys.readouterr().err == ""
    hub.announce_download("some/model")
    assert capsys.readouterr().err.startswith("downloading the weights of some/model to ")
    terminal(80)  # there is a bar
    hub.announce_download("some/model")
    assert capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------ training
@pytest.mark.parametrize("columns, shown", [(60, ["reward"]), (80, ["reward", "accuracy", "entropy"]),
                                            (120, ["reward", "accuracy", "entropy", "kl", "length"])])
def test_the_training_bar_shows_what_there_is_room_for(terminal, capsys, columns, shown):
    terminal(columns)
    metrics = dict(loss=-0.0123, reward=0.516, accuracy=0.516, entropy=0.125, kl=0.00121, length=33.9)
    meter = Meter(40, 9)
    meter.start(10, 0)
    meter.metrics.update(metrics)
    meter.show()
    meter.bar.close()
    state = capsys.readouterr().err.split("\r")[-1].rstrip()
    assert state.startswith("training 10/40 |") and " left, reward 0.516" in state and len(state) <= columns
    assert [name for name in metrics if f" {name} " in state] == shown


def test_the_time_that_is_left_comes_from_the_mean_of_the_steps(monkeypatch, capsys):
    """Resumed after step 10; two steps have taken 30 s, so the 28 that are left take 420 s."""
    meter = Meter(40, 10)
    meter.start(12, 0)
    meter.metrics.update(reward=0.5, accuracy=0.25, entropy=1.0, length=20.0, time_train=1.25)
    meter.began = 100.0
    monkeypatch.setattr("core.meter.time.perf_counter", lambda: 130.0)
    meter.show()
    assert capsys.readouterr().out == (
        "step 12/40  reward 0.5  accuracy 0.25  entropy 1  length 20  1.2 s  07:00 left\n")


# ------------------------------------------------------------------------------------------------ the first words
@pytest.mark.parametrize("module, script, name", [
    (grpo, "grpo", "GRPO"), (raft_pp, "raft_pp", "RAFT++"), (reinforce_rej, "reinforce_rej", "Reinforce-Rej"),
    (iterative_dpo, "iterative_dpo", "Iterative DPO"), (grpo, "mine", "mine"),
])
def test_a_method_is_called_as_its_docstring_says_and_a_copy_by_its_own_name(module, script, name):
    assert record.method(module.Config, script) == name


def test_a_long_prompt_is_shown_without_its_middle():
    assert record.cut_middle("x" * 300) == "x" * 300
    text = record.cut_middle("a" * 1000 + "b" * 1000)
    assert len(text) == 300 and text.startswith("aaa") and " ... " in text and text.endswith("bbb")


def test_a_line_is_broken_between_words_on_a_terminal_and_not_at_all_in_a_pipe(terminal):
    line = "GRPO on tiny " * 10
    assert record.fit_width(line) == line
    terminal(80)
    assert all(len(part) <= 80 for part in record.fit_width(line).split("\n"))


def test_readme_shows_the_first_line_of_the_default_run(policy, tokenizer, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["grpo.py"])
    cfg = common.parse(grpo.Config, grpo.__doc__, [])
    sampler, prompt = TorchSampler(policy, {260}), dict(prompt=tokenizer("1+1")["input_ids"])
    run = SimpleNamespace(cfg=cfg, config=dict(about=common.about(cfg)), policy=policy, sampler=sampler,
                          state=dict(step=0), problems=[prompt] * 10_000, tokenizer=tokenizer, device="cpu")
    record.introduction(run)
    what, where, first = capsys.readouterr().out.splitlines()  # and nothing is unusual
    readme = (Path(grpo.__file__).parent / "README.md").read_text()
    assert what in readme and where.partition("sampler")[2] in readme and first == "first prompt: '1+1'"


def test_hardware_of_one_process():
    words = record.hardware("cpu")
    assert words == f"CPU, {torch.get_num_threads()} thread" + "s" * (torch.get_num_threads() > 1)
