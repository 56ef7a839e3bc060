"""The lab: its verdicts against simulated data, its tables, its runs (which may fail, be killed, or be there already),
and its report, which has to follow from the file of results alone."""

import importlib
import json
import math
import re
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, output_of, start

import common
import lab.__main__
import grpo
import raft_pp
import torch
from lab import claims, figures, real, report, why
from lab.experiments import Experiments, digest, each, grades, of_style, pack, pass_at, read_results, scatter, unpack
from lab.verdicts import seeds_for, t_quantile, t_tail, verdict

LAB = ROOT / "lab/results.json"


# ------------------------------------------------------------------------------------------------ verdicts
def verdicts(true_mean, low, high, seeds=5, draws=2000):
    """How often each verdict is given on values [seeds] with a standard error of 1."""
    rng = np.random.default_rng(0)
    given = [verdict(values, low, high)["verdict"] for values in rng.normal(true_mean, seeds**0.5, (draws, seeds))]
    return {word: given.count(word) / draws for word in ("holds", "fails", "undecided")}


LUCK = 3.3 * math.sqrt(0.025 * 0.975 / 2000)  # what 2,000 draws can be off by, once in a thousand times


def test_quantiles_of_students_t_are_those_of_the_tables():
    assert [round(t_quantile(0.05, df), 3) for df in (1, 4, 10)] == [12.706, 2.776, 2.228]
    assert t_tail(2.776, 4) == pytest.approx(0.05, abs=1e-4) and t_tail(0, 4) == 1


def test_the_interval_of_three_values_by_hand():
    one = verdict([1.0, 2.0, 3.0], 0)  # mean 2, standard error 1 / sqrt(3), t = 4.303
    assert one["mean"] == 2 and one["interval"] == pytest.approx([2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5], abs=1e-3)
    assert one["verdict"] == "undecided" and one["p"] == pytest.approx(0.0742, abs=1e-3)  # t = 3.464, 2 degrees


@pytest.mark.parametrize("low, high, mean", [(0, math.inf, 0), (-math.inf, 0, 0), (-3, 3, 3), (-3, 3, -3)])
def test_on_the_border_each_verdict_is_given_in_at_most_one_case_in_forty(low, high, mean):
    given = verdicts(mean, low, high)
    assert given["holds"] <= 0.025 + LUCK and given["fails"] <= 0.025 + LUCK


def test_a_difference_of_two_standard_errors_is_shown_in_a_third_of_the_cases_by_five_seeds():
    given = verdicts(2, 0, math.inf)
    assert given["holds"] == pytest.approx(0.34, abs=0.04) and given["fails"] < 0.005
    assert verdicts(2, 0, math.inf, seeds=20)["holds"] == pytest.approx(0.48, abs=0.04)


