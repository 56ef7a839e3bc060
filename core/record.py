"""What a run prints, and what it writes for its readers: some responses of each step, token by token; the responses of
evaluations; curves.png and show.html. `run` is a common.Run. docs/reference.md describes the files."""

import functools
import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import torch
import torch.distributed as dist

from core.config import ROOT
from core.config import number as short
from core.files import read_lines, write_whole
from core.processes import all_reduce, rank, say, world
from core.rewards import examine
from core.sampler import TorchSampler
from core.saved import rows_of
from core.stats import with_interval

MOST = 22_000_000  # most bytes of samples.jsonl. One record may exceed it, and the last step is always recorded
AT_ONCE = 2**16  # most tokens recorded of one step, about 2 MB
SHARE = 3 / 64  # share of the prompts that is recorded: the extra forward pass costs up to 3 % of a step's time


def method(config_class, script: str) -> str:
    """The method's name ("RAFT++") from the script's docstring. A renamed copy is called by its new name."""
    title = (sys.modules[config_class.__module__].__doc__ or "").partition(":")[0]
    plain = lambda text: re.sub(r"[^a-z]", "", text.lower().replace("+", "p"))
    return title if plain(title) == plain(script) else script


def plural(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def hardware(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name() + (f", {world()} processes" if world() > 1 else "")
    threads = plural(torch.get_num_threads(), "thread")
    return f"CPU, {world()} processes of {threads}" if world() > 1 else f"CPU, {threads}"


def cut_middle(text: str, most: int = 300) -> str:
    """A long text without its middle."""
    return text if len(text) <= most else f"{text[: most // 2 - 2]} ... {text[3 - most // 2 :]}"


def introduction(run):
    """Print what is trained, on which data, how and where, which settings are unusual, and the first prompt."""
    cfg, about = run.cfg, run.config["about"]
    size = sum(parameter.numel() for parameter in run.policy.lm.parameters())
    size = f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.3g} M" if size >= 1e7 else f"{size / 1e6:.2f} M"
    updates = cfg.updates_per_step * getattr(cfg, "epochs", 1)
    sampler = ", sampler: plain torch" if isinstance(run.sampler, TorchSampler) else ""  # vLLM prints its own line
    values = {name: str(getattr(cfg, name)) for name in about["unusual"]}
    values = {name: value.lower() if value in ("True", "False") else value for name, value in values.items()}
    unusual = " ".join(f"--{name} {shlex.quote(value)}" for name, value in values.items())
    prompt = run.tokenizer.decode(next(filter(None, run.problems))["prompt"])
    say(fit_width(
        f"{method(type(cfg), about['script'])} on {cfg.model} ({size} parameters), problems: {cfg.data} "
        f"({len(run.problems):,}), {plural(cfg.steps, 'step')} of {plural(cfg.prompts_per_step, 'prompt')} x "
        f"{plural(cfg.samples_per_prompt, 'response')}, {plural(updates, 'update')} each, lr {short(cfg.lr)}"
        + (f"; {run.state['step']} done, going on from there" if run.state["step"] else "")
    ))
    say(fit_width(f"{hardware(run.device)}{sampler}; {cfg.out} (all settings: config.json)"))
    if unusual:
        say(fit_width(f"unusual: {unusual}"))
    say(fit_width(f"first prompt: {cut_middle(prompt)!r}"))


def fit_width(line: str) -> str:
    """A long line, broken between words: a terminal would break it in the middle of one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    how = dict(subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return textwrap.fill(line, width, **how) if 0 < width < len(line) else line


# ------------------------------------------------------------------------------------------------ samples of a step
def append(file: Path, rows: list[dict]):
    """Add rows to a .jsonl file, on rank 0. A tensor of one number is written as a number."""
    if rank() == 0:
        with open(file, "a") as out:
            out.write("".join(json.dumps(row, default=float) + "\n" for row in rows))


def choose_rows(rollouts) -> list[int]:
    """The rows of a batch that are recorded: the responses to a few prompts, evenly spaced in the batch. So they belong
    to different updates. At most 16 responses and SHARE of the prompts, but at least one prompt and about four
    responses. Never more than AT_ONCE tokens, after the first response."""
    n, prompts = rollouts.n, len(rollouts.problems)
    count = min(prompts, max(1, 4 // n, min(int(SHARE * prompts), 16 // n)))
    rows = [(2 * i + 1) * prompts // (2 * count) * n + j for i in range(count) for j in range(min(n, 16))]
    fit = rollouts.lengths.flatten()[rows].cumsum(0) <= AT_ONCE
    return rows[: max(1, int(fit.sum()))]


@functools.lru_cache(2**16)
def text_behind(tokenizer, ids: tuple) -> str:
    """The text that these tokens add after other text. Decoded alone, they can lose a space at the start."""
    return tokenizer.decode(ids + ids)[len(tokenizer.decode(ids)) :]


def pieces(ids, tokenizer) -> list[str]:
    """The text of each token; together they are the response. A character of several tokens belongs to the first."""
    texts, ids = [], tuple(map(int, ids))
    while len(texts) < len(ids):
        parts = [ids[len(texts) : len(texts) + size] for size in (1, 2, 3, 4)]
        whole = [part for part in parts if "\ufffd" not in text_behind(tokenizer, part)]  # no half character
        part = whole[0] if whole else parts[0]
        texts += [text_behind(tokenizer, part)] + [""] * (len(part) - 1)
    return texts


def numbers(x, digits=4) -> list:
    """A tensor [T] as a list of rounded numbers, None for NaN."""
    return [round(value, digits) if value == value else None for value in x.tolist()]


def one_or_all(x):
    """Values of a response's tokens [T] to six digits, or one number if they are all the same."""
    values = [float(f"{value:.6g}") for value in x.tolist()]
    return values[0] if values and len(set(values)) == 1 else values


def samples(run, rollouts, rewards, rows) -> list[dict]:
    """What samples.jsonl says of these responses, after the updates of their step. All ranks call this together."""
    batch, n, tokens = rollouts.batch, rollouts.n, vars(rollouts.tokens)
    part, passes = batch.select(rows), run.meter.passes if rollouts.keep is not None else []
    new = old = rollouts.old.values[0, part.index]
    if run.meter.passes:
        run.sampler.sleep()
        new, _ = run.policy.logprobs(part)
    entropy, clips = rollouts.old.values[1, part.index], getattr(run.cfg, "clip", False)
    keep = None if rollouts.keep is None else rollouts.keep.flatten().tolist()
    done = []
    for row, start, end in zip(rows, part.starts, part.ends):
        problem, at, here = rollouts.problems[row // n], slice(start, end), slice(batch.starts[row], batch.ends[row])
        inside = [(index >= here.start) & (index < here.stop) for index, _ in passes]  # for each update
        done.append(dict(
            step=run.state["step"], prompt_id=row // n, sample=row % n, reward=rewards.flatten()[row].item(),
            **rollouts.show(row, run.tokenizer), problem=problem.get("problem", problem["text"]),
            rewards=rewards[row // n].tolist(), kept=keep and keep[row],
            advantage=one_or_all(tokens["adv"][here]) if "adv" in tokens else None,
            weight=one_or_all(tokens["weight"][here]) if "weight" in tokens else None,
            updates=[number for number, tokens_in in enumerate(inside, 1) if tokens_in.any()],
            clipped=sorted({i - here.start for (index, clipped), tokens_in in zip(passes, inside)
                            for i in index[tokens_in & clipped].tolist()}) if clips else None,
            tokens=pieces(batch.responses[row], run.tokenizer), old=numbers(old[at]), new=numbers(new[at]),
            entropy=numbers(entropy[at])))
    return done


def record(run, rollouts, rewards):
    """Add responses of this step to samples.jsonl.

    Every step is recorded, with two exceptions. If one prompt is more than SHARE of the batch, then after step 4 only
    every k-th step is recorded. And while the file is larger than its budget so far, only the last step is."""
    step, rows, file = run.state["step"], choose_rows(rollouts), run.folder / "samples.jsonl"
    every = math.ceil(len(rows) / (SHARE * rollouts.n * len(rollouts.problems)))
    if step > 4 and (step - 1) % every:
        return
    size = int(all_reduce(torch.tensor(file.stat().st_size if rank() == 0 else 0), dist.ReduceOp.MAX))
    if size <= MOST * (step - 1) / run.cfg.steps or step == run.cfg.steps:
        append(file, samples(run, rollouts, rewards, rows))


# ------------------------------------------------------------------------------------------------ evaluation, the end
def write_row(run, trackers=()):
    """Add the step's metrics to metrics.jsonl, and hand them to the trackers."""
    append(run.folder / "metrics.jsonl", [run.metrics])
    for track in trackers:
        track({name: x for name, x in run.metrics.items() if x is not None}, run.state["step"])


def evaluate(run):
    """Four responses to each test problem. Their mean accuracy is eval_accuracy, and they go into a file that eval.py
    --compare and --rescore read. Returns the rollouts."""
    run.sampler.sync(run.policy)
    rollouts = examine(run.sampler, run.tokenizer, run.tests, 4, run.cfg.seed, run.cfg, check=run.check)
    step, accuracy = run.state["step"], rollouts.correct.mean().item()
    if step == 0:
        append(run.folder / "metrics.jsonl", [dict(step=0, eval_accuracy=accuracy)])
    else:
        run.metrics["eval_accuracy"] = accuracy
    if rank() > 0:
        return rollouts
    _, low, high = with_interval(rollouts.correct.mean(1))
    file = run.folder / f"eval/step_{step:06d}/{Path(run.cfg.eval_data).stem}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(json.dumps(row, default=str) + "\n" for row in rows_of(rollouts, run.cfg.seed)))
    what = f"{len(rollouts.problems)} test problems, {rollouts.n} responses each"
    interval = f"95 % interval {low:.1%} to {high:.1%}"
    say(fit_width(f"step {step}: accuracy {accuracy:.1%} on {what}, {interval}"))
    return rollouts


def start_drawing(script: str, out: str) -> subprocess.Popen:
    """Start plot.py or show.py on the run, in a process of its own."""
    command = [sys.executable, ROOT / script, out]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def drawing(process: subprocess.Popen) -> str:
    """The file that this process wrote, or "" and a warning: the run itself is fine."""
    written, errors = process.communicate()
    if process.returncode:
        why = (errors.strip().splitlines() or [f"exit status {process.returncode}"])[-1]
        say(f"warning: {Path(process.args[1]).name}: {why.removeprefix('error: ')}")
    return "" if process.returncode else written.strip()


def conclusion(run, evaluated):
    """After a finished run, on rank 0: draw curves.png and show.html, and print the results. evaluated: the rollouts
    of the last evaluation, or None."""
    out = run.cfg.out
    curves = start_drawing("plot.py", out)
    page = start_drawing("show.py", out) if run.cfg.show else None  # at the same time
    for row in [row for row in (0, 4) if evaluated and row < len(evaluated.texts)]:
        say("\n".join(f"{k}: {x}" for k, x in evaluated.show(row, run.tokenizer).items()) + "\n")
    tests = [row["eval_accuracy"] for _, row in read_lines(run.folder / "metrics.jsonl")]
    if tests := [accuracy for accuracy in tests if accuracy is not None]:
        say(f"accuracy on {len(run.tests)} test problems: {tests[0]:.1%} before, {tests[-1]:.1%} after")
    say(fit_width(f"model: {out}/final   curves: {drawing(curves)}   numbers: {out}/metrics.jsonl"))
    if page and (file := drawing(page)):
        say(f"what was learned, token by token: {file}")
    check = ["--check", run.cfg.check] if run.cfg.check else []
    say(f"evaluate it: {shlex.join(['python', 'eval.py', '--model', f'{out}/final', *check])}")
    say(f"train it further: the same command with --steps {2 * run.cfg.steps} --resume")
