r"""Evaluate models: accuracies with intervals, comparisons with p-values, and the analyses of the papers.

    python eval.py                                                        the built-in model on the built-in problems
    python eval.py --model out/grpo-tiny-s0/final --bench tiny,tiny-hard --limit 200
    torchrun --nproc-per-node 8 eval.py --model qwen2.5-math-7b --bench math500,aime24 --temperature 0.6 --top_p 0.95
    python eval.py --rescore generations.jsonl                            grade saved responses, without a model
    python eval.py --compare out/eval-tiny out/eval-grpo-tiny-s0-final    the first is the baseline of the others
    python eval.py --sweep temperature=0,0.5,1                            or top_p, max_new_tokens, template, ...
    python eval.py --wrong out/eval-tiny/tiny.jsonl --reflect " wait"     can it correct its own wrong solutions?

The output folder gets BENCHMARK.jsonl with every response; summary.json, compare.json or sweep.json with all numbers
and every setting that moves them; and a figure of the same name. The same command continues an interrupted evaluation.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import dataclass, replace
from importlib import metadata
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import common
import numpy as np
import plot
import torch
from core.config import (arg, check_bounds, choose_template, find_check, find_model, longest_sequence, model_defaults,
                         parse)
from core.data import encode, load_data
from core.rows import DATA
from core.policy import UNUSABLE, Policy
from core.processes import all_reduce, bad_input, fail, leave, rank, say, start_processes, with_bar, world
from core.rewards import examine, score
from core.rollout import Batch
from core.sampler import TorchSampler, choose_sampler, new_sampler
from core.saved import about_problem, label, problem_of, read_responses, rows_of, saved_lines, to_rows
from core.stats import (count, crossing, holm, majority, mean_lengths, pass_at_k, permutation_p, solvable, spread,
                        transitions, with_interval)
from core.files import checksum, lock, try_folder, write_whole
from core.verify import extract, last_boxed, right

SWEPT = ("temperature", "top_p", "max_new_tokens", "template", "prefix", "reflect")
SHOWN = "problems samples avg seed_std by_chance truncated boxed python length length_whole".split()
BEHAVIOURS = {  # patterns, counted per response: fewer matches than the judge model of arXiv 2503.01307 would find
    "backtracking": r"try (a different|another|again)|start over|go back|(does|did)(n't| not) work|alternatively",
    "verification": r"double[- ]check|\bverify|\bto check|\bcheck (that|if|our|the|this|my)|this works|too (high|low)",
    "subgoal": r"\bfirst,|\bnext,|\bstep \d|need to (find|compute|determine|calculate)",
    "self_correction": r"\bwait\b|made an? (mistake|error)|\bre-?(check|think|assess|evaluat|examin|consider|analyz)",
}


@dataclass
class Config:
    # what is evaluated on what
    model: str = arg("tiny", "alias (docs/reference.md lists them), hub id or local folder, such as a run's final/")
    bench: str = arg("", "benchmarks or files, A,B (docs/evaluation.md lists them; default: the model's, or math500)")
    limit: int = arg(0, "use the first LIMIT problems of each only (0: all)", least=0)
    samples: int = arg(16, "responses per problem and seed", least=1)
    seeds: int = arg(4, "seeds: repetitions that differ in their random streams only", least=1)
    seed: int = arg(0, "the first seed", least=0)
    out: str = arg("", "output folder (default: out/eval-MODEL, rescore-FILE, compare-A-B or sweep-MODEL-NAME)")
    check: str = arg("", "FILE.py with check(response, problem) -> score, which replaces the built-in grading")
    # prompts and sampling
    template: str = arg("chat", "prompt template: name in common.TEMPLATES, auto (cot or plain) or text with {problem}")
    system: str = arg("", "system prompt, which comes before the turns of any chat template")
    prefix: str = arg("", "text that every response is made to begin with")
    temperature: float = arg(1.0, "sampling temperature; 0: greedy", least=0)
    top_p: float = arg(1.0, "sample from the most likely tokens that hold this much probability", above=0, most=1)
    max_prompt_tokens: int = arg(1024, "problems with a longer prompt are dropped and counted", least=1)
    max_new_tokens: int = arg(4096, "longest response, in tokens; a longer one is cut off and is `truncated`", least=1)
    # sampler
    sampler: Literal["auto", "hf", "vllm"] = arg("auto", "hf: plain torch; auto: vllm if installed and there is a GPU")
    tp: int = arg(1, "vllm: processes that share an engine, for a model larger than one GPU", least=1)
    vllm_memory: float = arg(0, "vllm: share of a GPU for its weights and KV cache (0: what is free)", least=0, most=1)
    request_seeds: bool = arg(False, "vllm: a random stream for each response")
    chunk: int = arg(2048, "responses generated and saved at a time: what an interruption can lose", least=1)
    # analyses
    ks: list[int] | None = arg(None, "the k of pass@k and maj@k (default: powers of two)")
    rescore: str = arg("", "grade the responses saved in this .jsonl file instead of generating")
    compare: list[str] | None = arg(None, "saved evaluations, folders or .jsonl files: the baseline, then others")
    perplexity: bool = arg(False, "with --compare: perplexity of all responses under the baseline's model")
    sweep: str = arg("", f"evaluate at several values, NAME=A,B or NAME=A|B; NAME: {', '.join(SWEPT)}")
    wrong: str = arg("", "continue the first wrong response to each problem in this .jsonl file of saved responses")
    reflect: str = arg("", "with --wrong: the words that follow the wrong response, such as 'Wait,'")


# ================================================================================================ saved evaluations
read = bad_input()(read_responses)  # a broken file ends the program in one line


def summarise(saved: dict[str, np.ndarray], name: str = "", ks=()) -> dict:
    """All numbers of one benchmark, from the columns of read_responses(); shares are in 0..1, lengths in tokens."""
    if any(right is None for right in saved["correct"].flat):
        fail(f"{name} is not graded; run eval.py --rescore on it first")
    right, texts = saved["correct"].astype(float), saved["response"]
    problems, samples = right.shape
    ks = list(ks) or [2**i for i in range(samples.bit_length())]
    if not 1 <= min(ks) <= max(ks) <= samples:
        fail(f"--ks {' '.join(map(str, ks))}: {name} has {samples} samples of each problem; give k from 1 to that")
    by_seed = right.reshape(problems, len(set(saved["seed"][0])), -1)  # [P, seeds, samples of a seed]
    tokens, truncated = saved["tokens"].astype(float), saved["finish"] == "length"
    found = {behaviour: count(pattern, texts) for behaviour, pattern in BEHAVIOURS.items()}
    explicit = found["self_correction"] > 0  # with the accuracy, the four fractions of arXiv 2504.04022
    shares = dict(truncated=truncated, boxed=np.vectorize(lambda text: last_boxed(text) is not None)(texts),
                  python=count("python", texts) > 0, explicit_rate=explicit, explicit_accuracy=right * explicit,
                  implicit_accuracy=right * ~explicit, **found)
    deviation, by_chance = spread(by_seed)
    # Samples that show a difference of 2 points: 2.8 is 1.96 + 0.84, a two-sided test at 5 % with a power of 80 %.
    needed = 2 * (2.8 / 0.02) ** 2 * by_chance**2 * by_seed.shape[2]
    return dict(
        problems=problems, samples=samples, seeds=by_seed.shape[1], avg=with_interval(right.mean(1)), ks=ks,
        pass_at=with_interval(pass_at_k(right.sum(1), samples)[:, np.array(ks) - 1]),
        maj_at=with_interval(majority(saved, right, ks)), per_seed=by_seed.mean((0, 2)).tolist(), seed_std=deviation,
        by_chance=by_chance, needed=needed, length=mean_lengths(tokens, right, among=True),
        length_whole=mean_lengths(tokens, right, among=~truncated), right=right.sum(1).tolist(),
        **{name: float(share.mean()) for name, share in shares.items()})


def in_words(value) -> str:
    """A cell of a table. A share is in percent, [mean, low, high] is an interval, lengths are right / wrong."""
    if isinstance(value, float):
        return f"{100 * value:.1f}"
    if isinstance(value, dict):
        return f"{value['right']:.1f} / {value['wrong']:.1f}"
    if isinstance(value, list):
        return "{:.1f} [{:.1f}, {:.1f}]".format(*np.multiply(value, 100))
    return str(value)


def table(rows: list[dict]):
    """Print rows in columns, under the names of the first row's columns."""
    cells = [list(rows[0]), *[[in_words(value) for value in row.values()] for row in rows]]
    widths = [max(map(len, column)) for column in zip_longest(*cells, fillvalue="")]  # a row may lack the last k
    say("")
    for row in cells:
        say("  ".join(x.rjust(width) if i else x.ljust(width) for i, (x, width) in enumerate(zip(row, widths))))


