"""Experiments: run the project's own scripts, keep a few numbers of each run, and measure with these numbers.

A setting is the command line of a script, without --seed and --out. `{grpo}` in it is the folder of another run: of
setting grpo, with the same seed. `{teacher#0}` is the one with seed 0. Those runs come first.

The file of results has one record per finished run, {"SETTING/SEED": record}. The folder of a run, with models and
logs, is only needed by later runs that build on it."""

import base64
import ctypes
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from core.config import ROOT
from core.files import read_steps, write_whole
from core.saved import read_responses, to_rows
from core.stats import count, majority, mean_lengths, pass_at_k, transitions

CURVES, MEANS = "accuracy entropy kl".split(), "clip_low clip_high kept length".split()  # over the training
LAST_WORDS = 200  # characters that we show of the log of a run that failed
REFERENCE = r"\{(\w+)(?:#(\d+))?\}"  # {SETTING} or {SETTING#SEED} in a command line
FEW = 16  # with at most this many samples, we keep the numbers of each sample
GUESS = 60  # seconds per run, until one run of the setting has been timed


# ------------------------------------------------------------------------------------------------ what is kept
def shorten(x, digits=4):
    """Four digits of a number, so that the file of results stays small. None and NaN are None."""
    return None if x is None or not np.isfinite(x) else float(f"{x:.{digits}g}")


def numbers(saved) -> dict:
    """What we keep of responses, the columns of read_responses(). Means over responses, as plain numbers:

    accuracy, python, boxed, truncated, wait   shares in 0..1
    rejected                                   how often a response says `no`, as searches in the miniature Countdown do
    length_right, length_wrong                 tokens, of the responses that were not cut off
    And two arrays [P, n] of 0 and 1: right, and uses_python."""
    right, texts = saved["correct"].astype(float), saved["response"]
    tokens, whole = saved["tokens"].astype(float), saved["finish"] != "length"
    python, lengths = (count("python", texts) > 0).astype(float), mean_lengths(tokens, right, among=whole)
    r = dict(accuracy=right.mean(), python=python.mean(), boxed=(count(r"\\boxed{", texts) > 0).mean(),
             truncated=1 - whole.mean(), wait=(count("wait", texts) > 0).mean(),
             rejected=count(r"\bno\b", texts).mean(), length_right=lengths["right"],
             length_wrong=lengths["wrong"])
    return {name: shorten(x) for name, x in r.items()} | dict(right=right, uses_python=python)


def by_sample(saved) -> dict[str, list]:
    """{name: a number for each sample}. Each sample of an evaluation counts as one seed."""
    columns = [numbers({name: x[:, i : i + 1] for name, x in saved.items()}) for i in range(saved["correct"].shape[1])]
    return {name: [one[name] for one in columns] for name in columns[0] if name not in ("right", "uses_python")}


def by_operations(saved) -> dict[str, float]:
    """{how many operations a problem has: the accuracy on these problems}."""
    sizes = count(r"[-+*]", saved["problem"])
    return {f"{size:.0f}": shorten(saved["correct"][sizes == size].mean()) for size in np.unique(sizes)}


def examples(saved) -> list[dict]:
    """Two right and three wrong responses: first responses to different problems, that were not cut off."""
    rows = [row for row in to_rows({name: x[:, :1] for name, x in saved.items()}) if row["finish"] != "length"]
    right, wrong = ([row for row in rows if row["correct"] == value] for value in (True, False))
    return [{name: row[name] for name in ("problem", "gold", "response", "correct")} for row in right[:2] + wrong[:3]]


def pack(right) -> str:
    """right [P, n] of 0 and 1 -> text, with a bit for each."""
    return base64.b85encode(np.packbits(right.astype(bool), axis=1).tobytes()).decode()


def unpack(text: str, n: int):
    """The inverse of pack(): text, and the samples in a row -> [P, n] of 0 and 1."""
    rows = np.frombuffer(base64.b85decode(text), np.uint8).reshape(-1, math.ceil(n / 8))
    return np.unpackbits(rows, axis=1)[:, :n]


