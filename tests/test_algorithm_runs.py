"""Runs of the six algorithms: batches in which there is nothing, or hardly anything, to learn, and what is one method's
own. What all have to pass, and a fork too, is in test_every_algorithm.py."""

import importlib
import shutil
from unittest import mock

import pytest
from helpers import metrics, read, same_weights, weights

import iterative_dpo
import ppo
import raft
from conftest import FEW


# ------------------------------------------------------------------------------------------------ nothing to learn
def graded(answer):
    """Every response is right, or every one is wrong, whatever it says."""
    return mock.patch("core.rewards.verify_all", lambda pairs: [answer] * len(pairs))


@pytest.mark.parametrize("right", [False, True], ids=["all wrong", "all right"])
def test_all_wrong_and_all_right_batches(train, tmp_path, script, right):
    """What can't be learned from is skipped and counted; RAFT learns from right answers, whatever the others are."""
    with graded(right):
        assert train(tmp_path / "run", *FEW, "--steps", 2, module=script.module) == 0
    rows = metrics(tmp_path / "run")
    learns = right and script.name.startswith("raft")
    skipped = 0 if learns else 2 * getattr(script.module.Config(), "epochs", 1)
    if script.module is ppo and right:  # the critic expects 0 at first, is wrong by the same everywhere, and A is 0
        assert rows[0]["skipped_updates"] == 2
    else:
        assert [row["skipped_updates"] for row in rows] == [skipped] * 2
    assert all(row["accuracy"] == row["reward"] == right for row in rows)
    assert [row["all_correct"] for row in rows] == [float(right)] * 2
    kept = dict(raft=right, raft_pp=right, reinforce_rej=False, iterative_dpo=False, grpo=True, ppo=True)
    assert [row["kept"] for row in rows] == [float(kept[script.name])] * 2
    if skipped:
        assert rows[0]["loss"] is None and rows[0]["grad_norm"] is None


def test_one_prompt(train, tmp_path, script):
    """More updates are asked for than there are prompts: those without one are skipped and counted."""
    assert train(tmp_path / "run", *FEW, "--steps", 2, "--prompts_per_step", 1, module=script.module) == 0
    epochs = getattr(script.module.Config(), "epochs", 1)
    assert all(row["skipped_updates"] >= epochs for row in metrics(tmp_path / "run"))


@pytest.mark.parametrize("name, flags", [
    ("raft", []), ("raft_pp", []), ("ppo", []), ("reinforce_rej", ["--reject", "none"]),
    ("reinforce_rej", ["--reject", "none", "--baseline", "batch", "--normalize", "batch"]),
])
def test_one_response_per_prompt(train, tmp_path, name, flags):
    size = ["--samples_per_prompt", 1, "--prompts_per_step", 24]
    assert train(tmp_path / "run", *FEW, "--steps", 2, *size, *flags, module=importlib.import_module(name)) == 0
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
    texts = [[row["response"] for row in read(out / "samples.jsonl")] for out in (own, taught)]
    assert texts[0] == texts[1] and len(texts[0]) == 4
    (row,), (other,) = metrics(taught), metrics(own)
    assert row["accuracy"] == other["accuracy"] and row["loss"] != other["loss"]
    assert 0 <= row["kl"] < 1e-9  # of the policy to its own beginning, on the teacher's text


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


def test_the_critic_is_in_the_checkpoint(train, tmp_path, capsys):
    """Without it PPO would go on with a critic that knows nothing. So such a checkpoint is refused, in one line."""
    out = tmp_path / "run"
    assert train(out, *FEW, "--steps", 1, module=ppo) == 0
    assert (out / "step_000001/critic").is_dir()
    shutil.rmtree(out / "step_000001/critic")
    assert train(out, *FEW, "--steps", 2, "--resume", module=ppo) == 2
    assert error_line(capsys).endswith("have no critic, so another algorithm has written them; give another --out")
