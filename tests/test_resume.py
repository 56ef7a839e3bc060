"""Stopped and continued: by a resume, a signal, a kill at any moment; and what a broken checkpoint does.

That a resume is exact for each of the six algorithms is in test_every_algorithm.py."""

import contextlib
import os
import random
import shutil
import signal
import sys
import time

import pytest
from helpers import assert_same_run, error_line, files, metrics, same_weights, start, weights

import grpo
import ppo
from core import checkpoint

SCRIPT = grpo.__file__


@pytest.fixture(scope="module")
def straight(train, tmp_path_factory):
    """Four steps in one go, with a checkpoint every second."""
    out = tmp_path_factory.mktemp("straight") / "run"
    assert train(out, "--steps", 4, "--save_every", 2) == 0
    return out


# ------------------------------------------------------------------------------------------------ resume
def cut_back(straight, out):
    """A copy of the straight run as it was after step 2, but for metrics and samples, which had gone on."""
    shutil.copytree(straight, out)
    for folder in ("final", "step_000004"):
        shutil.rmtree(out / folder)
    return out


def test_two_steps_and_two_more_are_four_and_old_checkpoints_go(train, straight, tmp_path):
    """--keep 1: only the newest checkpoint is left, before and after the resume. It changes nothing else."""
    out, kept = tmp_path / "run", lambda: sorted(p.name for p in out.glob("step_*"))
    assert train(out, "--steps", 2, "--save_every", 1, "--keep", 1) == 0
    assert len(metrics(out)) == 3 and kept() == ["step_000002"]
    assert train(out, "--steps", 4, "--save_every", 1, "--keep", 1, "--resume") == 0
    assert kept() == ["step_000004"]
    assert_same_run(out, straight, 4)


def test_keep_counts_the_checkpoints_up_to_this_step(tmp_path):
    """One of a later step, from before a resume of an earlier one, is neither counted nor deleted."""
    for step in (2, 4, 6, 8):
        (tmp_path / f"step_{step:06d}").mkdir()
    checkpoint.prune(tmp_path, 6, 0)
    assert len(checkpoint.checkpoints(tmp_path)) == 4
    checkpoint.prune(tmp_path, 6, 2)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["step_000004", "step_000006", "step_000008"]


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


def test_a_resume_over_another_algorithms_run_says_what_is_missing(train, straight, tmp_path, capsys):
    """PPO needs a critic, which GRPO does not save. The checkpoint is not broken."""
    out = cut_back(straight, tmp_path / "run")
    capsys.readouterr()
    before = files(out)
    assert train(out, "--steps", 4, "--resume", module=ppo) == 2
    line = error_line(capsys)
    assert "have no critic" in line and "another --out" in line and files(out) == before


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
    text = capsys.readouterr().out
    assert "leaving after this step" in text
    assert "stopped after step 3, which is saved; the same command with --resume continues" in text
    assert train(out, "--steps", 4, "--save_every", 2, "--resume") == 0
    assert_same_run(out, straight, 4)


def wait_for(process, condition):
    """Until condition() holds; fails when the process has ended before."""
    deadline = time.time() + 600
    while not condition():
        assert process.poll() is None and time.time() < deadline, process.communicate()[0]
        time.sleep(0.002)


@pytest.mark.slow
def test_sigterm_in_a_process_of_its_own(train, small, tmp_path):
    out = tmp_path / "run"
    process = start(sys.executable, SCRIPT, "--out", out, *small, "--steps", 1000, "--eval_every", 0)
    wait_for(process, lambda: (out / "metrics.jsonl").exists() and len(read_whole(out)) >= 3)
    process.send_signal(signal.SIGTERM)
    text = process.communicate(timeout=600)[0]
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