def save(folder, name: str, result: dict):
    """On rank 0: write NAME.json and its figure."""
    if rank() > 0:
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(Path(folder, f"{name}.json"), json.dumps(result, indent=1))
    if "benchmarks" in result:
        plot.draw_evaluation(Path(folder, f"{name}.json"))
        say(f"\nnumbers: {folder}/{name}.json   figure: {folder}/{name}.png")


def report(cfg, settings: dict, saved: dict[str, dict]) -> dict:
    """Print, save and return the summaries of {benchmark: columns}."""
    results = {name: summarise(columns, name, cfg.ks or ()) for name, columns in saved.items()}
    table([{"in %, length in tokens": name} | {key: r[key] for key in SHOWN} for name, r in results.items()])
    for name, r in results.items():
        means = {kind: {f"k={k}": x[0] for k, x in zip(r["ks"], r[f"{kind}_at"])} for kind in ("pass", "maj")}
        table([{name: f"{kind}@k"} | row for kind, row in means.items()])
        if r["needed"] > r["samples"]:
            what = f"{r['problems']} problems, each worth {1 / r['problems']:.1%}, x {r['samples']} samples"
            say(f"warning: {name}: {what} do not tell models apart that differ by 2 %; {r['needed']:.0f} samples would")
    save(cfg.out, "summary", dict(settings=settings, benchmarks=results))
    return results


