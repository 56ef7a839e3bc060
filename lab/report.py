"""The report: a verdict on each claim, and docs/lab.md with its figures. The file of results is all it needs.

The prose of that page is page.md, where each {{name}} stands for a table, a figure or a number. It describes the
committed lab/results.json. When those numbers change, read it again."""

import inspect
import math
import re
from pathlib import Path

import numpy as np

import plot
from core.config import ROOT
from core.stats import crossing, holm, pass_at_k
from lab import real
from lab.claims import RATES, SEEDS, SETTINGS, TUNING_SEEDS
from lab.experiments import by_chance, each, gain, grades, last, late, mean, pass_at, scatter
from lab.panels import draw_groups, draw_panels, draw_powers, draw_seeds
from lab.verdicts import seeds_for, verdict

AGAIN = range(10, 20)  # the seeds with which some claims are repeated

# ------------------------------------------------------------------------------------------------ judgement
def region(criterion: str) -> tuple[float, float, float]:
    """criterion -> (low, high, matters): the mean has to be between low and high.

    "> 0, 0.02 matters" -> (0, inf, 0.02), "< 0.05" -> (-inf, 0.05, 0), "within 0.1" -> (-0.1, 0.1, 0)."""
    word, border, matters = (criterion.replace(",", "").removesuffix(" matters") + " 0").split()[:3]
    border = float(border)
    low, high = {">": (border, math.inf), "<": (-math.inf, border), "within": (-border, border)}[word]
    return low, high, float(matters)


def size(criterion: str) -> float:
    """The difference that a criterion is about: what matters, or the margin, or 0 if it names neither."""
    low, high, matters = region(criterion)
    return matters or min(abs(low), abs(high))


def seeds_needed(criterion: str, spread: float) -> int:
    """How many seeds decide in 80 % of the cases, if single seeds scatter by `spread`, and if the true difference is
    size(criterion), or with a margin 0."""
    return seeds_for(spread, size(criterion), 2 if "within" in criterion else 1)


def needs(claim) -> list[str]:
    """The settings that a claim is about."""
    names = [name for _, _, measure in claim.parts for name in inspect.signature(measure).parameters]
    return list(dict.fromkeys(name for name in names if name != "seed"))


def number(measure, records: dict):
    """What a measure gives for the records of a seed, as an array. NaN if a record lacks it, such as the length of
    right answers where there is none."""
    try:
        return np.atleast_1d(measure(**records))
    except (TypeError, ZeroDivisionError):  # None in the arithmetic, or a share of nothing
        return np.array([math.nan])


def judge(claim, results: dict, seeds=None) -> dict:
    """The verdict on a claim and on each of its parts. A seed counts if the results have all the records of that part.
    A measure gives a number per seed, or an array: on real models each sample of a run is a seed. seeds: a list, or
    None for as many as the claim says.

    All parts have to hold. p is that of the deciding part: of the least certain one, or if the claim fails, of the
    surest failure."""
    parts, seeds = [], [0] if {*needs(claim)} & {*real.ONCE} else seeds or range(claim.seeds)
    for label, criterion, measure in claim.parts:
        low, high, matters = region(criterion)
        names = list(inspect.signature(measure).parameters)
        if names:
            there = [seed for seed in seeds if all(f"{name}/{seed}" in results for name in names if name != "seed")]
            inputs = [{x: seed if x == "seed" else results[f"{x}/{seed}"] for x in names} for seed in there]
            values = np.concatenate([number(measure, records) for records in inputs] or [[]]).astype(float)
            values = values[~np.isnan(values)]
            found = verdict(values, low, high, matters) if len(values) else dict(verdict="not run")
        else:
            exact = measure()
            found = dict(mean=exact, n="computed", verdict="holds" if low < exact < high else "fails")
        parts.append(dict(label=label, criterion=criterion) | found)
    verdicts = [part["verdict"] for part in parts]
    decided = next((word for word in ("fails", "not run", "undecided") if word in verdicts), "holds")
    ps = [part["p"] for part in parts if "p" in part and (decided != "fails" or part["verdict"] == "fails")]
    p = None
    if ps and decided != "not run":  # any of several failures is enough, so the smallest p counts several times
        p = min(1, min(ps) * sum("p" in part for part in parts)) if decided == "fails" else max(ps)
    return dict(parts=parts, verdict=decided, p=p)


