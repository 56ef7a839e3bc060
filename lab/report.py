"""The report: a verdict on each claim, and docs/lab.md with its figures. The file of results is all it needs.

The prose of that page is page.md, where each {{name}} stands for a table, a figure or a number. It describes the
committed lab/results.json. When those numbers change, read it again."""

import inspect
import math
import re
from pathlib import Path

import numpy as np

from core.config import ROOT
from core.stats import holm
from lab import real
from lab.claims import RATES, SEEDS, SETTINGS, SHOWN, TUNING_SEEDS
from lab.experiments import last, late, mean
from lab.figures import ALGORITHMS, draw_figures
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


REASONS = dict(  # a method, and what differs from it in one thing
    grpo=dict(grpo="GRPO", grpo_positive="wrong answers ignored", grpo_no_std="without the standard deviation",
              grpo_once="one update per rollout"),
    raft_pp=dict(raft_pp="RAFT++", raft_pp_mixed="all-right prompts ignored", raft_pp_once="one update per rollout"),
    grpo_long=dict(grpo_long="GRPO, 150 steps", grpo_positive_long="wrong answers ignored"),
    raft_pp_same=dict(raft_pp_same="RAFT++, 150 steps, at GRPO's rate", raft_pp_mixed_long="all-right prompts ignored",
                      raft_pp_long="at its own rate"))


def reasons(results: dict) -> str:
    """GRPO and RAFT++, and what each gives with one difference between them less, seed by seed."""
    rows = []
    for usual, variants in REASONS.items():
        for name, words in variants.items():
            seeds = [seed for seed in range(SEEDS) if {f"{name}/{seed}", f"{usual}/{seed}"} <= results.keys()]
            if seeds:
                own, other = ([results[f"{setting}/{seed}"] for seed in seeds] for setting in (name, usual))
                change = verdict([100 * (last(run) - last(than)) for run, than in zip(own, other)])
                hard = [100 * run["by_operations"]["6"] for run in own]
                late_means = [spread([mean(run, metric, 2 / 3) for run in own], 3) for metric in ("entropy", "kl")]
                rows.append((f"**{words}**" if name == usual else words, spread([100 * last(run) for run in own]),
                             "" if name == usual else value(change), spread(hard), *late_means, len(seeds)))
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
        keys = [f"{name}/{seed}" for seed in seeds_for_setting.get(name, seeds or range(SHOWN))]
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
