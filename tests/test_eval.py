"""eval.py: estimators against hand numbers, brute force and simulation; whole evaluations with the built-in model;
interruption; re-scoring; comparison; what bad input says."""

import contextlib
import itertools
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from helpers import write

import common
import eval as evaluation
import plot
from core import data, rewards
from core import saved as saving
from core import stats as statistics

ROOT = Path(evaluation.__file__).parent
SHARED = ROOT.parent / "shared/data"
BENCHMARKS = ["math500", "minerva", "olympiadbench", "aime24", "aime25", "amc23", "gsm8k"]
SMALL = "--limit 5 --samples 3 --seeds 2 --chunk 6 --max_new_tokens 48".split()  # 6 chunks of 2, 2 and 1 problems


def run(*flags, figure=False) -> int:
    """eval.py with these flags, in this process, without its figure unless asked for; its exit status."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "argv", ["eval.py", *map(str, flags)]))
        if not figure:
            stack.enter_context(mock.patch("plot.draw_evaluation"))
        try:
            evaluation.main()
            return 0
        except SystemExit as stop:
            return stop.code


def error_of(capsys, *flags) -> str:
    """The line on stderr with which these flags end, with exit status 2."""
    assert run(*flags) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    return lines[0]


def saved_rows(right, seeds=1, text="the answer is {}", **more):
    """Rows of a saved evaluation from right [P, N]: gold answer 7, wrong ones are 8."""
    rows = []
    for i, own in enumerate(right):
        for j, x in enumerate(own):
            answer = "7" if x else "8"
            row = dict(problem_id=i, seed=j * seeds // len(own), sample=j, problem=f"problem {i}", gold="7", after="")
            row |= dict(response=text.format(answer), extracted=answer, correct=bool(x), tokens=10 + j, finish="stop")
            rows.append(row | more)
    return rows


# ------------------------------------------------------------------------------------------------ pass@k and maj@k
def test_pass_at_k_by_hand():
    # 1 right of 4: of the 6 pairs, 3 hold it; 2 right of 4: only 1 of 6 pairs misses both.
    np.testing.assert_allclose(statistics.pass_at_k([1, 2], 4), [[1 / 4, 1 / 2, 3 / 4, 1], [1 / 2, 5 / 6, 1, 1]])


def test_pass_at_k_is_the_average_over_all_subsets():
    for n in range(1, 8):
        for c in range(n + 1):
            samples = [1] * c + [0] * (n - c)
            brute = [np.mean([any(s) for s in itertools.combinations(samples, k)]) for k in range(1, n + 1)]
            np.testing.assert_allclose(statistics.pass_at_k([c], n)[0], brute, atol=1e-12)


def test_pass_at_k_of_many_samples_stays_exact():
    curve = statistics.pass_at_k([3], 1024)[0]
    exact = [1 - math.comb(1021, k) / math.comb(1024, k) for k in (1, 256, 1000)]
    np.testing.assert_allclose(curve[[0, 255, 999]], exact, rtol=1e-10)
    assert curve[0] == pytest.approx(3 / 1024) and curve[-1] == 1


def test_maj_at_k_by_hand():
    # Votes: right twice, wrong once. Pairs: right-right 1, split 2 (each half right): (1 + 2/2) / 3.
    assert statistics.maj_at_k(2, [1], 3, [1, 2, 3]) == pytest.approx([2 / 3, 2 / 3, 1])
    # One right answer and one abstention: whoever draws the right one wins, the abstention alone loses.
    assert statistics.maj_at_k(1, [], 2, [1, 2]) == pytest.approx([1 / 2, 1])
    assert statistics.maj_at_k(0, [2], 2, [1, 2]) == [0, 0]
    assert statistics.maj_at_k(1, [1, 1], 3, [3]) == pytest.approx([1 / 3])  # a tie of three


@pytest.mark.parametrize("right, wrong, n", [(2, [2, 1], 6), (3, [3, 3], 10), (1, [1, 1, 1], 5), (0, [2], 4),
                                             (4, [5, 1], 12), (5, [], 5), (3, [1, 2, 2], 9)])
def test_maj_at_k_is_the_average_over_all_subsets_with_ties_shared(right, wrong, n):
    ballots = [0] * right + [i for i, votes in enumerate(wrong, 1) for _ in range(votes)]
    ballots += [None] * (n - len(ballots))

    def vote(chosen):
        counts = [chosen.count(answer) for answer in range(len(wrong) + 1)]
        return counts[0] > 0 and counts[0] == max(counts) and 1 / counts.count(counts[0])

    brute = [np.mean([float(vote(s)) for s in itertools.combinations(ballots, k)]) for k in range(1, n + 1)]
    assert statistics.maj_at_k(right, wrong, n, list(range(1, n + 1))) == pytest.approx(brute)


def test_maj_at_1_without_abstentions_is_the_accuracy_and_large_n_stays_finite():
    assert statistics.maj_at_k(100, [60, 50, 46], 256, [1, 256]) == pytest.approx([100 / 256, 1])


# ------------------------------------------------------------------------------------------------ intervals and tests
def test_permutation_p_by_hand():
    # Four differences of 1: the two extreme of 16 sign patterns, 2/16, estimated from 10,000 draws.
    assert statistics.permutation_p([1, 1, 1, 1]) == pytest.approx(0.125, abs=0.02)
    assert statistics.permutation_p([0, 0, 0]) == 1
    d = np.array([0.5, -0.2, 0.1, 0.4])
    assert statistics.permutation_p(d) == statistics.permutation_p(-d)


def test_permutation_p_is_uniform_under_the_null():
    rng = np.random.default_rng(2)
    draws = [rng.binomial(8, 0.5, (2, 60)) / 8 for _ in range(400)]
    ps = np.sort([statistics.permutation_p(a - b, draws=1000) for a, b in draws])
    distance = np.abs(ps - (np.arange(400) + 0.5) / 400).max()  # Kolmogorov-Smirnov: above 0.081 in 1 % of cases
    assert distance < 0.081


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1: 0.03, 0.04, 0.04.
    assert statistics.holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert statistics.holm([0.02, 0.015]) == pytest.approx([0.03, 0.03])  # never below an earlier one
    assert statistics.holm([0.9, 0.8]) == [1, 1]
    assert statistics.holm([0.3]) == [0.3]


def test_spread_by_hand():
    # Seeds: accuracies 1 and 1/2, deviation sqrt(2 (1/4)^2) = 0.3536. Within: problem 0 [1, 1] 0, problem 1 [1, 0] 1/2,
    # mean 1/4; over n P = 2.
    right = np.array([[[1.0], [1.0]], [[1.0], [0.0]]])
    assert statistics.spread(right) == pytest.approx((0.125**0.5, 0.125**0.5))
    assert all(map(math.isnan, statistics.spread(np.ones((3, 1, 1)))))


def test_seeds_scatter_by_the_binomial_formula():
    rng = np.random.default_rng(3)
    share = rng.beta(0.5, 0.5, 100)
    right = (rng.random((100, 400, 4)) < share[:, None, None]).astype(float)
    observed, by_chance = statistics.spread(right)
    formula = math.sqrt((share * (1 - share)).mean() / (100 * 4))
    assert by_chance == pytest.approx(formula, rel=0.03)
    assert observed == pytest.approx(formula, rel=0.12)  # a deviation of 400 values is known to 3.5 %


# ------------------------------------------------------------------------------------------------ comparisons
def test_crossing_is_the_first_k_at_which_the_other_curve_is_ahead():
    assert statistics.crossing([0.2, 0.5, 0.9], [0.6, 0.7, 0.8]) == 3
    assert statistics.crossing([0.2, 0.5, 0.9], [0.2, 0.4, 0.95]) == 3  # equal at k = 1: ahead at 2 counts
    assert statistics.crossing([0.2, 0.5], [0.3, 0.6]) is None
    assert statistics.crossing([0.2, 0.5], [0.2, 0.5]) is None


def test_solvable_sets_partition_the_problems():
    sets = statistics.solvable([3, 1, 0, 0], [1, 0, 2, 0])
    assert sets == dict(both=[0], only_a=[1], only_b=[2], none=[3])


def test_transitions_with_one_response_each_are_the_papers_table():
    # Problem: 0 code, wrong -> code, right; 1 words, wrong -> code, right; 2 words, right -> words, right;
    # 3 words, wrong -> code, wrong; the gain is 2 problems of 4, half from each of two cells.
    column = lambda *x: np.array(x, dtype=float)[:, None]
    cells = statistics.transitions(column(1, 0, 0, 0), column(0, 0, 1, 0), column(1, 1, 0, 1), column(1, 1, 1, 0))
    assert cells["python to python"] == dict(size=0.25, before=0, after=1, contribution=0.5)
    assert cells["words to python"] == dict(size=0.5, before=0, after=0.5, contribution=0.5)
    assert cells["words to words"] == dict(size=0.25, before=1, after=1, contribution=0)
    assert cells["python to words"]["size"] == 0 and math.isnan(cells["python to words"]["before"])


def test_sizes_and_contributions_of_transitions_sum_to_one():
    rng = np.random.default_rng(4)
    a, b = (rng.integers(0, 2, (2, 7, n)).astype(float) for n in (5, 3))
    cells = statistics.transitions(*a, *b).values()
    assert sum(cell["size"] for cell in cells) == pytest.approx(1)
    assert sum(cell["contribution"] for cell in cells) == pytest.approx(1)
    assert sum(cell["size"] * cell["before"] for cell in cells) == pytest.approx(a[1].mean())
    assert sum(cell["size"] * cell["after"] for cell in cells) == pytest.approx(b[1].mean())


def test_behaviours_are_counted_by_pattern():
    text = "Wait, I made a mistake. Let me re-check. First, we need to find x. That does not work; go back."
    text = np.array([[text]])
    counts = {name: evaluation.count(pattern, text)[0, 0] for name, pattern in evaluation.BEHAVIOURS.items()}
    assert counts == dict(backtracking=2, verification=0, subgoal=2, self_correction=3)
    assert evaluation.count("python", np.array([["Let's use PYTHON", "pie"]])).tolist() == [[1, 0]]


def test_a_summary_by_hand(tmp_path):
    # Two problems, two seeds of two samples. Seed 0: 1 1 | 0 0, seed 1: 1 0 | 0 0; lengths 10 to 13.
    rows = saved_rows([[1, 1, 1, 0], [0, 0, 0, 0]], seeds=2)
    rows[3] |= dict(finish="length", response="wait, so the answer is 8")
    r = evaluation.summarise(saving.read_responses(write(tmp_path / "x.jsonl", rows)))
    assert (r["problems"], r["samples"], r["seeds"], r["ks"], r["right"]) == (2, 4, 2, [1, 2, 4], [3, 0])
    assert r["avg"][0] == pytest.approx(3 / 8) and r["per_seed"] == pytest.approx([0.5, 0.25])
    assert [x[0] for x in r["pass_at"]] == pytest.approx([3 / 8, 1 / 2, 1 / 2])
    assert [x[0] for x in r["maj_at"]] == pytest.approx([3 / 8, 3 / 8, 1 / 2])  # pairs of problem 0: 3 pure, 3 split
    assert r["length"] == pytest.approx(dict(right=11, wrong=(13 + 46) / 5))
    assert r["length_whole"] == pytest.approx(dict(right=11, wrong=46 / 4))
    assert (r["truncated"], r["boxed"], r["python"], r["self_correction"]) == (1 / 8, 0, 0, 1 / 8)
    assert (r["explicit_rate"], r["explicit_accuracy"], r["implicit_accuracy"]) == (1 / 8, 0, 3 / 8)


def test_samples_needed_is_the_power_formula(tmp_path):
    # Within problems p (1 - p) = 1/4 (1, 0, 1, 0 has the unbiased variance 1/3): 2 x 2.8^2 / 3 / (30 x 0.02^2) = 435.6.
    rows = saved_rows([[1, 0, 1, 0]] * 30)
    r = evaluation.summarise(saving.read_responses(write(tmp_path / "x.jsonl", rows)))
    assert r["needed"] == pytest.approx(2 * 2.8**2 / 3 / (30 * 0.02**2))


# ------------------------------------------------------------------------------------------------ whole evaluations
@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The folder of an uninterrupted small evaluation."""
    folder = tmp_path_factory.mktemp("whole") / "eval"
    assert run(*SMALL, "--out", folder, figure=True) == 0
    return folder


