"""What learning does, on one page: which responses were pushed up, which down, at which tokens, and why one is ignored.

    python show.py out/grpo-tiny-s0                     writes out/grpo-tiny-s0/show.html, as each run does at its end
    python show.py out/raft-tiny-s0 out/grpo-tiny-s0    both on one page, show.html in this folder; --out names another

The page is one file that opens from disk and loads nothing. It is made from what a run has saved (config.json,
metrics.jsonl, samples.jsonl, eval/) and from core/show.html, its layout and script. What models wrote is shown as text
only: it is JSON in the page, and the browser runs no script but the page's own.
"""

import argparse
import base64
import hashlib
import json
import re
import sys
from pathlib import Path
from statistics import fmean
from string import ascii_uppercase

from core.files import read_lines, read_steps
from core.verify import right

MOST = 4_000_000  # bytes of a page's tokens, over all runs; of its evaluations a quarter of that
CURVES = "accuracy eval_accuracy reward entropy kl length clip_low clip_high grad_norm".split()
SHOWN = """prompt problem answer response reward rewards correct finished kept advantage weight updates clipped tokens
           old new entropy""".split()
COUNTS = "none one two three four five six seven eight nine ten eleven twelve".split()
# script: its name, and why it does what it does
METHODS = {
    "raft": ("RAFT", "It imitates what is right, each token alike, and learns nothing from what is wrong."),
    "raft_pp": ("RAFT++", "It learns from right responses alone; the clip stops a token that has moved far enough."),
    "reinforce_rej": ("Reinforce-Rej", "Right is +1, wrong is -1; a prompt with only one of them teaches nothing."),
    "grpo": ("GRPO", "An advantage is how far a reward lies from the mean of its group: rare successes count most."),
    "ppo": ("PPO", "Its critic predicts the reward at each token: what turns out better is pushed up, worse down."),
    "iterative_dpo": ("Iterative DPO", "A right and a wrong response make a pair; the gap between them is to grow."),
}


# ------------------------------------------------------------------------------------------------ what a run has saved
def read_samples(file: Path) -> dict:
    """{step: {prompt_id: its recorded responses}} of a samples.jsonl."""
    steps, old_format = {}, 0
    for number, row in read_lines(file) if file.exists() else ():
        try:
            groups = steps.setdefault(int(row["step"]), {})
            if "tokens" not in row:  # of a run that this one has resumed, perhaps
                old_format += 1
                continue
            lists = [row[name] for name in ("tokens", "old", "new", "entropy")]
            if len(set(map(len, lists))) > 1 or not all(isinstance(text, str) for text in row["tokens"]):
                raise ValueError("tokens, old, new and entropy have to be lists of the same length")
            groups.setdefault(row["prompt_id"], []).append(response_of(row))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number}: no recorded response ({error}); remove the line") from None
    steps = {step: groups for step, groups in sorted(steps.items()) if groups}
    if not steps and old_format:
        raise ValueError(f"{file}: written by an older version, without tokens; train again to see them")
    if not steps:
        raise ValueError(f"{file}: no recorded responses in it; let the run do a step first")
    return steps


def response_of(row: dict) -> dict:
    """What the page shows of a row of samples.jsonl."""
    shown = {name: row[name] for name in SHOWN}
    return shown | dict(response=None if "".join(row["tokens"]) == row["response"] else row["response"])


def read_evaluations(folder: Path) -> dict:
    """The first problems of the run's evaluations: steps, and for each problem its answers, step by step."""
    steps, problems = [], {}
    for file in sorted(folder.glob("eval/step_*/*.jsonl")):
        steps.append(int(file.parent.name[5:]))
        for number, row in read_lines(file):
            try:
                answer = [row["response"], bool(row["correct"]), row["finish"] != "length"]
                new = dict(problem=row["problem"], gold=row["gold"], answers={})
                problems.setdefault(row["problem_id"], new)["answers"].setdefault(steps[-1], []).append(answer)
            except (KeyError, TypeError) as error:
                raise ValueError(f"{file}, line {number}: no saved response ({error}); remove the file") from None
    shown = list(problems.values())[:12]
    while len(shown) > 1 and len(json.dumps(shown)) > MOST / 4:
        shown.pop()
    return dict(steps=steps, problems=shown)


