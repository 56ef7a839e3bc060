"""The report: a verdict on each claim, and docs/lab.md with its figures. The file of results is all it needs."""

import inspect
import math
from pathlib import Path

import numpy as np

import plot
from core.config import ROOT
from core.stats import crossing, holm, pass_at_k
from lab import real
from lab.claims import SETTINGS
from lab.experiments import by_chance, each, gain, grades, last, late, pass_at, scatter
from lab.panels import draw_groups, draw_panels, draw_powers, draw_seeds
from lab.papers import PAPERS, TENSION
from lab.verdicts import verdict

# ------------------------------------------------------------------------------------------------ judgement
def region(criterion: str) -> tuple[float, float]:
    """criterion -> (low, high), between which the mean has to be: "> 0" -> (0, inf), "within 0.1" -> (-0.1, 0.1)."""
    word, border = criterion.split()
    border = float(border)
    return {">": (border, math.inf), "<": (-math.inf, border), "within": (-border, border)}[word]


def needs(claim) -> list[str]:
    """The settings that a claim is about."""
    names = [name for _, _, measure in claim.parts for name in inspect.signature(measure).parameters]
    return list(dict.fromkeys(name for name in names if name != "seed"))


def judge(claim, results: dict, seeds: list[int]) -> dict:
    """The verdict on a claim and on each of its parts. A seed counts if the results have all the records of that part.
    A measure gives a number per seed, or an array: on real models each sample of a run is a seed.

    All parts have to hold. p is that of the deciding part: of the least certain one, or if the claim fails, of the
    surest failure."""
    parts, seeds = [], [0] if {*needs(claim)} & {*real.ONCE} else seeds
    for label, criterion, measure in claim.parts:
        low, high = region(criterion)
        names = list(inspect.signature(measure).parameters)
        if names:
            there = [seed for seed in seeds if all(f"{name}/{seed}" in results for name in names if name != "seed")]
            inputs = [{x: seed if x == "seed" else results[f"{x}/{seed}"] for x in names} for seed in there]
            values = np.concatenate([np.atleast_1d(measure(**records)) for records in inputs] or [[]]).astype(float)
            values = values[~np.isnan(values)]  # such as the length of right answers where there is none
            found = verdict(values, low, high) if len(values) else dict(verdict="not run")
        else:
            exact = measure()
            found = dict(mean=exact, n="computed", verdict="holds" if low < exact < high else "fails")
        parts.append(dict(label=label, criterion=criterion) | found)
    verdicts = [part["verdict"] for part in parts]
    decided = next((word for word in ("fails", "not run", "undecided") if word in verdicts), "holds")
    ps = [part["p"] for part in parts if "p" in part and (decided != "fails" or part["verdict"] == "fails")]
    p = (min if decided == "fails" else max)(ps) if ps and decided != "not run" else None
    return dict(parts=parts, verdict=decided, p=p)


def judge_all(claims, results: dict, seeds: list[int]) -> dict[int, dict]:
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
SEARCH = dict(search_right="search, right", search_wrong="search, wrong", search_direct="direct", search_dots="dots")
KS = [2**i for i in range(9)]


def drop_empty(data: dict) -> dict:
    """The data of a panel, without the lines and bars that have no runs yet."""
    inner = {label: drop_empty(x) if isinstance(x, dict) else x for label, x in data.items()}
    return {label: x for label, x in inner.items() if len(x[1] if isinstance(x, tuple) else x)}


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
    return [(draw_seeds, curve(runs, names, "accuracy", "kl", window=10), "accuracy at a KL, means over seeds",
             "KL to the initial policy, nats per token", "training accuracy")]


def passes(runs):
    names = dict(base_256="base", third_256="GRPO, a third", two_thirds_256="two thirds", grpo_256="end",
                 distilled_256="distilled")
    curves = {label: [pass_at_k(grades(run).sum(1), run["samples"]).mean(0) for run in runs(name)]
              for name, label in names.items()}
    lines = {label: (KS, [values[np.array(KS) - 1] for values in seeds]) for label, seeds in curves.items() if seeds}
    if not {"base", "end"} <= lines.keys():
        return []
    k = crossing(np.mean(curves["base"], 0), np.mean(curves["end"], 0))
    title = f"base and GRPO cross at k = {k}" if k else "base and GRPO do not cross"
    if k:
        lines["crossing"] = [k, k], [[0, 1]]
    return [(draw_powers, lines, title, "k (log axis)", "pass@k, share of problems")]