def settings_of(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())["settings"]


def test_an_evaluation_saves_every_response_and_every_setting(whole):
    rows = [json.loads(line) for line in open(whole / "tiny.jsonl")]
    order = [(row["seed"], row["problem_id"], row["sample"]) for row in rows]
    assert order == list(itertools.product(range(2), range(5), range(3)))
    assert rows[0].keys() == {"problem_id", "seed", "sample", "problem", "gold", "after", "response", "extracted",
                              "correct", "tokens", "finish"}
    assert all(row["correct"] == common.verify(row["response"], row["gold"]) for row in rows)
    assert len({row["response"] for row in rows if row["problem_id"] == 0}) > 1
    about = settings_of(whole)
    known = dict(model="tiny", temperature=1.0, top_p=1.0, template="chat", samples=3, seeds=2, limit=5, processes=1)
    assert known.items() <= about.items()
    assert about["prompt"] == "<|user|>{problem}<|assistant|>" and about["versions"]["torch"] == torch.__version__
    assert (whole / "summary.png").stat().st_size > 10_000


def test_the_same_evaluation_during_training_gives_the_same_responses(whole, tiny_path):
    """What Run.evaluate samples, number by number, are the rows of seed 0."""
    cfg = common.parse(common.Config, "", ["--model", "tiny", "--max_new_tokens", "48"])
    _, sampler, tokenizer, _ = evaluation.open_model(cfg)
    problems = data.load_data("tiny-test", tokenizer, cfg, 5)
    rollouts = rewards.examine(sampler, tokenizer, problems, 3, 0, cfg)
    assert saving.rows_of(rollouts) == [json.loads(line) for line in open(whole / "tiny.jsonl")][:15]


