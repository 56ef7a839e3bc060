"""What learning does, on one page: which responses were pushed up or down, at which tokens, and which were ignored.

    python show.py out/grpo-tiny-s0                     writes out/grpo-tiny-s0/show.html, as each run does at its end
    python show.py out/raft-tiny-s0 out/grpo-tiny-s0    both on one page, show.html in this folder; --out names another

The page is one file. It opens from disk and loads nothing. Its data are the files of a run (config.json, metrics.jsonl,
samples.jsonl, eval/), its layout and script are core/show.html. What models wrote is shown as text only: it is JSON in
the page, and the browser runs no script but the page's own.
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

MOST = 4_000_000  # bytes of the samples on a page, all runs together; the evaluations of a run get a quarter of that
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
    steps, rows = {}, read_lines(file) if file.exists() else []
    for number, row in rows:
        if "tokens" not in row:  # an older version wrote it, before this run was resumed
            continue
        try:
            lists = [row[name] for name in ("tokens", "old", "new", "entropy")]
            if len(set(map(len, lists))) > 1 or not all(isinstance(text, str) for text in row["tokens"]):
                raise ValueError("tokens, old, new and entropy have to be lists of the same length")
            response = {name: row[name] for name in SHOWN}
            if "".join(row["tokens"]) == row["response"]:
                response["response"] = None  # the page joins the tokens
            steps.setdefault(int(row["step"]), {}).setdefault(row["prompt_id"], []).append(response)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}, line {number}: no recorded response ({error}); remove the line") from None
    if rows and not steps:
        raise ValueError(f"{file}: written by an older version, without tokens; train again to see them")
    if not steps:
        raise ValueError(f"{file}: no recorded responses in it; let the run do a step first")
    return dict(sorted(steps.items()))


def read_evaluations(folder: Path) -> dict:
    """The evaluations of a run: their steps, and of the first problems the answers at each step."""
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
def join(names) -> str:
    """["A", "B", "C"] -> A, B and C."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def state_of(group: list[dict]) -> str:
    """How many of the responses to a prompt are right. If the reward says something else: how many are rewarded."""
    rewards = group[0]["rewards"]
    n, good = len(rewards), sum(map(right, rewards))
    word = "right" if all(right(x["reward"]) == x["correct"] for x in group) else "rewarded"
    some, whole = (COUNTS[k] if k < len(COUNTS) else str(k) for k in (good, n))
    if n == 1:
        return f"The only response is {word if good else 'not ' + word}"
    verb = "is" if good < 2 else "are"
    return f"All {whole} are {word}" if good == n else f"{some.capitalize()} of the {whole} {verb} {word}"


def sentence(script: str, group: list[dict]) -> str:
    """What a method does with the responses to a prompt, and why. What it does is read from the recorded numbers, so
    this is right for a fork too."""
    name, why = METHODS.get(script, (script, ""))
    if any(x["kept"] is None or x["advantage"] is None for x in group):
        return f"{state_of(group)}. What {name} makes of them was not recorded."
    push = {letter: fmean(x["advantage"] or [0]) if isinstance(x["advantage"], list) else x["advantage"]
            for letter, x in zip(ascii_uppercase, group) if x["kept"]}
    up, down = ([letter for letter, x in push.items() if x * side > 0] for side in (1, -1))
    rest = join([letter for letter in ascii_uppercase[: len(group)] if letter not in push])
    by_token = any(isinstance(x["advantage"], list) and any(x["advantage"]) for x in group)
    if not push:
        did = f"{name} rejects {'all of them' if len(group) > 1 else 'it'}: nothing to learn from"
    elif not (up or down or by_token):
        did = "Every advantage is 0: nothing to learn from"
    elif script == "iterative_dpo":
        did = f"{name} takes a pair, {join(up)} over {join(down)}" + (f", and ignores {rest}" if rest else "")
    else:
        pushed = [f"{join(some)} {way}" for some, way in ((up, "up"), (down, "down")) if some]
        did = f"{name} pushes {' and '.join(pushed)}" + (f" and rejects {rest}" if rest else "")
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
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        about = config.pop("about", dict(script=folder.resolve().name.split("-")[0], unusual=None))
        script, unusual = about["script"], about["unusual"]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{folder}/config.json: not the settings of a run ({error})") from None
    try:
        describe = lambda group: dict(sentence=sentence(script, group), responses=group)
        steps = [dict(step=step, groups=list(map(describe, groups.values()))) for step, groups in samples.items()]
    except TypeError as error:
        raise ValueError(f"{folder}/samples.jsonl: values of a wrong kind ({error}); remove their lines") from None
    while len(steps) > 2 and len(json.dumps(steps)) > most:
        steps = [*steps[:-1:2], steps[-1]]
    columns = {name: [row.get(name) for row in metrics.values()] for name in ("step", *CURVES)}
    return dict(name=str(path), method=METHODS.get(script, [script])[0], unusual=unusual, config=config,
                metrics=columns, steps=steps, evaluations=read_evaluations(folder))


def write(paths, out=None) -> Path:
    """Write the page of one or more runs, and return its file: `out`, or show.html in the folder of a single run, or
    show.html in the current folder for several runs. Raises what load() raises."""
    text = Path(__file__).with_name("core").joinpath("show.html").read_text(encoding="utf-8")
    for kind in ("script", "style"):  # the page's security policy has the hashes of its own two: no other can run
        inside = re.search(f"<{kind}>(.*?)</{kind}>", text, re.DOTALL)[1].encode()
        text = text.replace(f"{kind.upper()}_HASH", base64.b64encode(hashlib.sha256(inside).digest()).decode())
    # JSON in ASCII escapes line separators and lone surrogates.
    data = json.dumps([load(path, MOST // len(paths)) for path in paths], separators=(",", ":"))
    out = Path(out or Path(paths[0] if len(paths) == 1 else "") / "show.html")
    out.write_text(text.replace("PAGE_DATA", data.replace("<", "\\u003c")), encoding="utf-8")
    return out


def main():
    parser = argparse.ArgumentParser(description="Write a page that shows what one or more runs pushed up and down.")
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