def spurious(runs):
    groups = {base: {reward: [gain(run) for run in runs(f"{name}_{key}")] for name, reward in REWARDS.items()}
              for key, base in (("good", "python the better style"), ("bad", "python the worse style"))}
    return [(draw_groups, groups, "gain by what is rewarded", "", "accuracy, after - before")]


def clipping(runs):
    panels = training(runs, CLIPPING, "accuracy", "entropy")
    labels = {name: label.replace(", ", ",\n") for name, label in CLIPPING.items()}
    groups = bars(runs, labels, {"python": lambda run: gain(run, "python")})
    return [*panels, (draw_groups, groups, "share of the python style", "", "after - before")]


def luck(runs):
    right = [grades(run) for run in runs("base_256")]
    sizes, seeds = [3, 6, 12, 24, 48], range(1, 11)
    found = {"observed": (sizes, [[scatter(run, m) for m in sizes] for run in runs("base_256")]),
             "by chance": (sizes, [[by_chance(run, m) for m in sizes] for run in runs("base_256")])}
    widths = {f"{m} problems": (seeds, [[3.92 * one[:m].mean(0).std(ddof=1) / math.sqrt(k) for k in seeds]
                                        for one in right]) for m in (12, 30, 48)}
    return [(draw_powers, found, "scatter of a seed's accuracy", "problems (log axis)", "standard deviation"),
            (draw_seeds, widths, "width of the 95 % interval of the mean", "seeds that are averaged", "accuracy")]


def table(runs) -> str:
    """The table that README shows too: each method before and after training, mean ± sd over seeds."""
    spread = lambda values, digits: f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"
    rows = ["| file | accuracy before, % | at the end, % | KL, last half | entropy, last half |", 5 * "|---" + "|"]
    for name in ALGORITHMS:
        if len(seeds := runs(name)) > 1:
            before, after = ([100 * run["evals"][i]["accuracy"] for run in seeds] for i in (0, -1))
            kl, entropy = ([late(run, metric) for run in seeds] for metric in ("kl", "entropy"))
            file = SETTINGS[name].split()[0]
            rows.append(f"| `{file}` | {spread(before, 1)} | {spread(after, 1)} | {spread(kl, 3)} | "
                        f"{spread(entropy, 3)} |")
    return "\n".join(rows)


def lengths(runs):
    groups = bars(runs, dict(base_256="base", grpo_256="after GRPO"),
                  {"right": lambda run: run["length_right"], "wrong": lambda run: run["length_wrong"]})
    more = bars(runs, dict(grpo="all tokens", sequence="own length", constant="constant"),
                {"right": lambda run: last(run, "length_right"), "wrong": lambda run: last(run, "length_wrong")})
    return [(draw_groups, groups, "length by result", "", "tokens, responses not cut off"),
            (draw_groups, more, "after GRPO, by what the loss is divided by", "", "tokens")]


def flows(runs):
    names = dict(true_good="truth", vote_good="votes", true_bad="truth,\npython the worse style")
    cells = ("python to python", "python to words", "words to python", "words to words")
    share = {cell: lambda run, cell=cell: run["transitions"][cell]["contribution"] for cell in cells}
    return [(draw_groups, bars(runs, names, share), "who contributes to the gain", "what is rewarded",
             "share of the gain")]


def search(runs):
    groups = bars(runs, SEARCH, {"before RL": lambda run: run["evals"][0]["accuracy"], "after RL": last})
    return [(draw_seeds, curve(runs, SEARCH, "accuracy"), "miniature Countdown", "training step", "accuracy"),
            (draw_groups, groups, "on test problems", "primed with", "accuracy")]


def waiting(runs):
    moments = dict(early=75, middle=150, late=300)
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
    return [*panels, (draw_groups, groups, "gain in test accuracy", "", "share of responses, after - before")]


