"""Problems: data sets by file and alias, what is dropped and what is refused, prompt templates, the training order."""

import gzip
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from core import data
from core.data import TEMPLATES, Problems, draw, encode, fingerprint, load_data, render, take
from core.rows import DATA
from core.tiny import easy_problems
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
                                             ("solution", r"\boxed{11}, no: \boxed{12}")])
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
                 reward_model=dict(ground_truth="12", style="rule"))]
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
            dict(problem="1" * 10, answer="4"), dict(problem="1+3", answer=r"\boxed{}")]
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
    ("list.jsonl", '[1, 2]\n', ["row 1", "JSON object"]),
    ("empty.jsonl", "", ["no usable problem"]),
    ("unusable.jsonl", '{"problem": "1+1", "answer": ""}\n', ["no usable problem", "1 row"]),
    ("latin.jsonl", b'{"problem": "1+1", "answer": "2"}\n{"problem": "caf\xe9", "answer": "2"}\n', ["row 2"]),
    ("column.csv", "problem,level\n1+1,3\n", ["row 1", "level", "answer"]),
    ("empty.csv", "", []),
    ("broken.parquet", "PAR1 but not for long", []),
])
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


# ------------------------------------------------------------------------------------------------ cells and endings
def rows_of(file, tokenizer, **how):
    return [(p["problem"], p["answer"]) for p in load(file, tokenizer, **how)]


def test_a_cell_of_a_csv_is_text_as_it_stands(tmp_path, tokenizer, capsys):
    """A guess at types would turn 17 digits beside an empty cell into 1.2345678901234568e+16, and NA into nothing."""
    cells = ["12345678901234567", "0.12345678901234567890", "1" * 30, "NA", "null", "None", "007", "1e5", "", "7"]
    (tmp_path / "cells.csv").write_text("problem,answer\n" + "".join(f'"p{i}",{x}\n' for i, x in enumerate(cells)))
    assert rows_of(tmp_path / "cells.csv", tokenizer) == [(f"p{i}", x) for i, x in enumerate(cells) if x]
    assert "dropped 1 row" in capsys.readouterr().out  # the empty cell


def test_a_csv_may_hold_commas_quotes_and_line_ends(tmp_path, tokenizer):
    (tmp_path / "quoted.csv").write_text('problem,answer\n"a, ""b""\nc","(1,2)"\n', newline="")
    assert rows_of(tmp_path / "quoted.csv", tokenizer) == [('a, "b"\nc', "(1,2)")]


TEXTS = {
    "a.csv": "problem,answer\n1+1,2\n", "a.tsv": "problem\tanswer\n1+1\t2\n", "UPPER.CSV": "problem,answer\n1+1,2\n",
    "a.jsonl": '{"problem": "1+1", "answer": "2"}\n', "lines.json": '{"problem": "1+1", "answer": "2"}\n',
    "list.json": '\n [{"problem": "1+1",\n "answer": "2"}]', "bom.csv": "\ufeffproblem,answer\n1+1,2\n",
    "a[1].csv": "problem,answer\n1+1,2\n", "q?.csv": "problem,answer\n1+1,2\n",
    "*.jsonl": '{"problem": "1+1", "answer": "2"}',
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("name", TEXTS)
def test_every_ending_is_read_and_a_name_is_no_pattern(tmp_path, tokenizer, name, zipped):
    """Beside q?.csv there is a q1.csv, which the pattern would match; it is not read."""
    (tmp_path / "q1.csv").write_text("problem,answer\n2+2,4\n")
    file, text = tmp_path / (name + ".gz" * zipped), TEXTS[name].encode()
    file.write_bytes(gzip.compress(text) if zipped else text)
    assert rows_of(file, tokenizer) == [("1+1", "2")]


@pytest.mark.parametrize("header, row", [("problem,answer,,", "1+1,2,,"), ("problem,answer,answer", "1+1,2,3"),
                                         (",problem,answer", "0,1+1,2")])
def test_a_csv_as_a_spreadsheet_writes_it(tmp_path, tokenizer, header, row):
    """Empty columns at the end, an index without a name; of two columns with one name the first counts."""
    (tmp_path / "sheet.csv").write_text(f"{header}\n{row}\n,,,\n{row}\n")
    assert rows_of(tmp_path / "sheet.csv", tokenizer) == [("1+1", "2")] * 2


@pytest.mark.parametrize("text", ["null", "3", "[1, 2]", "[null]", '["a"]'])
def test_json_that_has_no_columns_says_so(tmp_path, tokenizer, text):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ValueError, match="row 1 has no columns; each row must be a JSON object"):
        load(tmp_path / "odd.json", tokenizer)


