"""Experiments: runs of the project's own scripts, each a process of its own, and the numbers that are kept of them.

A setting is the command line of a script without --seed and --out. `{grpo}` in it stands for the folder of that
setting's run with the same seed, `{teacher#0}` for the one with seed 0; these runs have to come first. The numbers of
all finished runs are in one file, {"SETTING/SEED": record}; their folders, with models and logs, are needed only by
later runs that build on them."""

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
from core.saved import read_responses
from core.stats import count, mean_lengths, pass_at_k, transitions

CURVES = "reward accuracy entropy kl clip_low clip_high kept length".split()
LAST_WORDS = 200  # characters of a failed run's log that are shown
REFERENCE = r"\{(\w+)(?:#(\d+))?\}"  # {SETTING} or {SETTING#SEED} in a command line
GUESS = 60  # seconds that a run takes, as long as no other run of its setting has been timed


# ------------------------------------------------------------------------------------------------ what is kept
def shorten(x):
    """A number with the four digits that matter, which keeps the file of results small; None for None and NaN."""
    return None if x is None or not np.isfinite(x) else float(f"{x:.4g}")


def numbers(file) -> dict:
    """What is kept of a .jsonl file of responses: shares in 0..1, lengths in tokens (of responses that were not cut
    off), and how often a response mentions `wait` and rejects an attempt with `no`, as in the miniature Countdown."""
    saved = read_responses(file)
    right, texts = saved["correct"].astype(float), saved["response"]
    tokens, whole = saved["tokens"].astype(float), saved["finish"] != "length"
    python, lengths = (count("python", texts) > 0).astype(float), mean_lengths(tokens, right, among=whole)
    r = dict(accuracy=right.mean(), python=python.mean(), boxed=(count(r"\\boxed{", texts) > 0).mean(),
             truncated=1 - whole.mean(), wait=(count("wait", texts) > 0).mean(),
             rejected=count(r"\bno\b", texts).mean(), length_right=lengths["right"],
             length_wrong=lengths["wrong"])
    return {name: shorten(x) for name, x in r.items()} | dict(right=right, uses_python=python)


def pack(right) -> list[str]:
    """Rows of 0 and 1, right [P, n], as hexadecimal numbers: four samples in a character."""
    return ["".join(f"{b:02x}" for b in np.packbits(row.astype(bool))) for row in right]


def unpack(rows: list[str], n: int):
    """The array [P, n] of 0 and 1 that pack() was given."""
    return np.stack([np.unpackbits(np.frombuffer(bytes.fromhex(row), np.uint8))[:n] for row in rows])


def digest(folder: Path) -> dict:
    """What is kept of a finished run of a training script (curves, evaluations, how the strategies changed between the
    first and the last one) or of eval.py (every single grade; medians of perplexities)."""
    if (folder / "metrics.jsonl").exists():
        rows = [json.loads(line) for line in open(folder / "metrics.jsonl")]
        columns = {name: [shorten(row[name]) for row in rows if row["step"]] for name in CURVES}
        evals = []
        for file in sorted(folder.glob("eval/step_*/*.jsonl")):
            evals.append(numbers(file) | dict(step=int(file.parent.name.removeprefix("step_"))))
        r = dict(curves={name: column for name, column in columns.items() if column and None not in column})
        if r["curves"].get("reward") == r["curves"].get("accuracy"):
            r["curves"].pop("reward", None)
        if evals:
            first, last = evals[0], evals[-1]
            cells = transitions(first["uses_python"], first["right"], last["uses_python"], last["right"])
            r["transitions"] = {name: {key: shorten(x) for key, x in cell.items()} for name, cell in cells.items()}
            r["evals"] = [{k: x for k, x in one.items() if k not in ("right", "uses_python")} for one in evals]
        return r
    if (folder / "compare.json").exists():
        (compared,) = json.loads((folder / "compare.json").read_text())["benchmarks"].values()
        return dict(perplexity=[shorten(np.median(values)) for values in compared["perplexity"].values()])
    r = {}
    for file in folder.glob("*.jsonl"):
        one = numbers(file)
        one.pop("uses_python")
        r |= one | dict(samples=one["right"].shape[1], right=pack(one["right"]))
    return r


def read_results(file: Path) -> dict:
    """{"SETTING/SEED": record}; {} if there is no such file."""
    return json.loads(file.read_text()) if file.exists() else {}


