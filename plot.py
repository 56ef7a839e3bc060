"""Figures of training runs and evaluations, drawn from their saved files alone; one function per figure.

    python plot.py out/grpo-tiny-s0                              writes out/grpo-tiny-s0/curves.png
    python plot.py out/grpo-tiny-s* out/raft-tiny-s* --out comparison.png --window 20
    python plot.py out/eval-tiny/summary.json                    or compare.json, sweep.json of eval.py

Runs that differ only in their seed are one setting: a line for their mean, a band of one standard deviation.
Colour and marker tell settings apart, line style tells the quantities of a panel apart.
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

# Okabe and Ito's colours: colour-blind readers can tell them apart. Without yellow, which is too pale on white.
# 7 colours and 8 markers make 56 different pairs.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<"]
LOOKS = [{"color": COLOURS[i % 7], "marker": MARKERS[i % 8]} for i in range(56)]
SHARES = [-0.1, *(np.arange(10) / 10 + 1e-9), 1 - 1e-9, 1.1]  # bins of accuracies: 0, (0, .1], ..., (.9, 1), 1
# Keys of config.json that do not change what a step does. Runs that differ in these alone have the same setting.
BOOKKEEPING = {"seed", "out", "resume", "steps", "save_every", "eval_every", "tensorboard", "wandb", "tokens_per_micro",
               "show", "about"}
ACCURACY = "accuracy\nsolid: training, dashed: reward, hollow: evaluation"
CLIPPED = "clip fraction\nsolid: above 1 + high, dashed: below 1 - low"
# title, y axis, its start ("zero", "free") or "log", what an empty panel says, {metric: line style}
PANELS = [
    (ACCURACY, "share of responses", "zero", "not recorded", {"accuracy": "-", "reward": "--", "eval_accuracy": ":"}),
    ("KL to the initial policy", "nats per token", "zero", "no reference kept", {"kl": "-"}),
    ("entropy", "nats per token", "zero", "not recorded", {"entropy": "-"}),
    ("response length", "tokens", "free", "not recorded", {"length": "-"}),
    (CLIPPED, "share of tokens", "zero", "no clipping", {"clip_high": "-", "clip_low": "--"}),
    ("gradient norm", "L2 norm before clipping (log axis)", "log", "not recorded", {"grad_norm": "-"}),
]


class Run(NamedTuple):
    """A training run, as its files have it."""

    folder: Path
    seed: object
    setting: dict  # config.json without BOOKKEEPING; "algorithm" is always there
    rows: dict  # {step: its metrics}


def load(path):
    """Read a run folder, or a metrics.jsonl with config.json beside it.

    Raises OSError or ValueError: what is wrong, in which file and line."""
    file = Path(path) if Path(path).is_file() else Path(path) / "metrics.jsonl"
    rows = read_steps(file)
    config = {"algorithm": re.sub(r"-s\d+$", "", file.parent.resolve().name)}
    if (config_file := file.with_name("config.json")).exists():
        try:
            config |= json.loads(config_file.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{config_file}: not a JSON object ({error})") from None
    setting = {key: value for key, value in config.items() if key not in BOOKKEEPING}
    return Run(file.parent, config.get("seed"), setting, rows)


def group_seeds(runs):
    """Lists of runs, one list per setting, in the order given.

    A second run with the same setting and seed goes into another list. It is not one more seed: somebody may have
    changed the code in between."""
    groups = {}
    for i, run in enumerate(runs):
        twins = sum((other.seed, other.setting) == (run.seed, run.setting) for other in runs[:i])
        key = json.dumps(run.setting, sort_keys=True), twins
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def label_settings(groups):
    """A label for each group: the algorithm, and up to four keys in which the settings differ. If two labels are still
    the same, the folder of the group's first run too."""
    runs = [seeds[0] for seeds in groups]
    keys = dict.fromkeys(key for run in runs for key in run.setting if key != "algorithm")
    # Only runs that have a key are compared in it: raft.py has no clip_high.
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
    """Four arrays [steps]: the steps; the mean over seeds of the metric, and of its moving average; the standard
    deviation over seeds (Bessel's) of the moving averages. Steps without a moving average for each seed are left
    out."""
    # Only steps that all seeds have: a mean over fewer seeds would jump where a shorter run ends.
    steps = sorted(set.intersection(*(set(run.rows) for run in seeds)))
    raw = np.array([[run.rows[step].get(metric) for step in steps] for run in seeds], dtype=float)  # null becomes NaN
    averages = np.array([moving_average(values, window) for values in raw])
    deviation = np.std(averages, axis=0, ddof=1) if len(seeds) > 1 else np.zeros(len(steps))
    exists = np.isfinite(averages).all(axis=0)
    return [x[exists] for x in (np.array(steps), raw.mean(axis=0), averages.mean(axis=0), deviation)]