def judge_all(claims, results: dict, seeds=None) -> dict[int, dict]:
    """{number of a claim: its verdict}. `holm` is p, adjusted over all claims except the computed ones."""
    found = {claim.number: judge(claim, results, seeds) for claim in claims}
    sampled = [one for one in found.values() if one["p"] is not None]
    for one, p in zip(sampled, holm([one["p"] for one in sampled])):
        one["holm"] = p
    return found


# ------------------------------------------------------------------------------------------------ figures
ALGORITHMS = dict(raft="RAFT", raft_pp="RAFT++", rej="Reinforce-Rej", grpo="GRPO", ppo="PPO", dpo="iterative DPO")
VARIANTS = dict(reinforce="Reinforce", mean_zero="+ mean zero", remove_correct="+ remove all correct",
                remove_wrong="+ remove all wrong", rej="+ remove both", rej_std="+ remove both + std")
CLIPPING = dict(random_good="8 updates, clip", random_no_clip="8 updates, no clip", one_update="one update",
                small_rollout="one update, small rollout")
REWARDS = dict(true="truth", vote="votes", incorrect="wrong labels", format="format", random="random")
REASONS = dict(
    grpo="GRPO", grpo_positive="GRPO, wrong answers ignored", grpo_no_std="GRPO, without the standard deviation",
    grpo_once="GRPO, one update per rollout", raft_pp="RAFT++",
    raft_pp_mixed="RAFT++, all-right prompts ignored", raft_pp_once="RAFT++, one update per rollout")
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


# ------------------------------------------------------------------------------------------------ tables
def grid(head: str, rows) -> str:
    """A table of Markdown: its head, "a | b", and its rows, sequences of cells."""
    lines = [f"| {head} |", "|" + (head.count("|") + 1) * "---|"]
    return "\n".join(lines + [f"| {' | '.join(map(str, row))} |" for row in rows])


def spread(values, digits=1) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def methods(runs) -> str:
    """The table that README shows too: each method before and after training, over seeds."""
    rows = []
    for name in ALGORITHMS:
        if seeds := runs(name):
            before, after = ([100 * run["evals"][i]["accuracy"] for run in seeds] for i in (0, -1))
            kl, entropy = ([late(run, metric) for run in seeds] for metric in ("kl", "entropy"))
            rows.append((f"`{SETTINGS[name].split()[0]}`", spread(before), spread(after), spread(kl, 3),
                         spread(entropy, 3), len(seeds)))
    return grid("file | accuracy before, % | at the end, % | KL, last half | entropy, last half | seeds", rows)


def rates(results: dict) -> str:
    """What each learning rate that was tried has given. The best one is in bold."""
    rows = []
    for name, tried in ((name, RATES[name]) for name in SETTINGS if name in RATES):
        cells = []
        for rate in tried.split():
            keys = [f"{name}@{rate.strip('*')}/{seed}" for seed in TUNING_SEEDS]
            found = [100 * last(results[key]) for key in keys if key in results]
            text = f"{rate.strip('*')}: {spread(found)}" if found else f"{rate.strip('*')}: not run"
            cells.append(f"**{text}**" if "*" in rate else text)
        rows.append((f"`{name}`", f"`{SETTINGS[name].replace(f' --lr {name}', '')}`", ", ".join(cells)))
    return grid("setting | command | learning rate: accuracy in the end, %", rows)