FIGURES = [  # name, paper, what draws it, caption
    ("methods", "minimalist", lambda runs: training(runs, ALGORITHMS, "accuracy", "entropy", "kl"),
     "The algorithms on the same problems, moving average of 5 steps; iterative DPO has few long iterations in place "
     "of steps"),
    ("variants", "minimalist", lambda runs: training(runs, VARIANTS, "accuracy", "entropy", "kl"),
     "Reinforce and its variants, moving average of 5 steps"),
    ("kl", "minimalist", reward_against_kl, "What accuracy costs in distance from the initial policy, moving average "
     "of 10 steps"),
    ("luck", "sober", luck, "Chance in evaluations of the base; 256 samples per problem stand for 256 seeds"),
    ("lengths", "sober", lengths, "Lengths of right and wrong answers"),
    ("spurious", "spurious", spurious, "What each reward gains, for a base whose python style is the better one, and "
     "for one where it is the worse"),
    ("clipping", "spurious", clipping, "Random rewards, with and without clip and off-policy updates"),
    ("flows", "spurious", flows, "Strategy before and after: contributions to the gain"),
    ("passes", "limit", passes, "pass@k of the base, of GRPO at three moments, and of distillation"),
    ("search", "behaviors", search, "RL after priming with search traces that end right or wrong, with direct answers, "
     "and with dots"),
    ("real", "real", real_models, "Three real models on 64 problems of GSM8K and 32 of MATH-500; usual: cot, "
     "for Gemma plain with 256 tokens; empty places were not run"),
    ("real-rl", "real", real_rl, "RL on two real models, moving average of 3 steps. All runs of a seed see the same "
     "problems, so they rise and fall together. Bands are one standard deviation over seeds"),
    ("waiting", "reflection", waiting, "A solution that has gone wrong is continued, with and without ` wait`"),
]


# ------------------------------------------------------------------------------------------------ the page
def seed_range(seeds: list[int]) -> str:
    """[0, 1, 2] -> "0 to 2"."""
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def tally(found) -> str:
    """How many verdicts of each kind: "14 hold, 1 fails, 17 undecided"."""
    verdicts, parts = [one["verdict"] for one in found], []
    for word in ("holds", "fails", "undecided", "not run"):
        if count := verdicts.count(word):
            parts.append(f"{count} {word if count == 1 else word.removesuffix('s')}")
    return ", ".join(parts)


def spent(results: dict, seeds: list[int], on_real: bool) -> str:
    """How many runs there are with these seeds, and how many hours they took: those on real models, or the others."""
    ours = {key: record for key, record in results.items() if (key.split("/")[0] in real.SETTINGS) == on_real}
    own = [record for key, record in ours.items() if int(key.split("/")[1]) in seeds]
    return f"{len(own)} runs of one process each, {sum(record['seconds'] for record in own) / 3600:.1f} hours in all"


def open_page(found: dict, results: dict, seeds: list[int]) -> str:
    """The first paragraphs: what the page is, how many claims hold, and how a verdict is made."""
    return f"""# The lab: do the papers' claims hold on a laptop?

Written by `python -m lab --report` from lab/results.json. To change this page, change lab/claims.py or lab/report.py.
`python -m lab 17 --results out/mine.json --out out/mine` repeats claim 17 from nothing; with `all` in place of 17, it
repeats those of sections 1 to 7.

Of {len(found)} claims: {tally(found.values())}. {spent(results, seeds, False)};
two at a time on two cores they take half of that. Seeds {seed_range(seeds)}. Section 8 has real models.

The seed is the unit: differences are taken between runs of the same seed, and the interval is the 95 % one of
Student's t over seeds. A part **holds** if its interval lies where the criterion says, **fails** if it lies
elsewhere, and is **undecided** otherwise; then "shows" is the distance from the border that this many seeds would
have shown with a chance of 80 %. A claim holds if all of its parts hold and fails if one fails. Equivalence
("within") is judged by the same interval, so by two one-sided tests at 2.5 %. The last column is the p-value of the
part that decides, adjusted by Holm's method over all sampled claims, those of section 8 apart; `computed` ones need
no samples. The verdicts are not adjusted. Five seeds show a difference of two standard errors in a third of the cases,
and one of 3.7 in four of five: `undecided` is not `no`. But for section 8, all models have 0.7 million parameters and
all problems are nested sums, so a verdict says whether a claim carries over to this world, not whether it is true in
the paper's. Settings were tuned on seeds from 100 up; the criteria stood before seeds 0 to 4 were run (section 8:
lab/real.py says how). The sentences after the counts under "We see" were written by hand, for these results."""


REAL = (
    "Qwen2.5-Coder-0.5B-Instruct, SmolLM2-135M-Instruct and Gemma 3 270M, in fp32 on a CPU. Claims 35 to 41: 64 "
    "problems of GSM8K and 32 of MATH-500. Where n is 16 or 48, each of the 16 samples counts as a seed. Where n is "
    "96, the conditions are compared on each problem. Claims 42 and 43: generated problems; a seed is one of training."
)
DIFFERENCE = (
    "How all of this differs from the paper's experiments: model (0.7 million parameters), problems (sums), size (30 "
    "steps of 128 responses, 8 updates each), one learning rate for all methods."
)


