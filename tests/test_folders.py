"""The output folder of a run: what may be there, what can't be written, one run at a time, and a resume with other
settings. Whatever can be found out before the model is loaded is refused then, in one line, and leaves no trace."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import error_line, files, metrics, refused, start, weights, write

import common
import eval as evaluation
import grpo
import raft
import core.files
from core.files import disk_is_full, lock

MODEL_FIRST = "the model was loaded before the folder was tried"


@pytest.fixture(autouse=True)
def no_model(request, monkeypatch):
    """With the mark `early`: a test fails if it comes as far as the model."""
    if request.node.get_closest_marker("early"):
        monkeypatch.setattr(common.Run, "new_model", lambda *args, **how: pytest.fail(MODEL_FIRST))
        monkeypatch.setattr(common, "load_data", lambda *args, **how: pytest.fail(MODEL_FIRST))


early = pytest.mark.early


# ------------------------------------------------------------------------------------------------ what is there
@early
@pytest.mark.parametrize("resume", [[], ["--resume"]])
@pytest.mark.parametrize("names", [["thesis.tex", "config.json", "data/a.csv"], ["config.json"], ["a.tmp.txt"]])
def test_a_folder_of_other_files_is_refused_and_left_alone(train, tmp_path, capsys, names, resume):
    """It would be renamed as "an earlier run" otherwise. A model's folder has a config.json, too."""
    for name in names:
        (tmp_path / "mine" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "mine" / name).write_text("{}")
    before = files(tmp_path)
    assert train(tmp_path / "mine", *resume) == 2
    names = ", ".join(sorted(name.split("/")[0] for name in names))
    assert f"--out {tmp_path / 'mine'} holds other files ({names})" in error_line(capsys)
    assert files(tmp_path) == before and os.listdir(tmp_path) == ["mine"]


@early
@pytest.mark.parametrize("place, says", [("file", "is a file"), ("file/run", "Not a directory"),
                                         ("x" * 300, "too long"), ("/proc/run", "--out /proc/run: ")])
def test_a_folder_that_can_not_be_made_is_refused_at_once(train, tmp_path, capsys, place, says):
    (tmp_path / "file").touch()
    assert train(tmp_path / place) == 2
    assert says in error_line(capsys)
    assert os.listdir(tmp_path) == ["file"]


@early
def test_a_folder_that_can_not_be_written_is_refused_at_once(train, tmp_path, capsys, monkeypatch):
    """Root may write everywhere, so the system's answer is played."""

    def no(*args, **how):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(core.files.tempfile, "TemporaryFile", no)
    assert train(tmp_path / "a/run") == 2
    assert "Read-only file system" in error_line(capsys)


@early
@pytest.mark.parametrize("place", [".", ".."])
def test_a_run_in_the_working_folder_is_not_moved_aside(train, tmp_path, capsys, monkeypatch, place):
    """A shell that stands in it would go on in the folder under its new name."""
    (tmp_path / "run/below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ("run" if place == "." else "run/below"))
    (tmp_path / "run/config.json").write_text(json.dumps(dict(prompts_per_step=1)))
    assert train(place) == 2
    assert "can't be moved aside" in error_line(capsys)


@early
def test_a_run_at_a_mount_point_is_not_moved_aside(train, tmp_path, capsys, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.json").write_text(json.dumps(dict(prompts_per_step=1)))
    monkeypatch.setattr(Path, "is_mount", lambda self: self.name == "run")
    assert train(tmp_path / "run") == 2
    assert "can't be moved aside" in error_line(capsys)


def test_an_empty_folder_is_used_as_it_is(train, tmp_path, monkeypatch):
    """Such as a mount point, or the working folder."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/lost+found").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    assert train(".", "--steps", 1) == 0
    assert os.listdir(tmp_path) == ["run"] and (tmp_path / "run/final").is_dir()


def test_a_config_without_out_gets_the_usual_folder(tmp_path, monkeypatch):
    """As a notebook makes one, without common.parse()."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["grpo.py"])
    run = common.Run(grpo.Config(data="tiny", max_prompt_tokens=64, max_new_tokens=64, limit=8))
    assert run.cfg.out == "out/grpo-tiny-s0" and not os.listdir(tmp_path)


def test_an_evaluation_tries_its_folder_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "open_model", lambda cfg: pytest.fail(MODEL_FIRST))
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["eval.py", "--out", str(tmp_path / "file/eval")])
    with pytest.raises(SystemExit) as stop:
        evaluation.main()
    assert stop.value.code == 2 and "Not a directory" in error_line(capsys)


