"""The rewards of the papers on hand-made responses; votes; and that chance and labels repeat in every world."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import assert_same_run, cpu_seconds, metrics, read

import common
import raft_pp
from conftest import FEW
from core import rewards
from core.data import render
from core.rewards import decode, grade
from core.rollout import Rollouts
from core.streams import mix, streams

TEXTS = ["2+2 in python is \\boxed{4}", "\\boxed{4}", "it is \\boxed{5}", "\\boxed{ }",
         "I don't know", "Python says \\boxed{6}", "The answer is 6.", "\\boxed{7}"]


def rollouts_of(texts, golds, n, keys=None):
    """Rollouts with these responses, graded. The tokens are the characters."""
    problems = [dict(prompt=[1], text="", problem="", answer=gold) for gold in golds]
    responses = [([ord(c) for c in text] or [0], [0.0] * max(1, len(text)), [0.0] * max(1, len(text)), True)
                 for text in texts]
    rollouts = Rollouts(problems, responses, keys)

    class Tokenizer:
        def batch_decode(self, rows, skip_special_tokens):
            return ["".join(map(chr, row)) for row in rows]

    grade(rollouts, Tokenizer())
    return rollouts


@pytest.fixture
def eight():
    return rollouts_of(TEXTS, ["4", "6"], 4)


@pytest.mark.parametrize("expression, expected", [
    ("ground_truth", [[1, 1, 0, 0], [0, 1, 1, 0]]),
    ("!ground_truth", [[0, 0, 1, 1], [1, 0, 0, 1]]),
    ("format", [[1, 1, 1, 0], [0, 1, 0, 1]]),  # a box with something in it
    ("python", [[1, 0, 0, 0], [0, 1, 0, 0]]),
    ("ground_truth & python", [[1, 0, 0, 0], [0, 1, 0, 0]]),
    ("format&!python", [[0, 1, 1, 0], [0, 0, 0, 1]]),
    ("no_repetition", [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ("majority", [[1, 1, 0, 0], [0, 1, 1, 0]]),  # 4 and 6 have two votes each
    ("random:1", [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ("random:0", [[0, 0, 0, 0], [0, 0, 0, 0]]),
    ("! random:1 & format", [[0, 0, 0, 0], [0, 0, 0, 0]]),
])
def test_rules_by_hand(eight, expression, expected):
    eight.keys = streams(0, [0, 1], 4)
    result = rewards.compute_rewards(expression, eight)
    assert result.dtype == torch.float32 and result.tolist() == expected
    assert eight.correct.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]], "the truth stays beside the reward"


def test_a_reward_is_not_the_truth_itself(eight):
    rewards.compute_rewards("ground_truth", eight).zero_()
    assert eight.correct.sum() == 4


@pytest.mark.parametrize("expression", ["", "truth", "ground_truth &", "& python", "random", "random:", "random:2",
                                        "random:x", "random:nan", "python:1", "ground_truth | python",
                                        "!!python"])
def test_what_is_no_reward_is_refused_in_one_line(expression, tmp_path, train, capsys):
    with pytest.raises(ValueError, match="majority_fixed") as error:
        rewards.reward_terms(expression)
    assert "\n" not in str(error.value)
    assert train(tmp_path / "run", f"--reward={expression}") == 2
    assert not (tmp_path / "run").exists()
    assert "error: reward" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ repetition
@pytest.mark.parametrize("text, found", [
    ("", False),
    ("0123456789" * 9, False),  # nine times
    ("0123456789" * 10, True),
    ("012345678" * 10, False),  # a piece of nine characters, but twice nine is one of eighteen, five times
    ("012345678" * 20, True),  # ten times eighteen
    ("x" + "wait, let me see. " * 10 + "y", True),
    ("".join(f"step {i}: the same words. " for i in range(40)), False),  # the number changes
    ("a" * 99, False),
    ("a" * 100, True),
    ("ab" * 255 + "c", True),
    ("the " * 30, True),  # 12 characters, ten times
    (("x" * 255 + "y") * 10, True),
    (("".join(chr(200 + i) for i in range(256)) + "y") * 10, False),  # a piece of 257
    ("\ud800" * 100, True),  # half a surrogate pair
])
def test_repetition(text, found):
    assert rewards.repeats(text) == found


def test_repetition_is_found_faster_than_by_the_regular_expression_that_says_the_same():
    """About 13 times as fast, in a long text without any."""
    text = np.random.default_rng(0).integers(97, 123, 20_000).astype(np.uint8).tobytes().decode()
    piece = re.compile(r"(.{10,256})\1{9}", re.DOTALL)
    assert not rewards.repeats(text) and not piece.search(text)
    assert cpu_seconds(lambda: rewards.repeats(text)) < cpu_seconds(lambda: piece.search(text)) / 3


# ------------------------------------------------------------------------------------------------ votes
BOX = "\\boxed{{{}}}".format


@pytest.mark.parametrize("answers, winner", [
    (["4", "5", "5"], "5"),
    (["4", "5", "5", "4"], "4"),  # of equals the first to appear
    (["5", "4", "4", "5"], "5"),
    (["", " ", "3"], "3"),  # nothing is no vote
    ([], ""),
    (["", ""], ""),
    (["1,000", "7", "1000"], "1,000"),  # one answer, written in two ways
])
def test_votes(answers, winner):
    assert rewards.vote([BOX(answer) for answer in answers]) == winner


def test_a_response_without_an_answer_does_not_vote():
    assert rewards.vote(["no idea", "none", BOX(8)]) == "8"


def test_the_majority_may_be_wrong_and_is_rewarded_all_the_same():
    """Test-time RL: nobody looks at the gold answer but the metrics."""
    rollouts = rollouts_of([BOX(x) for x in (5, 5, 4, 6, 7, 7, 8, 7)], ["4", "7"], 4)
    assert rewards.compute_rewards("majority", rollouts).tolist() == [[1, 1, 0, 0], [1, 1, 0, 1]]
    assert rollouts.labels == ["5", "7"]
    assert rollouts.stats()["label_accuracy"] == 0.5 and rollouts.stats()["accuracy"] == 0.5


def test_a_fixed_label_is_the_problems():
    rollouts = rollouts_of([BOX(x) for x in (5, 5, 4, 6)], ["4"], 4)
    rollouts.problems[0]["label"] = "6"
    assert rewards.compute_rewards("majority_fixed", rollouts).tolist() == [[0, 0, 0, 1]]
    assert rewards.compute_rewards("incorrect", rollouts).tolist() == [[0, 0, 0, 1]]


def test_nobody_has_an_answer():
    rollouts = rollouts_of(["hm", "well"], ["4"], 2)
    assert rewards.compute_rewards("majority", rollouts).tolist() == [[0, 0]]


# ------------------------------------------------------------------------------------------------ chance
def test_chance_is_bernoulli_and_of_the_response_alone():
    keys = streams(3, range(2000), 4)
    some = rollouts_of([""] * 8, ["1"] * 2, 4, keys[400:408])
    part = rewards.compute_rewards("random:0.3", some)
    everything = (mix(keys + np.uint64(2**40)) >> np.uint64(11)) * 2.0**-53 < 0.3
    assert part.flatten().tolist() == everything[400:408].astype(float).tolist()
    assert abs(everything.mean() - 0.3) < 5 * (0.3 * 0.7 / 8000) ** 0.5
    groups = everything.reshape(-1, 4).sum(1)
    assert abs(np.var(groups) - 4 * 0.3 * 0.7) < 0.08  # responses to a prompt are independent


# ------------------------------------------------------------------------------------------------ runs

more = lambda case: pytest.param(case, marks=pytest.mark.slow)


@pytest.mark.parametrize("reward", ["random:0.5", more("majority"), more("format & !python"), "majority_fixed"])
def test_runs_repeat_and_resume(train, tmp_path, reward):
    flags = [*FEW, "--reward", reward, "--votes", 4, "--save_every", 2]
    one, two = tmp_path / "one", tmp_path / "two"
    assert train(one, *flags, "--steps", 3) == 0
    shutil.copytree(one, two)
    for folder in ("final", "step_000003"):
        shutil.rmtree(two / folder)
    assert train(two, *flags, "--steps", 3, "--resume") == 0
    assert_same_run(two, one, 3)
    rows = metrics(one)
    assert any(row["reward"] != row["accuracy"] for row in rows)
    for row in rows:
        assert ("label_accuracy" in row) == ("agreement" in row) == reward.startswith("majority")
        assert 0 <= row.get("agreement", 0.5) <= 1 and 0 <= row.get("label_accuracy", 0.5) <= 1


def test_a_random_reward_is_the_seeds(train, tmp_path):
    values = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        assert train(tmp_path / name, *FEW, "--steps", 1, "--reward", "random:0.5", "--seed", seed) == 0
        values.append([row["reward"] for row in read(tmp_path / f"{name}/samples.jsonl")])
    assert values[0] == values[1] != values[2]


def test_labels_are_the_initial_models_and_are_voted_on_once(train, tmp_path, monkeypatch):
    out = tmp_path / "run"
    flags = [*FEW, "--reward", "majority_fixed", "--votes", 4, "--save_every", 1]
    assert train(out, *flags, "--steps", 2) == 0
    rows = read(out / "labels.jsonl")
    assert len(rows) == 14 and all(set(row) == {"problem", "answer", "label"} for row in rows)
    monkeypatch.setattr("core.rewards.generate", lambda *args, **how: pytest.fail("it votes again"))
    shutil.rmtree(out / "step_000002")
    assert train(out, *flags, "--steps", 4, "--resume") == 0  # more steps: the same problems over again
    assert read(out / "labels.jsonl") == rows


def test_votes_that_were_cut_off_go_on(train, tmp_path, monkeypatch):
    """Killed while voting: no checkpoint yet, some labels."""
    out, other = tmp_path / "run", tmp_path / "other"
    flags = [*FEW, "--reward", "majority_fixed", "--votes", 4, "--steps", 2]
    assert train(out, *flags) == 0
    other.mkdir()
    lines = (out / "labels.jsonl").read_text().splitlines(True)
    (other / "labels.jsonl").write_text("".join(lines[:5]) + lines[5][:9])
    seen = []
    real = rewards.generate
    counted = lambda sampler, part, *args, **how: seen.append(len(part)) or real(sampler, part, *args, **how)
    monkeypatch.setattr("core.rewards.generate", counted)
    assert train(other, *flags, "--resume") == 0
    assert seen == [9]
    assert (other / "labels.jsonl").read_text() == "".join(lines)
    assert metrics(other) == metrics(out)


def test_incorrect_drops_the_prompts_whose_vote_is_right(train, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(out, *FEW, "--reward", "incorrect", "--votes", 2, "--steps", 2) == 0
    rows = read(out / "labels.jsonl")
    wrong = [row for row in rows if row["label"] and not common.verify(BOX(row["label"]), row["answer"])]
    assert 0 < len(wrong) < len(rows)
    assert f"{len(rows)} problems voted on, {len(wrong)} kept" in capsys.readouterr().out
    assert all(row["label_accuracy"] == 0 for row in metrics(out))
    answers = {row["answer"] for row in wrong}
    assert {row["answer"] for row in read(out / "samples.jsonl")} <= answers


def test_when_every_vote_is_right_incorrect_has_nothing_to_train_on(train, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("core.rewards.vote_labels", lambda file, pool, *a: [p["answer"] for p in pool])
    assert train(tmp_path / "run", *FEW, "--reward", "incorrect", "--steps", 2) == 2
    assert "error: --reward incorrect: no labelled problem is left of 14" in capsys.readouterr().err


def test_one_problem_fills_the_batch(train, tmp_path):
    """One-shot RLVR: the same prompt seven times, each with responses of its own."""
    out = tmp_path / "run"
    assert train(out, *FEW, "--limit", 1, "--steps", 1, "--samples_per_prompt", 1, module=raft_pp) == 0
    rows = read(out / "samples.jsonl")
    assert len(rows) == 4 and len({row["prompt"] for row in rows}) == 1 and len({row["response"] for row in rows}) > 1


# ------------------------------------------------------------------------------------------------ texts
def test_decode_leaves_special_tokens_out(tokenizer):
    ids = tokenizer("7+5=12<|end|>", add_special_tokens=False)["input_ids"]
    assert decode([(ids, None, None, True)], tokenizer) == ["7+5=12"]


def test_the_papers_templates(tokenizer):
    assert render("1+1", "python", tokenizer).endswith("1+1<|assistant|>Let's solve this using Python.")
    r1 = render("1+1", "r1", tokenizer)
    assert r1.startswith("A conversation between User and Assistant.") and r1.endswith("User: 1+1\nAssistant: <think>")
    sober = render("1+1", "sober", tokenizer)
    assert "efficiently and clearly.  The last line" in sober and "\n\n1+1<|assistant|>" in sober
    assert json.dumps(sober).count("$\\\\boxed{ANSWER}$. I hope it is correct'") == 1