# ------------------------------------------------------------------------------------------------ in words
def listed(names) -> str:
    """["A", "B", "C"] -> A, B and C."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def state_of(group: list[dict]) -> str:
    """How many of the responses to a prompt are right, or rewarded, if that is something else."""
    rewards = group[0]["rewards"]
    n, good = len(rewards), sum(map(right, rewards))
    word = "right" if all(right(x["reward"]) == x["correct"] for x in group) else "rewarded"
    some, whole = (COUNTS[k] if k < len(COUNTS) else str(k) for k in (good, n))
    if n == 1:
        return f"The only response is {word if good else 'not ' + word}"
    verb = "is" if good < 2 else "are"
    return f"All {whole} are {word}" if good == n else f"{some.capitalize()} of the {whole} {verb} {word}"


def sentence(script: str, group: list[dict]) -> str:
    """What a method does with the responses to a prompt, and why. It reads what was recorded, so it is right for a fork
    too."""
    name, why = METHODS.get(script, (script, ""))
    if any(x["kept"] is None or x["advantage"] is None for x in group):
        return f"{state_of(group)}. What {name} makes of them was not recorded."
    push = {letter: fmean(x["advantage"] or [0]) if isinstance(x["advantage"], list) else x["advantage"]
            for letter, x in zip(ascii_uppercase, group) if x["kept"]}
    up, down = ([letter for letter, x in push.items() if x * side > 0] for side in (1, -1))
    out = [letter for letter in ascii_uppercase[: len(group)] if letter not in push]
    by_token = any(isinstance(x["advantage"], list) and any(x["advantage"]) for x in group)
    if not push:
        did = f"{name} rejects {'all of them' if len(group) > 1 else 'it'}: nothing to learn from"
    elif not (up or down or by_token):
        did = "Every advantage is 0: nothing to learn from"
    elif script == "iterative_dpo":
        did = f"{name} takes a pair, {listed(up)} over {listed(down)}" + (f", and ignores {listed(out)}" if out else "")
    else:
        pushed = [f"{listed(some)} {way}" for some, way in ((up, "up"), (down, "down")) if some]
        did = f"{name} pushes {' and '.join(pushed)}" + (f" and rejects {listed(out)}" if out else "")
        did += ", on average over the tokens" if by_token else ""
    if (up or down or by_token) and not any(x["updates"] for x in group):
        did += "; but the update was skipped"
    return f"{state_of(group)}. {did}. {why}".strip()


# ------------------------------------------------------------------------------------------------ the page
def load(path, most: int) -> dict:
    """What the page shows of a run folder: as many of its recorded steps as fit into `most` bytes, evenly spaced.
    Raises OSError or ValueError: what is wrong, where, and what to do."""
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; give that of a run, such as out/grpo-tiny-s0")
    samples, metrics = read_samples(folder / "samples.jsonl"), read_steps(folder / "metrics.jsonl")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    about = config.pop("about", dict(script=folder.resolve().name.split("-")[0], unusual=None))
    try:
        say = lambda group: dict(sentence=sentence(about["script"], group), responses=group)
        steps = [dict(step=step, groups=[say(group) for group in groups.values()]) for step, groups in samples.items()]
    except TypeError as error:
        raise ValueError(f"{folder}/samples.jsonl: values of a wrong kind ({error}); remove their lines") from None
    while len(steps) > 2 and len(json.dumps(steps)) > most:
        steps = [*steps[:-1:2], steps[-1]]
    columns = {name: [row.get(name) for row in metrics.values()] for name in ("step", *CURVES)}
    return dict(name=str(path), method=METHODS.get(about["script"], [about["script"]])[0], unusual=about["unusual"],
                config=config, metrics=columns, steps=steps, evaluations=read_evaluations(folder))


def page(runs: list[dict]) -> str:
    """The page of these runs. Its security policy has the hashes of its own script and style: no other can run."""
    text = Path(__file__).with_name("core").joinpath("show.html").read_text(encoding="utf-8")
    for kind in ("script", "style"):
        inside = re.search(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)[1].encode()
        text = text.replace(f"{kind.upper()}_HASH", base64.b64encode(hashlib.sha256(inside).digest()).decode())
    data = json.dumps(runs, separators=(",", ":"))  # in ASCII, which escapes line separators and lone surrogates
    return text.replace("PAGE_DATA", data.replace("<", "\\u003c"))


def write(paths, out=None) -> Path:
    """Write the page of one or more runs to the file `out`, and return it. Raises what load() raises.

    By default it is show.html, in the folder of a single run, or for several in the current folder."""
    out = Path(out or Path(paths[0] if len(paths) == 1 else "") / "show.html")
    out.write_text(page([load(path, MOST // len(paths)) for path in paths]), encoding="utf-8")
    return out


def main():
    parser = argparse.ArgumentParser(description="A page of what was pushed up and down in one or more runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", help="default: show.html in the folder of a single run, else in this folder")
    args = parser.parse_args()
    try:
        print(write(args.runs, args.out))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