def test_a_parquet_file_without_rows_or_in_a_gz_says_so(tmp_path, tokenizer):
    file = write(tmp_path / "none.parquet", [dict(problem="1+1", answer="2")][:0] or {"problem": [], "answer": []})
    with pytest.raises(ValueError, match="no rows"):
        load(file, tokenizer)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(Path(file).read_bytes()))
    with pytest.raises(ValueError, match="unpack the .gz first"):
        load(tmp_path / "a.parquet.gz", tokenizer)


@pytest.mark.parametrize("name, text, says", [
    ("a.txt", "1+1", ["must end in one of .jsonl, .json, .csv, .tsv, .parquet"]),
    ("latin1.csv", "problem,answer\ncaf\xe9 1+1,2\n".encode("latin1"), ["not in UTF-8"]),
    ("wide.csv", "problem,answer\n1+1,2\n1+1,2,3\n", ["row 2 has more cells than the header"]),
    ("open.csv", 'problem,answer\n"1+1,2\n', ["unexpected end of data"]),
    ("torn.json", '[{"problem": "1+1", "answer": "2"}, {"pro', ["line 1 column"]),
    ("torn.jsonl.gz", gzip.compress(b'{"problem": "1+1", "answer": "2"}' * 999)[:-9], ["end-of-stream"]),
    ("half.jsonl", r'{"problem": "x \ud83d 1+1", "answer": "2"}', ["row 1 has half a character"]),
])
def test_a_file_that_can_not_be_read_says_why(tmp_path, tokenizer, name, text, says):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError) as error:
        load(tmp_path / name, tokenizer)
    assert "\n" not in str(error.value) and str(error.value).startswith(f"data {tmp_path / name}: ")
    assert all(words in str(error.value) for words in says), error.value


def test_nan_is_a_missing_value(tmp_path, tokenizer, capsys):
    (tmp_path / "nan.jsonl").write_text('{"problem": "1+1", "answer": NaN}\n{"problem": NaN, "answer": "4"}\n'
                                        '{"problem": "2+2", "answer": [NaN, "4", null]}\n')
    assert rows_of(tmp_path / "nan.jsonl", tokenizer) == [("2+2", "4")]
    file = write(tmp_path / "nan.parquet", [dict(problem="1+1", answer=float("nan")), dict(problem="2+2", answer=4.0)])
    assert rows_of(file, tokenizer) == [("2+2", "4")]
    assert capsys.readouterr().out.count("dropped") == 2


@pytest.mark.parametrize("row", [dict(problem={"text": "1+1"}, answer="2"), dict(problem="1+1", answer={"value": "2"}),
                                 dict(problem="1+1", answer=[["2"]]), dict(problem=b"1+1", answer="2"),
                                 dict(problem="1+1", answer=b"2")])
def test_what_is_neither_text_nor_number_is_refused(tmp_path, tokenizer, row):
    """Python's way to print a dict would be read as the problem, or as an answer that nothing equals."""
    file = write(tmp_path / "kinds.parquet", [row])
    with pytest.raises(ValueError, match="row 1 has a (dict|list|bytes) where text or a number is needed"):
        load(file, tokenizer)


@pytest.mark.parametrize("unit", [3, ["cm"], "3", {"a": 1}, None, ""])
def test_a_unit_that_is_none_changes_no_answer(tmp_path, tokenizer, unit):
    (problem,) = load(write(tmp_path / "unit.jsonl", [dict(problem="1+1", answer="2", unit=unit)]), tokenizer)
    assert problem["answer"] == "2" and problem["unit"] == unit


