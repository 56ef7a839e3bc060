"""Problems: data sets by file and alias, what is dropped and what is refused, prompt templates, the training order."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.data import DATA, TEMPLATES, draw, easy_problems, load_data, render
from core.verify import verify


# ------------------------------------------------------------------------------------------------ data
def write(path, rows):
    """Rows as a .jsonl, .csv or .parquet file, by the name's ending."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        import pandas

        getattr(pandas.DataFrame(rows), f"to_{path.suffix[1:]}")(path, index=False)
    return str(path)


def load(file, tokenizer, template="none", longest=100, limit=0, graded=True):
    cfg = SimpleNamespace(template=template, max_prompt_tokens=longest)
    return load_data(str(file), tokenizer, cfg, limit, graded)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_local_files(tmp_path, tokenizer, capsys, kind):
    file = write(tmp_path / f"two.{kind}", [dict(problem="1+1", answer="2"), dict(problem="2*3", answer="6")])
    problems = load(file, tokenizer)
    assert [(p["problem"], p["answer"], p["text"]) for p in problems] == [("1+1", "2", "1+1"), ("2*3", "6", "2*3")]
    assert [tokenizer.decode(p["prompt"]) for p in problems] == ["1+1", "2*3"]
    assert "dropped" not in capsys.readouterr().out


@pytest.mark.parametrize("question", ["problem", "question", "prompt"])
@pytest.mark.parametrize("answer, content", [("answer", "12"), ("answer", "work\n#### 12"), ("answer", ["12"]),
                                             ("answer", 12), ("answer", 12.0), ("solution", r"so \boxed{12}."),
                                             ("solution", r"\boxed{11}, no: \boxed{12}")])  # fmt: skip
def test_columns_and_where_the_gold_answer_stands(tmp_path, tokenizer, question, answer, content):
    file = write(tmp_path / "one.jsonl", [{question: "3*4", answer: content, "level": 5}])
    problem = load(file, tokenizer)[0]
    assert problem["problem"] == "3*4"
    assert verify(r"\boxed{12}", problem["answer"]) and not verify(r"\boxed{11}", problem["answer"])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_of_numbers_may_hold_0(tmp_path, tokenizer, kind):
    """An answer 0 is an answer, or the model would never see a problem that comes to nothing."""
    file = write(tmp_path / f"zero.{kind}", [dict(problem="1-1", answer=0), dict(problem="1+1", answer=2)])
    problems = load(file, tokenizer)
    assert [p["problem"] for p in problems] == ["1-1", "1+1"]
    assert verify(r"\boxed{0}", problems[0]["answer"])


def test_rows_as_verl_reads_them(tmp_path, tokenizer):
    """DAPO's file among them: the turns of a chat, and the gold answer within another column."""
    rows = [dict(prompt=[dict(role="system", content="be brief"), dict(role="user", content="3*4")], ability="math",
                 reward_model=dict(ground_truth="12", style="rule"))]  # fmt: skip
    for kind in ("jsonl", "parquet"):
        problem = load(write(tmp_path / f"verl.{kind}", rows), tokenizer)[0]
        assert (problem["problem"], problem["answer"]) == ("3*4", "12")


def test_a_solution_that_names_no_answer_is_none(tmp_path, tokenizer, capsys):
    """A proof: what is in no box and after no #### would be compared in full, and nothing equals it."""
    rows = [dict(problem="Prove it.", solution="It is obvious."), dict(problem="3*4", solution=r"So \boxed{12}.")]
    assert [p["problem"] for p in load(write(tmp_path / "proof.jsonl", rows), tokenizer)] == ["3*4"]
    assert "dropped 1 row" in capsys.readouterr().out


