"""Whole runs of grpo.py: what they leave behind, that they are exact anywhere, and that nothing stops them for good.

Most runs are calls of main() in this process, with a handful of problems and steps of a fraction of a second.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import common
import grpo
from conftest import THREADS

REAL = Path(__file__).parents[2] / "shared/data/deepscaler_4k.jsonl"
SCRIPT = grpo.__file__
CLOCKS = ("time_sample", "time_verify", "time_train", "time_sync", "tokens_per_second")


# ------------------------------------------------------------------------------------------------ helpers
def start(*command, threads=THREADS):
    """A process of its own, as a user starts one."""
    env = dict(os.environ, OMP_NUM_THREADS=str(threads), OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return subprocess.Popen(list(map(str, command)), env=env, **pipes)


def not_a_number(text):
    raise AssertionError(f"{text} in a metrics file")


def read(file) -> list[dict]:
    return [json.loads(line, parse_constant=not_a_number) for line in Path(file).read_text().splitlines()]


def metrics(out) -> list[dict]:
    """The rows of metrics.jsonl without what the clock says."""
    return [{k: x for k, x in row.items() if k not in CLOCKS} for row in read(out / "metrics.jsonl")]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def initial_weights(tiny_path):
    return {name: x.float() for name, x in weights(Path(tiny_path)).items()}


def same_weights(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_same_run(a, b, step):
    """Bit for bit: metrics, samples, final weights, and every file of this step's checkpoint, optimizer included."""
    assert metrics(a) == metrics(b)
    assert (a / "samples.jsonl").read_bytes() == (b / "samples.jsonl").read_bytes()
    assert (a / "final/model.safetensors").read_bytes() == (b / "final/model.safetensors").read_bytes()
    one, other = files(a / f"step_{step:06d}"), files(b / f"step_{step:06d}")
    assert one.keys() == other.keys() and any("trainer/" in name for name in one)
    assert [name for name in one if one[name] != other[name] and not name.endswith(".metadata")] == []  # with a time


def assert_near(a, b, tolerance=1e-4):
    """The same metrics to 1e-4 and the same rollouts, in words."""
    one, other = metrics(a), metrics(b)
    assert len(one) == len(other)
    for x, y in zip(one, other):
        assert x.keys() == y.keys()
        for name in x:
            near = x[name] == y[name] or abs(x[name] - y[name]) <= tolerance * max(1, abs(y[name]))
            assert near, f"{name} of step {x['step']}: {x[name]} and {y[name]}"
    assert read(a / "samples.jsonl") == read(b / "samples.jsonl")


def error_line(capsys) -> str:
    """What stood on stderr, which must be one line beside the warnings of libraries and the states of the bar."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Warning:" not in line]
    lines = [line for line in lines if "error:" in line or not line.startswith(("  ", "training:"))]
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


# ------------------------------------------------------------------------------------------------ what a run leaves
@pytest.fixture(scope="module")
def straight(train, tmp_path_factory):
    """Four steps in one go, with a checkpoint every second."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert train(out, "--steps", 4, "--save_every", 2, curves=True) == 0
    return out


def test_the_output_folder(straight):
    names = "config.json metrics.jsonl samples.jsonl curves.png step_000002 step_000004 final eval".split()
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


# ------------------------------------------------------------------------------------------------ exact anywhere
@pytest.fixture(scope="module")
def three(train, tmp_path_factory):
    """Three steps in one process."""
    out = tmp_path_factory.mktemp("three") / "run"
    assert train(out, "--steps", 3, "--save_every", 2) == 0
    return out


@pytest.fixture(scope="module")
def two_processes(small, tmp_path_factory):
    """The same three steps under torchrun."""
    out = tmp_path_factory.mktemp("two") / "run"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
    process = start(*torchrun, SCRIPT, "--out", out, *small, "--steps", 3, "--save_every", 2, threads=1)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 0, text
    assert text.count("first prompt") == 1  # one of them speaks
    return out


@pytest.mark.parametrize("tokens", [1, 100, pytest.param(333, marks=pytest.mark.slow)])
def test_micro_batches_change_nothing(train, three, tmp_path, tokens):
    """Also when no sequence fits: each is then a micro-batch of its own."""
    assert train(tmp_path / "run", "--steps", 3, "--save_every", 2, "--tokens_per_micro", tokens) == 0
    assert_near(tmp_path / "run", three)


