"""A check of one's own, check(response, problem) -> score, in place of the built-in grading: in training, in an
evaluation, and when it fails."""

import json
import sys
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from helpers import error_line, metrics, read, refused, write

import common
import eval as evaluation
from conftest import FEW
from core import rewards, rollout

# Rewards responses that show a word which the problem's row names; half of it for a capital. No row has an answer.
CHECK = '''
def check(response, problem):
    word = problem["words"][0]
    return 1.0 if word in response else 0.5 if word.upper() in response else 0.0
'''


@pytest.fixture
def check_file(tmp_path):
    file = tmp_path / "check.py"
    file.write_text(CHECK)
    return file


@pytest.fixture
def words_file(tmp_path, problems_file):
    """Problems of a kind of their own: a list of words, and no answer."""
    return write(tmp_path / "words.jsonl", [dict(problem=row["problem"], words=["boxed", "python"], level=i)
                                            for i, row in enumerate(read(problems_file))])


def graded_by(check, texts, problems):
    """Rollouts of one response to each problem, graded by this check."""
    problems = [dict(prompt=torch.tensor([1]).numpy(), text="", answer=None) | problem for problem in problems]
    responses = [([ord(c) for c in text], [0.0] * len(text), [0.0] * len(text), True) for text in texts]
    rollouts = rollout.Rollouts(problems, responses)
    join = lambda rows, skip_special_tokens: ["".join(map(chr, row)) for row in rows]
    rewards.grade(rollouts, SimpleNamespace(batch_decode=join), check)
    return rollouts


# ------------------------------------------------------------------------------------------------ scores
def test_scores_are_the_reward_and_above_a_half_is_right():
    check = lambda response, problem: problem["worth"] * (response == "yes")
    problems = [dict(worth=x) for x in (1, 0.5, 0.51, 3, -1)]
    rollouts = graded_by(check, ["yes"] * 5, problems)
    assert rollouts.scores.flatten().tolist() == pytest.approx([1, 0.5, 0.51, 3, -1])
    assert rollouts.correct.flatten().tolist() == [1, 0, 1, 1, 0]
    rewards = common.compute_rewards("ground_truth", rollouts)
    assert rewards.flatten().tolist() == pytest.approx([1, 0.5, 0.51, 3, -1])
    stats = rollouts.stats()
    assert stats["accuracy"] == pytest.approx(3 / 5) and stats["check_errors"] == 0


def test_what_a_check_raises_counts_as_0_is_counted_and_is_shown_once(capsys):
    def check(response, problem):
        return dict(right=1.0, text="many", nan=float("nan"))[response] if response != "own" else problem["missing"]

    rollouts = graded_by(check, ["right", "own", "no such key", "text", "nan"], [{}] * 5)
    assert rollouts.scores.flatten().tolist() == [1, 0, 0, 0, 0]
    assert rollouts.check_errors == rollouts.stats()["check_errors"] == 4
    graded_by(check, ["own"], [{}])
    out = capsys.readouterr().out
    assert out.count("the check failed") == 1 and "it raised KeyError: 'missing'" in out and "check_errors" in out


@pytest.mark.parametrize("value, says", [("many", "ValueError"), (float("inf"), "returned inf"), (None, "TypeError")])
def test_what_is_no_number_is_an_error(value, says, capsys):
    rollouts = graded_by(lambda response, problem: value, ["a", "b"], [{}, {}])
    assert rollouts.check_errors == 2 and rollouts.scores.sum() == 0
    assert says in capsys.readouterr().out


def test_without_a_check_there_is_no_such_metric():
    assert "check_errors" not in graded_by(None, [r"\boxed{1}"], [dict(answer="1")]).stats()


