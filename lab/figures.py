"""The figures of the report: which runs each one shows, and its caption. panels.py draws them."""

import math
from pathlib import Path

import numpy as np

import plot
from core.stats import crossing, pass_at_k
from lab import real
from lab.experiments import by_chance, each, gain, grades, last, pass_at, scatter
from lab.panels import draw_groups, draw_panels, draw_powers, draw_seeds

ALGORITHMS = dict(raft="RAFT", raft_pp="RAFT++", rej="Reinforce-Rej", grpo="GRPO", ppo="PPO", dpo="iterative DPO")
VARIANTS = dict(reinforce="Reinforce", mean_zero="+ mean zero", remove_correct="+ remove all correct",
                remove_wrong="+ remove all wrong", rej="+ remove both", rej_std="+ remove both + std")
CLIPPING = dict(random_good="8 updates, clip", random_no_clip="8 updates, no clip", one_update="one update",
                small_rollout="one update, small rollout")
REWARDS = dict(true="truth", vote="votes", incorrect="wrong labels", format="format", random="random")
SEARCH = dict(search_right="search, right", search_wrong="search, wrong", search_direct="direct", search_dots="dots")
KS = [2**i for i in range(9)]


def drop_empty(data: dict) -> dict:
    """The data of a panel, without the lines and bars that have no runs yet."""
    inner = {label: drop_empty(x) if isinstance(x, dict) else x for label, x in data.items()}
    return {label: x for label, x in inner.items() if len(x[1] if isinstance(x, tuple) else x)}


def how_many(data: dict) -> list[int]:
    """How many seeds each line or bar of a panel has. A label that begins with _ is no line of seeds."""
    inner = [how_many(x) if isinstance(x, dict) else [len(x[1] if isinstance(x, tuple) else x)]
             for label, x in data.items() if not label.startswith("_")]
    return sum(inner, [])


def curve(runs, names: dict[str, str], metric: str, x="", window=5) -> dict:
    """Lines of a metric for the settings {name: label} that have runs -> {label: (x, values [seeds, steps])}.

    x is the training step, or the values of another metric. All values are moving averages over `window` steps."""
    lines = {}
    for name, label in names.items():
        if seeds := [run["curves"] for run in runs(name) if metric in run["curves"]]:
            values = [plot.moving_average(np.array(run[metric], dtype=float), window) for run in seeds]
            across = [plot.moving_average(np.array(run[x], dtype=float), window) for run in seeds] if x else None
            lines[label] = across or range(1, len(values[0]) + 1), values
    return lines


def training(runs, names: dict[str, str], *metrics: str) -> list[tuple]:
    """One panel of training curves per metric."""
    units = dict(accuracy="share of responses", entropy="nats per token", kl="nats per token")
    titles = dict(accuracy="training accuracy", entropy="entropy", kl="KL to the initial policy")
    return [(draw_seeds, curve(runs, names, m), titles[m], "training step", units[m]) for m in metrics]


def bars(runs, names: dict[str, str], measures: dict) -> dict:
    """Groups of bars for the settings {name: label}. A group has one bar per measure, {word: function of a run}."""
    return {label: {word: [measure(run) for run in runs(name)] for word, measure in measures.items()}
            for name, label in names.items()}


def reward_against_kl(runs):
    names = dict(rej="Reinforce-Rej", grpo="GRPO", mean_zero="Reinforce + mean zero")
    return [(draw_seeds, curve(runs, names, "accuracy", "kl", window=10), "accuracy against KL, means over seeds",
             "KL to the initial policy, nats per token", "training accuracy")]


def passes(runs):
    names = dict(base_256="base", third_256="GRPO, 50 steps", grpo_256="GRPO, 150 steps", distilled_256="distilled")
    curves = {label: [pass_at_k(grades(run).sum(1), run["samples"]).mean(0) for run in runs(name)]
              for name, label in names.items()}
    lines = {label: (KS, [values[np.array(KS) - 1] for values in seeds]) for label, seeds in curves.items() if seeds}
    if not {"base", names["grpo_256"]} <= lines.keys():
        return []
    k = crossing(np.mean(curves["base"], 0), np.mean(curves[names["grpo_256"]], 0))
    title = f"base and GRPO cross at k = {k}" if k else "base and GRPO do not cross"
    if k:
        lines["_crossing"] = [k, k], [[0, 1]]
    return [(draw_powers, lines, title, "k (log axis)", "pass@k, share of problems")]