# ------------------------------------------------------------------------------------------------ chats
def chat(*turns):
    return [dict(role=role, content=content) for role, content in turns]


def prompt_of(tmp_path, tokenizer, turns, template="chat", kind="jsonl"):
    (problem,) = load(write(tmp_path / f"chat.{kind}", [dict(prompt=turns, answer="2")]), tokenizer, template, 10**6)
    assert tokenizer.decode(problem["prompt"]) == problem["text"]
    return problem["problem"], problem["text"]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_the_last_turn_of_the_user_is_the_problem_and_the_turns_before_it_stay(tmp_path, tokenizer, kind):
    turns = chat(("system", "be brief"), ("user", "3+3"), ("assistant", "6"), ("user", "1+1"))
    problem, text = prompt_of(tmp_path, tokenizer, turns, kind=kind)
    assert problem == "1+1"
    assert text == "<|system|>be brief<|user|>3+3<|assistant|>6<|end|><|user|>1+1<|assistant|>".replace(
        "<|system|>be brief", system_turn(tokenizer, "be brief"))


def system_turn(tokenizer, words):
    """What the built-in chat template makes of a system turn."""
    both, alone = (tokenizer.apply_chat_template(turns, tokenize=False) for turns in (
        chat(("system", words), ("user", "1")), chat(("user", "1"))))
    return both.removesuffix(alone)


def test_a_chat_that_ends_with_the_beginning_of_the_answer(tmp_path, tokenizer):
    turns = chat(("user", "1+1"), ("assistant", "python\n"))
    assert prompt_of(tmp_path, tokenizer, turns) == ("1+1", "<|user|>1+1<|assistant|>python\n")


def test_parts_of_text_are_joined(tmp_path, tokenizer):
    turns = [dict(role="user", content=[dict(type="text", text="1"), dict(type="text", text="+1")])]
    assert prompt_of(tmp_path, tokenizer, turns) == ("1+1", "<|user|>1+1<|assistant|>")


def test_a_template_of_turns_takes_the_problem_and_keeps_the_others(tmp_path, tokenizer):
    turns = chat(("user", "3+3"), ("assistant", "6"), ("user", "1+1"))
    assert prompt_of(tmp_path, tokenizer, turns, "cot")[1] == (
        "<|user|>3+3<|assistant|>6<|end|><|user|>1+1 Let's think step by step and output the final answer within "
        "\\boxed{}.<|assistant|>")
    _, easy = prompt_of(tmp_path, tokenizer, turns, "easy")
    assert easy.endswith("42}<|end|><|user|>3+3<|assistant|>6<|end|><|user|>1+1<|assistant|>")


def test_a_template_that_is_a_text_gets_the_turns_as_paragraphs(tmp_path, tokenizer):
    turns = chat(("system", "be brief"), ("user", "3+3"), ("assistant", "6"), ("user", "1+1"))
    assert prompt_of(tmp_path, tokenizer, turns, "Q: {problem}\nA:")[1] == "Q: be brief\n\n3+3\n\n6\n\n1+1\nA:"


def test_two_system_turns_become_one():
    class Turns:
        def apply_chat_template(self, turns, **how):
            return repr([(turn["role"], turn["content"]) for turn in turns])

    own = TEMPLATES["qwen-math"][0][1]
    text = render("1+1", "qwen-math", Turns(), chat(("system", "be brief")))
    assert text == repr([("system", f"be brief\n\n{own}"), ("user", "1+1")])


@pytest.mark.parametrize("turns", [chat(("user", "1+1"), ("tool", "2")), chat(("assistant", "2")), ["1+1"],
                                   [dict(role="user", content=[dict(type="image", image="x.png")])],
                                   [dict(role="user", content=None)], [dict(content="1+1")], []])