# ------------------------------------------------------------------------------------------------ training
def test_training_on_a_task_of_ones_own(train, tmp_path, words_file, check_file):
    """From rows without an answer; evaluation is by the check too, and what it saves keeps the columns of the rows."""
    out = tmp_path / "run"
    data = ["--data", words_file, "--eval_data", words_file, "--eval_problems", 4]
    assert train(out, *FEW, *data, "--steps", 2, "--check", check_file) == 0
    before, *rows = metrics(out)
    assert [row["check_errors"] for row in rows] == [0, 0] and before["eval_accuracy"] > 0
    for row in read(out / "samples.jsonl"):
        assert row["answer"] is None and row["correct"] == (row["reward"] > 0.5)
        assert row["reward"] == (1.0 if "boxed" in row["response"] else 0.0)
    saved = read(out / "eval/step_000002/words.jsonl")
    assert len(saved) == 16 and all(row["words"] == ["boxed", "python"] and "level" in row for row in saved)
    assert all(row["correct"] == ("boxed" in row["response"]) for row in saved)


def test_a_check_that_leaves_counts_as_0(train, tmp_path, capsys):
    check = tmp_path / "leaves.py"
    check.write_text("import sys\n\n\ndef check(response, problem):\n    sys.exit(0)\n")
    assert train(tmp_path / "run", "--check", check, "--steps", 1) == 0
    assert metrics(tmp_path / "run")[1]["check_errors"] == 44 and "SystemExit" in capsys.readouterr().out


BROKEN = [
    (None, "FileNotFoundError"), ("def check(response, problem)\n", "SyntaxError"), ("import no_such_module\n",
     "ModuleNotFoundError"), ("def grade(response, problem): ...\n", "has no attribute 'check'"),
]


@pytest.mark.parametrize("text, says", BROKEN)
def test_a_broken_check_file_is_one_line(train, tmp_path, capsys, text, says):
    file = tmp_path / "check.py"
    if text is not None:
        file.write_text(text)
    line = refused(train, tmp_path, capsys, "--check", file)
    assert line.startswith(f"error: --check {file}: ") and says in line and "check(response, problem)" in line


def test_rows_without_an_answer_need_a_check(train, tmp_path, capsys, words_file):
    assert "it needs problem" in refused(train, tmp_path, capsys, "--data", words_file)


# ------------------------------------------------------------------------------------------------ evaluation
def evaluate(*flags) -> int:
    """eval.py with these flags, in this process, without its figure; its exit status."""
    with mock.patch.object(sys, "argv", ["eval.py", *map(str, flags)]), mock.patch("plot.draw_evaluation"):
        try:
            evaluation.main()
            return 0
        except SystemExit as stop:
            return stop.code


SMALL = "--limit 3 --samples 2 --seeds 1 --max_new_tokens 40".split()


def test_an_evaluation_by_a_check_and_its_rescoring(tmp_path, words_file, check_file):
    """The saved rows keep the columns that the check reads, so that they can be graded again, by another check too."""
    assert evaluate("--bench", words_file, "--check", check_file, *SMALL, "--out", tmp_path / "one") == 0
    rows = read(tmp_path / "one/words.jsonl")
    assert len(rows) == 6 and all(row["words"] == ["boxed", "python"] and row["gold"] is None for row in rows)
    assert [row["correct"] for row in rows] == ["boxed" in row["response"] for row in rows]
    other = tmp_path / "other.py"
    other.write_text("def check(response, problem):\n    return problem['level'] == 1\n")
    assert evaluate("--rescore", tmp_path / "one/words.jsonl", "--check", other, "--out", tmp_path / "two") == 0
    again = read(tmp_path / "two/words.jsonl")
    assert [row["correct"] for row in again] == [row["level"] == 1 for row in rows]
    assert [row["response"] for row in again] == [row["response"] for row in rows]
    summary = json.loads((tmp_path / "two/summary.json").read_text())["benchmarks"]["words"]
    assert summary["avg"][0] == pytest.approx(1 / 3)


