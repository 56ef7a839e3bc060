"""Whole runs of grpo.py: what they leave behind and print, what its switches do, and what stops them.

They are calls of main() in this process, with a handful of problems and steps of a fraction of a second."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from helpers import (CLOCKS, assert_same_run, error_line, initial_weights, metrics, read, refused, same_weights,
                     weights)
from transformers import AutoModelForCausalLM, AutoTokenizer

import common
import grpo
import raft_pp

REAL = Path(__file__).parents[2] / "shared/data/deepscaler_4k.jsonl"


# ------------------------------------------------------------------------------------------------ what a run leaves
@pytest.fixture(scope="module")
def straight(train, tmp_path_factory):
    """Four steps in one go, with a checkpoint every second."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert train(out, "--steps", 4, "--save_every", 2, curves=True) == 0
    return out


def test_the_output_folder(straight):
    names = "config.json metrics.jsonl samples.jsonl curves.png show.html step_000002 step_000004 final eval".split()
    assert {p.name for p in straight.iterdir()} == set(names)
    for folder in ("step_000002", "step_000004", "final"):
        names = {p.name for p in (straight / folder).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
        assert ("trainer" in names) == (folder != "final")
    assert (straight / "curves.png").read_bytes().startswith(b"\x89PNG")
    config = json.loads((straight / "config.json").read_text())
    assert config["steps"] == 4 and config["lr"] == 3e-4 and config["clip_high"] == 0.2


def test_metrics(straight):
    before, *rows = read(straight / "metrics.jsonl")
    assert before["step"] == 0 and 0 <= before["eval_accuracy"] <= 1
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert list(row) == common.METRICS
        assert row["skipped_updates"] == 0, "these sizes were chosen so that every update has something to learn from"
        nothing = {"kl"} | ({"eval_accuracy"} if row["step"] % 2 else set())
        assert {name for name, x in row.items() if x is None} == nothing  # no reference, no evaluation
        assert row["reward"] == pytest.approx(row["accuracy"]) and row["kept"] == 1
        assert 0 <= row["all_correct"] + row["all_wrong"] <= 1 and 0 <= row["boxed"] <= 1
        assert 0 < row["length"] <= 40 and 0 <= row["truncated"] < 1
        assert 0 < row["entropy"] < 5.6 and row["grad_norm"] > 0 and row["lr"] == 3e-4  # ln 261 = 5.56
        assert row["ratio_max"] >= 1 and 0 <= row["clip_low"] < 1 and 0 <= row["clip_high"] < 1
        assert row["mismatch"] < 1e-5  # fp32: sampler and trainer agree
        assert all(row[name] > 0 for name in CLOCKS)
    assert rows[1]["clip_low"] + rows[1]["clip_high"] > 0  # the second update of a step leaves ratio 1


def test_the_accuracy_in_the_row_of_the_last_step_is_that_of_the_trained_model(straight):
    """Evaluation comes before the row is written."""
    rows = read(straight / "metrics.jsonl")
    evaluated = [row["step"] for row in rows if row["eval_accuracy"] is not None]
    assert evaluated == [0, 2, 4]
    for step in evaluated:
        saved = read(straight / f"eval/step_{step:06d}/problems.jsonl")
        assert rows[step]["eval_accuracy"] == pytest.approx(sum(row["correct"] for row in saved) / len(saved))


def test_samples(straight):
    rows = read(straight / "samples.jsonl")
    assert {row["step"] for row in rows} == {1, 2, 3, 4}
    for row in rows:
        assert row["reward"] == row["correct"] and row["prompt"].endswith("<|assistant|>")
        assert row["response"].endswith("<|end|>") == row["finished"]
        assert common.verify(row["response"].removesuffix("<|end|>"), row["answer"]) == row["correct"]


def test_transformers_loads_the_final_model(straight, tiny_path, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(straight / "final")
    loaded = AutoTokenizer.from_pretrained(straight / "final")
    assert loaded("(7+5)*3")["input_ids"] == tokenizer("(7+5)*3")["input_ids"]
    assert loaded.eos_token_id == model.generation_config.eos_token_id == 260
    final, last = weights(straight / "final"), weights(straight / "step_000004")
    assert same_weights(final, last)
    assert all(torch.equal(x, final[name]) for name, x in model.named_parameters() if name in final)
    assert not same_weights(final, initial_weights(tiny_path))
    ids = loaded("<|user|>2+3<|assistant|>", return_tensors="pt", add_special_tokens=False)["input_ids"]
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] > ids.shape[1]


@pytest.mark.slow
def test_an_earlier_run_is_moved_aside(train, tmp_path, capsys):
    for seed in (1, 2, 3):
        assert train(tmp_path / "run", "--steps", 1, "--seed", seed) == 0
    assert "run.2" in capsys.readouterr().out
    seeds = {name: json.loads((tmp_path / name / "config.json").read_text())["seed"] for name in os.listdir(tmp_path)}
    assert seeds == {"run.1": 1, "run.2": 2, "run": 3}
    assert len(metrics(tmp_path / "run.1")) == 2 and (tmp_path / "run.1/final").is_dir()


def test_an_out_folder_may_end_in_a_slash(train, tmp_path):
    """As completion in the shell writes it."""
    for _ in range(2):
        assert train(f"{tmp_path}/run/", "--steps", 1) == 0
    assert len(list(tmp_path.glob("run*"))) == 2


def test_the_seed_decides(train, straight, tmp_path):
    assert train(tmp_path / "same", "--steps", 4, "--save_every", 2) == 0
    assert_same_run(tmp_path / "same", straight, 4)
    assert train(tmp_path / "other", "--steps", 1, "--seed", 1) == 0
    assert read(tmp_path / "other/samples.jsonl") != read(straight / "samples.jsonl")[:4]


# ------------------------------------------------------------------------------------------------ what a run prints
def lines_of(text) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("step ") and "/" in line.split()[1]]


