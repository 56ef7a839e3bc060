"""Draw the figures of training runs and of evaluations, from their saved files alone.

    python plot.py out/grpo-tiny-s0                              writes out/grpo-tiny-s0/curves.png
    python plot.py out/grpo-tiny-s* out/raft-tiny-s* --out comparison.png --window 20
    python plot.py out/eval-tiny/summary.json                    or compare.json, sweep.json of eval.py

Runs that differ only in their seed are one setting. It has a line for the mean and a band of one standard deviation.
Each setting has its own colour and marker. Each quantity in a panel has its own line style.
"""

import argparse
import json
import re
import sys
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure  # without pyplot, which has a global state
from matplotlib.lines import Line2D

from core.files import read_lines, read_steps

# The colours of Okabe and Ito, made for colour-blind readers too. Yellow is left out: it is too pale on white.
# 7 colours and 8 markers make 56 different pairs.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<"]
LOOKS = [{"color": COLOURS[i % 7], "marker": MARKERS[i % 8]} for i in range(56)]
SHARES = [-0.1, *(np.arange(10) / 10 + 1e-9), 1 - 1e-9, 1.1]  # bins of accuracies: 0, (0, .1], ..., (.9, 1), 1
# Keys of config.json that do not change what a step does. Runs that differ in these alone have the same setting.
BOOKKEEPING = {"seed", "out", "resume", "steps", "save_every", "eval_every", "tensorboard", "wandb", "tokens_per_micro",
               "recompute", "shard_size", "offload", "compile", "vllm_memory", "show", "about"}
ACCURACY = "accuracy\nsolid: training, dashed: reward, hollow: evaluation"
CLIPPED = "clip fraction\nsolid: above 1 + high, dashed: below 1 - low"
# title, name of the y axis, where that axis starts ("zero", "free") or "log", text of an empty panel, {metric: style}
PANELS = [
    (ACCURACY, "share of responses", "zero", "not recorded", {"accuracy": "-", "reward": "--", "eval_accuracy": ":"}),
    ("KL to the initial policy", "nats per token", "zero", "no reference kept", {"kl": "-"}),
    ("entropy", "nats per token", "zero", "not recorded", {"entropy": "-"}),
    ("response length", "tokens", "free", "not recorded", {"length": "-"}),
    (CLIPPED, "share of tokens", "zero", "no clipping", {"clip_high": "-", "clip_low": "--"}),
    ("gradient norm", "L2 norm before clipping (log axis)", "log", "not recorded", {"grad_norm": "-"}),
]


class Run(NamedTuple):
    """A training run, read from its files."""

    folder: Path
    seed: object
    setting: dict  # config.json without BOOKKEEPING; "algorithm" is always there
    rows: dict  # {step: its metrics}


def read_object(file) -> dict:
    """The object in a JSON file. Raises OSError or ValueError, with the file's name."""
    try:
        return dict(json.loads(Path(file).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: not a JSON object ({error})") from None


def load(path):
    """Read a run folder, or a metrics.jsonl with config.json beside it.

    Raises OSError or ValueError: what is wrong, in which file and line."""
    file = Path(path) if Path(path).is_file() else Path(path) / "metrics.jsonl"
    rows, settings = read_steps(file), file.with_name("config.json")
    config = {"algorithm": re.sub(r"-s\d+$", "", file.parent.resolve().name)}
    if settings.exists():
        config |= read_object(settings)
    setting = {key: value for key, value in config.items() if key not in BOOKKEEPING}
    return Run(file.parent, config.get("seed"), setting, rows)


def group_seeds(runs):
    """Lists of runs, one list per setting, in the order given. A second run with the same setting and the same seed
    goes into another list: it is not one more seed, and the code may have changed in between."""
    groups = {}
    for i, run in enumerate(runs):
        twins = sum((other.seed, other.setting) == (run.seed, run.setting) for other in runs[:i])
        key = json.dumps(run.setting, sort_keys=True), twins
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def label_settings(groups):
    """A label for each group: the algorithm, and up to four keys in which the settings differ. Groups with the same
    label also get the folder of their first run."""
    runs = [seeds[0] for seeds in groups]
    keys = dict.fromkeys(key for run in runs for key in run.setting if key != "algorithm")
    # A key is compared only among the runs that have it: raft.py has no clip_high.
    differing = [key for key in keys if len({str(run.setting[key]) for run in runs if key in run.setting}) > 1]
    labels = []
    for run in runs:
        parts = [f"{key}={Path(str(run.setting[key])).name[:24]}" for key in differing if key in run.setting]
        labels.append(" ".join([str(run.setting["algorithm"]), *parts[:4]]))
    return [label if labels.count(label) == 1 else f"{label} [{run.folder}]"
            for label, run in zip(labels, runs, strict=True)]


def moving_average(values, window):
    """[steps] -> [steps]: the mean of the last `window` values at each step. NaN is left out, unless all are NaN."""
    recent = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in recent])