def test_a_problem_keeps_all_columns_of_its_row(tmp_path, tokenizer):
    """A checker of one's own may need them. The four that every problem has win over columns of the same name."""
    row = dict(problem="3*4", answer="so \\boxed{12}", level=5, tests=["a", "b"], text="a column called text")
    (problem,) = load(write(tmp_path / "one.jsonl", [row]), tokenizer)
    assert (problem["level"], problem["tests"]) == (5, ["a", "b"])
    assert (problem["problem"], problem["answer"], problem["text"]) == ("3*4", "12", "3*4")


def test_with_a_check_of_ones_own_a_row_needs_no_answer(tmp_path, tokenizer):
    """And one that it has is left as it is: what it means is the check's affair."""
    rows = [dict(problem="sort these", words=["b", "a"]), dict(problem="3*4", answer="so \\boxed{12}")]
    file = write(tmp_path / "own.jsonl", rows)
    own, math = load(file, tokenizer, graded=False)
    assert own["answer"] is None and own["words"] == ["b", "a"]
    assert math["answer"] == "so \\boxed{12}"
    with pytest.raises(ValueError, match="row 1 has the columns"):
        load(file, tokenizer)


@pytest.mark.parametrize("problem", ["", None])
def test_a_row_without_a_problem_is_dropped(tmp_path, tokenizer, capsys, problem):
    rows = [dict(problem=problem, answer="1"), dict(problem="3*4", answer="12")]
    assert [p["problem"] for p in load(write(tmp_path / "none.jsonl", rows), tokenizer)] == ["3*4"]
    assert "dropped 1 row" in capsys.readouterr().out


def test_an_alias_is_loaded_as_from_the_hub(tmp_path, tokenizer, monkeypatch):
    """A folder in the hub's layout: two splits; training reads `train`, the benchmark alias `test`."""
    for split, rows in (("train", [("1+1", "2"), ("2+2", "4")]), ("test", [("3+3", "6")])):
        write(tmp_path / f"{split}.jsonl", [dict(question=q, answer=f"so\n#### {a}") for q, a in rows])
    monkeypatch.setitem(DATA, "gsm8k", (str(tmp_path), None, "train"))
    monkeypatch.setitem(DATA, "gsm8k-test", (str(tmp_path), None, "test"))
    assert [(p["problem"], p["answer"]) for p in load("gsm8k", tokenizer)] == [("1+1", "2"), ("2+2", "4")]
    assert [p["problem"] for p in load("gsm8k-test", tokenizer)] == ["3+3"]


REAL = Path(__file__).parents[2] / "shared/data"


FILES = dict(aime24=30, aime25=30, amc23=40, gsm8k=1319, math500=500, minerva=272, olympiadbench=675)


@pytest.mark.parametrize("name, count", [*FILES.items(), ("deepscaler_4k", 4000)])
def test_real_files(tokenizer, name, count):
    if not (REAL / f"{name}.jsonl").is_file():
        pytest.skip("the real problems are not here")
    problems = load(REAL / f"{name}.jsonl", tokenizer, longest=10**6)
    assert len(problems) == count
    assert all(p["problem"] and p["answer"] and len(p["answer"]) < 400 for p in problems)


def test_answer_wins_over_solution(tmp_path, tokenizer):
    file = write(tmp_path / "both.jsonl", [dict(problem="3*4", solution="so it is twelve", answer="12")])
    assert load(file, tokenizer)[0]["answer"] == "12"


def test_rows_without_a_usable_answer_and_long_prompts_are_dropped_and_counted(tmp_path, tokenizer, capsys):
    rows = [dict(problem="1+1", answer="2"), dict(problem="1+2", answer=""), dict(problem="1" * 11, answer="3"),
            dict(problem="1" * 10, answer="4"), dict(problem="1+3", answer=r"\boxed{}")]  # fmt: skip
    problems = load(write(tmp_path / "some.jsonl", rows), tokenizer, longest=10)
    assert [p["answer"] for p in problems] == ["2", "4"]
    answer, prompt = sorted(capsys.readouterr().out.splitlines(), key=lambda line: "prompt" in line)
    assert "2 rows" in answer and "answer" in answer
    assert "1 row" in prompt and "10 tokens" in prompt