def test_without_a_terminal_there_is_one_plain_line_per_step(train, tmp_path, capsys):
    """As in the log file of a cluster; no bar, which would fill it with its states."""
    assert train(tmp_path / "run", "--steps", 2, "--reference", "true", "--eval_data", "") == 0
    out, err = capsys.readouterr()
    for line, row in zip(lines_of(out), read(tmp_path / "run/metrics.jsonl"), strict=True):
        line, left = line.rsplit("  ", 1)
        assert left == "00:00 left" or row["step"] == 1 and re.fullmatch(r"\d\d:\d\d left", left)
        words = dict(zip(line.split()[::2], line.split()[1::2]))
        assert words.pop("step") == f"{row['step']}/2"
        assert re.fullmatch(r".* \d+\.\d s", line)
        names = ["loss", "reward", "accuracy", "entropy", "kl", "length"]
        assert [name for name in words if not name[0].isdigit()] == names
        assert all(float(words[name]) == pytest.approx(row[name], rel=1e-3, abs=1e-9) for name in names)
    assert "training" not in out + err


def test_on_a_terminal_there_is_a_bar_in_place_of_the_lines(train, tmp_path, capsys, monkeypatch):
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    assert train(tmp_path / "run", "--steps", 2, "--eval_data", "") == 0
    out, err = capsys.readouterr()
    assert not lines_of(out)
    assert "training 2/2 |" in err and " left, reward 0." in err and "accuracy" in err and "entropy" in err