@pytest.mark.parametrize("spread", [0.5, 1, 2])
def test_the_seeds_that_are_called_needed_decide_in_four_of_five_cases_and_fewer_do_not(spread):
    for sides, region, mean in ((1, (0, math.inf), 1), (2, (-1, 1), 0)):
        seeds, error = seeds_for(spread, 1, sides), spread / math.sqrt(seeds_for(spread, 1, sides))
        low, high = (border / error for border in region)
        given = [verdicts(mean / error, low, high, n)["holds"] for n in (seeds, max(2, seeds // 2))]
        assert 0.75 < given[0] and given[1] < given[0]
    assert seeds_for(spread, 1, 1) <= seeds_for(spread, 1, 2) and seeds_for(100, 0.1, 1) == 1000


def test_a_difference_too_small_to_matter_fails_and_its_own_border_is_guarded_too():
    values = [0.001, 0.002, 0.003, 0.0]  # mean 0.0015, interval -0.0006 to 0.0036
    assert verdict(values, 0)["verdict"] == verdict(values, 0, matters=0.003)["verdict"] == "undecided"
    assert verdict(values, 0, matters=0.02)["verdict"] == "fails" and verdict(values, 0, matters=0.02)["p"] < 0.001
    assert verdict([-x for x in values], -math.inf, 0, 0.02)["verdict"] == "fails"
    assert verdict([0.01, 0.011, 0.012], 0, matters=0.02)["verdict"] == "holds"  # clearly positive, however small
    rng = np.random.default_rng(0)  # if the difference is just what matters, one case in forty is a failure
    given = [verdict(x, 0, matters=3)["verdict"] for x in rng.normal(3, 5**0.5, (2000, 5))]
    assert given.count("fails") / 2000 <= 0.025 + LUCK


def test_equivalence_holds_inside_a_wide_margin_fails_outside_it_and_is_open_in_a_narrow_one():
    assert verdicts(0, -6, 6)["holds"] > 0.9
    assert verdicts(9, -3, 3)["fails"] > 0.9
    assert verdicts(0, -1, 1)["undecided"] > 0.9


def test_one_value_decides_nothing_and_equal_values_decide_at_once():
    assert verdict([5.0], 0)["verdict"] == "undecided" and verdict([5.0], 0)["interval"] is None
    assert verdict([0.1, 0.1], 0)["verdict"] == "holds" and verdict([0.0, 0.0], -1, 1)["verdict"] == "holds"
    assert verdict([0.0, 0.0], 0)["verdict"] == "undecided" and verdict([-0.1, -0.1], 0)["verdict"] == "fails"


def claim(*criteria):
    """A claim about the final accuracy of a setting `run`, with a part for each criterion."""
    parts = [("accuracy", criterion, lambda run: run["accuracy"]) for criterion in criteria]
    return claims.Claim(1, "limit", "here", "it is so", parts)


@pytest.mark.parametrize("criteria, expected", [
    (["> 0"], "holds"), (["< 0"], "fails"), (["within 0.1"], "fails"), (["> 0", "< 1"], "holds"),
    (["> 0", "> 0.5"], "undecided"), (["> 0.5", "> 1"], "fails")])
def test_a_claim_holds_if_all_parts_hold_and_fails_if_one_fails(criteria, expected):
    results = {f"run/{seed}": dict(accuracy=x) for seed, x in enumerate([0.4, 0.45, 0.5, 0.5, 0.55])}
    assert report.judge(claim(*criteria), results, [0, 1, 2, 3, 4])["verdict"] == expected


def test_seeds_without_all_records_are_left_out_and_no_records_are_no_verdict():
    results = {f"run/{seed}": dict(accuracy=0.5 + seed / 100) for seed in (0, 1, 3)}
    assert report.judge(claim("> 0"), results, [0, 1, 2])["parts"][0]["n"] == 2
    assert report.judge(claim("> 0"), {}, [0, 1])["verdict"] == "not run"


# ------------------------------------------------------------------------------------------------ the tables
def test_there_are_34_claims_and_9_on_real_models_each_about_settings_that_exist():
    page = (ROOT / "lab/page.md").read_text()
    assert [one.number for one in claims.CLAIMS + real.CLAIMS] == list(range(1, 44))
    for one in claims.CLAIMS + real.CLAIMS:
        assert f"{{{{claims {one.paper}}}}}" in page and one.parts
        assert set(report.needs(one)) <= set(real.SETTINGS if one in real.CLAIMS else claims.SETTINGS), one.number
        for _, criterion, _ in one.parts:
            low, high, matters = report.region(criterion)
            assert low < high and matters >= 0
            decided_before = one.number in (16, 28, 33, 34) or one in real.CLAIMS
            assert report.size(criterion) > 0 or decided_before, one.number


@pytest.mark.parametrize("criterion, region, size", [
    ("> 0, 0.02 matters", (0, math.inf, 0.02), 0.02), ("< 0, 1 matters", (-math.inf, 0, 1), 1),
    ("> -0.02", (-0.02, math.inf, 0), 0.02), ("within 1e-9", (-1e-9, 1e-9, 0), 1e-9), ("> 0", (0, math.inf, 0), 0)])
def test_a_criterion_is_a_region_and_a_size(criterion, region, size):
    assert report.region(criterion) == region and report.size(criterion) == size


def commands(model="tiny"):
    """{setting: its command line}, as the lab runs it."""
    return claims.command_lines(model, "numina-math", 0) | (real.SETTINGS if model == "tiny" else {})


@pytest.mark.parametrize("model", ["tiny", "qwen2.5-math-1.5b"])
def test_each_settings_flags_are_those_of_its_script(model, monkeypatch):
    for name, line in commands(model).items():
        script, *flags = shlex.split(line)
        for other in re.findall(r"\{(\w+)", line):
            assert other in claims.SETTINGS | real.SETTINGS, name
        if "worlds" in script:
            assert flags[0] in importlib.import_module("lab.worlds").WORLDS
            continue
        if "why" in script:
            script = importlib.import_module("lab.why").VARIANTS[flags.pop(0)][0].__name__ + ".py"
        module = importlib.import_module(script.removesuffix(".py"))
        monkeypatch.setattr(sys, "argv", [script])
        cfg = common.parse(module.Config, "", [*flags, "--seed=3", "--out=x"])
        assert cfg.seed == 3, name


def test_for_another_model_only_what_does_not_need_the_built_in_world_is_run():
    settings = commands("qwen2.5-math-1.5b")
    assert "raft_pp" in settings and "true_good" in settings and "--data numina-math" in settings["grpo"]
    assert not {"true_bad", "search_right", "teacher", "late_wait"} & settings.keys()
    assert not any("@" in name or "--lr" in line for name, line in settings.items())


def test_a_setting_has_the_best_rate_of_its_grid_or_that_of_the_setting_it_names():
    lines = commands()
    for name, tried in claims.RATES.items():
        best = [rate.strip("*") for rate in tried.split() if "*" in rate]
        assert len(best) == 1 and lines[name] == lines[f"{name}@{best[0]}"], name
        others = [rate for rate in tried.replace("*", "").split() if f"--lr {rate}" in lines[f"{name}@{rate}"]]
        assert len(others) == len(tried.split()) >= 3
    assert lines["grpo_kl"].endswith(lines["grpo_long"].split()[-1])
    assert not any(re.search(r"--lr [a-z]", line) for line in lines.values())


def test_the_rates_with_a_star_are_those_that_were_best_on_the_tuning_seeds():
    results = read_results(LAB)
    for name, tried in claims.RATES.items():
        found = {rate: np.mean([results[f"{name}@{rate.strip('*')}/{seed}"]["evals"][-1]["accuracy"]
                                for seed in claims.TUNING_SEEDS]) for rate in tried.split()}
        best = next(rate for rate in found if found[rate] > max(found.values()) - 0.005)
        assert "*" in best and best not in (list(found)[0], list(found)[-1]), name  # and not at the grid's edge


@pytest.mark.parametrize("arguments, says", [
    (["44"], "give claims, 1 to 43"), (["x"], "all, real or tune"), (["1", "--seeds", "0-"], "--seeds 5 or 10-14"),
    (["1", "--seeds", "0"], "--seeds 5 or 10-14"), (["1", "--seeds", "14-10"], "--seeds 5 or 10-14"),
    (["1", "--jobs", "0"], "--jobs 1 or more"), (["1", "--sedes", "3"], "--help lists the flags")])
def test_bad_arguments_are_one_line(arguments, says, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lab", *arguments])
    with pytest.raises(SystemExit) as left:
        lab.__main__.main()
    assert left.value.code == 2 and says in capsys.readouterr().err


def test_the_variants_that_explain_differ_from_their_algorithm_in_one_thing():
    rewards = torch.tensor([[1.0, 0, 0, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    usual, keep = grpo.advantages(rewards, grpo.Config())
    adv, same = why.positive(rewards, grpo.Config())
    assert (adv == usual.clamp(min=0)).all() and adv.max() > 0 and usual.min() < 0 and (same == keep).all()
    adv, keep = why.mixed(rewards, raft_pp.Config())
    assert keep.tolist() == [[True, False, False, True], [False] * 4, [False] * 4] and (adv == 1).all()


def test_the_characters_of_a_response_that_decide_are_named():
    early = why.kinds("(7+5)*3-8", text := "python\n7+5 #12\n12*3 #37\n\\boxed{37}")
    assert early == {0: "python", text.index("12"): "right value", text.index("12") + 1: "right value",
                     text.index("37"): "wrong value", text.index("37") + 1: "wrong value",
                     text.index("\\"): "box too early"}
    assert why.kinds("7+5", "7+5=12 wait 13\n\\boxed{13}")[15] == "box in time"


def test_what_a_model_finds_more_likely_than_the_base_is_zero_for_the_base_itself(tmp_path, capsys):
    (tmp_path / "eval/step_000000").mkdir(parents=True)
    (tmp_path / "final").symlink_to(ROOT / "models/tiny")
    rows = [row("7+5", 0, True, "7+5=12\n\\boxed{12}"), row("9-2", 0, False, "python\n9-2 #6\n\\boxed{6}")]
    text = "".join(json.dumps(one | dict(problem=one["problem"][:3])) + "\n" for one in rows)
    (tmp_path / "eval/step_000000/tiny-wide-test.jsonl").write_text(text)
    why.tokens([tmp_path])
    lines = [line.rsplit(None, 3) for line in capsys.readouterr().out.splitlines()]
    assert [(kind, int(n)) for kind, n, *_ in lines] == [
        ("box in time", 2), ("other", 22), ("python", 1), ("right value", 2), ("wrong value", 1)]
    assert all(float(base) < 0 and float(change) == 0 for _, _, base, change in lines)


def test_a_setting_has_as_many_seeds_as_the_claims_that_need_it(monkeypatch):
    few, many = claim("> 0")._replace(seeds=3), claim("> 0")._replace(seeds=7)
    assert report.seeds_of([few, many, few]) == dict(run=list(range(7)))
    assert report.seeds_of([few, many], [10, 11]) == dict(run=[10, 11])
    results = {f"run/{seed}": dict(accuracy=0.5 + seed / 100) for seed in range(20)}
    assert [report.judge(one, results)["parts"][0]["n"] for one in (few, many)] == [3, 7]


def test_the_power_of_what_is_measured_alike_is_pooled_and_follows_from_the_tuning_seeds():
    measures = [("accuracy, one", "> 0, 0.02 matters", lambda a: a["accuracy"]),
                ("accuracy, two", "> 0, 0.02 matters", lambda b: b["accuracy"])]
    results = {"a/100": dict(accuracy=0.1), "a/101": dict(accuracy=0.1), "b/100": dict(accuracy=0.1),
               "b/101": dict(accuracy=0.12), "a/0": dict(accuracy=9), "b/0": dict(accuracy=-9)}
    row = report.power([claims.Claim(1, "limit", "", "", measures)], results).splitlines()[-1]
    pooled = math.sqrt((0 + 0.02**2 / 2) / 2)  # 0 and 0.0141
    assert row == f"| accuracy | 1 | 2 | {pooled:.3g} | 0.02 | {seeds_for(pooled, 0.02, 1)} | 10 |"
    twice = [claims.Claim(number, "limit", "", "", measures) for number in (1, 5)]  # parts that are shared count once
    assert report.power(twice, results).splitlines()[-1] == row.replace("| 1 | 2 |", "| 1, 5 | 2 |")


def test_a_figure_says_how_many_seeds_its_lines_and_bars_have():
    data = {"a": ([1, 2], [[0, 1], [0, 1], [0, 1]]), "_crossing": ([1, 1], [[0, 1]]), "b": {"right": [1, 2]}}
    assert figures.how_many(data) == [3, 2]
    drawn = [(figures.draw_seeds, data, "", "", "")]
    assert figures.marks(drawn, "passes") == "n = 2 or 3 seeds; bands: one standard deviation over seeds"
    assert figures.marks([(figures.draw_groups, data, "", "", "")], "real") == "dots in the bars: samples"


def test_on_another_model_the_report_has_no_prose_about_the_built_in_one(tmp_path):
    results = {f"raft/{seed}": dict(seconds=1, evals=[dict(accuracy=0.1), dict(accuracy=0.2)],
                                    curves=dict(accuracy=[0.1, 0.2], entropy=[1, 1], kl=[0.1, 0.1])) for seed in (0, 1)}
    report.write(tmp_path / "lab.json", claims.CLAIMS, report.judge_all(claims.CLAIMS, results), results)
    page = (tmp_path / "lab.md").read_text()
    assert "| `raft.py` | 10.0 ± 0.0 | 20.0 ± 0.0 |" in page and "\n4 hold, 30 not run. docs/lab.md" in page
    assert not re.search("nested sum|0.7 million|first report|We see", page) and "{{" not in page
    assert (tmp_path / "lab-methods.png").exists()


# ------------------------------------------------------------------------------------------------ numbers
def test_grades_are_packed_and_unpacked_and_pass_at_k_follows_from_them():
    right = np.random.default_rng(0).random((3, 13)) < 0.4
    assert (unpack(pack(right), 13) == right).all()
    run = dict(right=pack(np.array([[1, 0, 0, 0], [0, 0, 0, 0]])), samples=4)
    assert pass_at(run, 1) == pytest.approx(1 / 8) and pass_at(run, 4) == pytest.approx(1 / 2)


def row(problem, seed, correct, text="python 1 wait\n\\boxed{1}", tokens=10, finish="stop"):
    return dict(problem_id=problem, problem=f"{problem}+1", gold="1", response=text, extracted="1", correct=correct,
                tokens=tokens, finish=finish, seed=0, sample=seed)


def test_the_digest_of_an_evaluation_by_hand(tmp_path):
    rows = [row(0, 0, True), row(0, 1, False, tokens=20), row(1, 0, False, "no, no", 64, "length"), row(1, 1, True)]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = digest(tmp_path)
    assert (found["accuracy"], found["python"], found["boxed"], found["truncated"]) == (0.5, 0.75, 0.75, 0.25)
    assert (found["length_right"], found["length_wrong"], found["rejected"], found["wait"]) == (10, 20, 0.5, 0.75)
    assert unpack(found["right"], 2).tolist() == [[1, 0], [0, 1]]
    assert grades(found, "uses_python").tolist() == [[1, 1], [0, 1]]
    assert each(found, "accuracy").tolist() == [0.5, 0.5] and each(found, "truncated").tolist() == [0.5, 0]
    assert each(found, "length_wrong").tolist()[1] == 20 and math.isnan(each(found, "length_wrong")[0])
    assert of_style(found, python=True).tolist() == [1, 0.5]
    assert of_style(found, python=False)[0] == 0 and math.isnan(of_style(found, python=False)[1])
    assert found["examples"] == [dict(problem="0+1", gold="1", response="python 1 wait\n\\boxed{1}", correct=True)]


def test_the_digest_of_a_training_run_by_hand(tmp_path):
    rows = [row("1+2", 0, True), row("1+2", 1, False), row("1*2-3", 0, True), row("1*2-3", 1, True)]
    for step in (0, 30):
        (tmp_path / f"eval/step_{step:06d}").mkdir(parents=True)
        (tmp_path / f"eval/step_{step:06d}/test.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    names = "accuracy entropy kl clip_low clip_high kept length"
    lines = [dict(step=0)] + [dict.fromkeys(names.split(), step / 10) | dict(step=step) for step in (1, 2)]
    lines += [dict.fromkeys(names.split()) | dict(step=3, accuracy=0, entropy=0)]  # all updates were skipped
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    found = digest(tmp_path)
    assert found["curves"] == dict.fromkeys(("accuracy", "entropy"), [0.1, 0.2, 0.0])
    assert (found["clip_low"], found["length"]) == (0.15, 0.15) and len(found["evals"]) == 2
    assert found["evals"][-1]["accuracy"] == 0.75 and found["by_operations"] == {"2": 0.5, "3": 1.0}
    assert found["contributions"]["python to python"] is None  # nothing was gained


def test_two_right_and_three_wrong_responses_are_kept_as_examples(tmp_path):
    rows = [row(i, j, i < 4 and j == 0, tokens=j) for i in range(8) for j in range(2)]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    shown = digest(tmp_path)["examples"]
    assert [(one["problem"], one["correct"]) for one in shown] == [
        ("0+1", True), ("1+1", True), ("4+1", False), ("5+1", False), ("6+1", False)]


# ------------------------------------------------------------------------------------------------ real models
def record(right, python=None, **more):
    """What is kept of an evaluation with these grades [P, n]."""
    right = np.array(right)
    packed = pack(np.zeros_like(right) if python is None else np.array(python))
    return dict(right=pack(right), samples=right.shape[1], uses_python=packed) | more


def test_two_conditions_are_compared_problem_by_problem_whatever_their_samples():
    a, b = record([[1, 0], [0, 0]], [[0, 0], [1, 0]]), record([[1, 1, 1, 0], [0, 0, 0, 1]])
    assert real.change(a, b).tolist() == [0.25, 0.25]
    assert real.change(a, b, "uses_python").tolist() == [0, -0.5]
    assert real.solved(a).tolist() == [1, 0]


def test_scatter_of_means_of_k_samples_by_hand():
    run = record([[1, 1, 0, 0, 1], [1, 0, 0, 0, 1], [0, 0, 0, 0, 0]])  # two problems; the third is no whole set
    assert scatter(run, 2) == pytest.approx(np.std([1, 0.5, 0, 0, 1], ddof=1))
    assert scatter(run, 2, k=2) == pytest.approx(np.std([0.75, 0], ddof=1))


def test_scatter_over_chance_by_hand_and_of_independent_seeds():
    # One set of two problems, p = 1/2 and 1/4. The seeds have accuracies 1, 1/2, 0, 0 around 3/8.
    run = record([[1, 1, 0, 0], [1, 0, 0, 0]])
    by_chance = (1 / 4 + 3 / 16) / 2 / 2
    expected = [d**2 / by_chance - 1 for d in (5 / 8, 1 / 8, -3 / 8, -3 / 8)]
    assert real.chance(run, m=2) == pytest.approx(expected)
    rng, p = np.random.default_rng(0), np.random.default_rng(1).random((3000, 1))
    fair = record(rng.random((3000, 16)) < p)
    assert len(real.chance(fair)) == 1600 and real.chance(fair).mean() == pytest.approx(0, abs=4 * 2**0.5 / 1500**0.5)
    same = record((rng.random((1, 16)) < 0.5).repeat(3000, 0))  # seeds that are good or bad
    assert real.chance(same).mean() > 10


def test_arrays_are_values_and_nan_is_none():
    one = claims.Claim(1, "real", "", "", [("x", "> 0", lambda run: np.array(run["x"]))])
    part = report.judge(one, {"run/0": dict(x=[1.0, math.nan, 3.0]), "run/1": dict(x=[2.0])}, [0, 1])["parts"][0]
    assert part["n"] == 3 and part["mean"] == 2
    assert report.judge(one, {"run/0": dict(x=[math.nan])}, [0])["verdict"] == "not run"


def test_a_number_that_a_seed_lacks_leaves_that_seed_out():
    one = claims.Claim(1, "limit", "", "", [("x", "> 0", lambda run: 1 / run["x"])])
    part = report.judge(one, {f"run/{seed}": dict(x=x) for seed, x in enumerate([2, None, 0, 4])}, range(4))["parts"][0]
    assert part["n"] == 2 and part["mean"] == 0.375


def test_the_benchmark_is_drawn_by_hash_whatever_the_order_of_the_file(tmp_path, monkeypatch):
    worlds = importlib.import_module("lab.worlds")
    monkeypatch.setattr(worlds, "ROOT", tmp_path)
    rows = [dict(question=f"{i} + 1 = ?" + 600 * "x" * (i % 10 == 0), answer=f"#### {i + 1}") for i in range(90)]
    other = [dict(problem=f"{i} + 2 = ?", answer=str(i + 2), solution="no") for i in range(40)]
    drawn = []
    for turn in (1, -1):
        (tmp_path / "data").mkdir(exist_ok=True)
        for name, those in (("gsm8k-test", rows), ("math500", other)):
            (tmp_path / f"data/{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in those[::turn]))
        worlds.benchmarks(tmp_path, seed=0)
        drawn.append((tmp_path / "benchmarks.jsonl").read_text())
    assert drawn[0] == drawn[1]
    found = [json.loads(line) for line in drawn[0].splitlines()]
    assert len(found) == 96 and all("+ 1" in one["problem"] for one in found[:64])
    assert all("+ 2" in one["problem"] for one in found[64:]) and max(len(one["problem"]) for one in found) < 500
    worlds.benchmarks(tmp_path, seed=1)
    assert (tmp_path / "benchmarks.jsonl").read_text() != drawn[0]


# ------------------------------------------------------------------------------------------------ runs
TRAINER = """
import json, pathlib, sys, time
flags = dict(flag.lstrip("-").split("=") for flag in sys.argv[1:] if "=" in flag)
out = pathlib.Path(flags["out"])
if out.exists() and "--resume" not in sys.argv:
    out.rename(str(out) + ".1")  # as the training scripts do
out.mkdir(parents=True, exist_ok=True)
open(out / "starts", "a").write(" ".join(sys.argv[1:]) + "\\n")
if flags.get("fails") == flags["seed"]:
    print("step 1 went well"); print("error: no luck today"); sys.exit(3)
names = "reward accuracy entropy kl clip_low clip_high kept length".split()
row = lambda step: json.dumps(dict.fromkeys(names, 0.5 + float(flags["seed"]) / 10) | dict(step=step)) + "\\n"
done = len(open(out / "metrics.jsonl").readlines()) if (out / "metrics.jsonl").exists() else 0
for step in range(done, int(flags.get("steps", 2))):
    open(out / "metrics.jsonl", "a").write(row(step)); time.sleep(float(flags.get("sleep", 0)))
(out / "step_000002").mkdir()
(out / "final").mkdir()
"""


@pytest.fixture
def experiments(tmp_path):
    """Experiments on a script that behaves like a trainer, without the cost; settings(**lines) changes them."""
    (tmp_path / "train.py").write_text(TRAINER)

    def make(**lines):
        settings = {name: f"{tmp_path}/train.py {line}" for name, line in lines.items()}
        return Experiments(settings, tmp_path / "lab.json", tmp_path / "out")

    return make


def starts(one, name, seed=0):
    """The command lines with which a run was started."""
    return (one.folder((name, seed)) / "starts").read_text().splitlines()


def test_runs_that_others_build_on_come_first_and_each_is_run_once(experiments):
    one = experiments(a="--steps=2", b="--model={a}/final", c="--model={b}/final --other={a#0}")
    todo = one.to_do([("c", 1), ("a", 1)])
    assert todo == [("a", 1), ("b", 1), ("a", 0), ("c", 1)]
    assert one.run_all(todo, jobs=2) == []
    assert f"--model={one.folder(('b', 1))}/final" in starts(one, "c", 1)[0]
    again = experiments(a="--steps=2", b="--model={a}/final", c="--model={b}/final --other={a#0}")
    assert again.to_do([("c", 1), ("a", 1)]) == [] and len(again.results) == 4


def test_numbers_without_their_folder_are_enough_unless_another_run_needs_it(experiments):
    one = experiments(a="--steps=2")
    one.run_all([("a", 0)], jobs=1)
    shutil.rmtree(one.out)
    assert experiments(a="--steps=2").to_do([("a", 0)]) == []
    two = experiments(a="--steps=2", b="--model={a}")
    assert two.to_do([("b", 0)]) == [("a", 0), ("b", 0)]


def test_numbers_that_are_missing_are_read_from_a_finished_folder_without_a_run(experiments):
    one = experiments(a="--steps=2")
    one.run_all([("a", 0)], jobs=1)
    before = one.file.read_text()
    one.file.unlink()
    two = experiments(a="--steps=2")
    assert two.to_do([("a", 0)]) == [("a", 0)] and two.run_all([("a", 0)], jobs=1) == []
    assert two.file.read_text() == before and len(starts(two, "a")) == 1


def test_a_finished_run_keeps_its_checkpoints_only_if_a_setting_uses_them(experiments):
    one = experiments(a="--steps=2", b="--model={a}/step_000002", c="--model={b}/final")
    one.run_all(one.to_do([("c", 0)]), jobs=1)
    there = [(one.folder((name, 0)) / "step_000002").exists() for name in "abc"]
    assert there == [True, False, False] and (one.folder(("b", 0)) / "final").exists()


def test_a_changed_command_line_is_run_again_from_nothing(experiments):
    experiments(a="--steps=2").run_all([("a", 0)], jobs=1)
    two = experiments(a="--steps=3")
    assert two.to_do([("a", 0)]) == [("a", 0)] and two.run_all([("a", 0)], jobs=1) == []
    assert len(starts(two, "a")) == 1 and len(two.results["a/0"]["curves"]["accuracy"]) == 2  # without step 0


def test_a_change_of_what_a_run_builds_on_is_a_change_of_the_run(experiments):
    experiments(a="--steps=2", b="--model={a}").run_all([("a", 0), ("b", 0)], jobs=1)
    assert experiments(a="--steps=2", b="--model={a}").to_do([("b", 0)]) == []
    assert experiments(a="--steps=3", b="--model={a}").to_do([("b", 0)]) == [("a", 0), ("b", 0)]


def test_numbers_of_a_setting_that_has_changed_or_is_gone_are_not_judged(experiments):
    experiments(a="--steps=2", b="--steps=2", c="--steps=2").run_all([("a", 0), ("b", 0), ("c", 0)], jobs=2)
    today = experiments(a="--steps=2", b="--steps=3")
    assert list(today.of_today()) == ["a/0"] and set(today.results) == {"a/0", "b/0", "c/0"}


def test_a_failing_run_is_reported_with_its_last_line_and_the_others_go_on(experiments, capsys):
    one = experiments(a="--fails=1", b="--model={a}")
    failures = one.run_all(one.to_do([("a", 0), ("a", 1), ("b", 1), ("b", 0)]), jobs=2)
    assert len(failures) == 2 and "a seed 1: status 3: error: no luck today" in failures[0]
    assert failures[1] == "b seed 1: needs a seed 1"
    assert set(read_results(one.file)) == {"a/0", "b/0"}
    assert "failed: a seed 1" in capsys.readouterr().err
    assert one.to_do([("a", 1), ("b", 1)]) == [("a", 1), ("b", 1)]  # tried again


@pytest.mark.slow
def test_a_killed_lab_takes_its_runs_along_and_goes_on_with_resume(experiments, tmp_path):
    one = experiments(a="--steps=40 --sleep=0.1")
    code = (f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; "
            f"from lab.experiments import Experiments; one = Experiments({one.settings!r}, Path({str(one.file)!r}), "
            f"Path({str(one.out)!r})); one.run_all([('a', 0)], 1)")
    process = start(sys.executable, "-c", code)
    metrics = one.folder(("a", 0)) / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    steps = []
    while len(steps) < 20 or steps[-20] < steps[-1]:  # until it has written nothing for 20 of its steps
        steps.append(len(metrics.read_text().splitlines()))
        time.sleep(0.1)
    assert steps[-1] < 40  # the run has ended too, long before its last step
    assert not one.results and one.to_do([("a", 0)]) == [("a", 0)]
    assert one.run_all([("a", 0)], jobs=1) == []
    assert "--resume" in starts(one, "a")[1] and "--resume" not in starts(one, "a")[0]
    assert len(metrics.read_text().splitlines()) == 40


@pytest.mark.slow
def test_a_real_claim_is_run_judged_and_reported(tmp_path):
    how = ["--seeds", "100-101", "--results", tmp_path / "lab.json", "--out", tmp_path / "out", "--report"]
    text = output_of(sys.executable, "-m", "lab", "16", *how, timeout=900)
    assert "8 runs are missing" in text and re.search(r"^16 +(holds|undecided)", text, re.MULTILINE)
    assert len(read_results(tmp_path / "lab.json")) == 8
    assert "| 16 | **without its template" in (tmp_path / "lab.md").read_text()
    again = output_of(sys.executable, "-m", "lab", "16", *how)
    assert "missing" not in again
    assert text[text.index("16  ") :] == again[again.index("16  ") :]


# ------------------------------------------------------------------------------------------------ the report
@pytest.mark.slow
def test_the_report_and_its_figures_follow_from_the_results_byte_for_byte(tmp_path):
    shutil.copy(LAB, tmp_path / "lab.json")
    output_of(sys.executable, "-m", "lab", "--report", "--results", tmp_path / "lab.json")
    (tmp_path / "lab.json").unlink()
    written = sorted(file.name for file in tmp_path.iterdir())
    assert written == sorted(file.name for file in (ROOT / "docs").glob("lab*"))
    for name in written:
        assert (tmp_path / name).read_bytes() == (ROOT / "docs" / name).read_bytes(), name


def test_the_report_is_in_docs_however_the_committed_results_are_named(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert report.page_of(LAB) == report.page_of(Path("lab/results.json")) == ROOT / "docs/lab.md"
    assert report.page_of(Path("out/mine.json")) == Path("out/mine.md")


def test_the_results_are_small_complete_and_made_by_the_present_settings():
    assert LAB.stat().st_size <= 2_000_000
    one = Experiments(commands(), LAB, Path("out"))
    assert one.results
    for key, record in one.results.items():
        assert record["command"] == one.full_line(key.split("/")[0]), key


def test_readme_shows_the_reports_own_table():
    rows = re.findall(r"^\| `\w+\.py.*", (ROOT / "docs/lab.md").read_text(), re.MULTILINE)
    assert len(rows) == 6
    for one in rows:
        assert one in Path(ROOT / "README.md").read_text()