@pytest.mark.parametrize("kept", ["torn", "chunks", "nothing", "all"])
def test_an_interrupted_evaluation_continues_and_gives_the_same_files(whole, tmp_path, kept):
    text = (whole / "tiny.jsonl").read_bytes()
    lines = text.splitlines(True)
    left = dict(torn=b"".join(lines[:8]) + lines[8][:40], chunks=b"".join(lines[:12]), nothing=b"", all=text)[kept]
    (tmp_path / "summary.json").write_text(json.dumps(dict(settings=settings_of(whole))))
    (tmp_path / "tiny.jsonl").write_bytes(left)
    with mock.patch.object(rewards, "generate", wraps=rewards.generate) as generate:
        assert run(*SMALL, "--out", tmp_path) == 0
    assert generate.call_count == dict(torn=5, chunks=4, nothing=6, all=0)[kept]  # chunks of 6, 6 and 3 rows a seed
    assert (tmp_path / "tiny.jsonl").read_bytes() == text
    mine, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, whole))
    assert mine["benchmarks"] == theirs["benchmarks"]


@pytest.mark.slow
def test_a_killed_evaluation_continues_and_gives_the_same_file(tmp_path):
    flags = "--limit 24 --samples 4 --seeds 2 --chunk 8 --max_new_tokens 48".split()
    process = subprocess.Popen([sys.executable, evaluation.__file__, *flags, "--out", tmp_path / "killed"], cwd=ROOT,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file, deadline = tmp_path / "killed/tiny.jsonl", time.time() + 600
    while not (file.exists() and file.stat().st_size) and time.time() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    some = file.read_bytes()
    assert run(*flags, "--out", tmp_path / "killed") == run(*flags, "--out", tmp_path / "other") == 0
    assert 0 < len(some) < file.stat().st_size and file.read_bytes().startswith(some)
    assert file.read_bytes() == (tmp_path / "other/tiny.jsonl").read_bytes()


@pytest.mark.slow
def test_two_processes_give_the_same_file(whole, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", evaluation.__file__, *SMALL]
    done = subprocess.run([*command, "--out", tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny.jsonl").read_bytes() == (whole / "tiny.jsonl").read_bytes()
    assert done.stdout.count("in %, length") == 1  # rank 0 alone reports


def test_more_seeds_are_added_to_those_that_are_there(whole, tmp_path):
    (tmp_path / "summary.json").write_text((whole / "summary.json").read_text())
    (tmp_path / "tiny.jsonl").write_bytes((whole / "tiny.jsonl").read_bytes())
    assert run(*SMALL, "--seeds", 3, "--out", tmp_path) == 0
    text = (tmp_path / "tiny.jsonl").read_bytes()
    assert text.startswith((whole / "tiny.jsonl").read_bytes()) and text.count(b"\n") == 45
    assert json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["tiny"]["seeds"] == 3


QUICK = "--samples 2 --seeds 1 --max_new_tokens 8 --chunk 4".split()


def problems(file, *texts):
    return write(file, [dict(problem=text, answer=str(eval(text))) for text in texts])


def answered(file) -> list[str]:
    return [json.loads(line)["problem"] for line in open(file)]


def test_two_benchmarks_of_the_same_name_are_told_apart(tmp_path, capsys):
    """In one command each has its own file; in a second command the other one's responses are not taken for its own."""
    one, two = problems(tmp_path / "v1/test.jsonl", "3+4", "5*2"), problems(tmp_path / "v2/test.jsonl", "8*8-5", "7+6")
    assert run("--bench", f"{one},{two}", *QUICK, "--out", tmp_path / "both") == 0
    results = json.loads((tmp_path / "both/summary.json").read_text())["benchmarks"]
    assert list(results) == ["v1-test", "v2-test"]
    assert answered(tmp_path / "both/v2-test.jsonl") == ["8*8-5"] * 2 + ["7+6"] * 2
    assert run("--bench", one, *QUICK, "--out", tmp_path / "out") == 0
    before = (tmp_path / "out/test.jsonl").read_bytes()
    line = error_of(capsys, "--bench", two, *QUICK, "--out", tmp_path / "out")
    assert "test.jsonl: row 1 answers another problem: its problem is '3+4', today's is '8*8-5'" in line
    assert (tmp_path / "out/test.jsonl").read_bytes() == before


def change_gold(rows):
    rows[1]["answer"] = "11"


def put_in_front(rows):
    rows[:0] = [dict(problem="1+1", answer="2")]


@pytest.mark.parametrize("change, says", [(change_gold, "its gold is '10', today's is '11'"),
                                          (put_in_front, "its problem is '3+4', today's is '1+1'"),
                                          (list.reverse, "its problem is '3+4'"), (list.pop, "its problem is '9-3'")],
                         ids=["gold", "in front", "order", "fewer"])
def test_saved_responses_belong_to_todays_problems_or_are_refused(tmp_path, capsys, change, says):
    """Rows used to be counted alone: the numbers of yesterday's problems were reported for today's."""
    file = problems(tmp_path / "test.jsonl", "3+4", "5*2", "9-3")
    assert run("--bench", file, *QUICK, "--out", tmp_path / "out") == 0
    rows = [json.loads(line) for line in open(file)]
    change(rows)
    write(file, rows)
    assert says in error_of(capsys, "--bench", file, *QUICK, "--seeds", 2, "--out", tmp_path / "out")


@pytest.mark.parametrize("names, labels", [
    (["math500", "aime24"], ["math500", "aime24"]), (["a/b/t.csv"], ["t"]), (["a/b/t.jsonl.gz"], ["t"]),
    (["a/b/t.csv", "c/b/t.csv"], ["a-b-t", "c-b-t"]), (["a/b/t.csv", "a/b/t.jsonl"], ["a-b-t-csv", "a-b-t-jsonl"]),
    (["openai/gsm8k:main:test"], ["openai-gsm8k-main-test"]), (["t", "a/b/t.csv"], ["t", "b-t"]),
])
def test_labels_of_benchmarks(tmp_path, monkeypatch, names, labels):
    monkeypatch.chdir(tmp_path)
    for name in ("a/b/t.csv", "a/b/t.jsonl", "a/b/t.jsonl.gz", "c/b/t.csv"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    assert [saving.label(name, names) for name in names] == labels


def test_a_file_of_the_users_own_in_the_output_folder_is_not_touched(tmp_path, capsys):
    """--out . with a benchmark of the same name there: it would be cut, and rows appended to it."""
    file = problems(tmp_path / "test.jsonl", "3+4", "5*2")
    before = file.read_bytes()
    assert "answers another problem" in error_of(capsys, "--bench", file, *QUICK, "--out", tmp_path)
    saved = write(tmp_path / "mine.jsonl", [dict(problem="3+4", answer="7", response="7", note="precious")])
    (tmp_path / "summary.json").write_text("mine, too")
    assert "would be overwritten" in error_of(capsys, "--rescore", saved, "--out", tmp_path)
    assert file.read_bytes() == before and "precious" in saved.read_text()
    assert (tmp_path / "summary.json").read_text() == "mine, too"


def test_a_table_shows_every_cell_of_the_longer_rows(capsys):
    """More than 256 samples have pass@k up to the last k, but maj@k up to 256 only."""
    evaluation.table([{"tiny": "maj@k", "k=1": 0.5}, {"tiny": "pass@k", "k=1": 0.5, "k=2": 0.75}])
    assert capsys.readouterr().out.split() == ["tiny", "k=1", "maj@k", "50.0", "pass@k", "50.0", "75.0"]


def test_the_turns_of_a_chat_stay_in_the_prompt_when_a_wrong_answer_is_continued(tmp_path):
    texts = [("user", "3+3"), ("assistant", "6"), ("user", "9*9-7*8")]
    turns = [dict(role=role, content=text) for role, text in texts]
    file = write(tmp_path / "chat.jsonl", [dict(prompt=turns, answer="0")])
    assert run("--bench", file, *QUICK, "--out", tmp_path / "one") == 0
    with mock.patch.object(rewards, "generate", wraps=rewards.generate) as generate:
        flags = ["--wrong", tmp_path / "one/chat.jsonl", "--reflect", " wait"]
        assert run(*flags, *QUICK, "--out", tmp_path / "two") == 0
    row, text = json.loads(open(tmp_path / "one/chat.jsonl").readline()), generate.call_args.args[1][0]["text"]
    assert text == f"<|user|>3+3<|assistant|>6<|end|><|user|>9*9-7*8<|assistant|>{row['response']} wait"


def test_a_local_file_is_a_benchmark_and_a_prefix_begins_every_response(problems_file, tmp_path):
    flags = ["--bench", f"{problems_file},tiny-hard", "--prefix", "python\n", *SMALL, "--out", tmp_path]
    assert run(*flags, "--seeds", 1) == 0
    for name in ("problems", "tiny-hard"):
        rows = [json.loads(line) for line in open(tmp_path / f"{name}.jsonl")]
        assert {row["after"] for row in rows} == {"python\n"} and len(rows) == 15
        assert not any(row["response"].startswith("python") for row in rows)
    assert settings_of(tmp_path)["prompt"].endswith("<|assistant|>python\n")


@pytest.mark.slow
def test_a_sweep_over_temperature_is_greedy_at_0(tmp_path, capsys):
    with mock.patch("plot.draw_evaluation", wraps=plot.draw_evaluation) as draw:
        assert run("--sweep", "temperature=0,1", *SMALL, "--out", tmp_path, figure=True) == 0
    assert [call.args[0].name for call in draw.call_args_list] == ["summary.json"] * 2 + ["sweep.json"]
    greedy, sampled = ([json.loads(line) for line in open(tmp_path / f"{i}/tiny.jsonl")] for i in (0, 1))
    texts = lambda rows: {(row["problem_id"], row["response"]) for row in rows}
    assert len(texts(greedy)) == 5 < len(texts(sampled))
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert list(result["benchmarks"]["tiny"]) == ["0", "1"] and result["setting"] == "temperature"
    assert result["benchmarks"]["tiny"]["0"]["seed_std"] == 0
    assert "tiny: temperature" in capsys.readouterr().out
    assert (tmp_path / "sweep.png").stat().st_size > 5_000


def test_wrong_responses_are_continued_after_the_trigger(whole, tmp_path):
    rows = [json.loads(line) for line in open(whole / "tiny.jsonl")]
    wrong = {}
    for row in rows:
        if not row["correct"]:
            wrong.setdefault(row["problem_id"], row["response"])
    flags = ["--wrong", whole / "tiny.jsonl", "--sweep", "reflect=| wait", *SMALL, "--seeds", 1, "--out", tmp_path]
    assert run(*flags) == 0
    for folder, trigger in (("0", ""), ("1", " wait")):
        again = [json.loads(line) for line in open(tmp_path / folder / "tiny.jsonl")]
        assert {row["after"] for row in again} == {text + trigger for text in wrong.values()}
    r = json.loads((tmp_path / "1/summary.json").read_text())["benchmarks"]["tiny"]
    assert r["explicit_accuracy"] + r["implicit_accuracy"] == pytest.approx(r["avg"][0])


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.exists(), reason="the shared benchmark files are not here")
def test_real_benchmarks_go_the_whole_way(tmp_path):
    files = ",".join(str(SHARED / f"{name}.jsonl") for name in BENCHMARKS)
    flags = "--limit 3 --samples 2 --seeds 1 --max_new_tokens 16 --max_prompt_tokens 1500 --template plain".split()
    assert run("--bench", files, *flags, "--out", tmp_path, figure=True) == 0
    results = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]
    assert list(results) == BENCHMARKS and all(r["problems"] == 3 for r in results.values())
    assert "final answer within" in settings_of(tmp_path)["prompt"]


# ------------------------------------------------------------------------------------------------ saved responses
def test_rescoring_a_list_of_responses_reports_agreement_and_can_be_compared(tmp_path, capsys):
    texts = ["it is \\boxed{2}", "\\boxed{3}", "no idea"]
    row = dict(problem="1+1", answer="2", responses=texts, peer_score=[True] * 3)
    other = dict(problem="2+2", answer="4", responses=["\\boxed{4}"] * 3, peer_score=[True] * 3)
    file = write(tmp_path / "made.jsonl", [row, other])
    assert run("--rescore", file, "--out", tmp_path / "a") == 0
    assert "agree on 4 of 6; right only here 0, only there 2" in capsys.readouterr().out
    r = json.loads((tmp_path / "a/summary.json").read_text())["benchmarks"]["made"]
    assert (r["right"], r["samples"]) == ([1, 3], 3)
    assert [x[0] for x in r["maj_at"]] == pytest.approx([2 / 3, (1 / 3 * (0.5 + 1) + 1) / 2 + 0 / 3])
    rows = [json.loads(line) for line in open(tmp_path / "a/made.jsonl")]
    assert [x["extracted"] for x in rows[:3]] == ["2", "3", None]
    assert run("--compare", tmp_path / "a", tmp_path / "a/made.jsonl", "--out", tmp_path / "c") == 0


def test_rescoring_an_evaluation_changes_nothing(whole, tmp_path):
    assert run("--rescore", whole / "tiny.jsonl", "--out", tmp_path) == 0
    old, new = (json.loads((folder / "summary.json").read_text())["benchmarks"]["tiny"] for folder in (whole, tmp_path))
    assert new == old


@pytest.mark.skipif(not SHARED.exists(), reason="the shared generations are not here")
def test_rescoring_real_generations(tmp_path, capsys):
    assert run("--rescore", SHARED / "generations_dev50.jsonl", "--out", tmp_path) == 0
    r = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]["generations_dev50"]
    assert (r["problems"], r["samples"]) == (50, 8)
    assert 0.85 < r["avg"][0] < r["pass_at"][-1][0] <= 1 and r["avg"][1] < r["avg"][0] < r["avg"][2]
    agreed = int(capsys.readouterr().out.split("agree on ")[1].split()[0])
    assert agreed >= 370  # of 400


def test_comparing_with_a_baseline(tmp_path, capsys):
    rng = np.random.default_rng(0)
    easy = rng.random((40, 1))
    base, better, same = ((rng.random((40, 8)) < easy + gain).astype(int) for gain in (0, 0.3, 0))
    for name, right, text in (("base", base, "so {}"), ("better", better, "python {}"), ("same", same, "so {}")):
        write(tmp_path / name / "x.jsonl", saved_rows(right, text=text))
    folders = [tmp_path / name for name in ("base", "better", "same")]
    assert run("--compare", *folders, "--out", tmp_path / "out", figure=True) == 0
    result = json.loads((tmp_path / "out/compare.json").read_text())["benchmarks"]["x"]
    pairs = {Path(name).name: pair for name, pair in result["pairs"].items()}
    assert pairs["better"]["difference"][0] == pytest.approx(better.mean() - base.mean())
    assert pairs["better"]["difference"][1] > 0 and pairs["better"]["p_holm"] == pytest.approx(2 / 10_001, rel=1)
    assert pairs["same"]["difference"][1] < 0 < pairs["same"]["difference"][2] and pairs["same"]["p"] > 0.05
    assert pairs["better"]["delta_at"][0] == pytest.approx(pairs["better"]["difference"])
    assert pairs["better"]["gap"] == pytest.approx((base.sum(1) > 0).mean() - better.mean())
    assert sum(map(len, pairs["same"]["solvable"].values())) == 40
    assert pairs["better"]["transitions"]["words to python"]["size"] == 1
    assert "p, Holm" in capsys.readouterr().out
    assert (tmp_path / "out/compare.png").stat().st_size > 10_000


def test_perplexity_is_that_of_the_sampler(whole, tmp_path, monkeypatch):
    """At temperature 1 the sampler's own logprobs are the base's, so its responses have their perplexity. On a GPU, an
    engine has to sleep while the policy computes them."""
    cfg = common.parse(common.Config, "", ["--model", "tiny", "--max_new_tokens", "48"])
    model = evaluation.open_model(cfg)
    problems = data.load_data("tiny-test", model[2], cfg, 5)
    responses = rewards.examine(model[1], model[2], problems, 3, 0, cfg).responses
    expected = [math.exp(-np.mean(logprobs)) for _, logprobs, _, _ in responses]
    saved = {name: x[:, :3] for name, x in saving.read_responses(whole / "tiny.jsonl").items()}
    assert evaluation.perplexities(model, settings_of(whole), saved) == pytest.approx(expected, rel=1e-4)
    monkeypatch.setattr(evaluation.TorchSampler, "sleep", sleep := mock.Mock())
    assert run("--compare", whole, whole / "tiny.jsonl", "--perplexity", "--out", tmp_path) == 0
    assert sleep.call_count == 1
    values = json.loads((tmp_path / "compare.json").read_text())["benchmarks"]["tiny"]["perplexity"]
    assert all(len(x) == 30 for x in values.values())


def test_perplexity_judges_the_end_token_that_was_written(whole, tmp_path, tiny_path):
    """A model may have several, as Qwen and Llama: that of the tokenizer was judged in place of the one sampled."""
    shutil.copytree(tiny_path, tmp_path / "model")
    newline = 10  # in the place of a second end token
    (tmp_path / "model/generation_config.json").write_text(json.dumps(dict(eos_token_id=[260, newline])))
    flags = ["--model", tmp_path / "model", "--bench", "tiny", "--template", "chat", *SMALL, "--out", tmp_path / "one"]
    assert run(*flags) == 0
    saved = saving.read_responses(tmp_path / "one/tiny.jsonl")
    assert newline in saved["end"].flatten().tolist() and saved["finish"][0, 0] == "stop"
    flags = ["--model", str(tmp_path / "model"), "--template", "chat", "--max_new_tokens", "48"]
    cfg = common.parse(common.Config, "", flags)
    model = evaluation.open_model(cfg)
    problems = data.load_data("tiny-test", model[2], cfg, 5)
    responses = rewards.examine(model[1], model[2], problems, 3, 0, cfg).responses
    expected = [math.exp(-np.mean(logprobs)) for _, logprobs, _, _ in responses]
    saved = {name: x[:, :3] for name, x in saved.items()}
    assert evaluation.perplexities(model, settings_of(tmp_path / "one"), saved) == pytest.approx(expected, rel=1e-4)


def test_a_model_of_a_training_run_is_evaluated_as_it_was_trained(tmp_path, tiny_path):
    (tmp_path / "run").mkdir()
    config = dict(template="chat", max_new_tokens=40, max_prompt_tokens=900, eval_data="tiny-hard")
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    (tmp_path / "run/final").symlink_to(tiny_path)
    flags = ["--model", tmp_path / "run/final", "--limit", 2, "--samples", 1, "--seeds", 1, "--out", tmp_path / "out"]
    assert run(*flags) == 0
    about = settings_of(tmp_path / "out")
    assert (about["max_new_tokens"], about["max_prompt_tokens"], about["bench"]) == (40, 900, "tiny-hard")


# ------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("flags, says", [
    (["--benhc", "tiny"], "did you mean --bench?"),
    (["--model", "tinny"], "did you mean tiny?"),
    (["--bench", "nowhere.jsonl"], "nowhere.jsonl: no such file"),
    (["--temperature", "-1"], "--temperature -1.0"),
    (["--top_p", "1.5"], "--top_p 1.5"),
    (["--template", "cosy"], "template 'cosy'"),
    (["--max_new_tokens", "4000"], "2048 in all"),
    (["--sweep", "temprature=1"], "--sweep temprature=1"),
    (["--sweep", "temperature=warm"], "'warm'"),
    (["--ks", "1", "two"], "'two'"),
    (["--rescore", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--compare", "nowhere", "there"], "nowhere"),
])
def test_bad_flags_are_one_line(capsys, flags, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in error_of(capsys, "--limit", 2, "--samples", 1, "--seeds", 1, *flags)


@pytest.mark.parametrize("text, says", [
    ("", "no saved response"),
    ('{"problem": "1", "answer": "1", "response": "1"}\n{"prob', "row 2 is not JSON"),
    ('{"problem": "1", "response": "1"}\n', "row 1 needs problem, gold or answer, and response"),
    ('{"problem": "1", "answer": "1", "responses": ["1"]}\n{"problem": "2", "answer": "1", "responses": ["1", "2"]}\n'
     '{"problem": "3", "answer": "1", "responses": ["1"]}\n', "'2' has 2, others 1"),
    ('[1, 2]\n', "row 1 needs"),
])
def test_bad_files_of_responses_are_one_line(capsys, tmp_path, text, says):
    (tmp_path / "bad.jsonl").write_text(text)
    assert says in error_of(capsys, "--rescore", tmp_path / "bad.jsonl", "--out", tmp_path / "out")


def test_an_empty_benchmark_is_one_line(capsys, tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    message = error_of(capsys, "--bench", tmp_path / "empty.jsonl", "--out", tmp_path / "out")
    assert "empty.jsonl: no usable problem in it" in message


def test_k_above_n_is_one_line(capsys, tmp_path):
    write(tmp_path / "x.jsonl", saved_rows([[1, 0, 0, 1]]))
    message = error_of(capsys, "--rescore", tmp_path / "x.jsonl", "--ks", 1, 8, "--out", tmp_path / "out")
    assert "--ks 1 8: x has 4 samples of each problem" in message


def test_other_problems_cannot_be_compared(capsys, tmp_path):
    for name, problems in (("a", 3), ("b", 2)):
        write(tmp_path / name / "x.jsonl", saved_rows([[1, 0]] * problems))
    write(tmp_path / "c" / "y.jsonl", saved_rows([[1, 0]]))
    write(tmp_path / "d" / "x.jsonl", saved_rows([[1, 0]] * 3, correct=None))
    folders = [tmp_path / name for name in "abcd"]
    assert "hold other problems" in error_of(capsys, "--compare", *folders[:2], "--out", tmp_path / "out")
    assert "of the same name" in error_of(capsys, "--compare", folders[0], folders[2], "--out", tmp_path / "out")
    assert "x is not graded" in error_of(capsys, "--compare", folders[0], folders[3], "--out", tmp_path / "out")


def test_another_setting_does_not_mix_into_an_evaluation(capsys, whole):
    message = error_of(capsys, *SMALL, "--temperature", 0.5, "--out", whole)
    assert "holds an evaluation with temperature 1.0, not 0.5; give another --out" in message


def test_greedy_may_be_asked_for_again_and_again():
    """The parser changes the fields of a Config as it reads them; 0 stays a temperature."""
    for _ in range(2):
        assert common.parse(evaluation.Config, "", ["--temperature", "0"]).temperature == 0