def test_two_processes_do_what_one_does(two_processes, three):
    assert_near(two_processes, three)
    one, two = weights(three / "final"), weights(two_processes / "final")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_one_process_continues_a_checkpoint_of_two(train, two_processes, three, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(two_processes, out)
    shutil.rmtree(out / "step_000003")
    assert train(out, "--steps", 3, "--resume") == 0
    assert_near(out, three)


@pytest.mark.slow
def test_dr_grpo_in_micro_batches(train, tmp_path):
    """The normalisations by sequence and by a constant, too, come from the global batch."""
    for norm in ("sequence", "constant"):
        for tokens in (150, 4096):
            flags = ["--steps", 2, "--std", "false", "--loss_norm", norm, "--tokens_per_micro", tokens]
            assert train(tmp_path / f"{norm}{tokens}", *flags) == 0
        assert_near(tmp_path / f"{norm}150", tmp_path / f"{norm}4096")
    assert metrics(tmp_path / "sequence150") != metrics(tmp_path / "constant150")


@pytest.mark.slow
def test_the_seed_decides(train, straight, tmp_path):
    assert train(tmp_path / "same", "--steps", 4, "--save_every", 2) == 0
    assert_same_run(tmp_path / "same", straight, 4)
    assert train(tmp_path / "other", "--steps", 1, "--seed", 1) == 0
    assert read(tmp_path / "other/samples.jsonl") != read(straight / "samples.jsonl")[:4]


# ------------------------------------------------------------------------------------------------ resume
def cut_back(straight, out):
    """A copy of the straight run as it was after step 2, but for metrics and samples, which had gone on."""
    shutil.copytree(straight, out)
    for folder in ("final", "step_000004"):
        shutil.rmtree(out / folder)
    return out


def test_two_steps_and_two_more_are_four(train, straight, tmp_path):
    out = tmp_path / "run"
    assert train(out, "--steps", 2) == 0
    assert len(metrics(out)) == 3
    assert train(out, "--steps", 4, "--resume") == 0
    assert_same_run(out, straight, 4)


def test_rows_after_the_checkpoint_and_a_partial_line_are_cut(train, straight, tmp_path):
    out = cut_back(straight, tmp_path / "run")
    for name in ("metrics.jsonl", "samples.jsonl"):
        with open(out / name, "a") as file:
            file.write('{"step": 5, "rew')
    assert train(out, "--steps", 4, "--resume") == 0
    assert_same_run(out, straight, 4)


def test_resume_without_a_checkpoint_starts(train, straight, tmp_path):
    """As a job does that is always started with --resume, the first time or after dying before its first checkpoint."""
    out = tmp_path / "run"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"step": 0, "eval_accuracy": 0.1}\n{"step": 1, "rew')
    assert train(out, "--steps", 4, "--save_every", 2, "--resume") == 0
    assert_same_run(out, straight, 4)


def test_resume_of_a_finished_run_finishes_again(train, straight, tmp_path):
    """As after a kill between the last checkpoint and final/."""
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "final")
    assert train(out, "--steps", 4, "--resume") == 0
    assert_same_run(out, straight, 4)


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


BREAK = {
    "half of the trainer's state": lambda folder: [truncate(p) for p in (folder / "trainer").glob("*.distcp")],
    "half of its index": lambda folder: truncate(folder / "trainer/.metadata"),
    "no trainer's state": lambda folder: shutil.rmtree(folder / "trainer"),
    "half of trainer.json": lambda folder: truncate(folder / "trainer.json"),
}


@pytest.mark.parametrize("harm", BREAK.values(), ids=BREAK)
def test_a_broken_checkpoint_is_reported_and_the_one_before_it_is_used(train, straight, tmp_path, capsys, harm):
    out = tmp_path / "run"
    shutil.copytree(straight, out)
    shutil.rmtree(out / "final")
    harm(out / "step_000004")
    assert train(out, "--steps", 4, "--resume") == 0
    text = capsys.readouterr().out
    assert "step_000004 is broken" in text and "step_000002 is broken" not in text
    assert_same_run(out, straight, 4)


def test_without_a_whole_checkpoint_resume_is_an_error(train, straight, tmp_path, capsys):
    """Starting afresh would overwrite what may yet be saved by hand."""
    out = cut_back(straight, tmp_path / "run")
    truncate(out / "step_000002/trainer.json")
    capsys.readouterr()
    before = files(out)
    assert train(out, "--steps", 4, "--resume") == 2
    assert "--resume" in error_line(capsys) and files(out) == before


