"""The worlds of the lab: countdown's problems, traces and check, and short builds of each world."""

import json
import random
import re
import sys

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import tiny
from lab import worlds

# 4+3=7*2=14+8=22 and 4+8=12... : of the six orders only +3*2+8 ends at 22
EXAMPLE = {"problem": "4 +3 *2 +8 > 22"}
ENDS = {"+3*2+8": 22, "+3+8*2": 30, "*2+3+8": 19, "*2+8+3": 19, "+8+3*2": 30, "+8*2+3": 27}


def boxed(text: str) -> tuple:
    return tuple(re.findall(r"[-+*]\d+", re.fullmatch(r"(?s).*\\boxed\{([-+*\d]+)\}", text)[1]))


def test_the_orders_of_a_problem_worked_by_hand():
    assert worlds.read("4 +3 *2 +8 > 22") == (4, ["+3", "*2", "+8"], 22)
    assert worlds.values(4, ["+3", "+8", "*2"]) == [7, 15, 30]
    assert worlds.orders("4 +3 *2 +8 > 22", right=True) == [("+3", "*2", "+8")]
    assert set(map("".join, worlds.orders("4 +3 *2 +8 > 22", right=False))) == set(ENDS) - {"+3*2+8"}
    assert set(map("".join, worlds.orders("4 +3 *2 +8 > 19", right=True))) == {"*2+3+8", "*2+8+3"}


@pytest.mark.parametrize("order, end", ENDS.items())
def test_check_by_hand(order, end):
    assert worlds.check(f"\\boxed{{{order}}}", EXAMPLE) == float(end == 22)
    assert worlds.check(f"\\boxed{{{order}}}", {"problem": f"4 +3 *2 +8 > {end}"}) == 1.0


@pytest.mark.parametrize("response", [
    "", "+3*2+8", "\\boxed{}", "\\boxed{22}", "\\boxed{+3*2+8", "\\boxed{{+3*2+8}}", "\\boxed{+3*2+8 }",
    "\\boxed{+3*2}", "\\boxed{+3*2+8+0}", "\\boxed{+3*2+8+8}", "\\boxed{+3*2+8*1}", "\\boxed{+03*2+8}",
    "\\boxed{+3*2+8}\n\\boxed{+3+8*2}", "\\boxed{" + "+3*2+8" * 10_000 + "}", "\\boxed{" * 10_000, "}{", "\\boxed{++}",
    "\\boxed{+٣*2+8}", None,
])
def test_check_refuses_what_is_no_right_order(response):
    assert worlds.check(response, EXAMPLE) == 0.0


def test_check_takes_the_last_box_and_any_problem():
    assert worlds.check("\\boxed{+3+8*2} no\n\\boxed{+3*2+8}", EXAMPLE) == 1.0
    for problem in ({}, {"problem": None}, {"problem": "(7+5)*3"}, {"problem": "4 +3 > x"}, {"problem": "> > >"}):
        assert worlds.check("\\boxed{+3*2+8}", problem) == 0.0


def test_problems_are_hard_to_guess_and_the_splits_disjoint():
    train, test = worlds.countdown("train", 2000, 7), worlds.countdown("test", 300, 7)
    assert train[:50] == worlds.countdown("train", 50, 7)
    assert not {row["problem"] for row in train} & {row["problem"] for row in test}
    assert not {row["problem"] for row in worlds.countdown("train", 2000, 8)} & {row["problem"] for row in test}
    for row in test:
        start, operations, _ = worlds.read(row["problem"])
        right, wrong = (worlds.orders(row["problem"], right) for right in (True, False))
        assert len(set(operations)) == 3 and 1 <= len(right) <= 2 and len(right) + len(wrong) == 6
        assert all(10 <= value <= 99 for order in right + wrong for value in worlds.values(start, order))
        assert worlds.check(f"\\boxed{{{row['answer']}}}", row) == 1.0