def binding(results: dict) -> str:
    """On how many tokens the clip binds on the tuning seeds, where claims are about the clip."""
    shares = []
    for name in ("raft_pp", "raft_pp_clipped", "random_good"):
        runs = [results[key] for seed in TUNING_SEEDS if (key := f"{name}/{seed}") in results]
        if runs:
            binds = np.mean([100 * (run["clip_low"] + run["clip_high"]) for run in runs])
            shares.append(f"{binds:.2g} % in `{name}`")
    return ", ".join(shares) or "not run"


def power(claims, results: dict) -> str:
    """How many seeds it takes, from the spread on the tuning seeds, pooled over what is measured alike, and has to be
    known to the same size. Two claims may share a part: it counts once."""
    alike = {}  # {(what, size): {label: (part, claims that have it)}}
    for claim in (claim for claim in claims if needs(claim)):
        for part in judge(claim, results, TUNING_SEEDS)["parts"]:
            if part.get("spread", math.nan) >= 0 and size(part["criterion"]):
                row = part["label"].split(",")[0], size(part["criterion"])
                alike.setdefault(row, {}).setdefault(part["label"], (part, []))[1].append(claim)
    rows = []
    for (what, least), parts in alike.items():
        pooled = math.sqrt(np.mean([part["spread"] ** 2 for part, _ in parts.values()]))
        needed = max(seeds_needed(part["criterion"], pooled) for part, _ in parts.values())
        those = {claim.number: claim.seeds for _, own in parts.values() for claim in own}
        planned = " or ".join(map(str, sorted(set(those.values()))))
        rows.append((what, ", ".join(map(str, those)), len(parts), f"{pooled:.3g}", f"{least:g}", needed, planned))
    return grid("what is measured | claims | parts | spread | what matters | seeds for 80 % | planned seeds", rows)


def reasons(results: dict) -> str:
    """What GRPO and RAFT++ give with one difference between them less, beside the method itself, seed by seed."""
    rows = []
    for name, words in REASONS.items():
        usual = "grpo" if name.startswith("grpo") else "raft_pp"
        seeds = [seed for seed in range(SEEDS) if {f"{name}/{seed}", f"{usual}/{seed}"} <= results.keys()]
        if seeds:
            own, other = ([results[f"{setting}/{seed}"] for seed in seeds] for setting in (name, usual))
            change = verdict([100 * (last(run) - last(than)) for run, than in zip(own, other)])
            hard = [100 * run["by_operations"]["6"] for run in own]
            late_means = [spread([mean(run, metric, 2 / 3) for run in own], 3) for metric in ("entropy", "kl")]
            rows.append((words, spread([100 * last(run) for run in own]), "-" if name == usual else value(change),
                         spread(hard), *late_means, len(seeds)))
    return grid("variant | accuracy at the end, % | change, points, 95 % interval | with six operations, % | "
                "entropy, last third | KL, last third | seeds", rows)


# The verdicts of the first report; all others were undecided.
HELD, FAILED = (10, 12, 14, 15, 16, 17, 22, 23, 26, 27, 28, 30, 31, 34), (1, 3, 33)
CHANGED = {  # what is different in the experiment: claims
    "tuned": (6, 7, 11),
    "tuned; KL as a ratio": (8, 9),
    "tuned; a margin, since the paper says 'at least'; also with a clip that binds": (1,),
    "tuned; a clip that binds": (2,),
    "tuned; 150 steps, not 30; entropy as a ratio, at the same rate": (3,),
    "the first 50 of 150 steps, not 10 of 30; KL as a ratio, at the same rate": (4,),
    "tuned; a clip that binds; entropy as a ratio": (5,),
    "tuned; 128 problems, not 48; 0.1 in place of 0.25": (23,),
    "128 problems, not 48; says 1 / sqrt(m); chance is taken from the same problems": (13,),
    "within 1 standard error, not 3": (28,),
    "disjoint groups of samples in place of draws; four sets of 30 problems, not one": (14,),
    "150 steps, not 30; 128 problems, not 48": (15, 17, 18, 19, 22, 24),
    "150 steps, not 30; 128 problems, not 48; without a part that arithmetic decides": (21,),
    "150 steps, not 30; 128 problems, not 48; nearly always in place of always": (20,),
    "tuned; 64 x 4 responses; a clip that binds": (31, 32),
    "tuned; 64 x 4 responses; a clip that binds; a base with a habit; entropy as a ratio; as many updates with a small "
    "rollout": (25,),
    "tuned; 64 x 4 responses; a clip that binds; two bases with the habit; compared with the other base": (26,),
    "tuned; 64 x 4 responses; a clip that binds; 'nearly as good' is a margin of 0.05 (before: votes are not better by "
    "0.02)": (29,),
    "tuned; 64 x 4 responses; a clip that binds; a margin of 0.02 in place of 0.05, and a gain": (30,),
}


