"""Runs of all six algorithms: the same on two processes, in micro-batches and after a resume; and batches in which
there is nothing, or hardly anything, to learn."""

import os
import shutil
import sys
from unittest import mock

import pytest
import torch
from test_algorithms import ALL, NAMES
from test_runs import assert_near, assert_same_run, metrics, same_weights, start, weights

import iterative_dpo
import ppo
import raft

each = pytest.mark.parametrize("module", ALL, ids=NAMES)
# More right answers at hand than in the small runs of GRPO; a seventh prompt that neither updates nor ranks divide.
FEW = ["--prompts_per_step", "7", "--updates_per_step", "2", "--eval_every", "0", "--eval_data", ""]


@pytest.fixture(scope="module")
def three(train, tmp_path_factory):
    """three(module): the folder of three steps in one go, with a checkpoint every second."""
    made = {}

    def run(module):
        if module not in made:
            made[module] = tmp_path_factory.mktemp(module.__name__) / "run"
            assert train(made[module], *FEW, "--steps", 3, "--save_every", 2, module=module) == 0
        return made[module]

    return run


@each
def test_it_learns_something_in_every_step(three, module):
    """These sizes were chosen so that the other tests compare more than skipped updates."""
    rows = metrics(three(module))
    updates = 2 * getattr(module.Config(), "epochs", 1)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert sum(row["skipped_updates"] for row in rows) < 3 * updates / 2
    assert all(row["grad_norm"] > 0 and 0 < row["kept"] <= 1 and row["mismatch"] < 1e-5 for row in rows)
    two_updates = [row for row in rows if row["skipped_updates"] == 0]
    assert max(row["ratio_max"] for row in two_updates) > 1.001  # the second update leaves ratio 1


@each
def test_resume_continues_bit_for_bit(train, three, tmp_path, module):
    out = tmp_path / "run"
    shutil.copytree(three(module), out)
    for folder in ("final", "step_000003"):
        shutil.rmtree(out / folder)
    assert train(out, *FEW, "--steps", 3, "--save_every", 2, "--resume", module=module) == 0
    assert_same_run(out, three(module), 3)


def test_the_critic_is_in_the_checkpoint(train, three, tmp_path):
    """Without it PPO would go on with a critic that knows nothing; so a checkpoint without it is not whole."""
    out = tmp_path / "run"
    shutil.copytree(three(ppo), out)
    shutil.rmtree(out / "step_000003")
    assert (out / "step_000002/critic").is_dir()
    shutil.rmtree(out / "step_000002/critic")
    assert train(out, *FEW, "--steps", 3, "--resume", module=ppo) == 2


@pytest.mark.slow
@each
def test_micro_batches_change_nothing(train, three, tmp_path, module):
    assert train(tmp_path / "run", *FEW, "--steps", 3, "--save_every", 2, "--tokens_per_micro", 100, module=module) == 0
    assert_near(tmp_path / "run", three(module))


IN_TURN = """
import importlib, sys
for name in {names}:
    sys.argv = [name + ".py", "--out", {folder!r} + "/" + name, *{flags}]
    importlib.import_module(name).main()
sys.argv = ["grpo.py", "--out", {folder!r} + "/random", *{flags}, "--reward", "random:0.5"]
importlib.import_module("grpo").main()
"""


@pytest.fixture(scope="module")
def two_processes(small, tmp_path_factory):
    """A folder with three steps of each algorithm under torchrun, one after the other in the same two processes."""
    folder = tmp_path_factory.mktemp("two")
    flags = [*small, *FEW, "--steps", "3", "--save_every", "2"]
    (folder / "all.py").write_text(IN_TURN.format(names=NAMES, folder=str(folder), flags=flags))
    with mock.patch.dict(os.environ, PYTHONPATH=os.path.dirname(raft.__file__)):
        process = start(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
                        folder / "all.py", threads=1)  # fmt: skip
        text = process.communicate(timeout=240)[0]
    assert process.returncode == 0, text
    return folder


@pytest.mark.slow
@each
def test_two_processes_do_what_one_does(two_processes, three, module):
    assert_near(two_processes / module.__name__, three(module))
    one, two = weights(three(module) / "final"), weights(two_processes / module.__name__ / "final")
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


@pytest.mark.slow
def test_chance_does_not_depend_on_the_number_of_processes(two_processes, train, tmp_path):
    flags = ["--steps", "3", "--save_every", "2", "--reward", "random:0.5"]
    assert train(tmp_path / "run", *FEW, *flags) == 0
    assert_near(two_processes / "random", tmp_path / "run")
    assert any(row["reward"] != row["accuracy"] for row in metrics(tmp_path / "run"))


# ------------------------------------------------------------------------------------------------ nothing to learn
def graded(answer):
    """Every response is right, or every one is wrong, whatever it says."""
    return mock.patch("core.rollout.verify_all", lambda pairs: [answer] * len(pairs))


