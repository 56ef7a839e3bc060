"""plot.py: reading runs, seeds and averages by hand numbers, and the figure itself."""

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import plot

ROOT = Path(__file__).resolve().parent.parent


def write_run(folder, rows, **config):
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def rows(steps, slope=0.01, **more):
    """A run with every panel's metrics, an evaluation before training and one at each tenth step."""
    run = [{"step": 0, "eval_accuracy": 0.2}]
    for step in range(1, steps + 1):
        share = min(1.0, 0.2 + slope * step + 0.02 * (step % 3))
        run.append({"step": step, "accuracy": share, "reward": share, "kl": 1e-4 * step, "entropy": 0.5 - 0.001 * step})
        run[-1] |= {"length": 50 + step % 7, "clip_high": 1e-3, "clip_low": 4e-4, "grad_norm": 0.3 / step, **more}
        if step % 10 == 0:
            run[-1]["eval_accuracy"] = share
    return run


def plot_cli(*args, cwd=ROOT):
    command = [sys.executable, str(ROOT / "plot.py"), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def pixels(png):
    return matplotlib.image.imread(png)[..., :3]  # [height, width, RGB], 1 = white


# --- the moving average ---


def test_moving_average_looks_back_over_the_window_and_starts_with_what_there_is():
    average = plot.moving_average(np.array([1.0, 2.0, 6.0, 4.0]), 3)
    np.testing.assert_allclose(average, [1.0, 1.5, 3.0, 4.0])  # 1; (1+2)/2; (1+2+6)/3; (2+6+4)/3


def test_moving_average_of_one_step_is_the_values_and_a_long_window_the_running_mean():
    values = np.array([3.0, 1.0, 2.0])
    np.testing.assert_array_equal(plot.moving_average(values, 1), values)
    np.testing.assert_allclose(plot.moving_average(values, 100), [3.0, 2.0, 2.0])


def test_moving_average_leaves_missing_values_out():
    average = plot.moving_average(np.array([np.nan, 2.0, np.nan, np.nan, 8.0]), 2)
    np.testing.assert_allclose(average, [np.nan, 2.0, 2.0, np.nan, 8.0])


# --- settings and seeds ---


def test_runs_that_differ_in_bookkeeping_only_are_seeds_of_one_setting(tmp_path):
    folders = [write_run(tmp_path / f"g{s}", rows(3), algorithm="grpo", lr=1e-6, seed=s, out=f"g{s}") for s in (0, 1)]
    folders.append(write_run(tmp_path / "g2", rows(3), algorithm="grpo", lr=1e-6, seed=2, resume=True, steps=9,
                             recompute=1, offload=True, tokens_per_micro=4096, shard_size=8))
    folders.append(write_run(tmp_path / "h0", rows(3), algorithm="grpo", lr=2e-6, seed=0))
    groups = plot.group_seeds([plot.load(folder) for folder in folders])
    assert [[run.folder.name for run in seeds] for seeds in groups] == [["g0", "g1", "g2"], ["h0"]]


def test_a_second_run_of_the_same_seed_is_not_counted_as_a_further_seed(tmp_path):
    names = [("old0", 0), ("old1", 1), ("new0", 0), ("new1", 1)]
    runs = [plot.load(write_run(tmp_path / name, rows(2), algorithm="raft", seed=seed)) for name, seed in names]
    groups = plot.group_seeds(runs)
    assert [[run.folder.name for run in seeds] for seeds in groups] == [["old0", "old1"], ["new0", "new1"]]
    assert plot.label_settings(groups) == [f"raft [{tmp_path / 'old0'}]", f"raft [{tmp_path / 'new0'}]"]


def test_mean_and_bessel_deviation_over_seeds_on_the_steps_that_all_have(tmp_path):
    curves = {"a": [0.1, 0.3, 0.5], "b": [0.2, 0.3], "c": [0.6, 0.9, 0.9, 0.9]}
    seeds = []
    for seed, (name, curve) in enumerate(curves.items()):
        run = [{"step": step, "accuracy": value} for step, value in enumerate(curve, 1)]
        seeds.append(plot.load(write_run(tmp_path / name, run, algorithm="grpo", seed=seed)))
    steps, raw, mean, deviation = plot.over_seeds(seeds, "accuracy", 1)
    assert steps.tolist() == [1, 2]
    np.testing.assert_allclose(mean, [0.3, 0.5])
    # step 1: deviations -0.2, -0.1, 0.3, squares sum to 0.14, over 2; step 2: -0.2, -0.2, 0.4, squares 0.24, over 2
    np.testing.assert_allclose(deviation, [0.07**0.5, 0.12**0.5])
    # With a window of 2 the seeds are averaged first: at step 2 they are 0.2, 0.25, 0.75.
    steps, raw, mean, deviation = plot.over_seeds(seeds, "accuracy", 2)
    np.testing.assert_allclose(raw, [0.3, 0.5])
    np.testing.assert_allclose(mean, [0.3, 0.4])
    np.testing.assert_allclose(deviation[1], ((0.2**2 + 0.15**2 + 0.35**2) / 2) ** 0.5)


def test_one_run_has_no_deviation_and_steps_without_a_value_are_left_out(tmp_path):
    run = [{"step": 0, "eval_accuracy": 0.25}, {"step": 1, "kl": None}, {"step": 2, "kl": 0.5, "eval_accuracy": 0.75}]
    seeds = [plot.load(write_run(tmp_path / "a", run, algorithm="grpo"))]
    for metric, expected in {"kl": ([2], [0.5]), "eval_accuracy": ([0, 2], [0.25, 0.75]), "entropy": ([], [])}.items():
        steps, raw, mean, deviation = plot.over_seeds(seeds, metric, 1)
        assert (steps.tolist(), mean.tolist(), deviation.tolist()) == (*expected, [0.0] * len(steps))


def test_labels_name_the_algorithm_and_the_keys_that_differ(tmp_path):
    common = {"lr": 1e-6, "temperature": 1.0}
    configs = [
        {"algorithm": "grpo", "clip_high": 0.2, "model": "models/tiny", **common},
        {"algorithm": "grpo", "clip_high": 0.28, "model": "models/tiny", **common},
        {"algorithm": "raft", "model": "models/tiny-badcode/", **common},  # no clip_high: raft has no such key
    ]
    groups = [[plot.load(write_run(tmp_path / str(i), rows(2), **config))] for i, config in enumerate(configs)]
    labels = ["grpo clip_high=0.2 model=tiny", "grpo clip_high=0.28 model=tiny", "raft model=tiny-badcode"]
    assert plot.label_settings(groups) == labels
    assert plot.label_settings(groups[:1]) == ["grpo"]


def test_without_an_algorithm_in_the_config_the_folder_name_without_its_seed_stands_for_it(tmp_path):
    runs = [plot.load(write_run(tmp_path / name, rows(2), seed=s)) for s, name in enumerate(["grpo-s0", "grpo-s1"])]
    other = plot.load(write_run(tmp_path / "raft-s2", rows(2), seed=2))
    groups = plot.group_seeds([*runs, other])
    assert [len(seeds) for seeds in groups] == [2, 1]
    assert plot.label_settings(groups) == ["grpo", "raft"]


# --- reading ---


def test_a_broken_last_line_is_ignored(tmp_path):
    folder = write_run(tmp_path / "killed", rows(4), algorithm="grpo")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "accur')
    assert list(plot.load(folder).rows) == [0, 1, 2, 3, 4]
    assert list(plot.load(folder / "metrics.jsonl").rows) == [0, 1, 2, 3, 4]
    done = plot_cli(folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{folder / 'curves.png'}\n", "")


def test_nan_null_and_infinity_are_missing_values(tmp_path):
    run = [{"step": 1, "grad_norm": float("nan")}, {"step": 2, "grad_norm": float("inf")}, {"step": 3, "grad_norm": 2}]
    seeds = [plot.load(write_run(tmp_path / "a", [*run, {"step": 4, "grad_norm": None}]))]
    steps, raw, mean, deviation = plot.over_seeds(seeds, "grad_norm", 2)
    assert (steps.tolist(), mean.tolist()) == ([3, 4], [2.0, 2.0])  # an infinite value would spoil two averages


def broken(folder, metrics, config="{}"):
    folder.mkdir()
    (folder / "config.json").write_text(config)
    if metrics is not None:
        (folder / "metrics.jsonl").write_text(metrics)
    return folder


@pytest.mark.parametrize(
    "name, metrics, config, says",
    [
        ("no_file", None, "{}", ["no_file/metrics.jsonl", "No such file"]),
        ("empty", "", "{}", ["empty/metrics.jsonl", "no complete step"]),
        ("middle", '{"step": 1}\n{"step": \n{"step": 3}\n', "{}", ["middle/metrics.jsonl, line 2"]),
        ("no_step", '{"step": 1}\n{"kl": 1}\n{"step": 3}\n', "{}", ["no_step/metrics.jsonl, line 2"]),
        ("list", "[1]\n" + '{"step": 3}\n', "{}", ["list/metrics.jsonl, line 1"]),
        ("config", '{"step": 1}\n', '{"lr": ', ["config/config.json", "line 1"]),
    ],
)
def test_unreadable_runs_raise_one_line_with_file_and_line(tmp_path, name, metrics, config, says):
    folder = broken(tmp_path / name, metrics, config)
    with pytest.raises((OSError, ValueError)) as error:
        plot.load(folder)
    assert all(part in str(error.value) for part in says)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("case", ["missing", "middle", "labels", "suffix", "window", "unfinished", "list", "cut off"])
def test_errors_are_one_line_on_stderr_and_status_2(tmp_path, case):
    good = write_run(tmp_path / "good", rows(3), algorithm="grpo")
    middle = broken(tmp_path / "middle", '{"step": 1}\n{"st\n{"step": 3}\n')
    (tmp_path / "summary.json").write_text('{"settings": {}}')  # as eval.py leaves it until all is sampled
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "cut.json").write_text('{"benchmarks": ')
    arguments, says = {
        "missing": ([good, tmp_path / "nowhere"], "nowhere"),
        "middle": ([good, middle], f"{middle / 'metrics.jsonl'}, line 2"),
        "labels": ([good, "--labels", "a", "b"], "2 labels for 1 settings: grpo"),
        "suffix": ([good, "--out", tmp_path / "curves.docx"], "docx"),
        "window": ([good, "--window", 0], "--window 0: give at least 1"),
        "unfinished": ([tmp_path / "summary.json"], f"{tmp_path / 'summary.json'}: no results of eval.py in it"),
        "list": ([tmp_path / "list.json"], f"{tmp_path / 'list.json'}: not a JSON object"),
        "cut off": ([tmp_path / "cut.json"], f"{tmp_path / 'cut.json'}: not a JSON object"),
    }[case]
    done = plot_cli(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")


# --- the figure ---


def test_one_run_writes_a_png_of_1500_by_900_into_its_folder(tmp_path):
    folder = write_run(tmp_path / "grpo-s0", rows(40), algorithm="grpo", seed=0)
    plot.draw([folder], folder / "curves.png")
    image = pixels(folder / "curves.png")
    assert image.shape == (900, 1500, 3)
    for row in np.split(image, 2, axis=0):
        for panel in np.split(row, 3, axis=1):  # a curve in each panel: pixels of the first colour of the palette
            blue = np.abs(panel - np.array([0x00, 0x72, 0xB2]) / 255).max(axis=2) < 0.02
            assert panel.var() > 1e-3 and blue.sum() > 100


def test_two_settings_of_three_seeds_go_into_one_figure(tmp_path):
    folders = []
    for name, clip_high, slope in [("a", 0.2, 0.004), ("b", 0.28, 0.003)]:
        for seed in range(3):
            run = rows(110 + seed, slope + 0.0002 * seed)
            folders.append(write_run(tmp_path / f"{name}{seed}", run, algorithm="grpo", clip_high=clip_high, seed=seed))
    done = plot_cli(*folders, "--labels", "clip 0.2", "cost $1 and $2", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "curves.png\n", "")
    image = pixels(tmp_path / "curves.png")
    for colour in ([0x00, 0x72, 0xB2], [0xD5, 0x5E, 0x00]):
        assert (np.abs(image - np.array(colour) / 255).max(axis=2) < 0.02).sum() > 1000


def test_caption_and_legend_say_how_the_lines_were_made(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plot.Figure, "savefig", lambda figure, out: figures.append(figure))
    long = [write_run(tmp_path / f"l{s}", rows(120), algorithm="grpo", seed=s) for s in (0, 1, 2)]
    short = write_run(tmp_path / "s0", rows(40), algorithm="raft", seed=0)
    for paths, window in [(long, None), ([short], None), ([short], 7), ([short], 1)]:
        plot.draw(paths, "unused.png", window)
    captions = [figure.get_suptitle() for figure in figures]
    for caption, part in zip(captions, ["of 20 steps", "of 4 steps", "of 7 steps", "no moving average"], strict=True):
        assert part in caption
    legends = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in figures]
    assert legends[:2] == [["grpo (mean of 3 seeds, band = 1 sd)"], ["raft"]]
    assert figures[0].axes[3].get_xlabel() == "training step"
    assert figures[0].axes[5].get_yscale() == "log"


def test_reward_is_drawn_only_where_it_is_not_the_accuracy(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plot.Figure, "savefig", lambda figure, out: figures.append(figure))
    same = write_run(tmp_path / "same", rows(40), algorithm="grpo")
    spurious = write_run(tmp_path / "spurious", rows(40, reward=0.5), algorithm="grpo")
    plot.draw([same], "unused.png", window=1)
    plot.draw([spurious], "unused.png", window=1)
    dashed = [[line for line in figure.axes[0].lines if line.get_linestyle() == "--"] for figure in figures]
    assert not dashed[0]
    assert set(dashed[1][0].get_ydata()) == {0.5}
    hollow = [line for line in figures[0].axes[0].lines if line.get_markerfacecolor() == "white"]
    assert hollow[0].get_xdata().tolist() == [0, 10, 20, 30, 40]


def test_runs_without_kl_or_clipping_and_of_a_single_step_are_drawn(tmp_path, monkeypatch):
    bare = [{"step": step, "accuracy": 0.5, "reward": 0.5, "kl": None, "grad_norm": float("nan")} for step in (1, 2)]
    paths = [write_run(tmp_path / "bare", bare, algorithm="raft"), write_run(tmp_path / "one", bare[:1])]
    paths.append(write_run(tmp_path / "only_evaluated", [{"step": 0, "eval_accuracy": 0.5}], algorithm="grpo"))
    plot.draw(paths, tmp_path / "curves.png")
    assert pixels(tmp_path / "curves.png").var() > 1e-3
    figures = []
    monkeypatch.setattr(plot.Figure, "savefig", lambda figure, out: figures.append(figure))
    plot.draw(paths, "unused.png")
    notes = [[text.get_text() for text in ax.texts] for ax in figures[0].axes]
    none = ["not recorded"]
    assert notes == [[], ["no reference kept"], none, none, ["no clipping"], none]


def test_importing_plot_needs_neither_pyplot_nor_torch_and_prints_nothing():
    code = "import sys, plot; print([name for name in ('matplotlib.pyplot', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# --- evaluations ---


def summary(pass_at, samples=4, seeds=2, **more):
    """One benchmark's numbers, as far as the figures read them."""
    points = [[x, x - 0.1, x + 0.05] for x in pass_at]
    r = {"ks": [1, 2, 4], "pass_at": points, "maj_at": points[:2], "right": [0, 1, 4], "samples": samples}
    return r | {"seeds": seeds, "per_seed": [0.4, 0.6][:seeds]} | more


def evaluation(folder, name, data, figures):
    folder.mkdir()
    (folder / f"{name}.json").write_text(json.dumps(data))
    rows = [{"tokens": 5 + i, "correct": i % 2 == 0, "response": "x"} for i in range(8)]
    (folder / "tiny.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot.draw_evaluation(folder / f"{name}.json")
    return figures[-1].axes


@pytest.fixture
def figures(monkeypatch):
    """The figures that were drawn, instead of files."""
    drawn = []
    monkeypatch.setattr(plot.Figure, "savefig", lambda figure, out: drawn.append(figure))
    return drawn


def test_a_summary_shows_curves_accuracies_lengths_and_what_averaging_seeds_does(tmp_path, figures):
    axes = evaluation(tmp_path / "a", "summary", {"benchmarks": {"tiny": summary([0.4, 0.6, 0.7])}}, figures)
    assert len(axes) == 4 and all(ax.get_xlabel() and ax.get_ylabel() for ax in axes)
    curves = {line.get_label(): line.get_ydata().tolist() for line in axes[0].lines}
    assert curves == {"pass@k tiny": pytest.approx([40, 60, 70]), "maj@k tiny": pytest.approx([40, 60])}
    heights = [bar.get_height() for bar in axes[1].patches]
    assert heights == [1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]  # accuracies 0, 1/4 and 1, in twelve bins
    assert sum(bar.get_height() for bar in axes[2].patches) == 8
    medians = [line.get_ydata()[0] for line in axes[3].lines if line.get_color() == "C1"]
    assert len(medians) == 2 and 40 <= medians[1] <= 60


def test_accuracies_on_an_edge_belong_to_the_lower_bin(tmp_path, figures):
    r = summary([0.4, 0.6, 0.7], samples=10, right=list(range(11)))
    axes = evaluation(tmp_path / "a", "summary", {"benchmarks": {"tiny": r}}, figures)
    assert [bar.get_height() for bar in axes[1].patches] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 1]  # 0, .1, ..., .9, 1


def test_a_comparison_shows_all_models_and_the_flow_of_strategies(tmp_path, figures):
    models = {"out/base": summary([0.2, 0.4, 0.9]), "out/rl": summary([0.6, 0.7, 0.8])}
    names = [f"{x} to {y}" for x in ("python", "words") for y in ("python", "words")]
    sizes = dict(zip(names, [0.4, 0.1, 0.3, 0.2]))
    cells = {name: {"size": x, "before": 0.5, "after": 0.7, "contribution": 0.25} for name, x in sizes.items()}
    data = {"models": models, "pairs": {"out/rl": {"transitions": cells}}, "perplexity": {"out/base": [1.0, 1.2]}}
    axes = evaluation(tmp_path / "a", "compare", {"baseline": "out/base", "benchmarks": {"tiny": data}}, figures)
    assert len(axes) == 4
    labels = {f"{kind}@k {model}" for kind in ("pass", "maj") for model in ("base", "rl")}
    assert {line.get_label() for line in axes[0].lines} == labels
    bands = [band.get_paths()[0].vertices for band in axes[2].collections]
    ends = [[band[band[:, 0] == x, 1] for x in (0, 1)] for band in bands]
    spans = [[(y.min(), y.max()) for y in pair] for pair in ends]
    # Left: python first, 0 to .5, by where they go; right: python first, 0 to .7, by where they come from.
    expected = [[(0, 0.4), (0, 0.4)], [(0.4, 0.5), (0.7, 0.8)], [(0.5, 0.8), (0.4, 0.7)], [(0.8, 1), (0.8, 1)]]
    np.testing.assert_allclose(spans, expected, atol=1e-12)
    assert "python to words: 10%, right 50% to 70%, +25% of gain" in axes[2].get_legend_handles_labels()[1]


def test_a_sweep_is_a_box_of_seeds_for_each_value_and_a_row_for_each_benchmark(tmp_path, figures):
    values = {"0": summary([0.4], per_seed=[0.4, 0.4]), "0.5": summary([0.4], per_seed=[0.3, 0.5])}
    data = {"setting": "temperature", "benchmarks": {"tiny": values, "aime24": values}}
    axes = evaluation(tmp_path / "a", "sweep", data, figures)
    assert [ax.get_title() for ax in axes] == ["tiny", "aime24"]
    assert [label.get_text() for label in axes[0].get_xticklabels()] == ["0", "0.5"]
    assert axes[0].get_xlabel() == "temperature"


def test_the_command_line_draws_an_evaluation_beside_its_numbers(tmp_path):
    data = {"benchmarks": {"tiny": summary([0.4, 0.6, 0.7], seeds=1)}}
    (tmp_path / "summary.json").write_text(json.dumps(data))
    (tmp_path / "tiny.jsonl").write_text('{"tokens": null, "correct": true, "response": "four"}\n')
    done = plot_cli(tmp_path / "summary.json")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tmp_path / 'summary.png'}\n", "")
    image = pixels(tmp_path / "summary.png")
    assert image.shape == (420, 2000, 3) and image.var() > 1e-3