def test_other_chats_are_refused_with_their_place(tmp_path, tokenizer, turns):
    rows = [dict(prompt=chat(("user", "1+2")), answer="3"), dict(prompt=turns, answer="2")]
    file = write(tmp_path / "chat.jsonl", rows)
    with pytest.raises(ValueError, match=f"data {file}: row 2 has a chat"):
        load(file, tokenizer)


# ------------------------------------------------------------------------------------------------ the hub's names
@pytest.mark.parametrize("typo, near", [("deepscalr", "deepscaler"), ("numina-mat", "numina-math"), ("gsm", "gsm8k")])
def test_a_misspelt_alias_is_found_at_once(tokenizer, typo, near):
    with pytest.raises(ValueError, match=f"did you mean {near}"):
        load(typo, tokenizer)


def test_two_sets_of_numina(tokenizer):
    assert (DATA["numina-math"][0], DATA["numina-cot"][0]) == ("ScaleML-RLHF/numina_math", "AI-MO/NuminaMath-CoT")


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


# ------------------------------------------------------------------------------------------------ lazy problems
def lazy(file, tokenizer, longest=100):
    return Problems(str(file), tokenizer, SimpleNamespace(template="none", max_prompt_tokens=longest))


def some_unusable(kind, tmp_path):
    """Fifty problems, of which every fifth has no answer."""
    rows = [dict(problem=f"{i}+1", answer="" if i % 5 == 0 else str(i + 1)) for i in range(50)]
    return write(tmp_path / f"some.{kind}", rows)