def write_results(file: Path, results: dict):
    """One record a line, in order, so that two files can be compared line by line; whole or not at all."""
    order = sorted(results, key=lambda key: (key.split("/")[0], int(key.split("/")[1])))
    lines = [f"{json.dumps(key)}: {json.dumps(results[key], separators=(',', ':'))}" for key in order]
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp")
    unfinished.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    unfinished.replace(file)


# ------------------------------------------------------------------------------------------------ what is measured
def accuracy(run):
    """The accuracy of an evaluation."""
    return run["accuracy"]


def last(run, key="accuracy"):
    """A number of a training run's last evaluation on test problems."""
    return run["evals"][-1][key]


def gain(run, key="accuracy"):
    """How much it has changed since before training."""
    return last(run, key) - run["evals"][0][key]


def mean(run, curve, start=0.0, end=1.0):
    """The mean of a training curve over a part of the training."""
    values = run["curves"][curve]
    return float(np.mean(values[round(start * len(values)) : round(end * len(values))]))


def early(run, curve):
    """The mean of a training curve over the first third of the training."""
    return mean(run, curve, 0, 1 / 3)


def late(run, curve):
    """The mean of a training curve over the last half of the training."""
    return mean(run, curve, 1 / 2)


def grades(run):
    """[P, n] of 0 and 1, of an evaluation."""
    return unpack(run["right"], run["samples"])


def passed(run, k):
    """pass@k of an evaluation."""
    return float(pass_at_k(grades(run).sum(1), run["samples"])[:, k - 1].mean())


def only(a, b):
    """The share of b's solvable problems that a does not solve."""
    a, b = grades(a).any(1), grades(b).any(1)
    return float((b & ~a).sum() / max(1, b.sum()))


def at(run, accuracy):
    """The share of problems of exactly this accuracy, 0 or 1."""
    return float((grades(run).mean(1) == accuracy).mean())


def slope(x, y):
    """The exponent b of y = a x^b, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def scatter(run, m):
    """The standard deviation of the accuracy on m problems over the samples, each of which stands for a seed; the mean
    over disjoint sets of m problems."""
    right = grades(run)
    return np.mean([right[i : i + m].mean(0).std(ddof=1) for i in range(0, len(right) - m + 1, m)])


def by_chance(run, m):
    """What it would be by chance alone, if problem i is solved with chance p_i: sqrt(mean of p_i (1 - p_i) / m)."""
    p = grades(run).mean(1)
    return math.sqrt((p * (1 - p)).mean() / m)


def scatter_of_means(run, k, draws=4000):
    """The standard deviation of the mean over k seeds, drawn from the samples, each of which stands for a seed."""
    seeds, rng = grades(run)[:30].mean(0), np.random.default_rng(0)
    return rng.choice(seeds, (draws, k)).mean(1).std()


def loss_by_format(run):
    """What a base would gain before training if it boxed all its answers and was right in the same share of them."""
    before = run["evals"][0]
    return before["accuracy"] * (1 / before["boxed"] - 1)


def to_python(run):
    """How much more words-to-python contributes to the gain than the largest of the other three transitions."""
    cells = {name: cell["contribution"] for name, cell in run["transitions"].items()}
    return cells.pop("words to python") - max(cells.values())


# ------------------------------------------------------------------------------------------------ running
def die_with_parent():
    """On Linux: ask for SIGTERM when the lab dies, so that a killed lab leaves no run behind that goes on writing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