def test_an_answer_that_is_null_is_no_usable_answer(tmp_path, tokenizer, capsys):
    rows = [dict(problem="1+1", answer="2"), dict(problem="1+2", answer=None)]
    assert len(load(write(tmp_path / "null.jsonl", rows), tokenizer)) == 1
    assert "dropped 1 row" in capsys.readouterr().out


def test_limit_takes_the_first(tmp_path, tokenizer):
    file = write(tmp_path / "many.jsonl", [dict(problem=f"{i}+1", answer=i + 1) for i in range(9)])
    assert [p["problem"] for p in load(file, tokenizer, limit=3)] == ["0+1", "1+1", "2+1"]
    assert len(load(file, tokenizer, limit=99)) == len(load(file, tokenizer)) == 9


@pytest.mark.parametrize("name, text, says", [
    ("broken.jsonl", '{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "ans\n', ["row 2", "JSON"]),
    ("column.jsonl", '{"problem": "1+1", "answer": "2"}\n{"problem": "1+2", "level": 3}\n', ["row 2", "level"]),
    ("list.jsonl", '[1, 2]\n', ["row 1", "problem"]),
    ("empty.jsonl", "", ["no usable problem"]),
    ("unusable.jsonl", '{"problem": "1+1", "answer": ""}\n', ["no usable problem", "1 row"]),
    ("latin.jsonl", b'{"problem": "1+1", "answer": "2"}\n{"problem": "caf\xe9", "answer": "2"}\n', ["row 2"]),
    ("column.csv", "problem,level\n1+1,3\n", ["row 1", "level", "answer"]),
    ("empty.csv", "", []),
    ("broken.parquet", "PAR1 but not for long", []),
])  # fmt: skip
def test_bad_files_raise_one_line_that_says_what_is_wrong_where(tmp_path, tokenizer, name, text, says):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((OSError, ValueError)) as error:
        load(tmp_path / name, tokenizer)
    assert all(word in str(error.value).splitlines()[0] for word in says), error.value
    assert name in str(error.value).splitlines()[0]


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.csv", "missing.parquet"])
def test_a_missing_file(tmp_path, tokenizer, name):
    with pytest.raises((OSError, ValueError)) as error:
        load(tmp_path / name, tokenizer)
    assert f"{name}: no such file" in str(error.value).splitlines()[0]


def test_an_alias_that_cannot_be_downloaded_says_so(tokenizer):
    """The tests are offline."""
    with pytest.raises(ValueError, match="data math500: HuggingFaceH4/MATH-500 could not be downloaded: ") as error:
        load("math500", tokenizer)
    assert "\n" not in str(error.value)


def test_the_built_in_splits(tokenizer):
    train = [p["text"] for p in load("tiny", tokenizer, limit=300)]
    test = [p["text"] for p in load("tiny-test", tokenizer, limit=300)]
    hard = [p["text"] for p in load("tiny-hard", tokenizer, limit=300)]
    assert len(train) == len(test) == len(hard) == 300
    assert not set(train) & set(test) and not set(train) & set(hard)


# ------------------------------------------------------------------------------------------------ templates
@pytest.mark.parametrize("template, text", [
    ("none", "1+1"),
    ("plain", "1+1\nPlease reason step by step, and put your final answer within \\boxed{}.\n"),
    ("chat", "<|user|>1+1<|assistant|>"),
    ("cot", "<|user|>1+1 Let's think step by step and output the final answer within \\boxed{}.<|assistant|>"),
    ("Q: {problem}\nA:", "Q: 1+1\nA:"),
    ("{problem} = {x} {", "1+1 = {x} {"),  # other braces are text
])  # fmt: skip
def test_render(tokenizer, template, text):
    assert render("1+1", template, tokenizer) == text


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_holds_the_problem_once(tokenizer, template):
    problem = r"Find \frac{a}{b} if {problem} = {} {0}"  # braces in a problem are not fields
    assert render(problem, template, tokenizer).count(problem) == 1


