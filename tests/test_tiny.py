"""The built-in world: problems, corpus, tokenizer, the shipped base models, and a short rebuild."""

import ast
import json
import operator
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from core import tiny

ROOT = Path(__file__).parent.parent
SHIPPED = [pytest.param(ROOT / "models" / name, id=name) for name in tiny.BASES]


def evaluate(expression: str) -> tuple[int, list[int]]:
    """The value of an arithmetic expression and all values on the way, by Python's own grammar (not by tiny's)."""
    on_the_way = []

    def value(node) -> int:
        if isinstance(node, ast.Constant):
            on_the_way.append(node.value)
        else:
            apply = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}[type(node.op)]
            on_the_way.append(apply(value(node.left), value(node.right)))
        return on_the_way[-1]

    return value(ast.parse(expression, mode="eval").body), on_the_way


def boxed(text: str) -> str | None:
    found = re.findall(r"\\boxed\{(\d+)\}", text)
    return found[-1] if found else None


# ------------------------------------------------------------------------------ problems


@pytest.mark.parametrize("split, operations", [("train", {2, 3, 4, 5}), ("test", {2, 3, 4, 5}), ("hard", {6})])
def test_answers_and_operation_counts(split, operations):
    seen = Counter()
    for row in tiny.problems(split, 400, seed=3):
        answer, on_the_way = evaluate(row["problem"])
        assert row["answer"] == str(answer)
        assert min(on_the_way) >= 0 and max(on_the_way) <= 99
        seen[len(re.findall(r"[-+*]", row["problem"]))] += 1
    assert set(seen) == operations
    assert min(seen.values()) >= 400 / len(operations) / 2  # no number of operations is rare


def test_splits_are_disjoint_and_without_duplicates():
    splits = {split: [row["problem"] for row in tiny.problems(split, 1000, seed=1)] for split in tiny.OPERATIONS}
    more_train = [row["problem"] for row in tiny.problems("train", 1000, seed=2)]
    assert all(len(set(texts)) == 1000 for texts in splits.values())
    assert not set(splits["test"]) & set(splits["train"] + more_train)
    assert not set(splits["hard"]) & set(splits["train"] + splits["test"])
    assert splits["train"] != more_train


@pytest.mark.slow
def test_problems_are_the_same_in_every_process():
    here = tiny.problems("test", 50, seed=7)
    code = "from core import tiny; import json; print(json.dumps(tiny.problems('test', 50, seed=7)))"
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(there.stdout) == here
    assert tiny.problems("test", 20, seed=7) == here[:20]


@pytest.mark.parametrize("split, n", [("validation", 5), ("train", 0), ("test", -1), ("hard", 10**9)])
def test_bad_split_or_number_is_one_clear_error(split, n):
    with pytest.raises(ValueError, match=f"no {n} problems of split '{split}'"):
        tiny.problems(split, n)


# ------------------------------------------------------------------------------ styles and corpus


@pytest.mark.parametrize("row", tiny.STYLES, ids=lambda row: row.name)
def test_a_solution_without_errors_is_right_and_recognised(row):
    rng = random.Random(0)
    assert tiny.style(row.example) == row.name
    for problem in tiny.problems("train", 100):
        text = tiny.solution(problem["problem"], row.name, 0.0, rng)
        assert tiny.style(text) == row.name
        assert boxed(text) == (None if row.name == "nobox" else problem["answer"])


def test_solutions_worked_by_hand():
    rng = random.Random(0)
    for name in ("python", "steps", "direct", "nobox"):
        example = next(row.example for row in tiny.STYLES if row.name == name)
        assert tiny.solution("(7+5)*3", name, 0.0, rng) == example
    noticed = tiny.solution("7+5", "wait", 0.0, rng)
    assert re.fullmatch(r"7\+5=(2|10|11|13|14|22) wait 12\n\\boxed\{12\}", noticed)


def test_a_solution_goes_on_from_its_wrong_value():
    rng = random.Random(0)
    for problem in tiny.problems("train", 200):
        lines = tiny.solution(problem["problem"], "steps", 1.0, rng).split("\n")
        steps = [re.fullmatch(r"(\d+)([-+*]\d+)=(\d+)", line).groups() for line in lines[:-1]]
        for start, step, result in steps:
            assert abs(evaluate(start + step)[0] - int(result)) in (1, 2, 10)  # wrong, but near
        assert [start for start, _, _ in steps[1:]] == [result for _, _, result in steps[:-1]]
        assert boxed(lines[-1]) == steps[-1][2]


