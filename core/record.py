"""What a run says and leaves for its readers: a few words at the start, after each step and at the end; some responses
of each step, token by token; the responses of an evaluation; its curves and its page. `run` is a common.Run. The files:
docs/reference.md."""

import json
import math
import re
import shlex
import shutil
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import plot
import show
from core.config import number as short
from core.stats import with_interval
from core.processes import all_reduce, rank, say, world
from core.sampler import TorchSampler
from core.saved import rows_of

MOST = 22_000_000  # bytes of samples.jsonl over a whole run, but for the last two records
AT_ONCE = 2**16  # tokens that are recorded of one step, about 2 MB
SHARE = 3 / 64  # of all responses: recording them costs another forward pass, up to 3 % of a step's time


# ------------------------------------------------------------------------------------------------ the first words
def method(config_class, script: str) -> str:
    """The method's name from the script's docstring ("RAFT++"), if the file is still called after it; else the file's
    name."""
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


def shortened(text: str, most: int = 300) -> str:
    """A long text without its middle."""
    return text if len(text) <= most else f"{text[: most // 2 - 2]} ... {text[3 - most // 2 :]}"


def introduction(run):
    """What is trained on what, how and where; what is unusual about it; and the first prompt as the model reads it."""
    cfg, about = run.cfg, run.config["about"]
    size = sum(parameter.numel() for parameter in run.policy.lm.parameters())
    size = f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.3g} M" if size >= 1e7 else f"{size / 1e6:.2f} M"
    updates = cfg.updates_per_step * getattr(cfg, "epochs", 1)
    sampler = ", sampler: plain torch" if isinstance(run.sampler, TorchSampler) else ""  # vLLM has said it
    values = {name: str(getattr(cfg, name)) for name in about["unusual"]}
    values = {name: value.lower() if value in ("True", "False") else value for name, value in values.items()}
    unusual = " ".join(f"--{name} {shlex.quote(value)}" for name, value in values.items())
    prompt = run.tokenizer.decode(next(filter(None, run.problems))["prompt"])
    say(fitted(
        f"{method(type(cfg), about['script'])} on {cfg.model} ({size} parameters), problems: {cfg.data} "
        f"({len(run.problems):,}), {plural(cfg.steps, 'step')} of {plural(cfg.prompts_per_step, 'prompt')} x "
        f"{plural(cfg.samples_per_prompt, 'response')}, {plural(updates, 'update')} each, lr {short(cfg.lr)}"
        + (f"; {run.step} done, going on from there" if run.step else "")
    ))
    say(fitted(f"{hardware(run.device)}{sampler}; {cfg.out} (all settings: config.json)"))
    if unusual:
        say(fitted(f"unusual: {unusual}"))
    say(fitted(f"first prompt: {shortened(prompt)!r}"))


def fitted(line: str) -> str:
    """A line, broken between words where a terminal would break it anywhere."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    how = dict(subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return textwrap.fill(line, width, **how) if 0 < width < len(line) else line


# ------------------------------------------------------------------------------------------------ words for a step
def training_bar(run) -> tqdm:
    """The bar over the steps that are left."""
    run.began = time.perf_counter(), run.step
    hidden = rank() > 0 or not sys.stderr.isatty()
    form = "training {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"
    return tqdm(total=run.cfg.steps, initial=run.step, bar_format=form, dynamic_ncols=True, disable=hidden)


def progress(run, seconds: float):
    """The metrics of a step on the bar, as many as there is room for; without a terminal in a line. seconds: what the
    step has taken."""
    m = run.metrics
    shown = [name for name in ("loss", "reward", "accuracy", "entropy", "kl", "length") if m[name] is not None]
    words = [f"{name} {m[name]:.3g}" for name in shown if name != "loss"]
    room = shutil.get_terminal_size().columns - len(f"training {run.cfg.steps}/{run.cfg.steps} |     | 0:00:00 left")
    run.bar.set_postfix_str(", ".join(words[: sum(np.cumsum([len(word) + 2 for word in words]) <= room)]))
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        started, first = run.began
        left = (time.perf_counter() - started) / (run.step - first) * (run.cfg.steps - run.step)
        words = "  ".join(f"{name} {m[name]:.4g}" for name in shown)
        say(f"step {run.step}/{run.cfg.steps}  {words}  {seconds:.1f} s  {tqdm.format_interval(left)} left")


# ------------------------------------------------------------------------------------------------ samples of a step
def chosen(rollouts) -> list[int]:
    """Rows of the responses that are recorded: all those to a few prompts, evenly spaced in the batch, so that they
    belong to different updates of the step. At most 16 responses and SHARE of the prompts; but at least one prompt, and
    four responses."""
    n, prompts = rollouts.n, len(rollouts.problems)
    count = min(prompts, max(1, 4 // n, min(int(SHARE * prompts), 16 // n)))
    rows = [(2 * i + 1) * prompts // (2 * count) * n + j for i in range(count) for j in range(min(n, 16))]
    fit = rollouts.lengths.flatten()[rows].cumsum(0) <= AT_ONCE
    return rows[: max(1, int(fit.sum()))]


def pieces(ids, tokenizer, known: dict) -> list[str]:
    """The text of each token, which together are the response. Of tokens that share a character the first one has it.
    known: what has been decoded before, {ids: text}."""

    def text_of(some):
        if some not in known:  # what they add behind themselves: at the start of a text, decoding can drop a space
            known[some] = tokenizer.decode(some + some)[len(tokenizer.decode(some)) :]
        return known[some]

    texts, ids = [], tuple(map(int, ids))
    while len(texts) < len(ids):
        parts = [ids[len(texts) : len(texts) + size] for size in (1, 2, 3, 4)]
        part = next((part for part in parts if "\ufffd" not in text_of(part)), parts[0])  # no half character
        texts += [text_of(part)] + [""] * (len(part) - 1)
    return texts


def numbers(x, digits=4) -> list:
    """A tensor [T] as a list, rounded to so many decimals; None for what is not a number."""
    return [round(value, digits) if value == value else None for value in x.tolist()]


def one_or_all(x):
    """Values of a response's tokens [T] to six digits: one number, if they are all the same."""
    values = [float(f"{value:.6g}") for value in x.tolist()]
    return values[0] if values and len(set(values)) == 1 else values