OPERATIONS = [  # what a problem of `easy` may say, and what is then to be computed
    (r"\+|buys .* more|together|in all", lambda a, b: a + b),
    (r"-|gives|more .* than|sold", lambda a, b: a - b),
    (r"\*|each|every day", lambda a, b: a * b),
    (r"/|equal|bags of", lambda a, b: a / b),
]


def test_easy_problems_have_one_step_and_the_right_answer():
    for row in easy_problems("easy", 2000) + easy_problems("easy-test", 500):
        a, b = map(int, re.findall(r"\d+", row["problem"]))
        answer = int(row["answer"])
        assert 2 <= min(a, b) and max(a, b, answer) <= 60 and answer > 0
        fitting = [f for words, f in OPERATIONS if re.search(words, row["problem"])]
        assert any(answer in (f(a, b), f(b, a)) for f in fitting), row


def test_easy_problems_for_training_and_for_tests_are_disjoint():
    train, test = easy_problems("easy", 2000), easy_problems("easy-test", 500)
    texts = {row["problem"] for row in train + test}
    assert len(texts) == len(train) + len(test) == 2500
    assert easy_problems("easy", 50) == easy_problems("easy", 2000)[:50]


def test_the_examples_of_easy_are_turns_before_the_problem(tokenizer):
    text = render("1+1", "easy", tokenizer)
    assert text.startswith("<|user|>What is 14 + 9?<|assistant|>14 + 9 = 23\n\\boxed{23}<|end|><|user|>")
    assert text.endswith("<|end|><|user|>1+1<|assistant|>") and text.count("<|user|>") == 4


def test_the_system_turn_comes_first():
    class Turns:
        def apply_chat_template(self, turns, tokenize, add_generation_prompt):
            assert not tokenize and add_generation_prompt
            return " ".join(f"{turn['role']}={turn['content']}" for turn in turns)

    text = render("1+1", "qwen-math", Turns())
    assert text == r"system=Please reason step by step, and put your final answer within \boxed{}. user=1+1"


def test_special_tokens_of_a_chat_template_are_one_token_each(tmp_path, tokenizer):
    file = write(tmp_path / "one.jsonl", [dict(problem="1+1", answer="2")])
    prompt = load(file, tokenizer, template="chat")[0]["prompt"]
    assert prompt.tolist() == [*tokenizer.convert_tokens_to_ids(["<|user|>", "1", "+", "1", "<|assistant|>"])]


def test_a_template_without_the_problem_is_an_error(tmp_path, tokenizer):
    """--template qwen_math is a slip for qwen-math: as a text it would be the same prompt for every problem."""
    file = write(tmp_path / "one.jsonl", [dict(problem="1+1", answer="2")])
    with pytest.raises((OSError, ValueError, SystemExit)):
        load(file, tokenizer, template="qwen_math")


# ------------------------------------------------------------------------------------------------ order
NUMBERED = [dict(number=i) for i in range(7)]


def numbers(first, count, seed=0):
    return [problem["number"] for problem in draw(NUMBERED, first, count, seed)]


def test_every_epoch_is_a_permutation():
    endless = numbers(0, 70)
    epochs = [endless[i : i + 7] for i in range(0, 70, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) >= 9  # and another one each time


@pytest.mark.parametrize("count", [1, 2, 5, 7, 16])
def test_the_order_does_not_depend_on_how_it_is_cut(count):
    assert sum((numbers(first, count) for first in range(0, 80, count)), [])[:80] == numbers(0, 80)


def test_the_order_is_the_seeds():
    assert numbers(0, 70, seed=1) == numbers(0, 70, seed=1) != numbers(0, 70, seed=0)


def test_a_step_may_need_more_prompts_than_there_are():
    assert sorted(numbers(0, 14)) == sorted(2 * list(range(7)))