def rescore(cfg):
    """Grade saved responses again, and say how often the file's own grades agree."""
    name, saved, check = Path(cfg.rescore).stem, read(cfg.rescore), find_check(cfg.check)
    if (file := Path(cfg.out, f"{name}.jsonl")).exists() and file.samefile(cfg.rescore):
        fail(f"--rescore {cfg.rescore}: --out {cfg.out} is its own folder, where it would be overwritten; give another")
    texts, old = saved["response"].flatten(), saved["correct"].flatten()
    sources = saved.pop("source").flatten()
    problems = [problem_of(row) if check else dict(answer=gold) for row, gold in zip(sources, saved["gold"].flat)]
    parts = with_bar(range(0, len(texts), 500), "grading")
    scores = [score(texts[i : i + 500], problems[i : i + 500], check)[0] for i in parts]
    saved["correct"].flat = right(torch.cat(scores)).tolist()
    saved["extracted"].flat = [extract(text) for text in texts]
    rows = to_rows(saved)
    if check:
        rows = [row | about_problem(problem, row["problem_id"], check) for row, problem in zip(rows, problems)]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, "".join(json.dumps(row) + "\n" for row in rows))
    report(cfg, dict(rescored=cfg.rescore), {name: saved})
    pairs = Counter((bool(here), bool(there)) for here, there in zip(saved["correct"].flat, old) if there is not None)
    if pairs:
        only = f"right only here {pairs[True, False]}, only there {pairs[False, True]}"
        say(f"the file's own grades agree on {pairs[True, True] + pairs[False, False]} of {pairs.total()}; {only}")


# ======================================================================================================== evaluating
def open_model(cfg) -> tuple:
    """(policy, sampler, tokenizer, about) of cfg.model. about: what moves the numbers besides the flags. All ranks call
    this together."""
    device = start_processes()  # first: from here on, a failure may hit one rank alone
    source, config, tokenizer = find_model(cfg.model, "model")
    with bad_input():
        kind = choose_sampler(cfg)
    with bad_input(f"--model {cfg.model}: ", UNUSABLE):
        policy = Policy(source, device, vocab=len(tokenizer))
    sampler, plain = new_sampler(kind, policy, tokenizer), kind is TorchSampler
    sampler.sync(policy)
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "math-verify")}
    weights = sum(weight.abs().sum(dtype=torch.float64).item() for _, weight in policy.weights())  # a checksum
    about = dict(weights=weights, versions=versions if plain else versions | dict(vllm=sampler.version),
                 dtype=str(policy.dtype), engine=type(sampler).__name__, processes=world(),
                 hardware=torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
                 context=longest_sequence(config, device == "cuda" and not plain))
    return policy, sampler, tokenizer, about