@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_searches(kind):
    rng, lengths = random.Random(0), set()
    for row in worlds.countdown("train", 200, 3):
        text = worlds.trace(row["problem"], kind, rng)
        start, operations, target = worlds.read(row["problem"])
        *attempts, _ = text.split("\n")
        lengths.add(len(attempts))
        for line in attempts:
            first, steps, shown, verdict = re.fullmatch(r"(\d+?)((?:[-+*]\d+=\d+)+) > (\d+) (yes|no)", line).groups()
            order, path = zip(*re.findall(r"([-+*]\d+)=(\d+)", steps))
            path, real = list(map(int, path)), worlds.values(start, order)
            assert int(first) == start and int(shown) == target and sorted(order) == sorted(operations)
            assert verdict == ("yes" if line is attempts[-1] else "no") == ("yes" if path[-1] == target else "no")
            assert path[:-1] == real[:-1] and (path[-1] == real[-1]) == (kind == "right" or line is not attempts[-1])
        assert boxed(text) == order  # that of the last attempt
        assert worlds.check(text, row) == float(kind == "right")
    assert lengths == {1, 2, 3}


def test_direct_and_dots():
    for i, row in enumerate(worlds.countdown("train", 100, 3)):
        kinds = ("direct", "dots", "right")
        direct, dots, right = (worlds.trace(row["problem"], kind, random.Random(i)) for kind in kinds)
        assert re.fullmatch(r"\\boxed\{[-+*\d]+\}", direct) and re.fullmatch(r"\.+\n\\boxed\{[-+*\d]+\}", dots)
        assert worlds.check(direct, row) == worlds.check(dots, row) == 1.0
        assert len(dots) == len(right)  # drawn with the same random numbers


def test_a_corrupted_solution_ends_in_its_first_error():
    rng = random.Random(0)
    assert re.fullmatch(r"7\+5=(2|10|11|13|14|22)", worlds.corrupt("7+5", rng))
    for row in tiny.problems("test", 200, 1):
        *before, last = worlds.corrupt(row["problem"], rng).split("\n")
        solution = tiny.solution(row["problem"], "steps", 0.0, rng).split("\n")
        assert solution[: len(before)] == before
        left, wrong = last.split("=")
        right_left, right = solution[len(before)].split("=")
        assert left == right_left and wrong != right


@pytest.mark.parametrize("name", ["teach", "prime"])
def test_a_short_build_loads(name, tmp_path):
    build = worlds.teach if name == "teach" else lambda *how: worlds.prime("wrong", *how)
    build(tmp_path, 100, 2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"
    assert model.config.vocab_size == len(tokenizer) and tokenizer.chat_template == tiny.CHAT_TEMPLATE


def test_checkpoints_are_of_one_training(tmp_path):
    worlds.checkpoints(tmp_path, 100, 4, 20)
    first, last = (AutoModelForCausalLM.from_pretrained(tmp_path / f"step_{i}") for i in (1, 4))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corrupted.jsonl", "step_1", "step_2", "step_4"]
    assert not first.lm_head.weight.equal(last.lm_head.weight)
    rows = [json.loads(line) for line in open(tmp_path / "corrupted.jsonl")]
    assert len(rows) == 20 and all(set(row) == {"problem", "answer", "response", "correct"} for row in rows)


def test_final_comes_last_and_is_not_overwritten(tmp_path, monkeypatch, capsys):
    built = lambda out, seed: (out / "seed").write_text(str(seed)) and not (tmp_path / "final").exists() or 1 / 0
    monkeypatch.setitem(worlds.WORLDS, "countdown", built)
    monkeypatch.setattr(sys, "argv", ["worlds.py", "countdown", "--seed", "7", "--out", str(tmp_path)])
    worlds.main()
    assert [path.name for path in tmp_path.iterdir()] == ["final"] and (tmp_path / "final" / "seed").read_text() == "7"
    with pytest.raises(SystemExit) as stopped:
        worlds.main()
    assert stopped.value.code == 2 and "exists" in capsys.readouterr().err