def nothing_to_learn_at_first():
    """Advantages that are all 0 in the first two steps."""
    calls = []

    def advantages(rewards, cfg, real=grpo.advantages):
        adv, keep = real(rewards, cfg)
        calls.append(1)
        return adv * (len(calls) > 2), keep

    return advantages


@pytest.mark.slow
def test_checkpoints_do_not_change_the_training(train, tmp_path):
    """Also before the first update, when the optimizer has no state to save: making one up must leave no trace."""
    for every in (0, 1):
        out = tmp_path / str(every)
        assert train(out, "--steps", 4, "--save_every", every, advantages=nothing_to_learn_at_first()) == 0
    rows = metrics(tmp_path / "0")
    assert [row["skipped_updates"] for row in rows[1:]] == [2, 2, 0, 0]
    assert rows == metrics(tmp_path / "1")
    assert same_weights(weights(tmp_path / "0/final"), weights(tmp_path / "1/final"))


# ------------------------------------------------------------------------------------------------ signals and kills
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_saves_and_leaves(train, straight, tmp_path, capsys, number):
    """It comes in the middle of the third step, which is finished and saved."""
    out = tmp_path / "run"

    def token_loss(*values, real=grpo.token_loss):
        if len(metrics(out)) == 3 and not called:
            called.append(os.kill(os.getpid(), number))
        return real(*values)

    called = []
    assert train(out, "--steps", 4, "--save_every", 2, token_loss=token_loss) == 0
    assert called and (out / "step_000003").is_dir() and not (out / "final").exists()
    assert "--resume" in capsys.readouterr().out
    assert train(out, "--steps", 4, "--save_every", 2, "--resume") == 0
    assert_same_run(out, straight, 4)


def wait_for(process, condition):
    """Until condition() holds; fails when the process has ended before."""
    deadline = time.time() + 90
    while not condition():
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.002)


@pytest.mark.slow
def test_sigterm_in_a_process_of_its_own(train, small, tmp_path):
    out = tmp_path / "run"
    process = start(sys.executable, SCRIPT, "--out", out, *small, "--steps", 1000, "--eval_every", 0)
    wait_for(process, lambda: (out / "metrics.jsonl").exists() and len(read_whole(out)) >= 3)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and "SIGTERM" in text and "Traceback" not in text
    step = metrics(out)[-1]["step"]
    assert [p.name for p in out.glob("step_*")] == [f"step_{step:06d}"]
    last = step + 2
    assert train(out, "--steps", last, "--eval_every", 0, "--resume") == 0
    assert train(tmp_path / "straight", "--steps", last, "--eval_every", 0) == 0
    assert_same_run(out, tmp_path / "straight", last)


def read_whole(out) -> list[str]:
    """Whole lines of a metrics file that is being written."""
    return [line for line in (out / "metrics.jsonl").read_text().splitlines(True) if line.endswith("\n")]


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_a_folder_that_can_be_resumed(train, small, tmp_path):
    """Killed twice, while it writes a checkpoint and at a random moment; then let be."""
    out = tmp_path / "run"
    flags = [*small, "--steps", 10, "--save_every", 1]
    delay = random.Random().uniform(0, 1)
    print(f"random moment: {delay:.3f} s")  # shown when this test fails
    for moment in ("checkpoint", "random"):
        process = start(sys.executable, SCRIPT, "--out", out, *flags, "--resume")
        before = len(list(out.glob("step_??????")))
        if moment == "checkpoint":
            wait_for(process, lambda: any(out.glob("step_*.tmp/*")))
        else:
            wait_for(process, lambda: len(list(out.glob("step_??????"))) > before)  # noqa: B023
            time.sleep(delay)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    assert train(out, "--steps", 10, "--save_every", 1, "--resume") == 0
    assert train(tmp_path / "straight", "--steps", 10, "--save_every", 1) == 0
    assert_same_run(out, tmp_path / "straight", 10)
    assert not list(out.glob("*.tmp"))


class Killed(BaseException):
    """As a SIGKILL: nothing of the code under test runs after it."""