@bad_input()
def load_problems(cfg, tokenizer) -> dict[str, list[dict]]:
    """{benchmark: problems}. With --wrong: the problems of that file, to be continued after a wrong response."""
    if not cfg.wrong:
        names = list(dict.fromkeys(cfg.bench.split(",")))
        datas = [f"{name}-test" if f"{name}-test" in DATA else name for name in names]  # "gsm8k" is for training
        return {label(name, names): load_data(data, tokenizer, cfg, cfg.limit, not cfg.check, "test")
                for name, data in zip(names, datas)}
    saved = read(cfg.wrong)
    wrong = [row for row in to_rows(saved) if row["correct"] is False]
    first = {row["problem_id"]: row for row in reversed(wrong)}  # the first response to each problem
    if not first:
        fail(f"{cfg.wrong}: no response in it is graded as wrong")
    problems = []
    for _, row in sorted(first.items())[: cfg.limit or None]:
        beginning = row["after"] + row["response"] + cfg.reflect
        prompt = encode(row["problem"], cfg.template, tokenizer, beginning, row["turns"])
        problems.append((problem_of(row["source"]) if cfg.check else dict(answer=row["gold"])) | prompt)
    return {Path(cfg.wrong).stem: problems}


def answer(cfg, file: Path, problems: list[dict], sampler, tokenizer):
    """Append the rows that a file lacks. Those in it must answer these problems. An interrupted chunk is done again,
    because its batch has to be the same."""
    size, done, check = max(1, cfg.chunk // cfg.samples), 0, find_check(cfg.check)
    chunks = [(seed, i) for seed in range(cfg.seed, cfg.seed + cfg.seeds) for i in range(0, len(problems), size)]
    sizes = [cfg.samples * len(problems[i : i + size]) for _, i in chunks]
    if rank() == 0:
        with bad_input():
            lock(file)
            lines = saved_lines(file, problems, cfg.samples, check)
        ends = np.cumsum([0, *sizes])
        done = int(np.searchsorted(ends, len(lines), side="right")) - 1  # complete chunks
        whole = lines[: ends[done]] if done < len(chunks) else lines  # it may have more seeds than cfg asks for
        with file.open("r+b") as out:
            out.truncate(sum(map(len, whole)))
    done = int(all_reduce(torch.tensor(done)))  # from rank 0; the others have 0
    for seed, i in with_bar(chunks, file.stem, sizes, done):
        rollouts = examine(sampler, tokenizer, problems[i : i + size], cfg.samples, seed, cfg, first=i, check=check)
        if rank() == 0:
            with open(file, "a") as out:
                out.write("".join(json.dumps(row, default=str) + "\n" for row in rows_of(rollouts, seed, i)))


def evaluate(cfg, model=None) -> dict:
    """Sample and grade responses to all problems. Returns {benchmark: its summary}, on rank 0. model: open_model()."""
    _, sampler, tokenizer, about = model or open_model(cfg)
    cfg.template = choose_template(cfg.template, tokenizer)
    benches, out = load_problems(cfg, tokenizer), Path(cfg.out)
    longest = max(len(problem["prompt"]) for problems in benches.values() for problem in problems)
    if longest > cfg.max_prompt_tokens or longest + cfg.max_new_tokens > about["context"]:
        fail(f"a prompt of {longest}: lower --max_new_tokens or raise --max_prompt_tokens ({about['context']} in all)")
    turns = [dict(role="system", content=cfg.system)] if cfg.system else []
    settings = vars(cfg) | about | dict(prompt=encode("{problem}", cfg.template, tokenizer, cfg.prefix, turns)["text"])
    if find_check(cfg.check):  # what counts is what is in the file
        settings["check"] += f", checksum {checksum(cfg.check):08x}"
    if rank() == 0:
        with bad_input(f"{out}/summary.json: "):
            old = json.loads((out / "summary.json").read_text()) if (out / "summary.json").exists() else {}
        old = old.get("settings", {})
        for name in set(old) - set("bench seeds out ks processes versions hardware tp vllm_memory".split()):
            if old[name] != settings.get(name):
                fail(f"{out} holds an evaluation with {name} {old[name]}, not {settings.get(name)}; give another --out")
        save(out, "summary", dict(settings=settings))
    for name, problems in benches.items():
        answer(cfg, out / f"{name}.jsonl", problems, sampler, tokenizer)
    saved = {name: read(out / f"{name}.jsonl") for name in benches if rank() == 0}
    return report(cfg, settings, saved) if saved else {}


def sweep(cfg):
    """Evaluate at each value of one setting, each in a folder of its own. Writes sweep.json and its figure."""
    name, _, values = cfg.sweep.partition("=")
    if name not in SWEPT:
        fail(f"--sweep {cfg.sweep}: give NAME=A,B or NAME=A|B, where NAME is one of {', '.join(SWEPT)}")
    values, kind = values.split("|" if "|" in values else ","), type(getattr(Config, name))
    with bad_input():
        configs = [replace(cfg, out=f"{cfg.out}/{i}", **{name: kind(x)}) for i, x in enumerate(values)]
    for one in configs:
        check_bounds(one)
    model = open_model(max(configs, key=lambda one: one.max_new_tokens))  # an engine reserves room for the longest
    benches = {}  # {benchmark: {value: summary}}
    for value, one in zip(values, configs):
        for bench, r in evaluate(one, model).items():
            benches.setdefault(bench, {})[value] = r
    for bench, results in benches.items():
        table([{f"{bench}: {name}": value} | {key: r[key] for key in SHOWN} for value, r in results.items()])
    save(cfg.out, "sweep", dict(setting=name, benchmarks=benches))


# ========================================================================================================= comparing
def contrast(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> dict:
    """B against the baseline A on the same problems, from columns [P, n]; n may differ.

    gap: A's pass@n minus B's accuracy, Delta_SE of arXiv 2504.13837."""
    right_a, right_b = a["correct"].astype(float), b["correct"].astype(float)
    n = min(right_a.shape[1], right_b.shape[1])
    ks = [2**i for i in range(n.bit_length())]
    difference = right_b.mean(1) - right_a.mean(1)
    curve_a, curve_b = (pass_at_k(right.sum(1), right.shape[1])[:, :n] for right in (right_a, right_b))
    python_a, python_b = (count("python", saved["response"]) > 0 for saved in (a, b))
    return dict(difference=with_interval(difference, least=-1), p=permutation_p(difference), ks=ks,
                delta_at=with_interval((curve_b - curve_a)[:, np.array(ks) - 1], least=-1),
                solvable=solvable(right_a.sum(1), right_b.sum(1)), crossing=crossing(curve_a.mean(0), curve_b.mean(0)),
                transitions=transitions(python_a, right_a, python_b, right_b),
                gap=float(curve_a[:, -1].mean() - right_b.mean()))


def perplexities(model, settings: dict, saved: dict[str, np.ndarray]) -> list[float]:
    """exp(-mean logprob) of up to 16 saved responses to each problem, end tokens included. model: of open_model()."""
    policy, _, tokenizer, _ = model
    prompts, responses = [], []
    for row in to_rows({name: column[:, :16] for name, column in saved.items()}):
        ids = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        end = [tokenizer.eos_token_id if row["end"] is None else row["end"]]
        if row["finish"] != "length" and ids[-1:] != end:  # the text has an end token that is no special one
            ids = ids + end
        prompts.append(encode(row["problem"], settings["template"], tokenizer, row["after"], row["turns"])["prompt"])
        responses.append(np.array(ids))
    batch = Batch(prompts, responses)
    logprobs = np.add.reduceat(policy.logprobs(batch)[0].numpy(), batch.starts)  # of whole responses
    return np.exp(-logprobs / (batch.ends - batch.starts)).tolist()


def compare(cfg):
    """Every saved evaluation against the first, on the benchmarks that all have. Writes compare.json and its figure."""
    first, *others = cfg.compare
    saved, results = {}, {}  # {path: {benchmark: columns}}, {benchmark: numbers}
    for path in cfg.compare:
        files = sorted(Path(path).glob("*.jsonl")) if Path(path).is_dir() else [Path(path)]
        saved[path] = {file.stem: read(file) for file in files}
    shared = [name for name in saved[first] if all(name in benches for benches in saved.values())]
    if not shared or not others:
        fail(f"--compare {' '.join(cfg.compare)}: give two or more evaluations with a BENCHMARK.jsonl of the same name")
    with bad_input():
        settings = json.loads(Path(first, "summary.json").read_text())["settings"] if cfg.perplexity else {}
    model = open_model(replace(cfg, model=settings["model"])) if settings else None
    if model:
        model[1].sleep()  # only the policy is needed
    for name in shared:
        columns = {path: benches[name] for path, benches in saved.items()}
        models = {path: summarise(x, name) for path, x in columns.items()}
        problems = {path: list(zip(x["problem"][:, 0], x["gold"][:, 0])) for path, x in columns.items()}
        pairs = {}
        for path in others:
            if problems[path] != problems[first]:
                fail(f"{name}: {first} and {path} hold other problems; evaluate both on the same file and --limit")
            pairs[path] = contrast(columns[first], columns[path])
        for pair, p in zip(pairs.values(), holm([pair["p"] for pair in pairs.values()])):
            pair["p_holm"] = p
        results[name] = dict(models=models, pairs=pairs)
        if model:
            results[name]["perplexity"] = {path: perplexities(model, settings, x) for path, x in columns.items()}
        table([{f"{name}: against {first}": path, "average": models[path]["avg"], "difference": pair["difference"],
                "p": f"{pair['p']:.4f}", "p, Holm": f"{pair['p_holm']:.4f}", "crossing at k": pair["crossing"],
                f"delta@{pair['ks'][-1]}": pair["delta_at"][-1], "efficiency gap": pair["gap"],
                **{x: len(ids) for x, ids in pair["solvable"].items()}} for path, pair in pairs.items()])
        for path, pair in pairs.items():
            table([{f"{path}: strategies": cell} | numbers for cell, numbers in pair["transitions"].items()])
    save(cfg.out, "compare", dict(baseline=first, benchmarks=results))


def main():
    cfg = parse(Config, __doc__)
    run = Path(cfg.model).parent / "config.json"  # of the training run that the model comes from, if there is one
    suits = json.loads(run.read_text()) if run.is_file() else model_defaults(common.Config, cfg.model)
    name = "-".join(Path(cfg.model).parts[-2 if run.is_file() else -1 :])
    mode, parts = evaluate, ["eval", name]
    if cfg.rescore:
        mode, parts = rescore, ["rescore", Path(cfg.rescore).name.removesuffix(".jsonl")]
    elif cfg.compare:
        mode, parts = compare, ["compare", *[Path(path).name.removesuffix(".jsonl") for path in cfg.compare]]
    elif cfg.sweep:
        mode, parts = sweep, ["sweep", name, cfg.sweep.split("=")[0]]
    # Parse again, with defaults that suit the model. Explicit flags are behind them and win.
    known = [f"--{x}={suits[x]}" for x in "template system max_prompt_tokens max_new_tokens".split() if x in suits]
    cfg = parse(Config, __doc__, [*known, f"--out=out/{'-'.join(parts)}", *sys.argv[1:]])
    cfg.bench = cfg.bench or (suits.get("eval_data") or "math500").removesuffix("-test")
    if os.environ.get("RANK", "0") == "0":  # before anything is loaded
        with bad_input(f"--out {cfg.out}: "):
            try_folder(Path(cfg.out))
    try:
        mode(cfg)
    except KeyboardInterrupt:
        say("interrupted; what is complete was saved, and the same command continues")
        raise SystemExit(leave(130) or 130) from None  # leave(): other ranks may wait in a collective


if __name__ == "__main__":
    main()