def changes(claims, found: dict) -> str:
    """The verdicts of the earlier report beside the new ones."""
    differs = {number: text for text, numbers in CHANGED.items() for number in numbers}
    was = dict.fromkeys(HELD, "holds") | dict.fromkeys(FAILED, "fails")
    rows = [(claim.number, claim.text, was.get(claim.number, "undecided"), found[claim.number]["verdict"],
             differs.get(claim.number, "nothing")) for claim in claims]
    return grid("# | claim | before | now | what changed", rows)


def repeated(claims, found: dict, results: dict) -> str:
    """The claims of which all runs were repeated with other seeds, and both verdicts."""
    rows = []
    for claim in claims:
        again = judge(claim, results, AGAIN)
        if needs(claim) and all(part.get("n", 0) > 1 for part in again["parts"]):
            rows.append((claim.number, claim.text, found[claim.number]["verdict"], again["verdict"],
                         again["parts"][0]["n"]))
    return grid(f"# | claim | verdict | with seeds from {AGAIN[0]} up | how many", rows) if rows else ""


# ------------------------------------------------------------------------------------------------ the page
def seeds_of(claims, seeds=None) -> dict[str, list[int]]:
    """{setting that a claim needs: its seeds}: these, or else as many as the claims say."""
    found = {}
    for claim in claims:
        for name in needs(claim):
            own = [0] if name in real.ONCE else list(seeds or range(claim.seeds))
            found[name] = max(found.get(name, []), own, key=len)
    return found


def tally(found) -> str:
    """How many verdicts of each kind: "14 hold, 1 fails, 17 undecided"."""
    verdicts, parts = [one["verdict"] for one in found], []
    for word in ("holds", "fails", "undecided", "not run"):
        if count := verdicts.count(word):
            parts.append(f"{count} {word if count == 1 else word.removesuffix('s')}")
    return ", ".join(parts)


def spent(results: dict, wanted) -> str:
    """How many of these runs there are, and how many hours they took. wanted: function of a setting and a seed."""
    own = [record["seconds"] for key, record in results.items() if wanted(*key.split("/"))]
    return f"{len(own)} runs, {sum(own) / 3600:.1f} hours"


def value(part: dict) -> str:
    """The mean of a part, and its interval if it has one, in few digits."""
    if "mean" not in part:
        return "not run"
    digits = lambda x: f"{x:.3f}" if abs(x) < 10 else f"{x:.1f}"
    interval = part.get("interval")
    return digits(part["mean"]) + (f" [{digits(interval[0])}, {digits(interval[1])}]" if interval else "")


def claim_table(claims, found: dict) -> str:
    """The claims of a paper. Each has a row, and its parts follow."""
    rows = []
    for claim in claims:
        one = found[claim.number]
        holm_p = f"{one['holm']:.3f}" if "holm" in one else "-"
        rows.append((claim.number, f"**{claim.text}** ({claim.source})", "", "", f"**{one['verdict']}**", holm_p))
        for part in one["parts"]:
            short = ""
            if part["verdict"] == "undecided" and part["n"] > 1 and size(part["criterion"]):
                needed = seeds_needed(part["criterion"], part["spread"])
                short = f"; {needed} seeds would show it" if needed > part["n"] else "; near a border"
            rows.append(("", f"{part['label']} {part['criterion']}", value(part) + short, part.get("n", 0),
                         part["verdict"], ""))
    return grid("# | claim, and what has to hold | measured, 95 % interval | n | verdict | p, Holm", rows)