def test_the_first_and_last_words(straight, train, problems_file, tmp_path, capsys):
    """What is trained on what, where it is now, and what can be done with it."""
    out = tmp_path / "run"
    assert train(out, "--steps", 1, "--clip_high", "0.28") == 0
    text = capsys.readouterr().out
    what, where, unusual, prompt = text.splitlines()[:4]
    assert what == (f"GRPO on tiny (0.67 M parameters), problems: {problems_file} (48), 1 step of 11 prompts x "
                    "4 responses, 2 updates each, lr 3e-4")
    assert re.fullmatch(rf"CPU, \d+ threads?, sampler: plain torch; {out} \(all settings: config.json\)", where)
    assert unusual.startswith("unusual: --") and "--clip_high 0.28" in unusual and "--clip_low" not in unusual
    assert prompt.startswith("first prompt: '<|user|>") and prompt.endswith("<|assistant|>'")
    before, after = (row["eval_accuracy"] for row in read(out / "metrics.jsonl"))
    assert f"accuracy on 10 test problems: {before:.1%} before, {after:.1%} after" in text
    assert f"model: {out}/final   curves: {out}/curves.png   numbers: {out}/metrics.jsonl" in text
    *_, evaluate, further = text.splitlines()
    assert evaluate == f"evaluate it: python eval.py --model {out}/final"
    assert further == "train it further: the same command with --steps 2 --resume"


# ------------------------------------------------------------------------------------------------ variants
def test_real_problems_that_the_tiny_model_cannot_solve(train, tiny_path, tmp_path, capsys):
    """No reward, so nothing to learn: every update is skipped and counted, and the model stays as it was."""
    if not REAL.exists():
        pytest.skip(f"no {REAL.name}")
    flags = "--template plain --steps 2 --max_new_tokens 32 --prompts_per_step 8 --limit 99 --eval_problems 10".split()
    assert train(tmp_path / "run", "--data", REAL, base=flags, curves=True) == 0
    rows = metrics(tmp_path / "run")  # which also fails on a NaN
    for row in rows[1:]:
        assert row["reward"] == row["accuracy"] == 0 and row["all_wrong"] == 1 and row["kept"] == 1
        assert row["skipped_updates"] == 2 and row["loss"] is None and row["grad_norm"] is None
        assert row["entropy"] > 0
    assert same_weights(weights(tmp_path / "run/final"), initial_weights(tiny_path))
    assert "Traceback" not in capsys.readouterr().err


def test_dynamic_sampling_keeps_as_many_mixed_prompts_as_a_step_has(train, tmp_path):
    assert train(tmp_path / "run", "--steps", 2, "--prompts_per_step", 3, "--dynamic_sampling") == 0
    for row in metrics(tmp_path / "run")[1:]:
        rounds = 1 / row["kept"]  # 3 of 3 x rounds prompts are kept
        assert rounds == pytest.approx(round(rounds), abs=1e-5) and 1 <= rounds <= 10
        assert row["skipped_updates"] == 0
        assert row["all_correct"] + row["all_wrong"] <= 1 - row["kept"] + 1e-6
    drawn = json.loads((tmp_path / "run/step_000002/trainer.json").read_text())["drawn"]
    assert drawn == sum(3 * round(1 / row["kept"]) for row in metrics(tmp_path / "run")[1:])


def test_kl_penalty(train, straight, tmp_path):
    """Before the first update the policy is the reference; afterwards it is not."""
    assert train(tmp_path / "run", "--steps", 2, "--kl_coef", 0.01) == 0
    first, second = metrics(tmp_path / "run")[1:]
    assert abs(first["kl"]) < 1e-6 < second["kl"]
    assert first["ratio_max"] != metrics(straight)[1]["ratio_max"]  # it is in the loss


def test_a_reference_alone_changes_nothing(train, straight, tmp_path):
    assert train(tmp_path / "run", "--steps", 4, "--save_every", 2, "--reference", "true") == 0
    rows = metrics(tmp_path / "run")
    assert [row["kl"] > 1e-6 for row in rows[1:]] == [False, True, True, True]
    assert [row | dict(kl=None) for row in rows[1:]] == metrics(straight)[1:]
    assert same_weights(weights(tmp_path / "run/final"), weights(straight / "final"))