def value(part: dict) -> str:
    """The mean of a part, and its interval if it has one, in few digits."""
    if "mean" not in part:
        return "not run"
    digits = lambda x: f"{x:.3f}" if abs(x) < 10 else f"{x:.1f}"
    interval = part.get("interval")
    return digits(part["mean"]) + (f" [{digits(interval[0])}, {digits(interval[1])}]" if interval else "")


def claim_rows(claim, one: dict) -> list[str]:
    """The rows of a claim in the table of its paper: first the claim, then each part."""
    holm_p = f"{one['holm']:.3f}" if "holm" in one else "-"
    rows = [f"| {claim.number} | **{claim.text}** ({claim.source}) | | | **{one['verdict']}** | {holm_p} |"]
    for part in one["parts"]:
        short = f", shows {part['detectable']:.3f}" if part["verdict"] == "undecided" and part["n"] > 1 else ""
        rows.append(f"| | {part['label']} {part['criterion']} | {value(part)}{short} | {part.get('n', 0)} | "
                    f"{part['verdict']} | |")
    return rows


def show_example(one: dict) -> str:
    """A response as it is, for the page."""
    word = "Right" if one["correct"] else "Wrong"
    return f"{word}; the answer is {one['gold']}. {one['problem']}\n\n~~~~text\n{one['response'].strip()}\n~~~~"


def page_of(file: Path) -> Path:
    """Where the report on a file of results is: docs/lab.md for lab/results.json, and FILE.md for any other."""
    ours = (ROOT / "lab/results.json").resolve()
    return ROOT / "docs/lab.md" if file.resolve() == ours else file.with_suffix(".md")


def write(file: Path, claims, found: dict, results: dict, seeds: list[int]):
    """Write the report, and its figures beside it, as docs/lab.md and docs/lab-NAME.png."""
    page = page_of(file)
    runs = lambda name: [results[f"{name}/{seed}"] for seed in seeds if f"{name}/{seed}" in results]
    pages = [open_page({one.number: found[one.number] for one in claims if one.paper != "real"}, results, seeds)]
    for number, (paper, (title, arxiv, says, sees)) in enumerate(PAPERS.items(), 1):
        if not (own := [claim for claim in claims if claim.paper == paper]):
            continue  # on another model there is no section 8
        rows = ["| # | claim, and what has to hold | measured, 95 % interval | n | verdict | p, Holm |",
                "|---|---|---|---|---|---|"]
        rows += [row for claim in own for row in claim_rows(claim, found[claim.number])]
        here = "".join(f"\n- {claim.number}: {claim.differs}" for claim in own if claim.differs)
        pages += [f"## {number}. {title} ({arxiv})", f"**It says:** {says.strip()}",
                  f"**We see:** {tally(found[claim.number] for claim in own)}. {sees.strip()}", "\n".join(rows)]
        differs = f"{REAL} {spent(results, seeds, True)}, on two cores." if paper == "real" else DIFFERENCE
        pages += [differs + (f" Besides:\n{here}" if here else "")]
        if paper == "minimalist":
            pages += [TENSION.strip(), "All algorithms, mean ± standard deviation over seeds:", table(runs)]
        for name, of, panels, caption in FIGURES:
            all_panels = panels(runs) if of == paper else []
            drawn = [(draw, kept, *words) for draw, data, *words in all_panels if (kept := drop_empty(data))]
            if drawn:
                picture = page.with_name(f"{page.stem}-{name}.png")
                draw_panels(drawn, picture)
                words = f"n = {len(seeds)} (seeds {seed_range(seeds)}); bands are one standard deviation over seeds"
                dots = f"Dots in the bars are {'samples' if name == 'real' else 'seeds'}"
                words = dots if of == "real" else f"{words}, dots are seeds"
                pages += [f"![{caption}]({picture.name})", f"*{caption}. {words}.*"]
        if paper == "real":
            pages += [show_example(one) for run in runs("qwen_16")[:1] for one in run["examples"]]
    others = sorted({int(key.split("/")[1]) for key in results} - set(seeds))
    has_all = lambda claim: all(f"{name}/{seed}" in results for name in needs(claim) for seed in others)
    again = [claim for claim in claims if others and needs(claim) and has_all(claim)]
    if again:
        rows = [f"| {claim.number} | {claim.text} | {found[claim.number]['verdict']} | "
                f"{judge(claim, results, others)['verdict']} |" for claim in again]
        pages += ["## Again with other seeds", "\n".join(
            [f"| # | claim | seeds {seed_range(seeds)} | seeds {seed_range(others)} |", "|---|---|---|---|", *rows])]
    page.write_text("\n\n".join(pages) + "\n")
    print(f"report: {page}")