KINDS = ["jsonl", "csv", "parquet"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_not_be_used_is_replaced_by_the_next_of_the_order(tmp_path, tokenizer, kind):
    problems = lazy(some_unusable(kind, tmp_path), tokenizer)
    order = np.random.default_rng([3, 0]).permutation(50)
    usable = [i for i in order if i % 5]
    found, place = take(problems, 0, 10, seed=3)
    assert [p["problem"] for p in found] == [f"{i}+1" for i in usable[:10]]
    assert order[place - 1] == usable[9], "the cursor stands behind the last one that is used"
    epoch, _ = take(problems, 0, 40, seed=3)
    assert sorted(int(p["problem"][:-2]) for p in epoch) == [i for i in range(50) if i % 5]


@pytest.mark.parametrize("count", [1, 7, 16])
def test_the_order_with_gaps_does_not_depend_on_how_it_is_cut(tmp_path, tokenizer, count):
    problems, place, found = lazy(some_unusable("jsonl", tmp_path), tokenizer), 0, []
    while len(found) < 100:
        some, place = take(problems, place, count, seed=0)
        found += some
    assert [p["problem"] for p in found[:100]] == [p["problem"] for p in draw(problems, 0, 100, seed=0)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_repeated_problem_counts_once(tmp_path, tokenizer, kind):
    """dapo-math holds each a hundred times. A benchmark keeps its repetitions."""
    rows = [dict(problem=f"{i % 7}+1", answer=str(i % 7 + 1), number=i) for i in range(30)]
    file = write(tmp_path / f"again.{kind}", rows)
    problems = lazy(file, tokenizer)
    assert [int(p["number"]) for p in problems[:]] == list(range(7))
    assert len(load(file, tokenizer)) == 30


def test_chats_are_the_same_if_all_their_turns_are(tmp_path, tokenizer):
    talks = [chat(("user", "1+1")), chat(("user", "1+1")), chat(("system", "s"), ("user", "1+1")),
             chat(("user", "1"), ("assistant", "+1"), ("user", "2")), chat(("user", "1+"), ("assistant", "1")),
             chat(("user", "1"), ("assistant", "+1"), ("user", "2"))]
    for kind in ("jsonl", "parquet"):
        file = write(tmp_path / f"talks.{kind}", [dict(prompt=talk, answer="2") for talk in talks])
        assert [int(i) for i in lazy(file, tokenizer).numbers] == [0, 2, 3, 4]


@pytest.mark.parametrize("cells", [["a", "b", "", None], [1, 2, 3], [["a"], ["a", "a"], ["a", "b"], ["b", "a"], []],
                                   [[["a"], ["b"]], [["a", "b"]]], [dict(x="a", y="b"), dict(x="b", y="a")]])
def test_different_cells_are_different_problems(tmp_path, tokenizer, cells):
    """Whatever kind of cell it is, in a table as in lines."""
    rows = [dict(problem=cell, answer="2") for cell in cells + cells[::-1]]
    for kind in ("jsonl", "parquet"):
        problems = lazy(write(tmp_path / f"cells.{kind}", rows), tokenizer)
        assert problems.numbers.tolist() == list(range(len(cells)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_read_when_it_is_drawn(tmp_path, tokenizer, monkeypatch, kind):
    rows = [dict(problem=f"{i}+1", answer=str(i + 1)) for i in range(3000)]
    problems, made = lazy(write(tmp_path / f"many.{kind}", rows), tokenizer), []
    real = data.problem_from
    monkeypatch.setattr(data, "problem_from", lambda row, *rest: made.append(row["problem"]) or real(row, *rest))
    assert len(problems) == 3000 and made == []
    assert [p["problem"] for p in draw(problems, 0, 5, seed=0)] == made and len(made) == 5


def test_a_broken_row_far_behind_is_one_line_when_it_is_met(tmp_path, tokenizer):
    rows = [dict(problem=f"{i}+1", answer=str(i + 1)) for i in range(3000)]
    rows[2000]["answer"] = dict(value="7")
    problems = lazy(write(tmp_path / "late.jsonl", rows), tokenizer)
    assert len(problems.first(1000, within=1000)) == 1000
    with pytest.raises(ValueError, match="late.jsonl: row 2001 has a dict where text or a number is needed"):
        draw(problems, 0, 3000, seed=0)


def test_a_step_may_need_more_problems_than_can_be_used(tmp_path, tokenizer):
    """One in five can be used, and a step needs a hundred: they come round again and again."""
    rows = [dict(problem=f"{i}+1", answer=str(i + 1) if i % 5 == 0 else "") for i in range(50)]
    found, place = take(lazy(write(tmp_path / "few.jsonl", rows), tokenizer), 0, 100, seed=0)
    assert len(found) == 100 and len({p["problem"] for p in found}) == 10 and 450 < place <= 500


def test_nothing_usable_among_the_first_thousand_rows_is_refused(tmp_path, tokenizer, capsys):
    rows = [dict(problem=f"{i}+1", answer="" if i < 1000 else "1") for i in range(1200)]
    problems = lazy(write(tmp_path / "none.jsonl", rows), tokenizer)
    with pytest.raises(ValueError, match="no usable problem among its first 1,000 different problems .1,000 rows"):
        problems.first(1000, within=1000)
    rows[7]["answer"] = "8"
    assert len(lazy(write(tmp_path / "one.jsonl", rows), tokenizer).first(1000, within=1000)) == 1
    assert "dropped 999 rows" in capsys.readouterr().out


def test_a_set_without_a_usable_row_ends_the_search(tmp_path, tokenizer):
    problems = lazy(write(tmp_path / "none.jsonl", [dict(problem=f"{i}", answer="") for i in range(9)]), tokenizer)
    with pytest.raises(ValueError, match="no row of it can be used"):
        draw(problems, 0, 1, seed=0)


def test_another_set_of_problems_has_another_fingerprint(tmp_path, tokenizer):
    rows = [dict(problem=f"{i}+1", answer=str(i + 1)) for i in range(20)]
    mark = lambda rows: fingerprint(lazy(write(tmp_path / "marks.jsonl", rows), tokenizer))
    assert mark(rows) == mark(rows) != mark(rows[:-1])
    for i in range(20):
        assert mark(rows) != mark([*rows[:i], rows[i] | dict(answer="77"), *rows[i + 1 :]])


# ------------------------------------------------------------------------------------------------ templates
@pytest.mark.parametrize("template, text", [
    ("none", "1+1"),
    ("plain", "1+1\nPlease reason step by step, and put your final answer within \\boxed{}.\n"),
    ("chat", "<|user|>1+1<|assistant|>"),
    ("cot", "<|user|>1+1 Let's think step by step and output the final answer within \\boxed{}.<|assistant|>"),
    ("Q: {problem}\nA:", "Q: 1+1\nA:"),
    ("{problem} = {x} {", "1+1 = {x} {"),  # other braces are text
])
def test_render(tokenizer, template, text):
    assert render("1+1", template, tokenizer) == text


@pytest.mark.parametrize("template", TEMPLATES)
def test_every_template_holds_the_problem_once(tokenizer, template):
    problem = r"Find \frac{a}{b} if {problem} = {} {0}"  # braces in a problem are not fields
    assert render(problem, template, tokenizer).count(problem) == 1


def rebuilt(tokenizer, tmp_path, add=(), remove=(), template=None):
    """A copy of the tokenizer that puts special tokens around a text, or has another chat template."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    copy = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    if add:
        ends = [(name, copy.convert_tokens_to_ids(name)) for name in dict.fromkeys(name for name in add if name)]
        single = " ".join(name if name else "$A" for name in add)
        copy.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ends)
    copy.chat_template = template or copy.chat_template
    return copy


@pytest.mark.parametrize("template", ["none", "plain", "r1", "chat", "<|user|>{problem}", "{problem}<|end|>"])
def test_a_prompt_never_ends_with_an_end_token_nor_begins_with_two_begin_tokens(tokenizer, tmp_path, template):
    """Llama's tokenizer puts a begin token before a text; some put an end token behind it (vllm issue 7491)."""
    both = rebuilt(tokenizer, tmp_path, ["<|user|>", "", "<|end|>"])
    assert both("1+1")["input_ids"][-1] == both.eos_token_id
    ids = encode("1+1", template, both)["prompt"].tolist()
    begin = both.convert_tokens_to_ids("<|user|>")
    assert ids[0] == begin != ids[1] and ids[-1] != both.eos_token_id
    two = both("2", add_special_tokens=False)["input_ids"]
    assert encode("1+1", template, both, after="2")["prompt"].tolist() == ids + two


@pytest.mark.parametrize("today", ["{{ date_string }}", "{{ strftime_now('%d %b %Y') }}"])
def test_a_chat_template_that_asks_for_today_gets_a_fixed_date(tokenizer, tmp_path, today):
    """An evaluation could not be continued the next day, and a resumed run would train on other prompts."""
    dated = rebuilt(tokenizer, tmp_path, template=today + "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert render("1+1", "chat", dated) == "26 Jul 20241+1"


def test_a_chat_template_that_refuses_a_system_turn_or_is_missing_is_one_line(tokenizer, tmp_path):
    file = write(tmp_path / "one.jsonl", [dict(problem="1+1", answer="2")])
    system = write(tmp_path / "two.jsonl", [dict(prompt=chat(("system", "be brief"), ("user", "1+1")), answer="2")])
    refuses = rebuilt(tokenizer, tmp_path, template="{% for m in messages %}{% if m.role == 'system' %}"
                      "{{ raise_exception('no system role') }}{% endif %}{{ m.content }}{% endfor %}")
    assert load(file, refuses, "chat")
    with pytest.raises(ValueError, match="template 'qwen-math' has turns that .* can't write .no system role"):
        load(file, refuses, "qwen-math")
    with pytest.raises(ValueError, match="row 1 has turns that .* can't write .no system role"):
        load(system, refuses, "chat")
    users = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    drops = rebuilt(tokenizer, tmp_path, template=users)
    with pytest.raises(ValueError, match="leaves out, such as 'be brief'"):
        Problems(file, drops, SimpleNamespace(template="chat", system="be brief", max_prompt_tokens=99))
    drops.chat_template = "always the same"
    with pytest.raises(ValueError, match="leaves out, such as '7.35'"):
        load(file, drops, "chat")
    refuses.chat_template = None
    with pytest.raises(ValueError, match="there is none.*--template plain"):
        load(file, refuses, "chat")
    assert load(file, refuses, "plain")


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
        def apply_chat_template(self, turns, tokenize, add_generation_prompt, **date):
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