# Columns that are called like ours: of a problem, of a saved response, of what training adds.
OWN = dict(seed=7, response="seven", after="lunch", tokens=5, unit=["cm"], text="t", prompt_text="p", label="easy",
           correct="perhaps", finish="line", end=3, turns=4, sample="s", gold="bar", row=[1], problem_id="x",
           extracted=0, answer=dict(low=1, high=9))


@pytest.fixture
def own_columns(tmp_path, problems_file):
    """(data, check): the check finds a response right if all columns of its row reach it, and nothing else does."""
    rows = [OWN | dict(problem=row["problem"]) for row in read(problems_file)]
    check = tmp_path / "own.py"
    check.write_text(f"OWN = {OWN!r}\n\n\ndef check(response, problem):\n"
                     "    return {name: x for name, x in problem.items() if name != 'problem'} == OWN\n")
    return write(tmp_path / "own.jsonl", rows), check


def test_columns_that_are_called_like_ours_reach_the_check_in_training_evaluation_and_rescoring(
    train, tmp_path, own_columns, capsys
):
    data, check = own_columns
    how = ["--data", data, "--eval_data", data, "--check", check, "--eval_every", 0]
    assert train(tmp_path / "run", *how, "--steps", 1) == 0
    assert [row["accuracy"] for row in metrics(tmp_path / "run")[1:]] == [1.0]
    assert evaluate("--bench", data, "--check", check, *SMALL, "--out", tmp_path / "one") == 0
    for file in (tmp_path / "one/own.jsonl", tmp_path / "run/eval/step_000001/own.jsonl"):
        rows = read(file)
        assert rows and all(row["correct"] is True and row["gold"] == OWN["answer"] for row in rows)
        assert {row["seed"] for row in rows} == {0} and all(isinstance(row["tokens"], int) for row in rows)
        assert evaluate("--rescore", file, "--check", check, "--out", tmp_path / "two") == 0
        assert all(row["correct"] is True for row in read(tmp_path / "two/own.jsonl"))
        assert evaluate("--rescore", tmp_path / "two/own.jsonl", "--check", check, "--out", tmp_path / "three") == 0
        assert all(row["correct"] is True for row in read(tmp_path / "three/own.jsonl"))


def test_such_columns_in_responses_of_others_are_theirs(tmp_path, own_columns):
    """A file that we have not written: problem, answer and response count, whatever else is in it."""
    rows = [dict(problem=f"{i}+1", seed=7, tokens=[1, 2], after="lunch", turns=3, end="x", answer=str(i + 1),
                 response=rf"\boxed{{{i + 1}}}") for i in range(3)]
    check = tmp_path / "theirs.py"
    check.write_text("def check(response, problem):\n    return problem['seed'] == 7 and problem['after'] == 'lunch'\n")
    for flags in ([], ["--check", check]):
        for file, out in ((write(tmp_path / "x.jsonl", rows), "out"), (tmp_path / "out/x.jsonl", "again")):
            assert evaluate("--rescore", file, *flags, "--out", tmp_path / out) == 0
            assert json.loads((tmp_path / out / "summary.json").read_text())["benchmarks"]["x"]["avg"][0] == 1


def test_another_text_of_the_check_is_another_evaluation(tmp_path, words_file, check_file, capsys):
    flags = ["--bench", words_file, *SMALL, "--out", tmp_path / "one", "--check"]
    assert evaluate(*flags, check_file) == evaluate(*flags, check_file) == 0
    check_file.write_text(CHECK + "\n\n# and another line\n")
    common.find_check.cache_clear()
    capsys.readouterr()
    assert evaluate(*flags, check_file) == 2
    assert "holds an evaluation with check" in error_line(capsys)


def test_a_broken_check_file_ends_an_evaluation_with_one_line(tmp_path, words_file, capsys):
    flags = ["--bench", words_file, "--check", tmp_path / "missing.py", *SMALL, "--out", tmp_path / "out"]
    assert evaluate(*flags) == 2
    assert error_line(capsys).startswith(f"error: --check {tmp_path / 'missing.py'}: ")