# ------------------------------------------------------------------------------------------------ what is missing
@early
@pytest.mark.parametrize("flag, package", [("tensorboard", "tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_found_before_the_model_is_loaded(train, tmp_path, capsys, monkeypatch, flag, package):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")] + [package]:
        monkeypatch.setitem(sys.modules, name, None)
    line = refused(train, tmp_path, capsys, f"--{flag}", "true")
    assert f"--{flag} needs its package: pip install" in line


@pytest.mark.parametrize("odd", [dict(do_sample=False, temperature=0.6, top_p=0.9), dict(top_k=3, temperature=0.0)])
def test_a_generation_config_that_transformers_refuses_to_save_does_no_harm(train, tmp_path, tiny_path, odd):
    """All steps would run, and the first save would raise (transformers issue 29988)."""
    shutil.copytree(tiny_path, tmp_path / "model")
    file = tmp_path / "model/generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | odd))
    flags = "--steps 1 --max_prompt_tokens 64 --template chat".split()
    assert train(tmp_path / "run", "--model", tmp_path / "model", *flags) == 0
    assert json.loads((tmp_path / "run/final/generation_config.json").read_text())["eos_token_id"] == 260


# ------------------------------------------------------------------------------------------------ one at a time
HOLD = """
import sys, time
from pathlib import Path
from core.files import lock
lock(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder():
    """holder(file): another process that has locked this file; its kill() is a death without farewell."""
    started = []

    def hold(file):
        started.append(process := start(sys.executable, "-c", HOLD, file, PYTHONPATH=str(Path(grpo.__file__).parent)))
        assert process.stdout.readline() == "locked\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("module", [grpo, pytest.param(raft, marks=pytest.mark.slow)])
@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_second_run_in_the_same_folder_is_refused_until_the_first_has_died(
    train, tmp_path, capsys, holder, module, resume
):
    assert train(tmp_path / "made", "--steps", 1) == 0
    shutil.copytree(tmp_path / "made", tmp_path / "run")  # this process has locked the one that it made
    shutil.rmtree(tmp_path / "made")
    first, before = holder(tmp_path / "run/config.json"), files(tmp_path)
    capsys.readouterr()
    assert train(tmp_path / "run", "--steps", 2, *resume, module=module) == 2
    assert "another process is writing to" in error_line(capsys)
    assert files(tmp_path) == before and os.listdir(tmp_path) == ["run"]
    first.kill()
    first.wait()
    assert train(tmp_path / "run", "--steps", 2, *resume, module=module) == 0
    assert len(metrics(tmp_path / "run")) == 3


@pytest.mark.slow
def test_two_real_runs_in_one_folder(small, tmp_path):
    """The second one is refused while the first is training, and changes nothing in it."""
    folder, command = tmp_path / "run", [sys.executable, grpo.__file__, *small, "--out", tmp_path / "run"]
    first = start(*command, "--steps", 200)
    while not ((folder / "metrics.jsonl").exists() and len(metrics(folder)) > 1):
        assert first.poll() is None
        time.sleep(0.05)
    second = start(sys.executable, raft.__file__, *small, "--out", folder)
    text = second.communicate(timeout=300)[0]
    assert second.returncode == 2 and text.count("error:") == 1 and "another process is writing to" in text
    first.send_signal(signal.SIGTERM)
    assert first.wait(timeout=300) == 0
    assert [row["step"] for row in metrics(folder)] == list(range(len(metrics(folder))))
    assert sorted(os.listdir(tmp_path)) == ["run"]


def test_a_second_evaluation_in_the_same_folder_is_refused(tmp_path, capsys, holder, monkeypatch):
    (tmp_path / "eval").mkdir()
    holder(tmp_path / "eval/tiny.jsonl")
    flags = "--limit 2 --samples 1 --seeds 1 --max_new_tokens 8".split()
    monkeypatch.setattr(sys, "argv", ["eval.py", *flags, "--out", str(tmp_path / "eval")])
    with pytest.raises(SystemExit) as stop:
        evaluation.main()
    assert stop.value.code == 2 and "another process is writing to" in error_line(capsys)


def test_a_lock_moves_with_its_file_and_the_same_process_may_lock_again(tmp_path, holder):
    lock_file = tmp_path / "new"
    holder(tmp_path / "old")
    (tmp_path / "old").rename(lock_file)
    with pytest.raises(ValueError, match="another process"):
        lock(lock_file)
    for _ in range(2):
        lock(tmp_path / "own")


def test_where_the_file_system_knows_no_locks_a_run_goes_on(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", lambda *args: (_ for _ in ()).throw(OSError(38, "Function not implemented")))
    lock(tmp_path / "file")


# ------------------------------------------------------------------------------------------------ resume
@pytest.fixture(scope="module")
def two_steps(train, tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "run"
    assert train(out, "--steps", 2) == 0
    return out


@pytest.fixture
def again(two_steps, tmp_path, train, capsys):
    """again(flags...): the run of two steps is resumed with these flags; exit status, words, whether it was touched."""

    def resume(*flags, **how):
        shutil.copytree(two_steps, tmp_path / "run")
        before = files(tmp_path / "run")
        capsys.readouterr()
        status = train(tmp_path / "run", "--resume", *flags, **how)
        words = capsys.readouterr()
        return status, words.out + words.err, files(tmp_path / "run") != before

    return resume


@early
@pytest.mark.parametrize("flag, value", [("seed", "1"), ("template", "cot"), ("data", "tiny"), ("limit", "7")])
def test_a_resume_with_another_meaning_is_refused(again, flag, value):
    status, words, touched = again("--steps", 4, f"--{flag}", value)
    assert status == 2 and not touched
    assert "error: --resume: the run in" in words and f"--{flag}" in words and f"not {value}" in words


@early
def test_a_resume_with_another_model_is_refused(again):
    status, words, touched = again("--steps", 4, "--model", "tiny-badcode")
    assert status == 2 and not touched and "has --model tiny, not tiny-badcode" in words


def test_what_else_is_new_is_said_and_the_run_goes_on(again):
    status, words, _ = again("--steps", 3, "--lr", "1e-5", "--reward", "format", "--clip_high", 0.3)
    assert status == 0
    (line,) = [line for line in words.splitlines() if line.startswith("--resume: from here on")]
    for part in ("lr is 1e-05 (was 0.0003)", "reward is format (was ground_truth)", "steps is 3 (was 2)",
                 "clip_high is 0.3 (was 0.2)"):
        assert part in line


def test_another_algorithm_is_said(again):
    status, words, _ = again("--steps", 3, module=raft)
    assert status == 0 and "script is raft (was grpo)" in words


def test_another_text_of_the_check_is_said(train, tmp_path, small, capsys):
    check = tmp_path / "check.py"
    check.write_text("def check(response, problem):\n    return 1\n")
    assert train(tmp_path / "run", "--steps", 1, "--check", check) == 0
    check.write_text("def check(response, problem):\n    return 0\n")
    common.find_check.cache_clear()
    assert train(tmp_path / "run", "--steps", 2, "--check", check, "--resume") == 0
    assert "the text of the check is" in capsys.readouterr().out


def test_nothing_is_said_where_nothing_is_new(again):
    status, words, _ = again("--steps", 2)
    assert status == 0 and "from here on" not in words


def test_fewer_steps_than_are_done(again):
    status, words, touched = again("--steps", 1)
    assert status == 2 and not touched and "2 steps are done" in words and "--steps 1" in words


@pytest.mark.parametrize("change", ["one row less", "another row"])
def test_a_data_file_that_has_changed_is_refused(train, problems_file, small, tmp_path, capsys, change):
    """The place in the order of the problems means nothing in another file."""
    rows = [json.loads(line) for line in open(problems_file)]
    data = write(tmp_path / "data.jsonl", rows)
    flags = ["--data", data, "--eval_data", "", "--steps"]
    assert train(tmp_path / "run", *flags, 1) == 0
    write(data, rows[1:] if change == "one row less" else [rows[0] | dict(problem="1+1", answer="2"), *rows[1:]])
    capsys.readouterr()
    assert train(tmp_path / "run", *flags, 2, "--resume") == 2
    assert "has changed (48 problems before, " in error_line(capsys)


# ------------------------------------------------------------------------------------------------ a full disk
def test_a_full_disk_is_one_line():
    assert disk_is_full(OSError(28, "No space left on device"))
    try:
        try:
            raise OSError(28, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not save") from error
    except RuntimeError as error:
        assert disk_is_full(error)
    assert not disk_is_full(OSError(2, "No such file or directory"))


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="only root can mount a small disk")
def test_a_run_on_a_small_disk_says_so_and_goes_on_when_there_is_room(small, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=14m", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no mount here")
    try:
        command = [sys.executable, grpo.__file__, *small, "--out", disk / "run", "--save_every", 1]
        first = start(*command, "--steps", 4)
        text = first.communicate(timeout=300)[0]
        assert first.returncode not in (0, 2) and "Traceback" not in text, text
        assert text.count("error: the disk is full") == 1
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        second = start(*command, "--steps", 4, "--resume")
        text = second.communicate(timeout=300)[0]
        assert second.returncode == 0, text
        assert [row["step"] for row in metrics(disk / "run")] == [0, 1, 2, 3, 4] and weights(disk / "run/final")
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
