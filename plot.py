"""Figures of training runs and evaluations, drawn from their saved files alone; one function per figure.

    python plot.py out/grpo-tiny-s0                              writes out/grpo-tiny-s0/curves.png
    python plot.py out/grpo-tiny-s* out/raft-tiny-s* --out comparison.png --window 20
    python plot.py out/eval-tiny/summary.json                    or compare.json, sweep.json of eval.py

Runs that differ in their seed only are one setting: a line for their mean, a band of one standard deviation.
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
from matplotlib.figure import Figure  # without pyplot: draws through Agg and leaves no global state behind
from matplotlib.lines import Line2D

# Okabe-Ito without its yellow, which is illegible on white. 7 colours and 8 markers: 56 pairs before one repeats.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<"]
LOOKS = [{"color": COLOURS[i % 7], "marker": MARKERS[i % 8]} for i in range(56)]
SHARES = [-0.1, *(np.arange(10) / 10 + 1e-9), 1 - 1e-9, 1.1]  # edges: accuracy 0, (0, .1], ..., (.9, 1), 1
# Keys of config.json that say where, how long and how watched a run was, and do not change what a step does.
BOOKKEEPING = {"seed", "out", "resume", "steps", "save_every", "eval_every", "tensorboard", "wandb", "tokens_per_micro"}
ACCURACY = "accuracy\nsolid: training, dashed: reward, hollow: evaluation"
CLIPPED = "clip fraction\nsolid: above 1 + high, dashed: below 1 - low"
PANELS = [  # title, y axis, where it starts, what an empty panel says, metrics and their line styles
    (ACCURACY, "share of responses", "zero", "not recorded", {"accuracy": "-", "reward": "--", "eval_accuracy": ":"}),
    ("KL to the initial policy", "nats per token", "zero", "no reference kept", {"kl": "-"}),
    ("entropy", "nats per token", "zero", "not recorded", {"entropy": "-"}),
    ("response length", "tokens", "free", "not recorded", {"length": "-"}),
    (CLIPPED, "share of tokens", "zero", "no clipping", {"clip_high": "-", "clip_low": "--"}),
    ("gradient norm", "L2 norm before clipping (log axis)", "log", "not recorded", {"grad_norm": "-"}),
]


class Run(NamedTuple):
    folder: Path
    seed: object
    setting: dict  # config.json without the bookkeeping, always with "algorithm"
    rows: dict  # step: its metrics


def load(path):
    """Reads a run folder, or a metrics.jsonl with config.json beside it. A broken last line is left out: the run was
    killed while it wrote. Raises OSError or ValueError, whose message names the file, and the line in it."""
    file = Path(path) if Path(path).is_file() else Path(path) / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    rows = {}  # the later row counts if a step is there twice
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line, parse_constant=lambda name: None)  # NaN and Infinity are missing values
            rows[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise ValueError(f"{file}, line {number}: not a JSON object with a step") from None
    if not rows:
        raise ValueError(f"{file}, line 1: the file holds no complete step")
    config = {"algorithm": re.sub(r"-s\d+$", "", file.parent.resolve().name)}
    if (config_file := file.with_name("config.json")).exists():
        try:
            config |= json.loads(config_file.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{config_file}: not a JSON object ({error})") from None
    setting = {key: value for key, value in config.items() if key not in BOOKKEEPING}
    return Run(file.parent, config.get("seed"), setting, rows)


def group_seeds(runs):
    """Lists of runs, one list a setting, in the order given. A second run of the same setting and seed opens a new
    list: it is no further seed, and somebody may have changed the code in between."""
    groups = {}
    for i, run in enumerate(runs):
        twins = sum((other.seed, other.setting) == (run.seed, run.setting) for other in runs[:i])
        groups.setdefault((json.dumps(run.setting, sort_keys=True), twins), []).append(run)
    return list(groups.values())


def label_settings(groups):
    """The algorithm and at most four keys in which the settings differ; the folder too where that is not unique."""
    runs = [seeds[0] for seeds in groups]
    keys = dict.fromkeys(key for run in runs for key in run.setting if key != "algorithm")
    # A key that only one algorithm has is compared among the runs of that one.
    differing = [key for key in keys if len({str(run.setting[key]) for run in runs if key in run.setting}) > 1]
    labels = []
    for run in runs:
        parts = [f"{key}={Path(str(run.setting[key])).name[:24]}" for key in differing if key in run.setting]
        labels.append(" ".join([str(run.setting["algorithm"]), *parts[:4]]))
    return [x if labels.count(x) == 1 else f"{x} [{run.folder}]" for x, run in zip(labels, runs, strict=True)]


def moving_average(values, window):
    """Mean of the values that exist among the last `window` steps, [steps] -> [steps]; NaN where there are none."""
    recent = [values[max(0, end - window) : end] for end in range(1, len(values) + 1)]
    return np.array([np.nan if np.isnan(part).all() else np.nanmean(part) for part in recent])


def over_seeds(seeds, metric, window):
    """Steps, mean over seeds, the same of the moving averages, and their standard deviation (Bessel), each [steps],
    on the steps where the averages exist. The deviation is that of the averages: seeds without step noise."""
    # Seeds of different lengths: only the steps which all have, because a mean over fewer would jump where a run ends.
    steps = sorted(set.intersection(*(set(run.rows) for run in seeds)))
    raw = np.array([[run.rows[step].get(metric) for step in steps] for run in seeds], dtype=float)  # null becomes NaN
    average = np.array([moving_average(values, window) for values in raw])
    deviation = np.std(average, axis=0, ddof=1) if len(seeds) > 1 else np.zeros(len(steps))
    exists = np.isfinite(average).all(axis=0)
    return [x[exists] for x in (np.array(steps), raw.mean(axis=0), average.mean(axis=0), deviation)]


def draw(paths, out, window=None, labels=None):
    """Draws the training curves of one or more runs into the file `out`, 1500 x 900 pixels. Raises as load() does.

    window: steps of the trailing moving average, 1 = none, None = 20 as in the paper (arXiv 2504.11343) or, below 100
    steps, a tenth of the longest run; labels: one a setting (not a seed), in the order in which `paths` has them.
    """
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
    names = [label.replace("$", r"\$") + note for label, note in zip(labels, notes, strict=True)]  # \$: no formula
    handles = [Line2D([], [], lw=2, **look) for look, _ in zip(cycle(LOOKS), groups, strict=False)]
    columns = max(1, min(len(names), 150 // (max(map(len, names)) + 8)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=11)
    figure.savefig(out)


def draw_panel(ax, groups, window, title, unit, start, when_empty, styles):
    for i, (seeds, look) in enumerate(zip(groups, cycle(LOOKS), strict=False)):
        for metric, style in styles.items():
            points = metric == "eval_accuracy"  # exists on some steps only, so it is not averaged over steps
            steps, raw, mean, deviation = over_seeds(seeds, metric, 1 if points else window)
            same = metric == "reward" and np.array_equal(mean, over_seeds(seeds, "accuracy", window)[2])
            if same or not len(steps):
                continue
            every = 1 if points else max(1, len(steps) // 6)
            shift = i * every // len(groups)  # so that the markers of the settings do not hide each other
            shape = {"lw": 1, "ms": 7, "mfc": "white"} if points else {"lw": 2, "ms": 5}
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


def draw_evaluation(path):
    """Draws summary.json, compare.json or sweep.json of eval.py into a .png beside it: a row of panels a benchmark."""
    data, grid = json.loads(Path(path).read_text(encoding="utf-8")), []
    for name, r in data["benchmarks"].items():
        if "setting" in data:
            seeds = {value: 100 * np.array(result["per_seed"]) for value, result in r.items()}
            grid.append([(draw_boxes, seeds, data["setting"], "accuracy of each seed, %")])
            continue
        models = {Path(label).name: model for label, model in r.get("models", {name: r}).items()}
        shares = {label: np.array(model["right"]) / model["samples"] for label, model in models.items()}
        grid.append([(draw_pass, models), (draw_bars, shares, SHARES, "accuracy; outermost: exactly 0, 1", "problems")])
        if "pairs" in r:
            grid[-1] += [(draw_flow, pair["transitions"], Path(label).name) for label, pair in r["pairs"].items()]
            if "perplexity" in r:
                grid[-1] += [(draw_boxes, r["perplexity"], "responses of", "perplexity under the baseline")]
        else:
            saved = [json.loads(line) for line in open(Path(path).with_name(f"{name}.jsonl"), encoding="utf-8")]
            sizes = {word: [x["tokens"] or len(x["response"]) for x in saved if x["correct"] == right]
                     for word, right in (("right", True), ("wrong", False))}  # fmt: skip
            drawn = 100 * np.random.default_rng(0).choice(r["per_seed"], (r["seeds"], 10_000))  # with replacement
            runs = {k: drawn[:k].mean(0) for k in range(1, r["seeds"] + 1)}  # arXiv 2504.07086, section 3
            grid[-1] += [(draw_bars, sizes, 30, "response length, tokens (or characters)", "responses, all seeds")]
            grid[-1] += [(draw_boxes, runs, "K, seeds averaged", "mean accuracy of K seeds, %")]
    rows, columns = len(grid), max(map(len, grid))
    figure = Figure(figsize=(5 * columns, 4.2 * rows), layout="constrained")
    for name, panels, line in zip(data["benchmarks"], grid, figure.subplots(rows, columns, squeeze=False)):
        for ax, (panel, *args) in zip(line, panels):
            panel(ax, *args)
            ax.set_title(name)
            ax.grid(alpha=0.25)
            ax.legend(fontsize=8)
    figure.savefig(Path(path).with_suffix(".png"))


def draw_boxes(ax, groups, xlabel, ylabel):
    ax.boxplot(list(groups.values()), whis=(2.5, 97.5), sym="", label="box 50 %, whiskers 95 %")
    ax.set(xlabel=xlabel, ylabel=ylabel, xticklabels=[Path(str(label)).name[:24] for label in groups])


def draw_bars(ax, groups, bins, xlabel, ylabel):
    ax.hist(list(groups.values()), bins, label=list(groups), color=[LOOKS[i]["color"] for i in range(len(groups))])
    ax.set(xlabel=xlabel, ylabel=ylabel)


def draw_pass(ax, models):
    for (label, r), look in zip(models.items(), LOOKS):
        for kind, style in (("pass", "-"), ("maj", "--")):
            mean, low, high = 100 * np.array(r[f"{kind}_at"]).T
            ax.plot(np.log2(r["ks"][: len(mean)]), mean, style, label=f"{kind}@k {label}", ms=5, **look)
            ax.fill_between(np.log2(r["ks"][: len(mean)]), low, high, color=look["color"], alpha=0.15, lw=0)
    ax.set(xlabel="k (log axis)", ylabel="% of problems, 95 % interval", xticks=np.log2(r["ks"]), xticklabels=r["ks"])


def draw_flow(ax, cells, label):
    """Strategies before, on the left, and after: a band a cell, as wide as its share of the pairs of responses."""
    (a, b, c, d), x = (cell["size"] for cell in cells.values()), np.linspace(0, 1, 50)
    for (name, r), left, right, colour in zip(cells.items(), (0, a, a + b, 1 - d), (0, a + c, a, 1 - d), COLOURS):
        text = f"{name}: {r['size']:.0%}, right {r['before']:.0%} to {r['after']:.0%}, {r['contribution']:+.0%} of gain"
        low = left + (right - left) * (1 - np.cos(np.pi * x)) / 2
        ax.fill_between(x, low, low + r["size"], color=colour, alpha=0.6, lw=0, label=text)
    ax.set(xticks=(0, 1), xticklabels=("before", "after"), xlabel=label, ylabel="share of pairs", ylim=(0, 1.4))


def main():
    parser = argparse.ArgumentParser(description="Draws the training curves of one or more runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or its metrics.jsonl")
    parser.add_argument("--out", help="default: curves.png in the folder of a single run, else in this folder")
    parser.add_argument("--window", type=int, help="steps of the moving average, 1 = none; default 20, less if short")
    parser.add_argument("--labels", nargs="+", help="one for each setting, in the order of the runs")
    args = parser.parse_args()
    if args.window is not None and args.window < 1:
        parser.error(f"--window {args.window}: at least 1")
    try:
        if args.runs[0].endswith(".json"):
            return [draw_evaluation(path) for path in args.runs]
        out = args.out or (load(args.runs[0]).folder if len(args.runs) == 1 else Path()) / "curves.png"
        draw(args.runs, out, args.window, args.labels)
    except (OSError, ValueError) as error:
        print(f"plot.py: {error}", file=sys.stderr)
        sys.exit(2)
    print(out)


if __name__ == "__main__":
    main()