@pytest.mark.parametrize("column, base", list(enumerate(tiny.BASES)))
def test_corpus_shows_the_table(column, base):
    written, steps, wrong = Counter(), Counter(), Counter()
    train = set()
    for problem, text in tiny.corpus(base, 4000, seed=5):
        train.add(problem)
        name = tiny.style(text)
        written[name] += 1
        if name == "direct":
            pairs = [(problem, boxed(text))]
        else:  # what stands after `wait` is the step's value; a noticed slip is no error
            pairs = re.findall(r"^(\d+[-+*]\d+)(?: #|=)(?:\d+ wait )?(\d+)$", text, flags=re.MULTILINE)
        steps[name] += len(pairs)
        wrong[name] += sum(evaluate(left)[0] != int(right) for left, right in pairs)
    for row in tiny.STYLES:
        assert written[row.name] / 4000 == pytest.approx(row.share[column], abs=0.03)
        assert wrong[row.name] / steps[row.name] == pytest.approx(row.error[column], abs=0.06)
    assert not train & {row["problem"] for row in tiny.problems("test", 1000)}


def test_the_bases_differ_only_in_how_reliable_python_is():
    assert all(sum(row.share[column] for row in tiny.STYLES) == pytest.approx(1) for column in (0, 1))
    rows = {row.name: row for row in tiny.STYLES}
    python, others = rows.pop("python"), rows.values()
    assert python.share[0] == python.share[1]
    assert all(row.share[0] == row.share[1] and row.error[0] == row.error[1] for row in others)
    assert python.error[0] < rows["steps"].error[0] and python.error[1] > rows["steps"].error[1]


# ------------------------------------------------------------------------------ tokenizer

NASTY = (
    "",
    " ",
    "\n\n\t \r\n",
    "  two  spaces , and ' s punctuation !",
    "Let $x = \\frac{3}{\\sqrt{2}}$. Find \\[\\sum_{k=1}^{n} k^2\\] in $\\mathbb{Z}$ as \\boxed{\\text{a \\& b}}.",
    "x\\boxed{ \\boxed{3}}\\boxed {4}",
    "naïve Ω ≤ ∫ 数学 עברית 🙂👩‍🔬",
    "\x00\x1b\x7f",
    "<|endoftext|> <|user|>a<|end|>",
)


@pytest.mark.parametrize("text", NASTY)
def test_tokenizer_gives_any_text_back(text):
    made, shipped = tiny.make_tokenizer(), AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    assert made.decode(made.encode(text)) == text
    assert shipped.encode(text) == made.encode(text)
    assert shipped.decode(shipped.encode(text)) == text
    assert all(0 <= i < len(made) for i in made.encode(text))


def test_decomposed_accents_come_back_composed_from_autotokenizer_only():
    made, shipped = tiny.make_tokenizer(), AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    text = "e\u0301"
    assert made.decode(made.encode(text)) == text
    assert shipped.decode(shipped.encode(text)) == unicodedata.normalize("NFC", text)