def draw(paths, out, window=None, labels=None):
    """Draw the training curves of one or more runs into the file `out`, 1500 x 900 pixels.

    window: steps of the moving average, 1: none. None: 20, as in the paper (arXiv 2504.11343), or a tenth of the
    longest run if that has fewer than 100 steps. labels: one per setting (not per seed), in the order of `paths`.
    Raises what load() raises, and ValueError for a wrong number of labels."""
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
    # As many columns as fit into the width of the figure, about 150 characters; 8 for a name's line and margin.
    columns = max(1, min(len(names), 150 // (max(map(len, names)) + 8)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=11)
    figure.savefig(out)


def draw_panel(ax, groups, window, title, unit, start, when_empty, styles):
    """Draw a panel of the training curves; its last arguments are a row of PANELS."""
    for i, (seeds, look) in enumerate(zip(groups, cycle(LOOKS), strict=False)):
        for metric, style in styles.items():
            is_evaluation = metric == "eval_accuracy"  # only some steps have one, so it is not averaged over steps
            steps, raw, mean, deviation = over_seeds(seeds, metric, 1 if is_evaluation else window)
            if metric == "reward" and np.array_equal(mean, over_seeds(seeds, "accuracy", window)[2]):
                continue  # the line would lie on that of the accuracy
            if not len(steps):
                continue
            every = 1 if is_evaluation else max(1, len(steps) // 6)
            shift = i * every // len(groups)  # so that the markers of the settings do not hide each other
            shape = {"lw": 1, "ms": 7, "mfc": "white"} if is_evaluation else {"lw": 2, "ms": 5}
            ax.plot(steps, mean, style, markevery=(shift, every), zorder=3, **shape, **look)
            ax.plot(steps, raw, style, color=look["color"], lw=0.8, alpha=0.3)
            ax.fill_between(steps, mean - deviation, mean + deviation, color=look["color"], alpha=0.15, lw=0)
    ax.set(title=title, ylabel=unit, xlabel="training step" if ax.get_subplotspec().is_last_row() else "")
    ax.grid(alpha=0.25)
    ax.locator_params(axis="x", integer=True)
    if start == "log":
        ax.set_yscale("log")
    if start == "zero":
        ax.set_ylim(min(0, ax.dataLim.y0), ax.get_ylim()[1])
    if not ax.lines:
        ax.text(0.5, 0.5, when_empty, ha="center", transform=ax.transAxes)
        ax.set_yticks([])


def panels_of_summary(file, name, r):
    """The panels of an evaluation, from the numbers r of a benchmark and its saved responses; see draw_evaluation()."""
    lengths = {"right": [], "wrong": []}
    for _, row in read_lines(file.with_name(f"{name}.jsonl")):
        lengths["right" if row["correct"] else "wrong"].append(row["tokens"] or len(row["response"]))
    # How far averages over K seeds scatter (arXiv 2504.07086, section 3): seeds drawn again, with replacement.
    drawn = 100 * np.random.default_rng(0).choice(r["per_seed"], size=(r["seeds"], 10_000))
    averages = {k: drawn[:k].mean(0) for k in range(1, r["seeds"] + 1)}
    return [
        *panels_of_models({name: r}),
        (draw_bars, lengths, 30, "response length, tokens (or characters)", "responses, all seeds"),
        (draw_boxes, averages, "K, seeds averaged", "mean accuracy of K seeds, %"),
    ]


def panels_of_models(models):
    """pass@k and maj@k, and the accuracies of the problems, of {label: numbers of a model}; see draw_evaluation()."""
    accuracies = {label: np.array(r["right"]) / r["samples"] for label, r in models.items()}
    return [
        (draw_pass, models),
        (draw_bars, accuracies, SHARES, "accuracy; outermost: exactly 0, 1", "problems"),
    ]


def panels_of_comparison(r):
    """The panels of a comparison, from the numbers r of a benchmark; see draw_evaluation()."""
    short = lambda folder: Path(folder).name.removeprefix("eval-")
    panels = panels_of_models({short(label): model for label, model in r["models"].items()})
    for label, pair in r["pairs"].items():
        if sum(cell["size"] > 0 for cell in pair["transitions"].values()) > 1:  # else there is one strategy only
            panels.append((draw_flow, pair["transitions"], short(label)))
    perplexity = {short(label): values for label, values in r.get("perplexity", {}).items()}
    return panels + [(draw_boxes, perplexity, "responses of", "perplexity under the baseline")] * bool(perplexity)


def draw_evaluation(path):
    """Draw a summary.json, compare.json or sweep.json of eval.py into a .png beside it: a row of panels per benchmark.

    A panel is a tuple: the function that draws it, and its arguments behind the axes."""
    data, grid = json.loads(Path(path).read_text(encoding="utf-8")), []
    for name, r in data["benchmarks"].items():
        if "setting" in data:
            accuracies = {value: 100 * np.array(result["per_seed"]) for value, result in r.items()}
            grid.append([(draw_boxes, accuracies, data["setting"], "accuracy of each seed, %")])
        elif "pairs" in r:
            grid.append(panels_of_comparison(r))
        else:
            grid.append(panels_of_summary(Path(path), name, r))
    rows, columns = len(grid), max(map(len, grid))
    figure = Figure(figsize=(5 * columns, 4.2 * rows), layout="constrained")
    for name, panels, axes in zip(data["benchmarks"], grid, figure.subplots(rows, columns, squeeze=False)):
        for ax, (draw_one, *arguments) in zip(axes, panels):
            draw_one(ax, *arguments)
            ax.set_title(name)
            ax.grid(alpha=0.25)
            below = len(ax.get_legend_handles_labels()[1]) > 3  # below the axes, a long legend hides no curve
            ax.legend(fontsize=7, **dict(loc="upper center", bbox_to_anchor=(0.5, -0.18)) if below else {})
    figure.savefig(Path(path).with_suffix(".png"))


def draw_boxes(ax, groups, xlabel, ylabel):
    """A box for each group, {label: values}."""
    ax.boxplot(list(groups.values()), whis=(2.5, 97.5), sym="", label="box 50 %, whiskers 95 %")
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_xticks(range(1, len(groups) + 1), groups, rotation=15 if len("".join(map(str, groups))) > 40 else 0)


def draw_bars(ax, groups, bins, xlabel, ylabel):
    """A histogram of {label: values}, the bars of the groups side by side."""
    ax.hist(list(groups.values()), bins, label=list(groups), color=[LOOKS[i]["color"] for i in range(len(groups))])
    ax.set(xlabel=xlabel, ylabel=ylabel)


def draw_pass(ax, models):
    """pass@k and maj@k with their intervals, of {label: numbers of a model}; maj@k may end at a smaller k."""
    for (label, r), look in zip(models.items(), LOOKS):
        for kind, style in (("pass", "-"), ("maj", "--")):
            mean, low, high = 100 * np.array(r[f"{kind}_at"]).T
            x = np.log2(r["ks"][: len(mean)])
            ax.plot(x, mean, style, label=f"{kind}@k {label}", ms=5, **look)
            ax.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    ax.set(xlabel="k (log axis)", ylabel="% of problems, 95 % interval", xticks=np.log2(r["ks"]), xticklabels=r["ks"])


def draw_flow(ax, cells, label):
    """How strategies change, from left to right. Each cell of core.stats.transitions() is a band, as wide as its share
    of the pairs of responses. python is below words on both sides."""
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
    parser.add_argument("runs", nargs="+", metavar="RUN",
                        help="a run folder or its metrics.jsonl; or the .json file of an evaluation")
    parser.add_argument("--out", help="default: curves.png in the folder of a single run, else in this folder")
    parser.add_argument("--window", type=int, help="steps of the moving average, 1: none; default 20, less if short")
    parser.add_argument("--labels", nargs="+", help="one for each setting, in the order of the runs")
    args = parser.parse_args()
    if args.window is not None and args.window < 1:
        parser.error(f"--window {args.window}: at least 1")
    try:
        if args.runs[0].endswith(".json"):
            for path in args.runs:
                draw_evaluation(path)
            return
        out = args.out or (load(args.runs[0]).folder if len(args.runs) == 1 else Path()) / "curves.png"
        draw(args.runs, out, args.window, args.labels)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(out)


if __name__ == "__main__":
    main()