class Experiments:
    """Runs of a table of settings {name: command line}, in subfolders of `out`; their numbers go to `file`."""

    def __init__(self, settings: dict, file: Path, out: Path, launcher: str = ""):
        self.settings, self.file, self.out, self.launcher = settings, file, out, launcher
        self.results = read_results(file)

    def folder(self, run) -> Path:
        return self.out / run[0] / f"s{run[1]}"

    def first(self, run) -> list[tuple]:
        """The runs, (setting, seed), whose folders this one reads."""
        found = re.findall(REFERENCE, self.settings[run[0]])
        return [(name, int(seed) if seed else run[1]) for name, seed in found]

    def whole(self, name: str) -> str:
        """A setting's command line, with those of the settings that it builds on in their places: if any of them
        changes, so does this, and old runs no longer count."""
        return re.sub(REFERENCE, lambda match: f"{{{self.whole(match[1])}}}", self.settings[name])

    def known(self, run) -> bool:
        """Whether the numbers of this run are there, from the same command line."""
        return self.results.get("/".join(map(str, run)), {}).get("command") == self.whole(run[0])

    def begun(self, run) -> str:
        """The command line under which this run's folder was begun; "" if it was not."""
        note = self.folder(run).with_suffix(".command")
        return note.read_text() if note.exists() else ""

    def complete(self, run) -> bool:
        """Whether this run's folder is there and finished, from the same command line."""
        return (self.folder(run) / "finished").exists() and self.begun(run) == self.whole(run[0])

    def to_do(self, wanted: list[tuple]) -> list[tuple]:
        """The runs that are missing for the wanted ones, those that others build on before them."""
        todo = {}

        def add(run):
            for other in self.first(run):
                if not self.complete(other):
                    add(other)
            todo[run] = None

        for run in wanted:
            if not self.known(run):
                add(run)
        return list(todo)

    def seconds(self, todo: list[tuple]) -> float:
        """How long these runs will take, one after another, going by earlier runs of the same settings."""
        past = {}
        for key, record in self.results.items():
            past.setdefault(key.split("/")[0], []).append(record["seconds"])
        return sum(np.mean(past.get(name, [GUESS])) for name, _ in todo)

    def command(self, run) -> list[str]:
        """A run's command line, for subprocess. Training goes on from the last checkpoint, if there is one."""
        place = lambda match: str(self.folder((match[1], match[2] or run[1])))
        script, *flags = shlex.split(re.sub(REFERENCE, place, self.settings[run[0]]))
        resume = ["--resume"] if (self.folder(run) / "metrics.jsonl").exists() else []
        start = shlex.split(self.launcher) or [sys.executable]
        return [*start, str(ROOT / script), *flags, *resume, f"--seed={run[1]}", f"--out={self.folder(run)}"]

    def start(self, run, threads: int):
        """The process of a run, which writes its output to sSEED.log beside its folder."""
        folder = self.folder(run)
        if self.begun(run) not in ("", self.whole(run[0])):
            shutil.rmtree(folder, ignore_errors=True)  # begun under other settings
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.with_suffix(".command").write_text(self.whole(run[0]))
        with open(folder.with_suffix(".log"), "w") as log:
            return subprocess.Popen(self.command(run), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                                    env=os.environ | dict(OMP_NUM_THREADS=str(threads)), cwd=ROOT,
                                    preexec_fn=die_with_parent)

    def end(self, run, status: int, seconds: float) -> str:
        """Keep the numbers of a run that has ended with an exit status; or why there are none, with its log's last
        line."""
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
        record = dict(command=self.whole(run[0]), seconds=round(seconds, 1)) | found
        (folder / "finished").touch()
        self.results = read_results(self.file) | {"/".join(map(str, run)): record}
        write_results(self.file, self.results)
        return ""

    def run_all(self, todo: list[tuple], jobs: int) -> list[str]:
        """Run what is to do, `jobs` at a time; a line for each run that failed or could not be tried."""
        if todo:
            minutes = self.seconds(todo) / jobs / 60
            print(f"{len(todo)} runs are missing; {jobs} at a time they take about {minutes:.0f} minutes", flush=True)
        waiting, running, failures, threads = list(todo), {}, {}, max(1, (os.cpu_count() or 1) // jobs)
        try:
            with tqdm(total=len(todo), desc="runs", disable=None) as bar:
                while waiting or running:
                    for run in list(waiting):
                        before = [other for other in self.first(run) if not self.complete(other)]
                        if lost := [other for other in before if other in failures]:
                            failures[run] = f"needs {lost[0][0]} seed {lost[0][1]}"
                        elif not before and len(running) < jobs:
                            running[run] = self.start(run, threads), time.time()
                        if run in failures or run in running:
                            waiting.remove(run)
                    bar.set_postfix_str(", ".join(f"{name} {seed}" for name, seed in running))
                    time.sleep(0.2)
                    for run in [run for run, (process, _) in running.items() if process.poll() is not None]:
                        process, began = running.pop(run)
                        name, seconds = f"{run[0]} seed {run[1]}", time.time() - began
                        if reason := self.end(run, process.returncode, seconds):
                            failures[run] = reason
                            tqdm.write(f"failed: {name}: {reason}", file=sys.stderr)
                        elif bar.disable:  # no terminal: a line in place of the bar
                            print(f"{name}: {seconds:.0f} s", flush=True)
                    bar.update(len(todo) - len(waiting) - len(running) - bar.n)
        finally:  # also on Ctrl-C and SIGTERM: training leaves with a checkpoint, eval.py with what is complete
            for process, _ in running.values():
                process.terminate()
            for process, _ in running.values():
                process.wait()
        return [f"{name} seed {seed}: {reason}" for (name, seed), reason in failures.items()]