def remarks(claims) -> str:
    """A list of what is different from the papers' experiments."""
    return "\n".join(f"- {claim.number}: {claim.differs}" for claim in claims if claim.differs)


def show_example(one: dict) -> str:
    """A response as it is, for the page."""
    word = "Right" if one["correct"] else "Wrong"
    return f"{word}; the answer is {one['gold']}. {one['problem']}\n\n~~~~text\n{one['response'].strip()}\n~~~~"


def page_of(file: Path) -> Path:
    """Where the report on a file of results is: docs/lab.md for lab/results.json, and FILE.md for any other."""
    ours = (ROOT / "lab/results.json").resolve()
    return ROOT / "docs/lab.md" if file.resolve() == ours else file.with_suffix(".md")


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


def bare(text: str) -> str:
    """page.md without its prose, for another model: title, headings of the papers, tables and figures."""
    text = text[: text.index("## 8.")]
    kept = [part for part in text.split("\n\n") if re.match(r"# |## \d|\{\{(claims|methods|figures)", part)]
    return "\n\n".join([kept[0], "{{tally}}. docs/lab.md says how a verdict is made.", *kept[1:]]) + "\n"


def write(file: Path, claims, found: dict, results: dict, seeds=None):
    """Write the report, and its figures beside it, as docs/lab.md and docs/lab-NAME.png."""
    page, seeds_for_setting = page_of(file), seeds_of(claims, seeds)
    miniature = [claim for claim in claims if claim.paper != "real"]
    ours = len(miniature) < len(claims)  # another model has no section `real`

    def runs(name):
        keys = [f"{name}/{seed}" for seed in seeds_for_setting.get(name, seeds or range(SEEDS))]
        return [results[key] for key in keys if key in results]

    def took(wanted, of_real=False):
        of = lambda name, seed: (name in real.SETTINGS) == of_real and wanted(name, int(seed))
        return spent(results, of)

    fill_in = dict(
        count=lambda: str(len(miniature)), tally=lambda: tally(found[claim.number] for claim in miniature),
        counted=lambda: took(lambda _, seed: seed < AGAIN[0]), tuning=lambda: took(lambda name, _: "@" in name),
        spread=lambda: took(lambda name, seed: "@" not in name and seed in TUNING_SEEDS),
        again=lambda: took(lambda _, seed: seed in AGAIN), real=lambda: took(lambda name, _: True, of_real=True),
        rates=lambda: rates(results), binding=lambda: binding(results), power=lambda: power(miniature, results),
        methods=lambda: methods(runs), reasons=lambda: reasons(results), changes=lambda: changes(miniature, found),
        repeated=lambda: repeated(miniature, found, results),
        examples=lambda: "\n\n".join(show_example(one) for run in runs("qwen_16")[:1] for one in run["examples"]))
    for paper in dict.fromkeys(claim.paper for claim in claims):
        own = [claim for claim in claims if claim.paper == paper]
        fill_in |= {f"tally {paper}": lambda own=own: tally(found[claim.number] for claim in own),
                    f"claims {paper}": lambda own=own: claim_table(own, found),
                    f"remarks {paper}": lambda own=own: remarks(own),
                    f"figures {paper}": lambda paper=paper: draw_figures(paper, runs, page)}
    text = (Path(__file__).parent / "page.md").read_text()
    page.write_text(re.sub(r"\{\{(.+?)\}\}", lambda match: fill_in[match[1]](), text if ours else bare(text)))
    print(f"report: {page}")