def over_seeds(seeds, metric, window):
    """Four arrays [steps]: the steps; the metric, mean over seeds; its moving average, mean over seeds; the standard
    deviation (Bessel's) of that average over seeds. Only steps where every seed has an average."""
    # Only steps that all seeds have: a mean over fewer seeds would jump where a shorter run ends.
    steps = sorted(set.intersection(*(set(run.rows) for run in seeds)))
    raw = np.array([[run.rows[step].get(metric) for step in steps] for run in seeds], dtype=float)  # null becomes NaN
    averages = np.array([moving_average(values, window) for values in raw])
    deviation = np.std(averages, axis=0, ddof=1) if len(seeds) > 1 else np.zeros(len(steps))
    exists = np.isfinite(averages).all(axis=0)
    return [x[exists] for x in (np.array(steps), raw.mean(axis=0), averages.mean(axis=0), deviation)]


def draw(paths, out, window=None, labels=None):
    """Draw the training curves of one or more runs into the file `out`, 1500 x 900 pixels, and return `out`.

    window: steps of the moving average; 1 means no average. The default is 20, as in the paper (arXiv 2504.11343).
    If the longest run has fewer than 100 steps, it is a tenth of them.
    labels: one per setting (not per seed), in the order of `paths`.
    Raises what load() raises, and ValueError for a wrong window or a wrong number of labels."""
    if window is not None and window < 1:
        raise ValueError(f"--window {window}: give at least 1")
    groups = group_seeds([load(path) for path in paths])
    labels = labels or label_settings(groups)
    if len(labels) != len(groups):
        raise ValueError(f"{len(labels)} labels for {len(groups)} settings: {', '.join(label_settings(groups))}")
    longest = max(max(run.rows) for seeds in groups for run in seeds)
    window = window or (20 if longest >= 100 else max(1, longest // 10))
    figure = Figure(figsize=(15, 9), dpi=100, layout="constrained")
    average = f"moving average of {window} steps, raw values pale" if window > 1 else "no moving average"
    figure.suptitle(f"Training curves ({average})", fontsize=13)
    for ax, panel in zip(figure.subplots(2, 3, sharex=True).flat, PANELS, strict=True):
        draw_panel(ax, groups, window, *panel)
    notes = [f" (mean of {len(seeds)} seeds, band = 1 sd)" if len(seeds) > 1 else "" for seeds in groups]
    names = [label.replace("$", r"\$") + note for label, note in zip(labels, notes, strict=True)]  # no formulas
    handles = [Line2D([], [], lw=2, **look) for look, _ in zip(cycle(LOOKS), groups, strict=False)]
    # The figure is about 150 characters wide. Beside its name, each column needs 8 for the line and the margin.
    columns = max(1, min(len(names), 150 // (max(map(len, names)) + 8)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=11)
    figure.savefig(out)
    return out


def draw_panel(ax, groups, window, title, unit, start, when_empty, styles):
    """Draw one panel of the training curves. The last five arguments are a row of PANELS."""
    for i, (seeds, look) in enumerate(zip(groups, cycle(LOOKS), strict=False)):
        for metric, style in styles.items():
            is_evaluation = metric == "eval_accuracy"  # only some steps have one: no average over steps
            steps, raw, mean, deviation = over_seeds(seeds, metric, 1 if is_evaluation else window)
            hidden = metric == "reward" and np.array_equal(mean, over_seeds(seeds, "accuracy", window)[2])
            if hidden or not len(steps):  # hidden: the accuracy has the same line
                continue
            every = 1 if is_evaluation else max(1, len(steps) // 6)
            shift = i * every // len(groups)  # the markers of two settings should not hide each other
            shape = {"lw": 1, "ms": 7, "mfc": "white"} if is_evaluation else {"lw": 2, "ms": 5}
            ax.plot(steps, mean, style, markevery=(shift, every), zorder=3, **shape, **look)
            ax.plot(steps, raw, style, color=look["color"], lw=0.8, alpha=0.3)
            ax.fill_between(steps, mean - deviation, mean + deviation, color=look["color"], alpha=0.15, lw=0)
    ax.set(title=title, ylabel=unit, xlabel="training step" if ax.get_subplotspec().is_last_row() else "")
    ax.grid(alpha=0.25)
    ax.locator_params(axis="x", integer=True)
    if start == "log":
        ax.set_yscale("log")
    elif start == "zero":
        ax.set_ylim(min(0, ax.dataLim.y0), ax.get_ylim()[1])
    if not ax.lines:
        ax.text(0.5, 0.5, when_empty, ha="center", transform=ax.transAxes)
        ax.set_yticks([])


def panels_of(file, setting, name, r):
    """The panels of one benchmark, from its numbers r in the file. See draw_evaluation()."""
    if setting:  # a sweep over this setting
        accuracies = {value: 100 * np.array(result["per_seed"]) for value, result in r.items()}
        return [(draw_boxes, accuracies, setting, "accuracy of each seed, %")]
    short = lambda folder: Path(folder).name.removeprefix("eval-")
    models = {short(label): model for label, model in r["models"].items()} if "pairs" in r else {name: r}
    accuracies = {label: np.array(model["right"]) / model["samples"] for label, model in models.items()}
    panels = [(draw_pass, models), (draw_bars, accuracies, SHARES, "accuracy; outermost: exactly 0, 1", "problems")]
    if "pairs" in r:  # a comparison
        for label, pair in r["pairs"].items():
            if sum(cell["size"] > 0 for cell in pair["transitions"].values()) > 1:  # else there is only one strategy
                panels.append((draw_flow, pair["transitions"], short(label)))
        if r.get("perplexity"):
            perplexity = {short(label): values for label, values in r["perplexity"].items()}
            panels.append((draw_boxes, perplexity, "responses of", "perplexity under the baseline"))
        return panels
    lengths = {"right": [], "wrong": []}
    for _, row in read_lines(file.with_name(f"{name}.jsonl")):
        lengths["right" if row["correct"] else "wrong"].append(row["tokens"] or len(row["response"]))
    # How much averages over K seeds scatter (arXiv 2504.07086, section 3): draw K of the seeds, with replacement.
    drawn = 100 * np.random.default_rng(0).choice(r["per_seed"], size=(r["seeds"], 10_000))
    averages = {k: drawn[:k].mean(0) for k in range(1, r["seeds"] + 1)}
    return [*panels, (draw_bars, lengths, 30, "response length, tokens (or characters)", "responses, all seeds"),
            (draw_boxes, averages, "K, seeds averaged", "mean accuracy of K seeds, %")]


def draw_evaluation(path):
    """Draw a summary.json, compare.json or sweep.json of eval.py into a .png beside it, and return the .png.

    Each benchmark is a row of panels. A panel is a tuple: the function that draws it, and its arguments after the axes.
    Raises OSError or ValueError: what is wrong, in which file."""
    path, data = Path(path), read_object(path)
    try:
        grid = [panels_of(path, data.get("setting"), name, r) for name, r in data["benchmarks"].items()]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no results of eval.py in it ({error!r}); let the evaluation finish first") from None
    rows, columns = len(grid), max(map(len, grid))
    figure = Figure(figsize=(5 * columns, 4.2 * rows), layout="constrained")
    for name, panels, axes in zip(data["benchmarks"], grid, figure.subplots(rows, columns, squeeze=False)):
        for ax, (draw_one, *arguments) in zip(axes, panels):
            draw_one(ax, *arguments)
            ax.set_title(name)
            ax.grid(alpha=0.25)
            below = len(ax.get_legend_handles_labels()[1]) > 3  # below the axes, a long legend hides no curve
            ax.legend(fontsize=7, **dict(loc="upper center", bbox_to_anchor=(0.5, -0.18)) if below else {})
    picture = path.with_suffix(".png")
    figure.savefig(picture)
    return picture


def draw_boxes(ax, groups, xlabel, ylabel):
    """A box for each group of {label: values}."""
    ax.boxplot(list(groups.values()), whis=(2.5, 97.5), sym="", label="box 50 %, whiskers 95 %")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_xticks(range(1, len(groups) + 1), groups, rotation=15 if len("".join(map(str, groups))) > 40 else 0)


def draw_bars(ax, groups, bins, xlabel, ylabel):
    """A histogram of {label: values}, with the bars of the groups side by side."""
    ax.hist(list(groups.values()), bins, label=list(groups), color=[LOOKS[i]["color"] for i in range(len(groups))])
    ax.set(xlabel=xlabel, ylabel=ylabel)


def draw_pass(ax, models):
    """pass@k and maj@k with their intervals, for {label: numbers of a model}. maj@k may end at a smaller k."""
    for (label, r), look in zip(models.items(), LOOKS):
        for kind, style in (("pass", "-"), ("maj", "--")):
            mean, low, high = 100 * np.array(r[f"{kind}_at"]).T
            x = np.log2(r["ks"][: len(mean)])
            ax.plot(x, mean, style, label=f"{kind}@k {label}", ms=5, **look)
            ax.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    ax.set(xlabel="k (log axis)", ylabel="% of problems, 95 % interval", xticks=np.log2(r["ks"]), xticklabels=r["ks"])


def draw_flow(ax, cells, label):
    """How strategies change: before on the left, after on the right. On both sides, python is below words.
    cells: see core.stats.transitions(). Each cell is a band, as wide as its share of the pairs of responses."""
    python_python, python_words, words_python, words_words = (cell["size"] for cell in cells.values())
    bottoms_left = (0, python_python, python_python + python_words, 1 - words_words)
    bottoms_right = (0, python_python + words_python, python_python, 1 - words_words)
    x = np.linspace(0, 1, 50)
    for (name, r), left, right, colour in zip(cells.items(), bottoms_left, bottoms_right, COLOURS):
        text = f"{name}: {r['size']:.0%}, right {r['before']:.0%} to {r['after']:.0%}, {r['contribution']:+.0%} of gain"
        low = left + (right - left) * (1 - np.cos(np.pi * x)) / 2
        ax.fill_between(x, low, low + r["size"], color=colour, alpha=0.6, lw=0, label=text)
    ax.set(xticks=(0, 1), xticklabels=("before", "after"), xlabel=label, ylabel="share of pairs", ylim=(0, 1.4))


def main():
    parser = argparse.ArgumentParser(description="Draw the training curves of one or more runs, or an evaluation.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, a metrics.jsonl, or eval.py's .json")
    parser.add_argument("--out", help="default: curves.png in the folder of a single run, else in this folder")
    parser.add_argument("--window", type=int, help="steps of the moving average, 1: none; default 20, less if short")
    parser.add_argument("--labels", nargs="+", help="one for each setting, in the order of the runs")
    args = parser.parse_args()
    try:
        if args.runs[0].endswith(".json"):
            for path in args.runs:
                print(draw_evaluation(path))
        else:
            folder = load(args.runs[0]).folder if len(args.runs) == 1 else Path()
            print(draw(args.runs, args.out or folder / "curves.png", args.window, args.labels))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