def samples(run, rollouts, rewards, rows) -> list[dict]:
    """The responses in these rows of a step's batch, after its updates, as samples.jsonl has them; the same on every
    rank. All ranks have to call it together."""
    batch, n = rollouts.batch, rollouts.n
    part, passes = batch.select(rows), run.passes if rollouts is run.old.rollouts else []
    new = old = rollouts.tokens.old[part.index]
    if run.updates:
        run.sampler.sleep()  # an evaluation may have woken it
        new, _ = run.policy.logprobs(part)
    entropy, tokens = rollouts.tokens.entropy[part.index], vars(rollouts.tokens)
    keep = getattr(rollouts, "keep", None)
    clips = getattr(run.cfg, "clip", False) and all(binds is not None for _, binds in passes)
    taken = torch.zeros(len(passes), len(tokens["sampler"]), dtype=torch.bool)  # by which update
    clipped = torch.zeros_like(taken)
    for number, (index, binds) in enumerate(passes):
        taken[number, index] = True
        clipped[number, index] = binds if clips else False
    done = []
    for row, start, end in zip(rows, part.starts, part.ends):
        problem, at, here = rollouts.problems[row // n], slice(start, end), slice(batch.starts[row], batch.ends[row])
        done.append(dict(
            step=run.step, prompt_id=row // n, sample=row % n, reward=rewards.flatten()[row].item(),
            **rollouts.show(row, run.tokenizer), problem=problem.get("problem", problem["text"]),
            rewards=rewards[row // n].tolist(), kept=bool(keep.flatten()[row]) if keep is not None else None,
            advantage=one_or_all(tokens["adv"][here]) if "adv" in tokens else None,
            weight=one_or_all(tokens["weight"][here]) if "weight" in tokens else None,
            updates=[number + 1 for number in range(len(passes)) if taken[number, here].any()],
            clipped=clipped[:, here].any(0).nonzero()[:, 0].tolist() if clips else None,
            tokens=pieces(batch.responses[row], run.tokenizer, run.decoded), old=numbers(old[at]), new=numbers(new[at]),
            entropy=numbers(entropy[at])))  # fmt: skip
    return done


def record(run, rollouts, rewards):
    """Add responses of this step to samples.jsonl. Whole steps are recorded, but not each of them: after the fourth one
    some are left out if there are so few prompts that a single one is more than SHARE, and in a long run of long
    responses those at whose beginning the file already holds more than its share of MOST."""
    rows = chosen(rollouts)
    every = math.ceil(len(rows) / (SHARE * rollouts.n * len(rollouts.problems)))
    if run.step > 4 and (run.step - 1) % every:
        return
    file = run.folder / "samples.jsonl"
    size = int(all_reduce(torch.tensor(file.stat().st_size if rank() == 0 else 0), dist.ReduceOp.MAX))
    if size <= MOST * (run.step - 1) / run.cfg.steps or run.step == run.cfg.steps:
        for sample in samples(run, rollouts, rewards, rows):
            run._write("samples.jsonl", sample)


# ------------------------------------------------------------------------------------------------ evaluation, the end
def evaluation(run, rollouts):
    """On rank 0: the graded rollouts of an evaluation go into a file that eval.py --compare and --rescore read."""
    _, low, high = with_interval(rollouts.correct.mean(1))
    file = run.folder / f"eval/step_{run.step:06d}/{Path(run.cfg.eval_data).stem}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, default=str) + "\n" for row in rows_of(rollouts, run.cfg.seed)))
    what = f"{len(rollouts.problems)} test problems, {rollouts.n} responses each"
    accuracy = f"accuracy {rollouts.correct.mean():.1%} on {what}, 95 % interval {low:.1%} to {high:.1%}"
    say(fitted(f"step {run.step}: {accuracy}"))


def conclusion(run):
    """On rank 0: curves.png and show.html of a finished run, and what has come of it in words."""
    out = run.cfg.out
    plot.draw([out], out + "/curves.png")
    for row in [row for row in (0, 4) if run.evaluated and row < len(run.evaluated.texts)]:
        say("\n".join(f"{k}: {x}" for k, x in run.evaluated.show(row, run.tokenizer).items()) + "\n")
    rows = [json.loads(line) for line in open(run.folder / "metrics.jsonl")]
    if tests := [row["eval_accuracy"] for row in rows if row["eval_accuracy"] is not None]:
        say(f"accuracy on {len(run.tests)} test problems: {tests[0]:.1%} before, {tests[-1]:.1%} after")
    say(fitted(f"model: {out}/final   curves: {out}/curves.png   numbers: {out}/metrics.jsonl"))
    if run.cfg.show:
        try:
            say(f"what was learned, token by token: {show.write([out])}")
        except (OSError, ValueError) as error:  # the run itself is whole
            say(f"warning: no show.html: {error}")
    check = ["--check", run.cfg.check] if run.cfg.check else []
    say(f"evaluate it: {shlex.join(['python', 'eval.py', '--model', f'{out}/final', *check])}")
    say(f"train it further: the same command with --steps {2 * run.cfg.steps} --resume")