class Saboteur:
    """Counts what is done to the files below a folder, and kills before number `at`."""

    folder, seen, at, struck = None, 0, 0, False

    def __call__(self, event, arguments):
        if self.folder is None or event not in ("open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree"):
            return
        writes = event != "open" or isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if writes and str(arguments[0]).startswith(self.folder):
            self.seen += 1
            if self.seen == self.at:
                self.folder, self.struck = None, True
                raise Killed(f"{event} {arguments[0]}")

    @contextlib.contextmanager
    def watching(self, folder, at=0):
        """Kills what is done in this context, and swallows the death, whatever the code under test wrapped it in."""
        self.folder, self.seen, self.at, self.struck = str(folder), 0, at, False
        try:
            yield self
        except BaseException:
            if not self.struck:
                raise
        finally:
            self.folder = None


@pytest.fixture(scope="module")
def saboteur():
    hook = Saboteur()
    sys.addaudithook(hook)
    return hook


@pytest.fixture(scope="module")
def two_steps(train, saboteur, tmp_path_factory):
    """A run of two steps with a checkpoint each, and how many times it touches its files."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with saboteur.watching(out):
        assert train(out, "--steps", 2, "--save_every", 1) == 0
    assert saboteur.seen > 20
    return out, saboteur.seen


MORE = [pytest.param(share, marks=pytest.mark.slow) for share in (0.2, 0.4, 0.6, 0.8, 1.0)]


@pytest.mark.parametrize("share", [0.0, 0.5, *MORE])
def test_death_before_any_file_operation_can_be_resumed(train, saboteur, two_steps, tmp_path, share):
    """The run dies, and so does the one that resumes it, elsewhere; the third ends as if nothing had happened."""
    whole, operations = two_steps
    flags = ["--steps", 2, "--save_every", 1]
    at = 1 + round(share * (operations - 1))
    with saboteur.watching(tmp_path / "run", at):
        train(tmp_path / "run", *flags)
    assert saboteur.struck
    with saboteur.watching(tmp_path / "run", 1 + at % 13):
        train(tmp_path / "run", *flags, "--resume")
    assert train(tmp_path / "run", *flags, "--resume") == 0
    assert_same_run(tmp_path / "run", whole, 2)
    assert not list((tmp_path / "run").glob("*.tmp"))


# ------------------------------------------------------------------------------------------------ variants
def test_real_problems_that_the_tiny_model_cannot_solve(train, tiny_path, tmp_path, capsys):
    """No reward, so nothing to learn: every update is skipped and counted, and the model stays as it was."""
    if not REAL.exists():
        pytest.skip(f"no {REAL.name}")
    flags = f"--template plain --steps 2 --max_new_tokens 32 --prompts_per_step 8 --eval_problems 10 --data {REAL}"
    assert train(tmp_path / "run", base=flags.split(), curves=True) == 0
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


def test_a_reference_alone_changes_nothing(train, three, tmp_path):
    assert train(tmp_path / "run", "--steps", 3, "--save_every", 2, "--reference", "true") == 0
    rows = metrics(tmp_path / "run")
    assert [row["kl"] > 1e-6 for row in rows[1:]] == [False, True, True]
    assert [row | dict(kl=None) for row in rows[1:]] == metrics(three)[1:]
    assert same_weights(weights(tmp_path / "run/final"), weights(three / "final"))


def test_entropy_bonus(train, three, tmp_path):
    """Large enough to show: after three steps with it the policy is less sure than without."""
    assert train(tmp_path / "run", "--steps", 3, "--entropy_coef", 0.3) == 0
    assert metrics(tmp_path / "run")[1]["entropy"] == metrics(three)[1]["entropy"]  # before the first update
    assert metrics(tmp_path / "run")[3]["entropy"] > metrics(three)[3]["entropy"]


@pytest.mark.parametrize("flags", ["--clip false", "--dual_clip 3", "--clip_high 0.28", "--updates_per_step 1",
                                   "--updates_per_step 13", "--temperature 0.7", "--samples_per_prompt 2",
                                   "--prompts_per_step 1", "--tis_cap 0"])  # fmt: skip
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
    assert train(tmp_path / "run", "--steps", 2, token_loss=lambda new, old, adv, cfg: new * value) == 0
    assert [row["skipped_updates"] for row in metrics(tmp_path / "run")[1:]] == [2, 2]  # and no NaN in the file
    assert same_weights(weights(tmp_path / "run/final"), initial_weights(tiny_path))
    assert "step 1" in capsys.readouterr().out


@pytest.mark.slow
def test_ten_of_them_in_a_row_end_the_run(train, tmp_path, capsys):
    """With the line that names the step; what was saved before is kept."""
    out, calls = tmp_path / "run", []

    def token_loss(new, old, adv, cfg):
        calls.append(len(metrics(out)))  # the step: this many rows are written, step 0 included
        return new * float("nan")

    assert train(out, "--steps", 99, "--save_every", 2, token_loss=token_loss) == 2
    assert len(calls) == 10 and calls[-1] >= 5
    assert f"step {calls[-1]}:" in error_line(capsys)
    assert (out / "step_000004").is_dir() and not (out / "final").exists()


@pytest.mark.slow
def test_nine_of_them_do_not(train, tmp_path):
    calls = []

    def token_loss(new, old, adv, cfg):
        calls.append(1)
        return new * (1.0 if len(calls) % 10 == 0 else float("nan"))

    assert train(tmp_path / "run", "--steps", 12, "--eval_every", 0, token_loss=token_loss) == 0
    assert len(calls) > 20
    assert sum(row["skipped_updates"] for row in metrics(tmp_path / "run")[1:]) == 24 - len(calls) // 10


# ------------------------------------------------------------------------------------------------ errors
def refused(train, tmp_path, capsys, *flags) -> str:
    """The one line that a run is refused with, before it has made a folder."""
    assert train(tmp_path / "run", *flags) == 2
    assert not (tmp_path / "run").exists()
    return error_line(capsys)


@pytest.mark.parametrize("weights, says", [(None, "model.safetensors"), ("version https://git-lfs...", "header")])
def test_a_model_without_whole_weights(train, tmp_path, capsys, tiny_path, weights, says):
    """Its config and tokenizer are there; the weights are not, or git-lfs has left its note in their place."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    if weights:
        (folder / "model.safetensors").write_text(weights * 9)
    small = "--data tiny --max_prompt_tokens 64 --max_new_tokens 64".split()
    line = refused(train, tmp_path, capsys, "--model", folder, *small)
    assert line.startswith(f"error: --model {folder}: ") and says in line