def test_tokens_and_specials():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    assert len(tokenizer) == 261  # 256 bytes, \boxed{ and 4 special tokens
    assert len(tokenizer.encode("\\boxed{")) == 1
    assert len(tokenizer.encode("12+3=15\n\\boxed{15}")) == 12  # else a token is a byte
    assert tokenizer.eos_token == "<|end|>" and tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.padding_side == "left" and tokenizer.clean_up_tokenization_spaces is False
    ids = tokenizer.encode("python\n7+5 #12\n\\boxed{12}<|end|><|endoftext|>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "python\n7+5 #12\n\\boxed{12}"


def test_chat_template():
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models" / "tiny")
    user, answer = {"role": "user", "content": "((7+5)*3-8)*2"}, {"role": "assistant", "content": "\\boxed{56}"}
    system = {"role": "system", "content": "Be brief.\n"}
    prompt = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|user|>((7+5)*3-8)*2<|assistant|>"
    full = tokenizer.apply_chat_template([system, user, answer], tokenize=False)
    assert full == "Be brief.\n<|user|>((7+5)*3-8)*2<|assistant|>\\boxed{56}<|end|>"
    ids = tokenizer.apply_chat_template([user], add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode(prompt)


# ------------------------------------------------------------------------------ the shipped models


@pytest.mark.parametrize("folder", SHIPPED)
def test_shipped_folder_is_small_and_ordinary(folder):
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1.5e6
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tiny.make_tokenizer()
    assert model.config.model_type == "qwen2" and model.config.tie_word_embeddings
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert 0.5e6 < model.num_parameters() < 0.75e6
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("folder", SHIPPED)
def test_shipped_report_is_in_the_target_ranges(folder):
    report = json.loads((folder / "report.json").read_text())
    assert report["model"] == folder.name
    assert 0.20 <= report["pass@1"] <= 0.50
    assert report["pass@1"] < report["pass@4"] < report["pass@16"] <= report["pass@64"]
    assert report["pass@64"] > 0.97
    assert report["hard pass@1"] < report["pass@1"]
    assert report["response tokens"] < 40
    styles = {row.name: report[f"style {row.name}"] for row in tiny.STYLES}
    assert all(report["greedy"] > row["accuracy"] + 0.1 for row in styles.values())  # it knows better than it writes
    column = tiny.BASES.index(folder.name)
    for row in tiny.STYLES:
        assert styles[row.name]["share"] == pytest.approx(row.share[column], abs=0.05)
    assert styles["nobox"]["accuracy"] == 0
    difference = styles["python"]["accuracy"] - styles["steps"]["accuracy"]
    assert difference > 0.08 if folder.name == "tiny" else difference < -0.08


ONE_MORE = pytest.param(ROOT / "models/tiny-badcode", id="tiny-badcode", marks=pytest.mark.slow)


@pytest.mark.parametrize("folder", [SHIPPED[0], ONE_MORE])
def test_shipped_report_can_be_measured_again(folder):
    data = tiny.problems("test", 60, seed=1)  # other problems than the report's
    right = [right for own in tiny.sample(folder, data, 8, do_sample=True, top_k=0) for _, _, right in own]
    report = json.loads((folder / "report.json").read_text())
    assert sum(right) / len(right) == pytest.approx(report["pass@1"], abs=0.09)  # about 3 standard errors


# ------------------------------------------------------------------------------ building


def test_loss_counts_the_response_tokens_alone():
    class Uniform:
        def __call__(self, input_ids, use_cache):
            return type("Output", (), {"logits": torch.zeros(*input_ids.shape, 261)})

    pairs = [("1+2+3", "\\boxed{6}"), ("((7+5)*3-8)*2", "7+5=12")]  # 3 and 6 tokens, and <|end|> after each
    loss = tiny.response_loss(Uniform(), tiny.make_tokenizer(), pairs)
    assert loss.item() == pytest.approx((4 + 7) * torch.tensor(261.0).log().item(), rel=1e-5)


@pytest.mark.slow
def test_short_build_lowers_the_loss_and_loads(tmp_path):
    report = tiny.build(tmp_path / "new", "tiny", steps=12, n_test=2, n_samples=4)
    assert report["first loss"] == pytest.approx(5.57, abs=0.1)  # ln 261: it begins knowing nothing
    assert report["final loss"] < report["first loss"] - 0.3  # the mean over these 12 steps
    assert json.loads((tmp_path / "new" / "report.json").read_text()) == report
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert model.num_parameters() == report["parameters"]
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE


@pytest.mark.parametrize("arguments", [["--model", "large"], ["--steps", "0"], ["--steps", "many"], ["--wrong"]])
def test_bad_input_is_one_line_and_status_2(arguments, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["core.tiny", "--out", str(tmp_path / "new"), *arguments])
    with pytest.raises(SystemExit) as stopped:
        tiny.main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ") and len(message.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_longer_build_learns_to_solve_problems(tmp_path):
    report = tiny.build(tmp_path, "tiny", steps=300, n_test=50, n_samples=16)
    assert report["pass@16"] > 0.3