def spurious(runs):
    groups = {base: {reward: [gain(run) for run in runs(f"{name}_{key}")] for name, reward in REWARDS.items()}
              for key, base in (("good", "python the better style"), ("bad", "python the worse style"))}
    return [(draw_groups, groups, "gain by what is rewarded", "", "accuracy, after minus before")]


def clipping(runs):
    updates = lambda lines: {label: (np.array(x) * (8 if label.startswith("8") else 1), values)
                             for label, (x, values) in lines.items()}
    panels = [(draw, updates(lines), title, "optimizer updates", unit)
              for draw, lines, title, _, unit in training(runs, CLIPPING, "accuracy", "entropy")]
    groups = bars(runs, CLIPPING, {"python": lambda run: gain(run, "python")})
    return [*panels, (draw_groups, groups, "share of the python style", "", "after minus before")]


def luck(runs):
    right = [grades(run) for run in runs("base_256")]
    sizes, seeds = [3, 6, 12, 24, 48], range(1, 11)
    found = {"observed": (sizes, [[scatter(run, m) for m in sizes] for run in runs("base_256")]),
             "by chance": (sizes, [[by_chance(run, m) for m in sizes] for run in runs("base_256")])}
    widths = {f"{m} problems": (seeds, [[3.92 * one[:m].mean(0).std(ddof=1) / math.sqrt(k) for k in seeds]
                                        for one in right]) for m in (12, 30, 48)}
    return [(draw_powers, found, "scatter of accuracy between seeds", "problems (log axis)", "standard deviation"),
            (draw_seeds, widths, "width of the mean's 95 % interval, scatter known", "seeds that are averaged",
             "accuracy")]


def lengths(runs):
    groups = bars(runs, dict(base_256="base", grpo_256="150 steps of GRPO"),
                  {"right": lambda run: run["length_right"], "wrong": lambda run: run["length_wrong"]})
    more = bars(runs, dict(grpo="all tokens", sequence="own length", constant="constant"),
                {"right": lambda run: last(run, "length_right"), "wrong": lambda run: last(run, "length_wrong")})
    unit = "tokens, responses not cut off"
    return [(draw_groups, groups, "length by result", "", unit),
            (draw_groups, more, "30 steps of GRPO, by what the loss is divided by", "", unit)]


def flows(runs):
    names = dict(true_good="truth", vote_good="votes", true_bad="truth, python the worse style")
    cells = ("python to python", "python to words", "words to python", "words to words")
    share = {cell: lambda run, cell=cell: run["contributions"][cell] for cell in cells}
    return [(draw_groups, bars(runs, names, share), "which change of style brings the gain", "what is rewarded",
             "share of the gain")]


def search(runs):
    groups = bars(runs, SEARCH, {"before RL": lambda run: run["evals"][0]["accuracy"], "after RL": last})
    return [(draw_seeds, curve(runs, SEARCH, "accuracy"), "miniature Countdown", "training step", "accuracy"),
            (draw_groups, groups, "on test problems", "primed with", "accuracy")]


def waiting(runs):
    moments = dict(early=75, late=300)
    lines = {}
    for kind, label in (("none", "nothing said"), ("wait", "told to wait")):
        if seeds := list(zip(*[[run["accuracy"] for run in runs(f"{moment}_{kind}")] for moment in moments])):
            lines[label] = list(moments.values()), seeds
    return [(draw_seeds, lines, "after a wrong step", "pretraining steps", "share solved in the end")]


def real_models(runs):
    """pass@k of three families; accuracy in each condition; how many responses use Python."""
    families = dict(qwen="Qwen 0.5B", smollm="SmolLM2 135M", gemma="Gemma 270M")
    conditions = {"16": "usual"} | real.TEMPLATES | dict(forced="Python forced")
    of = lambda name, key: [x for run in runs(name) for x in each(run, key)]
    curves = {label: (KS[:5], [[pass_at(run, k) for k in KS[:5]] for run in runs(f"{name}_16")])
              for name, label in families.items()}
    accuracies = {label: {word: of(f"{name}_{key}", "accuracy") for key, word in conditions.items()}
                  for name, label in families.items()}
    python = {label: {"usual": of(f"{name}_16", "python"), "Python forced": of(f"{name}_forced", "python")}
              for name, label in families.items()}
    return [(draw_powers, curves, "pass@k", "samples (log axis)", "share of problems"),
            (draw_groups, accuracies, "accuracy by prompt", "", "share of responses"),
            (draw_groups, python, "responses with Python", "", "share of responses")]