def digest(folder: Path) -> dict:
    """What we keep of the folder of a finished run.

    training         curves, means, evaluations, and what each change of strategy contributed to the gain
    eval.py          the numbers of its responses, and each grade. With at most 16 samples also those of each sample
                     alone, majority votes per problem, and two right and three wrong responses as they are
    eval.py compare  the median perplexity of each model's responses"""
    if (folder / "metrics.jsonl").exists():
        rows = [row for step, row in read_steps(folder / "metrics.jsonl").items() if step]
        columns = {name: [shorten(row[name], 3) for row in rows] for name in CURVES}
        there = {name: [row[name] for row in rows if row[name] is not None] for name in MEANS}
        means = {name: shorten(np.mean(values) if values else None) for name, values in there.items()}
        evals = []
        for file in sorted(folder.glob("eval/step_*/*.jsonl")):
            evals.append(numbers(saved := read_responses(file)))
        r = dict(curves={name: column for name, column in columns.items() if column and None not in column}) | means
        if evals:
            first, last = evals[0], evals[-1]
            cells = transitions(first["uses_python"], first["right"], last["uses_python"], last["right"])
            r["contributions"] = {name: shorten(cell["contribution"]) for name, cell in cells.items()}
            r["by_operations"] = by_operations(saved)
            r["evals"] = [{k: x for k, x in one.items() if k not in ("right", "uses_python")} for one in evals]
        return r
    if (folder / "compare.json").exists():
        (compared,) = json.loads((folder / "compare.json").read_text())["benchmarks"].values()
        return dict(perplexity=[shorten(np.median(values)) for values in compared["perplexity"].values()])
    r = {}
    for file in folder.glob("*.jsonl"):
        one = numbers(saved := read_responses(file))
        right, python = one["right"], one.pop("uses_python")
        r |= one | dict(samples=right.shape[1], right=pack(right))
        if right.shape[1] <= FEW:
            r |= dict(uses_python=pack(python), by_sample=by_sample(saved), examples=examples(saved),
                      majority=[shorten(curve[-1]) for curve in majority(saved, right, [right.shape[1]])])
    return r


def read_results(file: Path) -> dict:
    """{"SETTING/SEED": record}; {} if there is no such file."""
    return json.loads(file.read_text()) if file.exists() else {}


def write_results(file: Path, results: dict):
    """Write one record per line, in order, so that `diff` can compare two files."""
    order = sorted(results, key=lambda key: (key.split("/")[0], int(key.split("/")[1])))
    lines = [f"{json.dumps(key)}: {json.dumps(results[key], separators=(',', ':'))}" for key in order]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "{\n" + ",\n".join(lines) + "\n}\n")


# ------------------------------------------------------------------------------------------------ what is measured
def accuracy(run):
    """The accuracy of an evaluation."""
    return run["accuracy"]


def last(run, key="accuracy"):
    """A number of the last evaluation in a training run."""
    return run["evals"][-1][key]


def gain(run, key="accuracy"):
    """How much a number of the evaluation changed: after training - before."""
    return last(run, key) - run["evals"][0][key]


def mean(run, curve, start=0.0, end=1.0):
    """The mean of a training curve from one share of the training to another, 0..1."""
    values = run["curves"][curve]
    return float(np.mean(values[round(start * len(values)) : round(end * len(values))]))


def early(run, curve):
    """The mean of a training curve over the first third of the training."""
    return mean(run, curve, 0, 1 / 3)


def late(run, curve):
    """The mean of a training curve over the last half of the training."""
    return mean(run, curve, 1 / 2)


def grades(run, key="right"):
    """The grades of an evaluation, [P, n] of 0 and 1. Key "uses_python": which responses use Python."""
    return unpack(run[key], run["samples"])


def each(run, key):
    """A number of an evaluation, for each of its samples: [n]."""
    return np.array(run["by_sample"][key], dtype=float)


def of_style(run, python: bool):
    """The accuracy of the responses that use Python, or of those that do not, for each sample: [n], NaN without any."""
    style = grades(run, "uses_python") == python
    return (grades(run) * style).sum(0) / np.where(style.any(0), style.sum(0), np.nan)


def pass_at(run, k):
    """pass@k of an evaluation."""
    return float(pass_at_k(grades(run).sum(1), run["samples"])[:, k - 1].mean())


def only(a, b):
    """Of the problems that b solves at least once, the share that a never solves."""
    a, b = grades(a).any(1), grades(b).any(1)
    return float((b & ~a).sum() / max(1, b.sum()))


def at(run, low, high):
    """The share of problems whose accuracy is in low..high: 0 to 0 for those that are never solved."""
    p = grades(run).mean(1)
    return float(((low <= p) & (p <= high)).mean())