@each
@pytest.mark.parametrize("right", [False, True], ids=["all wrong", "all right"])
def test_all_wrong_and_all_right_batches(train, tmp_path, module, right):
    """What can't be learned from is skipped and counted; RAFT learns from right answers, whatever the others are."""
    with graded(right):
        assert train(tmp_path / "run", *FEW, "--steps", 2, module=module) == 0
    rows = metrics(tmp_path / "run")
    learns = right and module.__name__.startswith("raft")
    skipped = 0 if learns else 2 * getattr(module.Config(), "epochs", 1)
    if module is ppo and right:  # the critic expects 0 at first, is wrong by the same everywhere, and A is 0
        assert rows[0]["skipped_updates"] == 2
    else:
        assert [row["skipped_updates"] for row in rows] == [skipped] * 2
    assert all(row["accuracy"] == row["reward"] == right for row in rows)
    assert [row["all_correct"] for row in rows] == [float(right)] * 2
    kept = dict(raft=right, raft_pp=right, reinforce_rej=False, iterative_dpo=False, grpo=True, ppo=True)
    assert [row["kept"] for row in rows] == [float(kept[module.__name__])] * 2
    if skipped:
        assert rows[0]["loss"] is None and rows[0]["grad_norm"] is None


@each
def test_one_prompt(train, tmp_path, module):
    """More updates are asked for than there are prompts: those without one are skipped and counted."""
    assert train(tmp_path / "run", *FEW, "--steps", 2, "--prompts_per_step", 1, module=module) == 0
    epochs = getattr(module.Config(), "epochs", 1)
    assert all(row["skipped_updates"] >= epochs for row in metrics(tmp_path / "run"))


@pytest.mark.parametrize("name, flags", [
    ("raft", []), ("raft_pp", []), ("ppo", []), ("reinforce_rej", ["--reject", "none"]),
    ("reinforce_rej", ["--reject", "none", "--baseline", "batch", "--normalize", "batch"]),
])  # fmt: skip
def test_one_response_per_prompt(train, tmp_path, name, flags):
    module = ALL[NAMES.index(name)]
    size = ["--samples_per_prompt", 1, "--prompts_per_step", 24]
    assert train(tmp_path / "run", *FEW, "--steps", 2, *size, *flags, module=module) == 0
    assert all(row["skipped_updates"] == 0 and row["grad_norm"] > 0 for row in metrics(tmp_path / "run"))


# ------------------------------------------------------------------------------------------------ one method's own
def test_dpo_takes_one_pair_of_each_mixed_prompt(train, tmp_path):
    assert train(tmp_path / "run", *FEW, "--steps", 2, "--samples_per_prompt", 5, module=iterative_dpo) == 0
    for row in metrics(tmp_path / "run"):
        mixed = 1 - row["all_correct"] - row["all_wrong"]
        assert row["kept"] == pytest.approx(mixed * 2 / 5)


def test_epochs_repeat_the_updates(train, tmp_path):
    """The first epoch's first update is at ratio 1; a second epoch goes on from there, and the loss is the mean."""
    for epochs in (1, 2):
        flags = ["--steps", 1, "--updates_per_step", 1, "--epochs", epochs, "--label_smoothing", 0]
        assert train(tmp_path / str(epochs), *FEW, *flags, module=iterative_dpo) == 0
    (one,), (two,) = metrics(tmp_path / "1"), metrics(tmp_path / "2")
    assert one["loss"] == pytest.approx(0.693147, abs=1e-5) and two["loss"] < one["loss"]
    assert not same_weights(weights(tmp_path / "1/final"), weights(tmp_path / "2/final"))


def test_a_teacher_samples_in_place_of_the_policy(train, tmp_path):
    """Its responses are those that it gives when it is the model; the policy is trained on them."""
    own, taught = tmp_path / "own", tmp_path / "taught"
    assert train(own, *FEW, "--steps", 1, "--model", "tiny-badcode", module=raft) == 0
    flags = ["--steps", 1, "--teacher", "tiny-badcode", "--reference", "true"]
    assert train(taught, *FEW, *flags, module=raft) == 0
    assert (own / "samples.jsonl").read_bytes() == (taught / "samples.jsonl").read_bytes()
    (row,), (other,) = metrics(taught), metrics(own)
    assert row["accuracy"] == other["accuracy"] and row["loss"] != other["loss"]
    assert row["kl"] == 0  # of the policy to its own beginning, on the teacher's text


def test_a_teacher_with_another_tokenizer_is_refused(train, tmp_path, tiny_path, capsys):
    from transformers import AutoTokenizer

    other = tmp_path / "other"
    shutil.copytree(tiny_path, other)
    tokenizer = AutoTokenizer.from_pretrained(tiny_path)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(other)
    assert train(tmp_path / "run", *FEW, "--teacher", other, module=raft) == 2
    assert "error: --teacher" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert train(tmp_path / "run", *FEW, "--teacher", "qwen-2.5-7b", module=raft) == 2
    assert "error: --teacher qwen-2.5-7b" in capsys.readouterr().err