def real_rl(runs):
    panels, groups = [], {}
    names = dict(grpo="GRPO", raft_pp="RAFT++", format="GRPO, format reward", random="GRPO, random reward")
    for model, label in dict(qwen="Qwen 0.5B, two to five operations", smollm="SmolLM2 135M, one operation").items():
        own = {f"{model}_{name}": word for name, word in names.items()}
        lines = curve(runs, own, "accuracy", window=3)
        panels.append((draw_seeds, lines, label, "training step", "share of right responses in training"))
        groups[label.split(",")[0]] = {word: [gain(run) for run in runs(name)] for name, word in own.items()}
    return [*panels, (draw_groups, groups, "gain in test accuracy", "", "share of responses, after minus before")]


FIGURES = [  # name, paper, what draws it, caption
    ("methods", "minimalist", lambda runs: training(runs, ALGORITHMS, "accuracy", "entropy", "kl"),
     "The algorithms on the same problems, moving average of 5 steps; iterative DPO has few long iterations in place "
     "of steps"),
    ("variants", "minimalist", lambda runs: training(runs, VARIANTS, "accuracy", "entropy", "kl"),
     "Reinforce and its variants, moving average of 5 steps"),
    ("kl", "minimalist", reward_against_kl, "What accuracy costs in distance from the initial policy, moving average "
     "of 10 steps"),
    ("luck", "sober", luck, "Chance in evaluations of the base; 256 samples per problem stand for 256 seeds. Right: "
     "2 x 1.96 standard errors, as if the scatter were known; with Student's t, two seeds would have six times that"),
    ("lengths", "sober", lengths, "Lengths of right and wrong answers"),
    ("spurious", "spurious", spurious, "What each reward gains, for a base whose python style is the better one, and "
     "for one where it is the worse. Random rewards have two bases of their own"),
    ("clipping", "spurious", clipping, "Random rewards, with and without clip and off-policy updates"),
    ("flows", "spurious", flows, "Style before and after: contributions to the gain"),
    ("passes", "limit", passes, "pass@k of the base, of GRPO at two moments, and after 30 steps of distillation"),
    ("search", "behaviors", search, "RL after priming with search traces that end right or wrong, with direct answers, "
     "and with dots"),
    ("real", "real", real_models, "Three real models on 64 problems of GSM8K and 32 of MATH-500; usual: cot, "
     "for Gemma plain with 256 tokens; empty places were not run"),
    ("real-rl", "real", real_rl, "RL on two real models, moving average of 3 steps. All runs of a seed see the same "
     "problems, so they rise and fall together"),
    ("waiting", "reflection", waiting, "A solution that has gone wrong is continued, with and without ` wait`"),
]


def draw_figures(paper: str, runs, page: Path) -> str:
    """Draw the figures of a paper beside the page -> how the page shows them."""
    shown = []
    for name, of, panels, caption in FIGURES:
        all_panels = panels(runs) if of == paper else []
        drawn = [(draw, kept, *words) for draw, data, *words in all_panels if (kept := drop_empty(data))]
        if drawn:
            picture = page.with_name(f"{page.stem}-{name}.png")
            draw_panels(drawn, picture)
            shown.append(f"![{caption}]({picture.name})\n\n*{caption}. {marks(drawn, name)}.*")
    return "\n\n".join(shown)


def marks(drawn: list[tuple], name: str) -> str:
    """What the marks in a figure's panels stand for, and how many seeds there are."""
    kinds, words = {draw for draw, *_ in drawn}, []
    sizes = sorted({size for _, data, *_ in drawn for size in how_many(data)})
    if name != "real":  # its bars have samples, its lines one seed
        words.append(f"n = {' or '.join(map(str, sizes))} seeds")
        if kinds & {draw_seeds, draw_powers} and name != "kl":
            words.append("bands: one standard deviation over seeds")
    if draw_groups in kinds:
        words.append(f"dots in the bars: {'samples' if name == 'real' else 'seeds'}")
    return "; ".join(words)