def test_entropy_bonus(train, straight, tmp_path):
    """Large enough to show: after three steps with it the policy is less sure than without."""
    assert train(tmp_path / "run", "--steps", 3, "--entropy_coef", 0.3) == 0
    assert metrics(tmp_path / "run")[1]["entropy"] == metrics(straight)[1]["entropy"]  # before the first update
    assert metrics(tmp_path / "run")[3]["entropy"] > metrics(straight)[3]["entropy"]


@pytest.mark.parametrize("flags", ["--clip false", "--dual_clip 3", "--clip_high 0.28", "--updates_per_step 1",
                                   "--updates_per_step 13", "--temperature 0.7", "--samples_per_prompt 2",
                                   "--prompts_per_step 1", "--tis_cap 0"])
def test_switches_run(train, tmp_path, flags):
    assert train(tmp_path / "run", "--steps", 2, *flags.split()) == 0
    rows = metrics(tmp_path / "run")
    assert len(rows) == 3 and rows[2]["mismatch"] is None or rows[2]["mismatch"] < 1e-5
    if flags == "--clip false":
        assert rows[1]["ratio_max"] > 1
    if flags == "--updates_per_step 1":
        assert rows[1]["ratio_max"] == pytest.approx(1, abs=1e-4) and rows[1]["clip_low"] == rows[1]["clip_high"] == 0
    if flags == "--updates_per_step 13":
        assert rows[1]["skipped_updates"] >= 2  # eleven prompts can't fill thirteen updates


@pytest.mark.slow
def test_the_learning_of_half_a_minute(train, tmp_path):
    """Ten steps of the default run raise the accuracy on 100 test problems far beyond chance: the standard error of 400
    responses is at most 2.5 points, and by the same random streams they are paired."""
    assert train(tmp_path / "run", "--steps", 10, "--eval_problems", 100, base=[]) == 0
    rows = metrics(tmp_path / "run")
    assert rows[-1]["eval_accuracy"] > rows[0]["eval_accuracy"] + 0.1
    assert rows[-1]["reward"] > rows[1]["reward"]


# ------------------------------------------------------------------------------------------------ not finite
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_skips_the_update(train, tiny_path, tmp_path, capsys, value):
    assert train(tmp_path / "run", "--steps", 2, token_loss=lambda new, tokens, cfg: new * value) == 0
    assert [row["skipped_updates"] for row in metrics(tmp_path / "run")[1:]] == [2, 2]  # and no NaN in the file
    assert same_weights(weights(tmp_path / "run/final"), initial_weights(tiny_path))
    assert "step 1" in capsys.readouterr().out


@pytest.mark.slow
def test_ten_of_them_in_a_row_end_the_run(train, tmp_path, capsys):
    """With the line that names the step; what was saved before is kept."""
    out, calls = tmp_path / "run", []

    def token_loss(new, tokens, cfg):
        calls.append(len(metrics(out)))  # the step: this many rows are written, step 0 included
        return new * float("nan")

    assert train(out, "--steps", 99, "--save_every", 2, token_loss=token_loss) == 2
    assert len(calls) == 10 and calls[-1] >= 5
    assert f"step {calls[-1]}:" in error_line(capsys)
    assert (out / "step_000004").is_dir() and not (out / "final").exists()


@pytest.mark.slow
def test_nine_of_them_do_not(train, tmp_path):
    calls = []

    def token_loss(new, tokens, cfg):
        calls.append(1)
        return new * (1.0 if len(calls) % 10 == 0 else float("nan"))

    assert train(tmp_path / "run", "--steps", 12, "--eval_every", 0, token_loss=token_loss) == 0
    assert len(calls) > 20
    assert sum(row["skipped_updates"] for row in metrics(tmp_path / "run")[1:]) == 24 - len(calls) // 10


# ------------------------------------------------------------------------------------------------ nothing learned
def no_advantage(real=grpo.advantages, also=lambda calls: False):
    """Advantages that are all 0, as by a slip in a fork; in the calls that `also` names they are as they should be."""
    calls = []

    def advantages(rewards, cfg):
        calls.append(1)
        adv, keep = real(rewards, cfg)
        return adv * also(len(calls)), keep

    return advantages