@pytest.mark.parametrize("text, says", [
    ('{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "answ\n', "row 2"),
    ('{"problem": "1+1", "level": 2}\n', "row 1"),
    ("", "no usable problem"),
])  # fmt: skip
def test_bad_data(train, tmp_path, capsys, text, says):
    file = tmp_path / "bad.jsonl"
    file.write_text(text)
    line = refused(train, tmp_path, capsys, "--data", file)
    assert str(file) in line and says in line


def test_an_earlier_run_stays_where_it_is_when_the_new_one_is_refused(train, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/precious").touch()
    assert train(tmp_path / "run", "--data", tmp_path / "missing.jsonl") == 2
    assert (tmp_path / "run/precious").exists()


@pytest.mark.parametrize("flag", ["--data", "--eval_data"])
@pytest.mark.parametrize("name", ["missing.jsonl", "missing.csv", "missing.parquet"])
def test_a_missing_file(train, tmp_path, capsys, flag, name):
    assert name in refused(train, tmp_path, capsys, flag, tmp_path / name)


@pytest.mark.parametrize("typo, meant", [("tinny", "tiny"), ("qwen2.5-math-7", "qwen2.5-math-7b"), ("./nowhere", "")])
def test_an_unknown_model(train, tmp_path, capsys, typo, meant):
    line = refused(train, tmp_path, capsys, "--model", typo)
    assert f"--model {typo}" in line and meant in line


def test_one_response_a_prompt(train, tmp_path, capsys):
    assert "samples_per_prompt" in refused(train, tmp_path, capsys, "--samples_per_prompt", 1)


def test_more_tokens_than_the_context_holds(train, tmp_path, capsys):
    """The tiny model's is 2,048: 1,024 for the prompt leave 1,024."""
    line = refused(train, tmp_path, capsys, "--max_new_tokens", 1025)
    assert "max_new_tokens" in line and "2048" in line


@pytest.mark.parametrize("flag, value", [("--lr", "0"), ("--temperature", "-1"), ("--max_new_tokens", "0")])
def test_numbers_that_make_no_sense(train, tmp_path, capsys, flag, value):
    assert flag in refused(train, tmp_path, capsys, flag, value)


def test_an_unknown_flag(train, tmp_path, capsys):
    assert "--prompts_per_step" in refused(train, tmp_path, capsys, "--prompt_per_step", 8)