def slope(x, y):
    """The exponent b of y = a x^b, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def scatter(run, m, k=1):
    """How much the accuracy on m problems differs from k seeds to k other seeds: a standard deviation.

    Each sample stands for a seed. The result is the mean over disjoint sets of m problems."""
    right = grades(run)
    groups = right[:, : right.shape[1] // k * k].reshape(len(right), -1, k).mean(2)
    return np.mean([groups[i : i + m].mean(0).std(ddof=1) for i in range(0, len(right) - m + 1, m)])


def by_chance(run, m):
    """What scatter() is by chance alone, on the same problems. If p_i is the chance to solve problem i:
    sqrt(mean of p_i (1 - p_i) / m)."""
    p = grades(run).mean(1)
    p = p[: len(p) // m * m]
    return math.sqrt((p * (1 - p)).mean() / m)


def loss_by_format(run):
    """The accuracy that the base loses by missing boxes: what it would gain if its unboxed answers were boxed, and as
    often right as the others."""
    before = run["evals"][0]
    return before["accuracy"] * (1 / before["boxed"] - 1)


def to_python(run):
    """The contribution of "words to python" to the gain, minus the largest of the other three contributions."""
    others = [x for name, x in run["contributions"].items() if name != "words to python"]
    return run["contributions"]["words to python"] - max(others)


# ------------------------------------------------------------------------------------------------ running
def die_with_parent():
    """On Linux: when the lab is killed, this process gets SIGTERM. Otherwise it would go on writing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Experiments:
    """The runs of a table of settings, {name: command line}. A run is (setting, seed).

    A run works in the folder out/SETTING/sSEED, and its numbers are added to `file`.
    Raises OSError or ValueError if `file` cannot be read."""

    def __init__(self, settings: dict, file: Path, out: Path, launcher: str = ""):
        self.settings, self.file, self.out, self.launcher = settings, file, out, launcher
        self.results = read_results(file)

    def folder(self, run) -> Path:
        """Where a run writes."""
        return self.out / run[0] / f"s{run[1]}"

    def sources(self, run) -> list[tuple]:
        """The runs whose folders this run reads."""
        found = re.findall(REFERENCE, self.settings[run[0]])
        return [(name, int(seed) if seed else run[1]) for name, seed in found]

    def full_line(self, name: str) -> str:
        """The command line of a setting. In place of each {SETTING} is the full line of that setting.

        So a change in a setting changes the full line of all settings that build on it, and their old runs no longer
        count."""
        return re.sub(REFERENCE, lambda match: f"{{{self.full_line(match[1])}}}", self.settings[name])

    def has_numbers(self, run) -> bool:
        """Whether the results have the numbers of this run, from today's full line."""
        return self.results.get("/".join(map(str, run)), {}).get("command") == self.full_line(run[0])

    def of_today(self) -> dict:
        """The results, without those of settings that have changed or are gone."""
        return {key: record for key, record in self.results.items()
                if (name := key.split("/")[0]) in self.settings and self.has_numbers((name, key.split("/")[1]))}

    def old_line(self, run) -> str:
        """The full line with which the folder of this run was started. "" if there is none."""
        note = self.folder(run).with_suffix(".command")
        return note.read_text() if note.exists() else ""

    def has_folder(self, run) -> bool:
        """Whether the folder of this run is there and finished, from today's full line."""
        return (self.folder(run) / "finished").exists() and self.old_line(run) == self.full_line(run[0])

    def to_do(self, wanted: list[tuple]) -> list[tuple]:
        """The runs that are missing. Each comes after the runs that it builds on."""
        todo = {}

        def add(run):
            for other in self.sources(run):
                if not self.has_folder(other):
                    add(other)
            todo[run] = None

        for run in wanted:
            if not self.has_numbers(run):
                add(run)
        return list(todo)

    def seconds(self, todo: list[tuple]) -> float:
        """An estimate for these runs, one after another: earlier runs of the same setting tell."""
        past = {}
        for key, record in self.results.items():
            past.setdefault(key.split("/")[0], []).append(record["seconds"])
        return sum(np.mean(past.get(name, [GUESS])) for name, _ in todo)

    def command(self, run) -> list[str]:
        """The command of a run, for subprocess. If training was interrupted, it resumes."""
        place = lambda match: str(self.folder((match[1], match[2] or run[1])))
        script, *flags = shlex.split(re.sub(REFERENCE, place, self.settings[run[0]]))
        resume = ["--resume"] if (self.folder(run) / "metrics.jsonl").exists() else []
        start = shlex.split(self.launcher) or [sys.executable]
        return [*start, str(ROOT / script), *flags, *resume, f"--seed={run[1]}", f"--out={self.folder(run)}"]

    def start(self, run, threads: int):
        """Start the process of a run. It prints to sSEED.log, beside the folder of the run."""
        folder = self.folder(run)
        if self.old_line(run) not in ("", self.full_line(run[0])):
            shutil.rmtree(folder, ignore_errors=True)  # of another command line
            folder.with_suffix(".seconds").unlink(missing_ok=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.with_suffix(".command").write_text(self.full_line(run[0]))
        with open(folder.with_suffix(".log"), "w") as log:
            return subprocess.Popen(self.command(run), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                    env=os.environ | dict(OMP_NUM_THREADS=str(threads)), cwd=ROOT,
                                    preexec_fn=die_with_parent)

    def took(self, run, began=None) -> float:
        """How many seconds a run has taken so far, interruptions apart. began: it was running from then until now."""
        note = self.folder(run).with_suffix(".seconds")
        if began:
            note.write_text(str(time.time() - began))
        return float(note.read_text()) if note.exists() else 0.0

    def end(self, run, status=0) -> str:
        """Keep the numbers of a run that has ended -> "". If it has failed -> why, with the last line of its log."""
        folder = self.folder(run)
        try:
            if status:
                raise ValueError(f"status {status}")
            found = digest(folder)
            if not (folder / "final").exists() and not found.keys() & {"right", "perplexity"}:
                raise ValueError("it ended early")
        except (OSError, ValueError, KeyError) as error:
            log = folder.with_suffix(".log")
            last_line = re.split(r"[\r\n]+", log.read_text(errors="replace").strip())[-1]
            return f"{error}: {last_line[-LAST_WORDS:]} ({log})"
        record = dict(command=self.full_line(run[0]), seconds=round(self.took(run), 1)) | found
        (folder / "finished").touch()
        if not any(f"{{{run[0]}}}/step_" in line for line in self.settings.values()):
            for checkpoint in folder.glob("step_*"):  # to resume; of Qwen2.5-0.5B 8 GB
                shutil.rmtree(checkpoint)
        self.results = read_results(self.file) | {"/".join(map(str, run)): record}
        write_results(self.file, self.results)
        return ""

    def run_all(self, todo: list[tuple], jobs: int) -> list[str]:
        """Run them, `jobs` at a time -> one line for each run that failed, or that needs one that failed."""
        for run in filter(self.has_folder, list(todo)):  # finished, but not in the file of results
            if not self.end(run):
                todo.remove(run)
        if todo:
            minutes = self.seconds(todo) / jobs / 60
            print(f"{len(todo)} runs are missing; {jobs} at a time they take about {minutes:.0f} minutes", flush=True)
        waiting, running, failures, threads = list(todo), {}, {}, max(1, (os.cpu_count() or 1) // jobs)
        try:
            with tqdm(total=len(todo), desc="runs", disable=None) as bar:
                while waiting or running:
                    for run in list(waiting):
                        missing = [other for other in self.sources(run) if not self.has_folder(other)]
                        failed = [other for other in missing if other in failures]
                        if failed:
                            failures[run] = f"needs {failed[0][0]} seed {failed[0][1]}"
                        elif not missing and len(running) < jobs:
                            running[run] = self.start(run, threads), time.time() - self.took(run)
                        if run in failures or run in running:
                            waiting.remove(run)
                    bar.set_postfix_str(", ".join(f"{name} {seed}" for name, seed in running))
                    time.sleep(0.2)
                    for run in [run for run, (process, _) in running.items() if process.poll() is not None]:
                        process, began = running.pop(run)
                        name, seconds = f"{run[0]} seed {run[1]}", self.took(run, began)
                        if reason := self.end(run, process.returncode):
                            failures[run] = reason
                            tqdm.write(f"failed: {name}: {reason}", file=sys.stderr)
                        elif bar.disable:  # no terminal: a line in place of the bar
                            print(f"{name}: {seconds:.0f} s", flush=True)
                    bar.update(len(todo) - len(waiting) - len(running) - bar.n)
        finally:  # also on Ctrl-C and SIGTERM: training then writes a checkpoint, eval.py keeps what is complete
            for process, _ in running.values():
                process.terminate()
            for run, (process, began) in running.items():
                process.wait()
                self.took(run, began)
        return [f"{name} seed {seed}: {reason}" for (name, seed), reason in failures.items()]