QUICK = "--prompts_per_step 3 --max_new_tokens 8 --eval_data= --reward random:0.5".split()


def test_learning_nothing_although_rewards_differ_is_a_warning_and_ten_steps_of_it_an_error(train, tmp_path, capsys):
    assert train(tmp_path / "run", *QUICK, "--steps", 20, advantages=no_advantage()) == 2
    out, err = capsys.readouterr()
    assert out.count("rewards differ, but every kept advantage is 0") == 10 and "warning: step 1: " in out
    assert "error: step 10: ten steps in a row in which nothing was learned" in err


def test_with_one_response_per_prompt_rewards_differ_between_prompts(train, tmp_path, capsys):
    flags = ["--steps", 2, "--samples_per_prompt", 1, "--prompts_per_step", 9]
    learns_nothing = no_advantage(raft_pp.advantages)
    assert train(tmp_path / "run", *QUICK, *flags, module=raft_pp, advantages=learns_nothing) == 0
    assert capsys.readouterr().out.count("every kept advantage is 0") == 2


def test_nine_such_steps_in_a_row_are_none(train, tmp_path, capsys):
    learns = no_advantage(also=lambda calls: calls == 10)
    assert train(tmp_path / "run", *QUICK, "--steps", 19, advantages=learns) == 0
    assert capsys.readouterr().out.count("every kept advantage is 0") == 18


def test_where_rewards_are_equal_nothing_is_expected_to_be_learned(train, tmp_path, capsys):
    assert train(tmp_path / "run", *QUICK, "--reward", "random:1", "--steps", 12) == 0
    assert "advantage is 0" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize("weights, says", [(None, "no weights in safetens"), ("version https://git-lfs...", "header")])
def test_a_model_without_whole_weights(train, tmp_path, capsys, tiny_path, weights, says):
    """Its config and tokenizer are there; the weights are not, or git-lfs has left its note in their place."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if weights:
        (folder / "model.safetensors").write_text(weights * 9)
    small = "--data tiny --template chat --eval_data= --max_prompt_tokens 64 --max_new_tokens 64".split()
    line = refused(train, tmp_path, capsys, "--model", folder, *small)
    assert line.startswith(f"error: --model {folder}: ") and says in line


def test_an_earlier_run_stays_where_it_is_when_the_new_one_is_refused(train, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious").touch()
    assert train(tmp_path / "run", "--data", tmp_path / "missing.jsonl") == 2
    assert (tmp_path / "run/precious").exists()


def test_a_bad_row_is_one_line_with_its_place(train, tmp_path, capsys):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "answ\n')
    for flag in ("--data", "--eval_data"):
        line = refused(train, tmp_path, capsys, flag, file)
        assert str(file) in line and "row 2" in line


def test_an_evaluation_may_have_a_single_problem(train, tmp_path):
    assert train(tmp_path / "run", "--steps", 1, "--eval_problems", 1) == 0


@pytest.mark.parametrize("change, says", [(dict(hidden_size=64), "size"), (dict(vocab_size=9999), "size")])
def test_a_config_that_does_not_fit_the_weights(train, tmp_path, capsys, tiny_path, change, says):
    folder = tmp_path / "model"
    shutil.copytree(tiny_path, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert says in refused(train, tmp_path, capsys, "--model", folder, "--template", "chat")


def test_more_tokens_than_the_context_holds(train, tmp_path, capsys):
    """The tiny model's is 2,048: 1,024 for the prompt leave 1,024."""
    line = refused(train, tmp_path, capsys, "--max_new_tokens", 1025)
    assert "max_new_tokens" in line and "2048" in line


def test_shards_that_do_not_divide_the_processes(train, tmp_path, capsys):
    assert "--shard_size 2 does not divide the 1 processes" in refused(train, tmp_path, capsys, "--shard_size", 2)
